"""Rules over all rows of a kind that makers of rows have, such as caps, decided from a few numbers a row (its mark): rows may lie on disk.

What marks compare by are 64-bit hashes (`mark_of`): of a million rows two are confused with a probability of 3e-8.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from counterplay.core.canonical import content_key
from counterplay.finetune.rows import AnyRow, Drop, Harvest
from counterplay.finetune.spool import Objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers: TypeAlias = NDArray[Any]

Mark: TypeAlias = tuple[int | float, ...]
"""A named tuple: whole numbers are hashes, others are what rows are ordered by."""

Settled: TypeAlias = "tuple[Sequence[int], Iterable[tuple[int, str]]]"
"""The rows that stay, by number and in the order they are to have, and why the others don't."""

Rule: TypeAlias = "Callable[[Mapping[str, Numbers]], Settled]"
"""Decides from the marks of all rows, a column each by its name."""


def mark_of(*texts: str) -> int:
    """Equal for equal texts."""
    return int(content_key(*texts)[:16], 16)


def settled_at_once(found: Harvest[AnyRow], mark: Callable[[AnyRow], Mark], rule: Rule) -> Harvest[AnyRow]:
    """The rule over rows that are all at hand."""
    marks = _Marks()
    for row in found.rows:
        marks.add(mark(row))
    kept, refused = marks.settled(rule)
    drops = (Drop(reason, found.rows[number].name) for number, reason in refused)
    return Harvest(tuple(found.rows[number] for number in kept), (*found.drops, *drops))


def settled(found: Iterable[Harvest[AnyRow]], folder: Path, mark: Callable[[AnyRow], Mark], rule: Rule) -> Iterator[Harvest[AnyRow]]:
    """The rule over many harvests, whose rows are set aside in `folder`."""
    rows, names, marks = Objects(folder), Objects(folder), _Marks()
    for harvest in found:
        for row in harvest.rows:
            rows.add(row)
            names.add(row.name)
            marks.add(mark(row))
        yield Harvest((), harvest.drops)
    kept, refused = marks.settled(rule)
    for number in kept:
        yield Harvest((rows.get(number),))
    for number, reason in refused:
        yield Harvest((), (Drop(reason, names.get(number)),))


def surest(sure: Numbers, cap: int, *unit: Numbers) -> Numbers:
    """Which rows stay (bool) of at most `cap` of those that are equal in all of `unit`: the most `sure`, and of equals the first."""
    import numpy as np

    order = np.lexsort((-sure, *unit)) if len(sure) else np.empty(0, np.int64)
    new = np.ones(len(order), bool)
    new[1:] = np.any([each[order[1:]] != each[order[:-1]] for each in unit], axis=0)
    places = np.arange(len(order))
    stays = np.empty(len(order), bool)
    stays[order] = places - np.maximum.accumulate(np.where(new, places, 0)) < cap
    return stays


class _Marks:
    """The marks of rows in the order they came."""

    def __init__(self) -> None:
        self._columns: dict[str, array[Any]] = {}

    def add(self, mark: Mark) -> None:
        fields: Sequence[str] = type(mark)._fields  # type: ignore[attr-defined]
        for name, value in zip(fields, mark, strict=True):
            if name not in self._columns:
                self._columns[name] = array("d" if isinstance(value, float) else "Q")
            self._columns[name].append(value)

    def settled(self, rule: Rule) -> Settled:
        import numpy as np

        return rule({name: np.array(column) for name, column in self._columns.items()}) if self._columns else ((), ())
