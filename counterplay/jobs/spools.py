"""A worker's own side file: lines as in the store's `.journal`, written before an answer is used, folded into the store by its driver.

A file is held with `flock` while it is written, so whoever finds one knows whether its writer lives. Now and then the next one is begun,
and the driver folds those that are complete.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from counterplay.core.errors import StoreError
from counterplay.core.store.journal_lines import line_of

_PART_BYTES = 16 << 20


class Spool:
    """Files `BASE.0`, `BASE.1`, ... of one process."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.complete: list[str] = []
        self._file: int | None = None
        self._number, self._bytes = 0, 0

    def append(self, scope: str, key: str, kind: str, answer: str) -> None:
        """Give one answer to the operating system: it outlives this process. Raises StoreError where it can't be written."""
        line = line_of((scope, key, kind, answer, time.time_ns() // 1000))
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
                fcntl.flock(self._file, fcntl.LOCK_EX)
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            self.cut()  # a line that failed half-way is the last of its file
            raise StoreError(
                f"journal {self._path} can't be written: {error.strerror}", do="Free space; nothing answered is lost."
            ) from error
        self._bytes += len(line)
        if self._bytes >= _PART_BYTES:
            self.cut()

    def cut(self) -> None:
        """The file as it is is complete; what comes goes into the next."""
        if self._file is not None:
            self.complete.append(self._path)
            os.close(self._file)
        self._file, self._number, self._bytes = None, self._number + 1, 0

    def taken(self) -> tuple[str, ...]:
        """The files that were completed since this was asked last."""
        complete, self.complete = tuple(self.complete), []
        return complete

    @property
    def _path(self) -> str:
        return f"{self.base}.{self._number}"


class SpooledJournal:
    """One scope, of which `known` was answered before: a `core.journal.Journal`. `on_put` is called for every answer."""

    def __init__(self, spool: Spool, scope: str, known: Mapping[str, str], on_put: Callable[[], None] = lambda: None) -> None:
        self._spool, self._scope, self._known, self._on_put = spool, scope, dict(known), on_put

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def put(self, key: str, kind: str, answer: str) -> None:
        self._spool.append(self._scope, key, kind, answer)
        self._known[key] = answer
        self._on_put()


def spools_of(base: str) -> list[str]:
    """The files that a process with this `base` has left, in their order."""
    file = Path(base)
    found = [path for path in file.parent.glob(f"{_escaped(file.name)}.*") if path.suffix[1:].isdecimal()]
    return [str(path) for path in sorted(found, key=lambda path: int(path.suffix[1:]))]


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
