"""One list of everything that an export's rows had to pass, and how many each gate left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from counterplay.finetune.rows import Drop

_GATES: tuple[tuple[str, str, str], ...] = (
    ("outcome", "a verified score or a logged success", r"the outcome is unknown|the logged run did not|no branch (?:was|scored)"),
    ("grade", "observations as true as asked; nothing stale", r"stale|graded below|every good branch is"),
    ("secrets", "no secret, nor personal data where asked", r"a secret$"),
    ("duplicates", "no row twice", r"a duplicate$"),
    ("near-duplicates", "no row in nearly the same words", r"a near-duplicate$"),
    ("contamination", "nothing of what is held out", r"held out$"),
    ("form", "text, numbers and roles that a template can render", r"text with|a number that|an integer of|the chat template refuses"),
    ("length", "no more tokens than asked", r"longer than"),
    ("caps", "no more rows of one state, task or tool than asked", r"over the cap"),
)
_ALWAYS = ("outcome", "grade", "duplicates", "form", "caps")
REST = "rules of the kind"


@dataclass(frozen=True, slots=True)
class GateCount:
    """A gate, what it asks, whether this export had it, and how many things it left out."""

    gate: str
    asks: str
    on: bool
    dropped: int


def account(dropped: Mapping[str, int], gates: Iterable[Any] = (), *, max_length: int | None = None) -> tuple[GateCount, ...]:
    """Every gate in the order they are passed, from the counts of `Drop` reasons; `gates` are those that the export was given."""
    counts = dict.fromkeys([name for name, _, _ in _GATES], 0) | {REST: 0}
    for reason, count in dropped.items():
        counts[gate_of(reason)] += count
    on = {*_ALWAYS, *(getattr(gate, "name", "") for gate in gates), *(["length"] if max_length is not None else [])}
    listed = [GateCount(name, asks, name in on or counts[name] > 0, counts[name]) for name, asks, _ in _GATES]
    return (*listed, GateCount(REST, "what a row of this kind needs", on=True, dropped=counts[REST]))


def gate_of(reason: str) -> str:
    return next((name for name, _, pattern in _GATES if re.match(pattern, reason)), REST)


def told(drops: Iterable[Drop], gates: Iterable[Any]) -> list[Drop]:
    """The drops as a report may name them: what a gate with a method `told` finds in names and details is replaced."""
    clean = teller(gates)
    return [replace(drop, name=clean(drop.name), detail=clean(drop.detail)) for drop in drops]


def teller(gates: Iterable[Any]) -> Callable[[str], str]:
    """What makes of a text one that a report may hold, by all gates with a method `told`."""
    clean: Sequence[Callable[[str], str]] = [gate.told for gate in gates if hasattr(gate, "told")]

    def cleaned(text: str) -> str:
        for gate in clean:
            text = gate(text)
        return text

    return cleaned
