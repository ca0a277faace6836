"""Adding units up, one at a time: how many are in which state and why, what they used and what came of them. Memory does not grow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from counterplay.core.budget import KINDS, Budget
from counterplay.jobs.paid import NAMES
from counterplay.jobs.stops import Stopped, bound_in

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
        "stopped": sorted({kind for record in worked.records if (kind := bound_in(record.stopped))}),
    }
    return {name: value for name, value in found.items() if value}


def paid_result(paid: Mapping[str, float]) -> dict[str, Any]:
    """What `Store.paid_since` says of a trace, as a result says it."""
    if not paid:
        return {}
    return {"live_calls": round(paid["draws"]), "tally": {name: paid[name] for name in NAMES if paid[name]}}


def with_earlier(result: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What was really paid for in the tries before is paid for: their calls and tallies are added to those of this one."""
    calls = result.get("live_calls", 0) + earlier.get("live_calls", 0)
    tally = Counter(result.get("tally", {}))
    tally.update(earlier.get("tally", {}))
    paid = {"live_calls": calls, "tally": dict(tally)}
    return {**result, **{name: value for name, value in paid.items() if value}}


def general(reason: str) -> str:
    """A reason without its figures and ids, by which reasons are counted together."""
    return _PARTICULAR.sub("…", reason)


def limits_of(budget: str) -> dict[str, float]:
    """The limits of a budget, by kind."""
    limits = Budget.parse(budget).limits
    return {kind: limit for kind in KINDS if (limit := getattr(limits, kind)) is not None}


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
    their figures, `stopped` by the kind of their budget. `own` are limits that each unit has beside its share.
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
    stopped: dict[str, Stopped] = field(default_factory=dict)
    own: Mapping[str, float] = field(default_factory=dict)

    def add(self, unit: UnitRow) -> None:
        self.states[unit.state] += 1
        self.add_result(unit.result)
        used = unit.result.get("used", {})
        for kind in unit.result.get("stopped", ()):
            share = {**unit.share, **self.own}.get(kind)
            self.stopped.setdefault(kind, Stopped()).add(unit.traces[0], share, used.get(kind, 0.0), asked="model_calls" in used)
        if unit.reason:
            said = general(unit.reason)
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
