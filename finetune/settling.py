"""Rules over all rows of a kind that makers of rows have, such as caps, decided from marks: rows themselves may lie on disk meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from counterplay.finetune.rows import AnyRow, Drop, Harvest
from counterplay.finetune.spool import Objects


class Mark(Protocol):
    """What is kept of a row; `number` says which."""

    @property
    def number(self) -> int: ...


M = TypeVar("M", bound=Mark)
Rule = Callable[[Sequence[M]], tuple[list[M], list[Drop]]]
"""The marks of the rows that stay, in the order that these are to have, and the others by name."""


def settled_at_once(found: Harvest[AnyRow], mark: Callable[[int, AnyRow], M], rule: Rule[M]) -> Harvest[AnyRow]:
    """The rule over rows that are all at hand."""
    kept, drops = rule([mark(number, row) for number, row in enumerate(found.rows)])
    return Harvest(tuple(found.rows[each.number] for each in kept), (*found.drops, *drops))


def settled(found: Iterable[Harvest[AnyRow]], folder: Path, mark: Callable[[int, AnyRow], M], rule: Rule[M]) -> Iterator[Harvest[AnyRow]]:
    """The rule over many harvests, whose rows are set aside in `folder`."""
    rows, marks = Objects(folder), list[M]()
    for harvest in found:
        marks += [mark(rows.add(row), row) for row in harvest.rows]
        yield Harvest((), harvest.drops)
    kept, drops = rule(marks)
    for each in kept:
        yield Harvest((rows.get(each.number),))
    yield Harvest((), tuple(drops))
