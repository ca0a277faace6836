"""One budget over many traces: who gets how much of it, and who gets nothing and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from counterplay.core.budget import KINDS, Amounts, Budget
from counterplay.core.nouns import Outcome, Source, Trace, Trajectory
from counterplay.plan import COUNTED, Plan
from counterplay.search.sharing import Estimate, Share, estimates_of, split_budget

if TYPE_CHECKING:
    from counterplay.core.store import Store

_LINES = 8
_LATER = "the budget was spent on the traces before it"


@dataclass(frozen=True)
class Division:
    """`budgets` makes the budget of each trace that gets one, by id, in the order of the traces; `skipped` says why others get none."""

    budgets: Mapping[str, Callable[[], Budget]]
    skipped: Mapping[str, str] = field(default_factory=dict)


def divide(store: Store, traces: Sequence[Trace], plan: Plan) -> Division:
    """The plan's budget over `traces`: evenly to as many as it lasts for, or by expected gain (`search/sharing.py`).

    The gain rests on the outcomes of all traces of the same tasks in the store. Shares of all traces together are never above
    the whole. Where the budget does not last for one line of any trace, it is divided evenly.
    """
    whole = Budget.parse(plan.budget)
    if plan.split == "even" or not any(getattr(whole.limits, kind) is not None for kind in KINDS if kind != "seconds"):
        return _evenly(traces, plan)
    known = estimates(store, traces)
    ranked = sorted(traces, key=lambda trace: -known[trace.id].gain(_LINES))[: plan.affordable(len(traces))]
    wanted = {trace.id for trace in ranked}
    chosen = [trace for trace in traces if trace.id in wanted]
    own = Budget.parse(plan.trace_budget).limits
    common = Amounts(**{kind: getattr(whole.limits, kind) for kind in KINDS if getattr(own, kind) is None})
    if all(getattr(common, kind) is None for kind in KINDS if kind != "seconds"):
        budgets = {trace.id: plan.made_of(common, whole) for trace in chosen}  # nothing to divide: each gets its own, and all fit
    else:
        shares = _shares(chosen, known, common)
        if not shares:
            return _evenly(traces, plan)
        budgets = {share.trace: plan.made_of(share.limits, whole) for share in shares}
    return Division(budgets, {trace.id: _elsewhere(known[trace.id]) for trace in traces if trace.id not in budgets})


def estimates(store: Store, traces: Sequence[Trace]) -> dict[str, Estimate]:
    """By trace id, the outcomes of all traces of its task in the store, and its own where it is not in there."""
    tasks = {trace.task for trace in traces if trace.task is not None}
    rows = [row for row in store.traces() if row.task in tasks]
    held = {row.id for row in rows}
    source = Source("store")
    outcomes = [Trace(row.id, Trajectory(), source, task=row.task, outcome=Outcome(row.reward, row.success)) for row in rows]
    known = estimates_of([*outcomes, *(trace for trace in traces if trace.id not in held)])
    return {trace.id: known[trace.id] for trace in traces}


def _shares(traces: Sequence[Trace], known: Mapping[str, Estimate], common: Amounts) -> list[Share]:
    """Shares that are of use: at least one line, and something of every kind that is counted."""
    split = [kind for kind in KINDS if kind != "seconds" and getattr(common, kind) is not None]
    while traces:
        shares = split_budget(traces, known, Budget(common))
        useful = [share for share in shares if share.lines and all(getattr(share.limits, kind) >= (kind in COUNTED) for kind in split)]
        if len(useful) == len(shares):
            return shares
        kept = {share.trace for share in useful}
        traces = [trace for trace in traces if trace.id in kept]
    return []


def _evenly(traces: Sequence[Trace], plan: Plan) -> Division:
    affordable = plan.affordable(len(traces))
    share = plan.share(affordable)
    budgets = {trace.id: share for trace in traces[:affordable]}
    return Division(budgets, {trace.id: _LATER for trace in traces[affordable:]})


def _elsewhere(estimate: Estimate) -> str:
    of = f"{estimate.successes:g} of {estimate.attempts} logged runs of its task succeeded"
    return f"the budget brings more elsewhere ({of})"
