"""LangGraph's checkpoints in SQLite databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.checkpoints.rows import SIGNALS, Checkpoint, Write, checkpoint_of
from counterplay.connectors.checkpoints.serde import MAX_BLOB_BYTES, decode
from counterplay.connectors.lines import open_bytes
from counterplay.connectors.sqlite_files import MAGIC, connected
from counterplay.core.errors import SourceError

_NAMES = {"checkpoint_id": "thread_ts", "parent_checkpoint_id": "parent_ts"}  # since July 2024, and before


class SqliteRows:
    """The rows of `SqliteSaver`, of Python or JavaScript and of any age."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._columns = self._columns_of("checkpoints")
        self._write_columns = self._columns_of("writes")
        if not {"thread_id", "checkpoint"} <= self._columns:
            raise SourceError(f"got {path}, an SQLite database without LangGraph's checkpoints table", "a LangGraph checkpoint database")

    def threads(self) -> Iterator[str]:
        count = 0
        for count, (thread,) in enumerate(self._rows("SELECT DISTINCT thread_id FROM checkpoints ORDER BY thread_id"), 1):  # noqa: B007
            yield str(thread)
        if not count:  # a damaged page can pass for an empty table
            for (found,) in self._rows("PRAGMA quick_check(1)"):
                if found != "ok":
                    raise SourceError(f"got {self._path}, a damaged SQLite database ({found})", "a readable one")

    def checkpoints(self, thread: str) -> Iterator[Checkpoint]:
        namespace, own, parent, kind, metadata = map(
            self._name, ("checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "type", "metadata")
        )
        query = (
            f"SELECT {namespace}, {own}, {parent}, {kind}, CASE WHEN length(checkpoint) <= ? THEN checkpoint END, length(checkpoint), "  # noqa: S608
            f"{metadata} FROM checkpoints WHERE thread_id = ? ORDER BY {namespace}, {own}"
        )
        for ns, name, before, stored, blob, size, told in self._rows(query, MAX_BLOB_BYTES, thread):
            yield _checkpoint((ns, name, before), stored, blob, size, told)

    def writes(self, thread: str, namespace: str, checkpoint: str) -> list[Write]:
        if "channel" not in self._write_columns:
            return []
        at = "checkpoint_ns = ? AND checkpoint_id = ?"
        return list(self._writes(at, thread, namespace, checkpoint))

    def signals(self, thread: str) -> list[Write]:
        if "channel" not in self._write_columns:
            return []
        return list(self._writes(f"channel IN ({', '.join('?' * len(SIGNALS))})", thread, *SIGNALS))

    def _writes(self, condition: str, *values: str) -> Iterator[Write]:
        order = "task_path, task_id, idx" if "task_path" in self._write_columns else "task_id, idx"
        kind = "type" if "type" in self._write_columns else "NULL"
        query = (
            f"SELECT checkpoint_ns, checkpoint_id, channel, {kind}, CASE WHEN length(value) <= {MAX_BLOB_BYTES} THEN value END "  # noqa: S608
            f"FROM writes WHERE thread_id = ? AND {condition} ORDER BY checkpoint_ns, checkpoint_id, {order}"
        )
        for namespace, checkpoint, channel, stored, blob in self._rows(query, *values):
            yield Write(str(namespace or ""), str(checkpoint), str(channel), _word(stored), _bytes(blob))

    def _name(self, column: str) -> str:
        """The column under the name it has here; a constant where an old database lacks it."""
        older = _NAMES.get(column)
        return column if column in self._columns else older if older in self._columns else "''" if column == "checkpoint_ns" else "NULL"

    def _columns_of(self, table: str) -> set[str]:
        """Of a plain table: a view or a virtual table would run what the file says."""
        found = list(self._rows("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", table))
        if not found or str(found[0][0]).lstrip()[:14].upper().startswith("CREATE VIRTUAL"):
            return set()
        return {str(row[1]) for row in self._rows(f"PRAGMA table_info({table})")}

    def _rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(query, values)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise SourceError(f"got {self._path}, a damaged or locked SQLite database ({error})", "a readable one") from error


@contextmanager
def opened(path: Path) -> Iterator[SqliteRows]:
    """The rows of a file, plain or gzipped. Raises SourceError where it is no LangGraph database or can't be opened."""
    with open_bytes(path) as stream:
        try:
            begins = stream.read(len(MAGIC)) == MAGIC
        except OSError as error:
            raise SourceError(f"got {path}, which is cut short or damaged ({error})", "an SQLite database") from error
        if not begins:
            raise SourceError(f"got {path}, which is no SQLite database", "a LangGraph checkpoint database")
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(closing(connected(path, stack)))
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise SourceError(f"got {path}, which can't be opened ({error})", "an SQLite database") from error
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        yield SqliteRows(connection, path)


def _checkpoint(ids: tuple[Any, Any, Any], kind: Any, blob: Any, size: Any, metadata: Any) -> Checkpoint:
    if blob is None and size:
        return checkpoint_of(*ids, f"a checkpoint of {size} bytes, wanted at most {MAX_BLOB_BYTES}", metadata)
    try:
        return checkpoint_of(*ids, facts.record(decode(_word(kind), _bytes(blob))) or "a checkpoint is no object", metadata)
    except (ValueError, RecursionError) as error:
        return checkpoint_of(*ids, str(error), metadata)


def _word(value: Any) -> str | None:
    return None if value is None else str(value)


def _bytes(value: Any) -> bytes | None:
    return value.encode(errors="replace") if isinstance(value, str) else value if isinstance(value, bytes) else None
