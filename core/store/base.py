"""The open file that every part of `Store` works on: opening, closing, one writer, and what all parts look things up by."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Self

from duckdb import DuckDBPyConnection

from counterplay.core.errors import StoreError, UserError
from counterplay.core.store import opening
from counterplay.core.store.journal import JournalFile
from counterplay.core.store.room import Room
from counterplay.core.store.tables import records, shelved, transaction

_CLOSE = 3
_NEAR = 4096


class StoreFile:
    """What the parts of `Store` have in common. Every method may be called from any thread."""

    _closed = False

    def __init__(self, connection: DuckDBPyConnection, path: str, *, read_only: bool, memory: str | None = None) -> None:
        self.path, self.read_only = path, read_only
        self._connection, self._write_lock, self._writing = connection, threading.RLock(), False
        self._room = Room(connection, memory)
        self._last: dict[str, tuple[int, int]] = {}
        side_file = None if path == opening.MEMORY else f"{path}.journal"
        self._journal = JournalFile(connection, side_file, read_only=read_only)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False, memory: str | None = None) -> Self:
        """Open the store at `path`, or create it; `:memory:` is a store without a file. An older schema is migrated.

        `memory` bounds what DuckDB takes ("1GB"; what does not fit is put in a folder beside the store, gone when it is closed), and its
        threads, of which each needs 32 MB; between pieces of work it keeps no more than 64 MB. None is DuckDB's own bound, four fifths of
        the machine's memory. Raises StoreError where another process has the store, or it is damaged, newer, or none; UserError where the
        path can't be one, or `memory` is no size.
        """
        name = os.fspath(path)
        opening.claim(name, read_only=read_only)
        try:
            connection = opening.connect(name, read_only=read_only, memory=memory)
            try:
                return cls(connection, name, read_only=read_only, memory=memory)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            opening.release(name, read_only=read_only)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Fold the journal in and let go of the file. Closing twice is harmless."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._journal.close()
            finally:
                self._connection.close()
                opening.release(self.path, read_only=self.read_only)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything that is written in the block is stored as one, or not at all; other threads wait to write.

        What the store is asked in the block is answered as if nothing of it had been written yet; the journal is not part of it.
        """
        self._check_writable()
        with self._write_lock:
            if self._writing:
                yield
                return
            self._writing = True
            try:
                with self._room.working(), transaction(self._connection):
                    yield
            finally:
                self._writing = False

    def _records(self, query: str, parameters: Iterable[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        with self._room.working():
            return records(self._connection.cursor(), query, parameters)

    def _numbers(self, table: str, ids: list[str]) -> list[int]:
        """The row numbers of these traces or searches. Raises UserError with the closest ids where one is not held.

        What is asked for one after another mostly lies close together: it is looked for near what was found last before all ids are.
        """
        last = self._last.get(table)
        found = {} if last is None else self._found(table, ids, f"number BETWEEN {last[0] - _NEAR:d} AND {last[1] + _NEAR:d}")
        rest = [name for name in ids if name not in found]
        if rest:
            found |= self._found(table, rest, "true")
        missing = next((name for name in rest if name not in found), None)
        if missing is not None:
            raise self._unknown(table, missing)
        numbers = [found[name] for name in ids]
        if numbers:
            self._last[table] = (min(numbers), max(numbers))
        return numbers

    def _found(self, table: str, ids: list[str], where: str) -> dict[str, int]:
        where += " AND current" if table == "trace" else ""
        query = f"SELECT id, number FROM {table} WHERE {where} AND id IN (SELECT unnest(?))"  # noqa: S608  names of our own
        return {row["id"]: row["number"] for row in self._records(query, [[shelved(name) for name in ids]])}

    def _unknown(self, table: str, name: str) -> UserError:
        ids = [row["id"] for row in self._records(f"SELECT DISTINCT id FROM {table} ORDER BY id LIMIT 100000")]  # noqa: S608
        close = get_close_matches(name, ids, _CLOSE, 0.5) or ids[:_CLOSE]
        wanted = f"one of the {len(ids)} held" if ids else f"a store that holds one; this one has no {table}"
        return UserError(f"no {table} {name!r} in {self.path}", wanted, f"Close: {', '.join(close)}." if close else "Ingest logs first.")

    def _check_writable(self) -> None:
        if self.read_only:
            raise StoreError(f"store {self.path} is open read-only", "one open for writing", "Open it without read_only.")
