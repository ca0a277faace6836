"""The memory that DuckDB takes. It keeps what it has read until all that it may take is full; here it keeps little, and takes more where a
single row needs it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb
from duckdb import DuckDBPyConnection

from counterplay.core.errors import StoreError

KEPT_BYTES = 64_000_000
_LOOKED_AT_S = 0.05
_USED = "SELECT sum(memory_usage_bytes) FROM duckdb_memory()"


class Room:
    """Keeps at most `KEPT_BYTES` between pieces of work, where DuckDB's memory is bounded by `memory`; None leaves it to DuckDB."""

    def __init__(self, connection: DuckDBPyConnection, memory: str | None) -> None:
        self._connection, self._memory = connection, memory
        self._guard, self._working, self._due_s = threading.Lock(), 0, 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """A piece of work that may need much. Raises StoreError where there is not enough for it."""
        with self._guard:
            self._working += 1
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            raise self.short(error) from error
        finally:
            with self._guard:
                self._working -= 1
                if self._working == 0 and self._memory is not None and time.monotonic() >= self._due_s:
                    self._let_go()
                    self._due_s = time.monotonic() + _LOOKED_AT_S

    def short(self, error: duckdb.Error) -> StoreError:
        got = f"the store needs more memory than {self._memory or 'there is'}: {str(error).splitlines()[0]}"
        return StoreError(got, do="Give it more ([engine] memory in a job, Store.open(memory=)), and run again: what was stored stays.")

    def _let_go(self) -> None:
        """A bound is reached by letting go at once of what is kept; work under way at that moment might fail for it, so there is none."""
        with suppress(duckdb.Error):  # closed meanwhile, or all of it is in use
            cursor = self._connection.cursor()
            if cursor.execute(_USED).fetchall()[0][0] <= KEPT_BYTES:
                return
            try:
                cursor.execute(f"SET memory_limit = '{KEPT_BYTES}B'")
            finally:
                cursor.execute(f"SET memory_limit = '{self._memory}'")
