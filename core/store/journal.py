"""The persistent journal: an append-only file beside the store, folded into it.

`put` hands one JSON line to the operating system before it returns, so an answered call outlives `kill -9` of the process; a
DuckDB commit per answer would cost a hundred times more. `fold` moves the lines into the `journal` table: on close, on the
next open for writing, and whenever much is pending. See docs/decisions/0002-journal.md.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from duckdb import DuckDBPyConnection

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import StoreError
from counterplay.core.records import Rejected
from counterplay.core.store.tables import Incoming, records, scalar, shelved, transaction, unshelved
from counterplay.core.store.writing import next_number, write_rejected

_FOLD_BYTES = 64 << 20
_PAGE = 1024
_PAGES = 16

Entry = tuple[str, str, str, str, int]
"""scope, key, kind, answer, at_us: one line of the side file."""


class JournalFile:
    """All scopes of one store. Safe to call from threads."""

    def __init__(self, connection: DuckDBPyConnection, path: str | None, *, read_only: bool) -> None:
        self._connection, self._path, self._read_only = connection, path, read_only
        self._lock = threading.RLock()
        self._pending: dict[tuple[str, str], Entry] = {}
        self._pending_bytes = 0
        self._folded: dict[str, dict[str, int]] = {}
        self._pages: OrderedDict[int, dict[int, str]] = OrderedDict()
        self._file: int | None = None
        self._torn = False
        self._read_side_file()

    def get(self, scope: str, key: str) -> str | None:
        with self._lock:
            entry = self._pending.get((scope, key))
            if entry is not None:
                return entry[3]
            number = self._numbers(scope).get(key)
            return None if number is None else self._answer(number)

    def put(self, scope: str, key: str, kind: str, answer: str) -> None:
        """Raises StoreError where the store is read-only or the line can't be written; then nothing is recorded."""
        if self._read_only:
            raise StoreError("got a journal entry for a store that is open read-only", "one open for writing")
        entry = (scope, key, kind, answer, time.time_ns() // 1000)
        with self._lock:
            if self._path is not None:
                self._append(_line(entry))
            self._pending[scope, key] = entry
            if self._pending_bytes > _FOLD_BYTES:
                self.fold()

    def __len__(self) -> int:
        with self._lock:
            folded = int(scalar(self._connection.cursor(), "SELECT count(*) FROM journal"))
            return folded + sum(key not in self._numbers(scope) for scope, key in self._pending)

    def fold(self) -> None:
        """Move pending entries into the table. The side file is emptied only after the commit; a crash between repeats the fold."""
        with self._lock:
            if self._read_only or self._path is None:
                return
            if self._pending:
                self._commit(list(self._pending.values()))
            self._pending, self._folded, self._pending_bytes = {}, {}, 0
            self._pages.clear()
            if self._file is not None:
                os.ftruncate(self._file, 0)
            elif Path(self._path).exists():
                os.truncate(self._path, 0)

    def close(self) -> None:
        with self._lock:
            try:
                self.fold()
            finally:
                if self._file is not None:
                    os.close(self._file)
                    self._file = None
            if self._path is not None and not self._read_only:
                Path(self._path).unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._file = os.open(str(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        data = b"\n" + line if self._torn else line  # a line that failed half-way must not swallow this one
        try:
            while data:
                self._torn = True
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise StoreError(
                f"journal {self._path} can't be written: {error.strerror}", do="Free space; nothing answered is lost."
            ) from error
        self._torn = False
        self._pending_bytes += len(line)

    def _commit(self, entries: list[Entry]) -> None:
        cursor = self._connection.cursor()
        with transaction(cursor):
            first = next_number(cursor, "journal")
            columns = dict(zip(("scope", "key", "kind", "answer", "at_us"), zip(*entries, strict=True), strict=True))
            with Incoming(cursor, {"number": range(first, first + len(entries)), **columns}) as incoming:
                cursor.execute(f"DELETE FROM journal j USING {incoming} i WHERE j.key = i.key AND j.scope = i.scope")  # noqa: S608
                cursor.execute(f"INSERT INTO journal BY NAME SELECT * FROM {incoming}")  # noqa: S608

    def _read_side_file(self) -> None:
        """Take in what an interrupted process left, then fold it. A torn last line was never acknowledged and is dropped."""
        if self._path is None or not Path(self._path).exists():
            return
        damaged = []
        for number, offset, line in self._lines(self._path):
            entry = _entry(line)
            if entry is not None:
                self._pending[entry[0], entry[1]] = entry
            elif line.endswith(b"\n") and line.strip():
                raw = line[:2000].decode("utf-8", "replace")
                damaged.append(Rejected(str(self._path), "a journal line that can't be read", number, offset, raw))
        if not self._read_only:
            write_rejected(self._connection, damaged)
            self.fold()

    @staticmethod
    def _lines(path: str) -> Iterator[tuple[int, int, bytes]]:
        """Number, byte offset and bytes of each line."""
        offset = 0
        try:
            with Path(path).open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    yield number, offset, line
                    offset += len(line)
        except OSError as error:
            raise StoreError(
                f"journal {path} can't be read: {error.strerror}", "the file beside the store", "Put it right first."
            ) from error

    def _numbers(self, scope: str) -> dict[str, int]:
        if scope not in self._folded:
            cursor = self._connection.cursor()
            rows = cursor.execute("SELECT key, number FROM journal WHERE scope = ?", [shelved(scope)]).fetchall()
            self._folded[scope] = {unshelved(key): number for key, number in rows}
        return self._folded[scope]

    def _answer(self, number: int) -> str | None:
        """One folded answer. A search that resumes asks in the order it once answered, so neighbours are read along."""
        page = number // _PAGE
        if page not in self._pages:
            query = "SELECT number, answer FROM journal WHERE number BETWEEN ? AND ?"
            rows = records(self._connection.cursor(), query, [page * _PAGE, page * _PAGE + _PAGE - 1])
            self._pages[page] = {row["number"]: row["answer"] for row in rows}
            if len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        return self._pages[page].get(number)


class StoreJournal:
    """One scope of a store's journal: a `core.journal.Journal`."""

    def __init__(self, file: JournalFile, scope: str) -> None:
        self._file, self._scope = file, scope

    def get(self, key: str) -> str | None:
        return self._file.get(self._scope, key)

    def put(self, key: str, kind: str, answer: str) -> None:
        self._file.put(self._scope, key, kind, answer)

    def __len__(self) -> int:
        return len(self._file)


def _line(entry: Entry) -> bytes:
    try:
        return orjson.dumps(entry) + b"\n"
    except orjson.JSONEncodeError:  # a lone surrogate
        return dumps(entry).encode() + b"\n"


def _entry(line: bytes) -> Entry | None:
    """The entry of a whole line; None where the line is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        fields: Any = loads(line.decode())
    except ValueError:
        return None
    match fields:
        case [str(scope), str(key), str(kind), str(answer), int(at_us)]:
            return scope, key, kind, answer, at_us
        case _:
            return None
