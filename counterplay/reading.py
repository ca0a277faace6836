"""Logs as a stream of traces: read in processes of their own, redacted at the door, given out in one order.

Files that belong together (a connector that joins spans over files) are one unit; units are read ahead by a few processes, a large
one by several at once where its connector can read it in parts. All is given out in the order of one reader, so that what the store
holds does not depend on how many there were. A process sends what it read in batches and waits while nobody takes them: memory holds
what one unit needs, never the corpus.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from counterplay.connectors.base import Unit, get, read_unit, units
from counterplay.connectors.parts import PartConnector
from counterplay.core.records import Rejected
from counterplay.door import Door, Item, Through, rules_for
from counterplay.object_paths import is_streamed
from counterplay.readers import Divided, Process, blocking

__all__ = ["Door", "Item", "Reading", "Through", "blocking", "rules_for"]

_LARGE_BYTES = 16 << 20


@dataclass
class Reading:
    """The items of some files and folders, in order. `redacted` counts what was replaced, by kind, as far as it was read.

    `planned` are the units to read and what goes before them, None: what is found in `paths`.
    """

    paths: Sequence[Path]
    format: str = "auto"
    door: Door = field(default_factory=Door)
    processes: int | None = None
    redacted: Counter[str] = field(default_factory=Counter)
    planned: tuple[Sequence[Unit], Sequence[Rejected]] | None = None

    def __iter__(self) -> Iterator[Item]:
        """Raises what reading raises (see `units`), in its place in the order."""
        ahead, spare = deque[Process | Divided](), list[Process]()
        try:
            spare += (Process() for _ in range(self._foreseen()))  # they start while it is found out what there is to read
            planned, rejected = units(self.paths, self.format) if self.planned is None else self.planned
            yield from self._through(rejected)
            waiting = deque((unit, self._is_large(unit)) for unit in planned)
            while waiting:
                self._start(waiting, ahead, spare)
                unit, large = waiting.popleft()
                if not large:
                    yield from self._through(blocking(read_unit(unit)))
                    continue
                yield from ahead[0].items()
                self.redacted += ahead.popleft().redacted
        finally:
            for process in (*ahead, *spare):
                process.stop()

    def _through(self, items: Iterable[Item]) -> Iterator[Item]:
        through = Through(self.door)
        yield from map(through, items)
        self.redacted += through.counts

    def _is_large(self, unit: Unit) -> bool:
        """Whether a unit is worth a process of its own, which costs half a second to start."""
        if self.processes == 0:
            return False
        return _size(unit.files) > (_LARGE_BYTES if self.processes is None else 0)

    def _foreseen(self) -> int:
        """How many processes will be at work at once if all files are of one format; none where that is not worth it."""
        return self._most() if self.processes != 0 and _size(self.paths) > _LARGE_BYTES else 0

    def _most(self) -> int:
        return self.processes or min(4, os.cpu_count() or 2)

    def _start(self, waiting: Iterable[tuple[Unit, bool]], ahead: deque[Process | Divided], spare: list[Process]) -> None:
        """Let the next large units be read, as many as may be at work at once. Those at work are the first of them."""
        many = self.processes or max(1, min(4, (os.cpu_count() or 2) - 1))
        large = [unit for unit, is_large in waiting if is_large]
        parts = self._most() // max(1, min(len(large), many))
        ahead.extend(self._reader(unit, parts, spare) for unit in large[len(ahead) : many])

    def _reader(self, unit: Unit, parts: int, spare: list[Process]) -> Process | Divided:
        connector = get(unit.connector)
        local = not any(map(is_streamed, unit.files))  # each part would fetch all of an object
        large = parts > 1 and local and _size(unit.files) > _LARGE_BYTES
        if large and isinstance(connector, PartConnector) and connector.divides(unit.files):
            return Divided(unit, self.door, [spare.pop() if spare else Process() for _ in range(parts)])
        process = spare.pop() if spare else Process()
        process.begin(unit, self.door)
        return process


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())
