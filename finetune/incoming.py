"""Rows on their way into a dataset: looked at one by one, set aside on disk, decided about from what is kept of each.

What a gate finds in one row it says at once; what depends on all rows is decided at the end, in the order of the gates, so that the result
is that of passing all rows through one gate after the other.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias, overload

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade
from counterplay.finetune.balance import Taught
from counterplay.finetune.exactness import COLUMN as RECORDED
from counterplay.finetune.gates.account import teller
from counterplay.finetune.gates.protocol import RowGate, Sketches, SketchGate, Ties, TieSource
from counterplay.finetune.records import Made, RecordMaker
from counterplay.finetune.rows import Drop, Gate, Harvest, Row
from counterplay.finetune.splits import REFUTED, Distinct
from counterplay.finetune.spool import Dropped, Objects

Columns: TypeAlias = Mapping[str, Any]
"""A record whose JSON columns are lists of JSON text."""

AnyGate: TypeAlias = Gate | RowGate | SketchGate
PlainTies: TypeAlias = Callable[[Sequence[Row]], Sequence[Sequence[str]]]
_SIDES = ("chosen", "rejected")
_KEPT = -1


@dataclass(frozen=True, slots=True)
class Kept:
    """What is looked at of a row once all are there: what ties it to others, and what a report counts. `size` is the length of the sides
    of a pair, `recorded` says that the row has the ids that its policy sampled.
    """

    name: str
    task: str | None
    traces: tuple[str, ...]
    sessions: tuple[str, ...]
    users: tuple[str, ...]
    search: str
    algorithm: str
    verifiers: tuple[str, ...]
    grade: Grade
    logged: bool
    taught: Taught
    probability: float | None
    label: Any
    recorded: bool
    size: int
    length: int | None
    neutralised: bool
    reissued: bool
    fractions: bool
    undefined: bool

    @property
    def values(self) -> Mapping[str, Any]:
        """The columns that the order of rows may depend on."""
        return {"probability": self.probability, "label": self.label}


class KeptRows(Sequence[Kept]):
    """What is kept of these rows, each read when it is asked for."""

    def __init__(self, kept: Objects, numbers: Sequence[int]) -> None:
        self._kept, self._numbers = kept, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Kept: ...
    @overload
    def __getitem__(self, at: slice) -> KeptRows: ...
    def __getitem__(self, at: int | slice) -> Kept | KeptRows:
        return KeptRows(self._kept, self._numbers[at]) if isinstance(at, slice) else Kept(*self._kept.get(self._numbers[at]))


class Incoming:
    """Takes harvests, one after the other, and says at the end which rows are `kept`, by number.

    `stages` are what was left out: by those who made the rows, as repetitions, by each gate, and as what no file can hold.
    """

    def __init__(self, folder: Path, maker: RecordMaker, gates: Sequence[AnyGate], ties: TieSource | PlainTies | None) -> None:
        self._maker, self._gates = maker, tuple(gates)
        told = teller(gates)
        self.stages = [Dropped(folder, told) for _ in range(len(self._gates) + 3)]
        self._distinct = Distinct()
        self._sketches = [self._begun(gate, folder) for gate in self._gates]
        self._ties = ties
        self._tied: Ties | None = ties.begin(folder) if isinstance(ties, TieSource) else None
        self._set_aside, self._held = Objects(folder), dict[int, Row]()
        self._looked_at_again = any(not isinstance(gate, RowGate) for gate in self._gates) or (ties is not None and self._tied is None)
        self._told = Objects(folder)  # of each row its `Kept`, or the `Drop` of the gate that refused it
        self._refused_at = array("h")
        self.row_type: type[Row] | None = None

    def take(self, harvest: Harvest[Any]) -> None:
        for drop in harvest.drops:
            self.stages[0].add(drop)
        for row in harvest.rows:
            repeated = self._distinct.reason(len(self._refused_at), row)
            if repeated:
                self.stages[1].add(Drop(repeated, row.name))
            else:
                self._add(row)

    def kept(self) -> array[int]:
        """The rows that may leave. Everything else is in `stages`; to be asked once."""
        refuted = frozenset(self._distinct.refuted)
        numbers = self._without(array("Q", range(len(self._refused_at))), refuted, lambda number: Drop(REFUTED, self._name(number)), 1)
        for index, (gate, sketches) in enumerate(zip(self._gates, self._sketches, strict=True)):
            if sketches is not None:
                refused = sketches.refused(numbers, self._row)
                numbers = self._without(numbers, refused, refused.__getitem__, index + 2)
            elif isinstance(gate, RowGate):
                numbers = self._without_refused(numbers, index)
            else:
                numbers = self._asked(gate, index, numbers)
        return self._without_refused(numbers, len(self._gates))

    def rows(self, numbers: Sequence[int]) -> Sequence[Kept]:
        """What is kept of these rows, which none of the gates has refused."""
        return KeptRows(self._told, numbers)

    def columns(self, number: int) -> Columns:
        found: Columns = self._set_aside.get(number)
        return found

    def ties(self, numbers: Sequence[int]) -> Sequence[Sequence[str]]:
        """The names that tie these rows, as they were asked for; none where they were not."""
        if self._tied is not None:
            return self._tied.names(numbers)
        return self._ties([self._row(number) for number in numbers]) if callable(self._ties) else ()

    def _begun(self, gate: AnyGate, folder: Path) -> Sketches | None:
        return gate.begin(folder) if isinstance(gate, SketchGate) and not isinstance(gate, RowGate) else None

    def _add(self, row: Row) -> None:
        number, made = len(self._refused_at), None
        stage, drop = self._first_refusal(row)
        if drop is None:
            made = self._maker.make(row)
            drop = Drop(made.reason, row.name) if made.reason else None
        self.row_type = self.row_type or type(row)
        self._refused_at.append(_KEPT if drop is None else stage)
        self._told.add(_values(_kept(row, made)) if made is not None and drop is None else drop)
        self._keep(number, row, None if made is None or made.reason else {**made.record, **made.texts})
        if drop is None and self._tied is not None:
            self._tied.add(number, row)

    def _first_refusal(self, row: Row) -> tuple[int, Drop | None]:
        """The first gate that a row fails by itself, after the sketches for those before it; one after the last where there is none."""
        for index, (gate, sketches) in enumerate(zip(self._gates, self._sketches, strict=True)):
            if sketches is not None:
                sketches.add(len(self._refused_at), row)
            elif isinstance(gate, RowGate):
                drop = gate.refusal(row)
                if drop is not None:
                    return index, drop
        return len(self._gates), None

    def _keep(self, number: int, row: Row, columns: Columns | None) -> None:
        again = self._looked_at_again
        try:
            self._set_aside.add(columns, row if again else None)
        except (pickle.PicklingError, AttributeError, TypeError):  # a row of a class that was made inside a function
            self._set_aside.add(columns, None)
            self._held |= {number: row} if again else {}

    def _name(self, number: int) -> str:
        name: str = self._told.get(number).name if self._refused_at[number] != _KEPT else self.rows([number])[0].name
        return name

    def _row(self, number: int) -> Row:
        row: Row = self._held[number] if number in self._held else self._set_aside.get(number, 1)
        return row

    def _asked(self, gate: AnyGate, index: int, numbers: Sequence[int]) -> array[int]:
        """What a gate leaves that is asked about all rows at once, which are read again for it."""
        rows = {number: self._row(number) for number in numbers}
        places = {id(row): number for number, row in rows.items()}
        if not callable(gate):
            raise UserError(f"got gate {gate!r}", "a function of rows, or an object as in finetune.gates.protocol")
        kept, drops = gate(list(rows.values()))
        strange = next((row for row in kept if id(row) not in places), None)
        if strange is not None:
            raise UserError(f"got row {strange.name} from a gate that was not given it", "the rows as they were given, or some of them")
        for drop in drops:
            self.stages[index + 2].add(drop)
        left = {places[id(row)] for row in kept}
        return array("Q", (number for number in numbers if number in left))

    def _without_refused(self, numbers: Sequence[int], index: int) -> array[int]:
        """Without those that failed at the gate `index` by themselves."""
        refused = frozenset(number for number in numbers if self._refused_at[number] == index)
        return self._without(numbers, refused, self._told.get, index + 2)

    def _without(self, numbers: Sequence[int], refused: Container[int], drop_of: Callable[[int], Drop], stage: int) -> array[int]:
        left = array("Q")
        for number in numbers:
            if number in refused:
                self.stages[stage].add(drop_of(number))
            else:
                left.append(number)
        return left


_values: Callable[[Kept], tuple[Any, ...]] = attrgetter(*(each.name for each in fields(Kept)))


def _kept(row: Row, made: Made) -> Kept:
    lineage, values = row.lineage, row.values
    return Kept(
        name=row.name,
        task=lineage.task,
        traces=lineage.traces,
        sessions=lineage.sessions,
        users=lineage.users,
        search=lineage.search,
        algorithm=lineage.algorithm,
        verifiers=lineage.verifiers,
        grade=lineage.grade,
        logged=lineage.logged,
        taught=Taught.of(row),
        probability=values.get("probability"),
        label=values.get("label"),
        recorded=RECORDED in values,
        size=sum(len(text) for side in _SIDES if side in row.parts for text in made.texts[side] or ()),
        length=made.length,
        neutralised=made.neutralised,
        reissued=made.reissued,
        fractions=made.fractions,
        undefined=made.undefined,
    )
