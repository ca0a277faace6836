"""Adding units up, one at a time: how many are in which state and why, what they used and what came of them. Memory does not grow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterplay.core.store import UnitRow
    from counterplay.jobs.work import Worked

_REASONS = 200
_EXAMPLES = 3
_OTHER = "other reasons"
_PARTICULAR = re.compile(r"\b[0-9a-f]{16,}\b|\d+(\.\d+)?")


def result_of(worked: Worked) -> dict[str, Any]:
    """What of a unit's work is kept beside its state, as values of JSON; what is nothing is left out."""
    found = {
        "searches": [record.id for record in worked.records],
        "used": dict(worked.used),
        "live_calls": worked.live_calls,
        "tally": dict(worked.tally),
        "improved": worked.improved,
        "solved": worked.solved,
        "notes": dict(worked.notes),
        "failures": {kind: failed["count"] for kind, failed in worked.failures.items()},
        "held": worked.held,
    }
    return {name: value for name, value in found.items() if value}


def with_earlier(result: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What was really paid for in the tries before is paid for: their calls and tallies are added to those of this one."""
    calls = result.get("live_calls", 0) + earlier.get("live_calls", 0)
    tally = Counter(result.get("tally", {}))
    tally.update(earlier.get("tally", {}))
    paid = {"live_calls": calls, "tally": dict(tally)}
    return {**result, **{name: value for name, value in paid.items() if value}}


@dataclass
class Reason:
    """Why units are in a state: how many, and the ids of the first few."""

    count: int = 0
    first: str = ""
    examples: list[str] = field(default_factory=list)

    def add(self, unit: str, said: str) -> None:
        self.count += 1
        self.first = self.first or said
        if len(self.examples) < _EXAMPLES:
            self.examples.append(unit)


@dataclass
class Totals:
    """All units of a job together. `used` and `tally` are by kind, `notes` by what they say, `reasons` by state, class and words without
    their figures.
    """

    states: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    tally: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[str, str, str], Reason] = field(default_factory=dict)
    live_calls: int = 0
    improved: int = 0
    solved: int = 0
    searches: int = 0
    held: int = 0

    def add(self, unit: UnitRow) -> None:
        self.states[unit.state] += 1
        self.add_result(unit.result)
        if unit.reason:
            said = _PARTICULAR.sub("…", unit.reason)
            key = (unit.state, unit.error_class, said)
            if key not in self.reasons and len(self.reasons) >= _REASONS:
                key = (unit.state, unit.error_class, _OTHER)
            self.reasons.setdefault(key, Reason()).add(unit.id, unit.reason)

    def add_result(self, result: Mapping[str, Any]) -> None:
        for name in ("used", "tally", "notes", "failures"):
            getattr(self, name).update(result.get(name, {}))
        self.live_calls += result.get("live_calls", 0)
        self.improved += bool(result.get("improved", 0))
        self.solved += bool(result.get("solved", 0))
        self.searches += len(result.get("searches", ()))
        self.held += bool(result.get("held", False))
