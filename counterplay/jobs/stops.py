"""Units that were stopped by their share of the budget: how many, by which kind of it, what a share is against what one proposal reserves,
and what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from counterplay.core.budget import Budget
from counterplay.core.errors import CounterplayError
from counterplay.jobs.reserving import Reserves, bound_of

if TYPE_CHECKING:
    from counterplay.core.nouns import Trace, Usage
    from counterplay.jobs.spec import Job

_BY_BUDGET = re.compile(r"budget: (\w+)")
_SHOWN = 10
_USED_UP = 0.8
_RESERVED = ("usd", "tokens")


@dataclass(frozen=True)
class Stop:
    """Of `of` units, `units` were stopped by this kind of their budget, `unasked` of them before their first model call.

    `share` and `used` are means over those units; None where the share is not known. `reserves` is what one proposal reserves, at the
    beginning and at the end of a log, None where the policy does not say; `said` tells all of it, and what to do.
    """

    kind: str
    units: int
    of: int
    unasked: int
    share: float | None
    used: float
    reserves: tuple[float, float] | None
    said: str = ""


def bound_in(stopped: str) -> str:
    """The kind of the budget that ended a search, by why it stopped; empty where none did."""
    found = _BY_BUDGET.search(stopped)
    return found[1] if found else ""


@dataclass
class Stopped:
    """Units that one kind stopped, added up. `weight` is how much of a unit each counts for; `units` are the ids of the first few."""

    count: float = 0.0
    unasked: float = 0.0
    shares: float = 0.0
    known: float = 0.0
    used: float = 0.0
    units: list[str] = field(default_factory=list)

    def add(self, unit: str, share: float | None, used: float, *, asked: bool, weight: float = 1.0) -> None:
        self.count += weight
        self.unasked += 0 if asked else weight
        self.used += used * weight
        if share is not None:
            self.shares, self.known = self.shares + share * weight, self.known + weight
        if len(self.units) < _SHOWN and unit not in self.units:
            self.units.append(unit)

    def told(self, kind: str, of: float, job: Job, traces: Iterable[Trace], *, foreseen: bool = False) -> Stop:
        """What there is to say of `of` units. `traces` are those of `units`, read where the policy says what it reserves."""
        bounds = _bounds(job, traces) if kind in _RESERVED else []
        first, last = (sum(_amount(each[at], kind) for each in bounds) / max(1, len(bounds)) for at in (0, 1))
        share, used = self.shares / self.known if self.known else None, self.used / self.count
        units, unasked = max(1, round(self.count)), round(self.unasked)
        found = Stop(kind, units, round(of), unasked, share, used, (first, last) if bounds else None)
        most = bounds[0][0].output_tokens if bounds else 0
        return replace(found, said=f"{_told(found, foreseen=foreseen)}. {_advice(found, most, job)}")


def _bounds(job: Job, traces: Iterable[Trace]) -> list[tuple[Usage, Usage]]:
    """What a proposal reserves at the beginning and at the end of each log; empty where the policy does not say."""
    try:
        bound = bound_of(job.asked())
        runs = [] if bound is None else [(Reserves(trace, bound), len(trace.trajectory)) for trace in traces]
        return [(run.of(0, 1), run.of(max(0, length - 1), 1)) for run, length in runs]
    except CounterplayError:
        return []  # the policy is not here any more, or the log: what a share was is known all the same


def _amount(usage: Usage, kind: str) -> float:
    return (usage.cost_usd or 0.0) if kind == "usd" else float(usage.tokens)


def _told(stop: Stop, *, foreseen: bool) -> str:
    kind, unasked = stop.kind, stop.unasked
    stopped, are = ("would stop", "would be") if foreseen else ("stopped", "were")
    before = " before their first call" if unasked >= stop.units else f", {unasked:,} of them before their first call" if unasked else ""
    parts = [f"{stop.units:,} of {stop.of:,} units {stopped} at their share of the budget ({kind}){before}"]
    if stop.reserves is not None:
        low, high = (shown(kind, amount) for amount in stop.reserves)
        parts.append(f"one proposal reserves {low if low == high else f'{low} to {high}'}")
    if stop.share is not None:
        parts.append(f"a share is {shown(kind, stop.share)} on average, of which {shown(kind, stop.used)} {are} used")
    return "; ".join(parts)


def _advice(stop: Stop, most: int, job: Job) -> str:
    own = getattr(Budget.parse(job.budget.per_trace).limits, stop.kind, None) is not None
    raised = f"raise [budget] {'per_trace' if own else 'total'}"
    others = raised if own else f"{raised}, or take fewer traces"
    if not most or (stop.share and stop.used >= _USED_UP * stop.share):
        return f"To let them go on: {others}."
    what = "set" if job.policy.max_tokens is None else "lower"
    return f"To let them go on: {what} [policy] max_tokens (a proposal reserves for {most:,} tokens of output), {others}."


def shown(kind: str, amount: float) -> str:
    """An amount with its unit."""
    return f"${amount:,.3g}" if kind == "usd" else f"{amount:,.0f} {kind}" if amount >= 100 else f"{amount:,.3g} {kind}"
