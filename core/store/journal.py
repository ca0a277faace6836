"""The persistent journal: an append-only file beside the store, folded into it.

`put` hands one JSON line to the operating system before it returns, so an answered call outlives `kill -9` of the process; a
DuckDB commit per answer would cost a hundred times more. `fold` moves the lines into the `journal` table: on close, on the
next open for writing, and whenever much is pending. Other processes may leave files of the same lines (spools), which are taken in:
of two answers to one question the later given counts. See docs/decisions/0002-journal.md.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from duckdb import DuckDBPyConnection

from counterplay.core.errors import StoreError
from counterplay.core.records import Rejected
from counterplay.core.store import journal_table
from counterplay.core.store.journal_lines import Entry, entry_of, leftover_spools, line_of, lines_of, unlocked
from counterplay.core.store.journal_table import Answer
from counterplay.core.store.tables import transaction
from counterplay.core.store.writing import write_rejected

_FOLD_BYTES = 32 << 20
_PAGE = 1024
_PAGES = 16
_INDEXED = 200_000
_RAW = 2000


class JournalFile:
    """All scopes of one store. Safe to call from threads."""

    def __init__(self, connection: DuckDBPyConnection, path: str | None, *, read_only: bool) -> None:
        self._connection, self._path, self._read_only = connection, path, read_only
        self._lock = threading.RLock()
        self._pending: dict[str, dict[str, Entry]] = {}
        self._pending_bytes = 0
        self._folded: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._pages: OrderedDict[int, dict[int, str]] = OrderedDict()
        self._file: int | None = None
        self._torn = False
        self._read_side_file()
        self._read_spools()

    def get(self, scope: str, key: str) -> str | None:
        with self._lock:
            entry = self._pending.get(scope, {}).get(key)
            if entry is not None:
                return entry[3]
            number = self._numbers(scope).get(key)
            return None if number is None else self._answer(number)

    def put(self, scope: str, key: str, kind: str, answer: str) -> None:
        """Raises StoreError where the store is read-only or the line can't be written; then nothing is recorded."""
        if self._read_only:
            raise StoreError("got a journal entry for a store that is open read-only", "one open for writing")
        with self._lock:
            self._take((scope, key, kind, answer, time.time_ns() // 1000))

    def entries(self, scopes: Collection[str]) -> Iterator[Answer]:
        """Everything answered in these scopes: scope, key, kind, answer."""
        with self._lock:
            pending = {scope: dict(self._pending[scope]) for scope in scopes if scope in self._pending}
            cursor = self._connection.cursor()
        for answer in journal_table.answers(cursor, scopes):
            if answer[1] not in pending.get(answer[0], ()):
                yield answer
        for known in pending.values():
            yield from (entry[:4] for entry in known.values())

    def waiting(self) -> list[Entry]:
        """Entries that are not in the table yet."""
        with self._lock:
            return [entry for known in self._pending.values() for entry in known.values()]

    def take_in(self, path: str) -> int:
        """The whole lines of another process's file; how many of them said something new. Those of a line that is torn wait."""
        new = 0
        with self._lock:
            for batch in lines_of(path):
                new += self._take_batch(path, batch)
        return new

    def __len__(self) -> int:
        with self._lock:
            folded = journal_table.count(self._connection.cursor())
            return folded + sum(key not in self._numbers(scope) for scope, known in self._pending.items() for key in known)

    def fold(self) -> None:
        """Move pending entries into the table. The side file is emptied only after the commit; a crash between repeats the fold."""
        with self._lock:
            if self._read_only or self._path is None:
                return
            if self._pending:
                cursor = self._connection.cursor()
                with transaction(cursor):
                    journal_table.write(cursor, [entry for known in self._pending.values() for entry in known.values()])
            self._pending, self._pending_bytes = {}, 0
            self._folded.clear()
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

    def _take(self, *entries: Entry) -> None:
        """Entries that count from now on; on disk before they do."""
        if self._path is not None and not self._read_only:
            self._append(b"".join(map(line_of, entries)))
        for entry in entries:
            self._pending.setdefault(entry[0], {})[entry[1]] = entry
        if self._pending_bytes > _FOLD_BYTES:
            self.fold()

    def _append(self, lines: bytes) -> None:
        if self._file is None:
            self._file = os.open(str(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        data = b"\n" + lines if self._torn else lines  # a line that failed half-way must not swallow this one
        try:
            while data:
                self._torn = True
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise StoreError(
                f"journal {self._path} can't be written: {error.strerror}", do="Free space; nothing answered is lost."
            ) from error
        self._torn = False
        self._pending_bytes += len(lines)

    def _take_batch(self, path: str, batch: Sequence[tuple[int, int, bytes]]) -> int:
        entries = self._read(path, batch)
        known = journal_table.moments(self._connection.cursor(), entries)
        for scope, key in entries:
            if (entry := self._pending.get(scope, {}).get(key)) is not None:
                known[scope, key] = entry[4]
        fresh = [entry for place, entry in entries.items() if known.get(place, -1) < entry[4]]
        if fresh:
            self._take(*fresh)
        return len(fresh)

    def _read(self, path: str, batch: Sequence[tuple[int, int, bytes]]) -> dict[tuple[str, str], Entry]:
        """The last entry of each question; damaged lines go to the quarantine."""
        entries: dict[tuple[str, str], Entry] = {}
        damaged = []
        for number, offset, line in batch:
            entry = entry_of(line)
            if entry is not None:
                entries[entry[0], entry[1]] = entry
            elif line.strip():
                raw = line[:_RAW].decode("utf-8", "replace")
                damaged.append(Rejected(path, "a journal line that can't be read", number, offset, raw))
        if not self._read_only:
            write_rejected(self._connection.cursor(), damaged)
        return entries

    def _read_side_file(self) -> None:
        """Take in what an interrupted process left, then fold it. A torn last line was never acknowledged and is dropped."""
        if self._path is None or not Path(self._path).exists():
            return
        for batch in lines_of(self._path):
            for entry in self._read(self._path, batch).values():
                self._pending.setdefault(entry[0], {})[entry[1]] = entry
        self.fold()

    def _read_spools(self) -> None:
        """The same of files that other processes left; one that is still being written is waited for."""
        if self._path is None:
            return
        for spool in leftover_spools(self._path):
            if self._read_only:
                self.take_in(spool)
                continue
            with unlocked(spool):
                self.take_in(spool)
                Path(spool).unlink()

    def _numbers(self, scope: str) -> dict[str, int]:
        found = self._folded.get(scope)
        if found is None:
            found = self._folded[scope] = journal_table.numbers(self._connection.cursor(), scope)
            while len(self._folded) > 1 and sum(map(len, self._folded.values())) > _INDEXED:
                self._folded.popitem(last=False)
        else:
            self._folded.move_to_end(scope)
        return found

    def _answer(self, number: int) -> str | None:
        """One folded answer. A search that resumes asks in the order it once answered, so neighbours are read along."""
        page = number // _PAGE
        if page not in self._pages:
            self._pages[page] = journal_table.answers_between(self._connection.cursor(), page * _PAGE, page * _PAGE + _PAGE - 1)
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
