"""One log read by several processes at once, each of which takes the records of runs that are its own.

Which records a part takes is guessed from their bytes. Nothing rests on the guess: every part tells by which names its records may hang
together with others, and only where no two parts tell the same name is what they read, put in order, what one reader would have read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable
from zlib import crc32

from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected

Place: TypeAlias = tuple[int, ...]
"""Where an item stands among those of all parts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of `count` parts of a log."""

    index: int
    count: int

    def takes(self, key: bytes) -> bool:
        """Whether a record is of this part; equal keys go to one part."""
        return crc32(key) % self.count == self.index


@dataclass(frozen=True, slots=True)
class Names:
    """Names told since the last ones. With the `last` all records are read."""

    names: Sequence[str | bytes]
    last: bool = False


class Undivided(Exception):  # noqa: N818  a finding, no error of anybody
    """The log can't be read in parts."""


@runtime_checkable
class PartConnector(Protocol):
    """A format whose files can be read in parts. It is run without the cyclic garbage collector: what it drops must be free of cycles."""

    def divides(self, paths: Sequence[Path]) -> bool:
        """Whether it pays to read files that belong together in parts."""
        ...

    def read_part(self, paths: Sequence[Path], part: Part) -> Iterator[Names | tuple[Place, Trace | Rejected]]:
        """As `read_files`: names as often and after as many records in every part, the last of them, and then all items in order.

        Raises Undivided where a record may hang together with others in a way that has no name, and before it gave any item.
        """
        ...


class Owners:
    """Who told which name."""

    def __init__(self) -> None:
        self._owners: dict[str | bytes, int] = {}

    def agree(self, part: int, told: Names) -> bool:
        """Whether nobody else told one of these names before."""
        known = self._owners
        return all(known.setdefault(name, part) == part for name in told.names)
