"""Rows on their way into a dataset: looked at one by one, set aside on disk, decided about from the little of each that stays in memory.

What a gate finds in one row it says at once; what depends on all rows is decided at the end, in the order of the gates, so that the result
is that of passing all rows through one gate after the other.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

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
V = TypeVar("V")
_SIDES = ("chosen", "rejected")
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays in memory of a row: what ties it to others, and what a report counts. `size` is the length of the sides of a pair,
    `recorded` says that the row has the ids that its policy sampled.
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


class Incoming:
    """Takes harvests, one after the other, and says at the end which rows are `kept`, by number.

    `stages` are what was left out: by those who made the rows, as repetitions, by each gate, and as what no file can hold.
    """

    def __init__(self, folder: Path, maker: RecordMaker, gates: Sequence[AnyGate], ties: TieSource | PlainTies | None) -> None:
        self._maker, self._gates = maker, tuple(gates)
        told = teller(gates)
        self.stages = [Dropped(folder, told) for _ in range(len(self._gates) + 3)]
        self._distinct, self._interned = Distinct(), dict[Any, Any]()
        self._sketches = [self._begun(gate) for gate in self._gates]
        self._ties = ties
        self._tied: Ties | None = ties.begin(folder) if isinstance(ties, TieSource) else None
        self._set_aside, self._held = Objects(folder), dict[int, Row]()
        self._looked_at_again = any(not isinstance(gate, RowGate) for gate in self._gates) or (ties is not None and self._tied is None)
        self._rows: list[Kept | None] = []
        self._failed: dict[int, tuple[int, Drop]] = {}
        self.row_type: type[Row] | None = None

    def take(self, harvest: Harvest[Any]) -> None:
        for drop in harvest.drops:
            self.stages[0].add(drop)
        for row in harvest.rows:
            repeated = self._distinct.reason(len(self._rows), row)
            if repeated:
                self.stages[1].add(Drop(repeated, row.name))
            else:
                self._add(row)

    def kept(self) -> list[int]:
        """The rows that may leave. Everything else is in `stages`; to be asked once."""
        refuted = self._distinct.refuted
        numbers = self._without(range(len(self._rows)), {number: Drop(REFUTED, self._name(number)) for number in refuted}, 1)
        for index in range(len(self._gates)):
            numbers = self._without(numbers, self._refused(index, numbers), index + 2)
        return self._without(numbers, self._failures(len(self._gates), numbers), len(self._gates) + 2)

    def __getitem__(self, number: int) -> Kept:
        kept = self._rows[number]
        if kept is None:
            msg = f"got row {number}, which was left out, wanted one that was kept"
            raise KeyError(msg)
        return kept

    def columns(self, number: int) -> Columns:
        found: Columns = self._set_aside.get(number)
        return found

    def ties(self, numbers: Sequence[int]) -> Sequence[Sequence[str]]:
        """The names that tie these rows, as they were asked for; none where they were not."""
        if self._tied is not None:
            return self._tied.names(numbers)
        return self._ties([self._row(number) for number in numbers]) if callable(self._ties) else ()

    def _begun(self, gate: AnyGate) -> Sketches | None:
        return gate.begin() if isinstance(gate, SketchGate) and not isinstance(gate, RowGate) else None

    def _add(self, row: Row) -> None:
        number, failed, made = len(self._rows), self._first_refusal(row), None
        if failed is None:
            made = self._maker.make(row)
            failed = (len(self._gates), Drop(made.reason, row.name)) if made.reason else None
        if failed is not None:
            self._failed[number] = failed
        self.row_type = self.row_type or type(row)
        self._rows.append(None if made is None or failed is not None else self._kept(row, made))
        self._keep(number, row, None if made is None or made.reason else {**made.record, **made.texts})
        if failed is None and self._tied is not None:
            self._tied.add(number, row)

    def _first_refusal(self, row: Row) -> tuple[int, Drop] | None:
        """The first gate that a row fails by itself, after the sketches for those before it."""
        for index, (gate, sketches) in enumerate(zip(self._gates, self._sketches, strict=True)):
            if sketches is not None:
                sketches.add(len(self._rows), row)
            elif isinstance(gate, RowGate):
                drop = gate.refusal(row)
                if drop is not None:
                    return index, drop
        return None

    def _keep(self, number: int, row: Row, columns: Columns | None) -> None:
        again = self._looked_at_again
        try:
            self._set_aside.add(columns, row if again else None)
        except (pickle.PicklingError, AttributeError, TypeError):  # a row of a class that was made inside a function
            self._set_aside.add(columns, None)
            self._held |= {number: row} if again else {}

    def _kept(self, row: Row, made: Made) -> Kept:
        lineage, same, values = row.lineage, self._same, row.values
        return Kept(
            name=row.name,
            task=same(lineage.task),
            traces=same(lineage.traces),
            sessions=same(lineage.sessions),
            users=same(lineage.users),
            search=same(lineage.search),
            algorithm=same(lineage.algorithm),
            verifiers=same(lineage.verifiers),
            grade=lineage.grade,
            logged=lineage.logged,
            taught=self._taught(row),
            probability=same(values.get("probability")),
            label=values.get("label"),
            recorded=RECORDED in values,
            size=sum(len(text) for side in _SIDES if side in row.parts for text in made.texts[side] or ()),
            length=made.length,
            neutralised=made.neutralised,
            reissued=made.reissued,
            fractions=made.fractions,
            undefined=made.undefined,
        )

    def _taught(self, row: Row) -> Taught:
        found, same = Taught.of(row), self._same
        return Taught(same(found.task), same(found.agent), same(found.algorithm), found.messages, same(found.tools))

    def _same(self, value: V) -> V:
        """One object for all equal ones, as far as they lie near to each other."""
        if len(self._interned) >= _REMEMBERED:
            self._interned.clear()
        found: V = self._interned.setdefault((type(value), value), value)
        return found

    def _name(self, number: int) -> str:
        kept = self._rows[number]
        return self._failed[number][1].name if kept is None else kept.name

    def _row(self, number: int) -> Row:
        row: Row = self._held[number] if number in self._held else self._set_aside.get(number, 1)
        return row

    def _failures(self, index: int, numbers: Iterable[int]) -> dict[int, Drop]:
        failed = self._failed
        return {number: failed[number][1] for number in numbers if number in failed and failed[number][0] == index}

    def _refused(self, index: int, numbers: Sequence[int]) -> Mapping[int, Drop]:
        gate, sketches = self._gates[index], self._sketches[index]
        if sketches is not None:
            return sketches.refused(numbers, self._row)
        if isinstance(gate, RowGate):
            return self._failures(index, numbers)
        return self._asked(gate, index, numbers)

    def _asked(self, gate: AnyGate, index: int, numbers: Sequence[int]) -> Mapping[int, Drop]:
        """A gate that is asked about all rows at once, which are read again for it."""
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
        return {number: _TOLD for number in numbers if number not in left}

    def _without(self, numbers: Sequence[int], refused: Mapping[int, Drop], stage: int) -> list[int]:
        for number in sorted(refused):
            if refused[number] is not _TOLD:
                self.stages[stage].add(refused[number])
        return [number for number in numbers if number not in refused]


_TOLD = Drop("told by the gate itself", "")
