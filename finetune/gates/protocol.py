"""What an export may ask of a gate, so that rows need not all be in memory: about one row at a time, or about a little of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Protocol, TypeVar, runtime_checkable

from counterplay.finetune.rows import Drop, Row

AnyRow = TypeVar("AnyRow", bound=Row)
RowOf = Callable[[int], Row]
"""Gives a row again by its number, read from where it was set aside."""


@runtime_checkable
class RowGate(Protocol):
    """A gate that needs nothing but the row itself."""

    def refusal(self, row: Row) -> Drop | None:
        """Why the row may not leave; None where it may."""
        ...


class Sketches(Protocol):
    """What one export keeps of its rows for a gate that decides over all of them."""

    def add(self, number: int, row: Row) -> None:
        """Keep what is needed of a row. Numbers only rise; some may be missing."""
        ...

    def refused(self, numbers: Sequence[int], row_of: RowOf) -> Mapping[int, Drop]:
        """Which of these rows, all added before and in rising order, may not leave. `row_of` is slow: for a few."""
        ...


@runtime_checkable
class SketchGate(Protocol):
    """A gate that decides over all rows from a sketch of each."""

    def begin(self, folder: Path) -> Sketches:
        """What is too large for memory may be set aside in `folder`, in files without a name."""
        ...


class Ties(Protocol):
    """What one export keeps of its rows to say which belong together."""

    def add(self, number: int, row: Row) -> None: ...

    def names(self, numbers: Sequence[int]) -> Sequence[Sequence[str]]:
        """Names for each of these rows; rows that have one in common belong together."""
        ...


@runtime_checkable
class TieSource(Protocol):
    """What ties rows to one another, from a sketch of each."""

    def begin(self, folder: Path) -> Ties:
        """As a gate begins."""
        ...


def through(gate: RowGate | SketchGate, rows: Sequence[AnyRow]) -> tuple[list[AnyRow], list[Drop]]:
    """Rows that are all at hand, through one gate: those that may leave, and the others by name, both in their order."""
    drops = _each(gate, rows) if isinstance(gate, RowGate) else _together(gate, rows)
    return [row for number, row in enumerate(rows) if number not in drops], [drops[number] for number in sorted(drops)]


def _each(gate: RowGate, rows: Iterable[Row]) -> Mapping[int, Drop]:
    return {number: drop for number, row in enumerate(rows) if (drop := gate.refusal(row)) is not None}


def _together(gate: SketchGate, rows: Sequence[Row]) -> Mapping[int, Drop]:
    sketches = gate.begin(Path(gettempdir()))
    for number, row in enumerate(rows):
        sketches.add(number, row)
    return sketches.refused(range(len(rows)), rows.__getitem__)
