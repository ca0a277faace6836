"""One budget over many traces: who gets how much of it, and who gets nothing and why.

A job divides its budget once. What it gave out is kept in the store, so that a job that was killed finds the shares that it had, whatever
was logged since, and with them the trees that it finished: a share is part of a search's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from counterplay.core.budget import KINDS, Amounts, Budget
from counterplay.core.canonical import content_key, dumps, loads
from counterplay.core.nouns import Call, Message, Outcome, Source, Step, ToolCall, Trace, Trajectory, Usage
from counterplay.plan import COUNTED, Plan
from counterplay.search.sharing import Estimate, Share, estimates_of, split_budget

if TYPE_CHECKING:
    from counterplay.core.store import LightRow, Store

_LINES = 8
_UNDIVIDED = "it came in after this job had divided its budget; run the same command again once the job has ended"
_SCOPE = "search/shares"
_STORE = Source("store")
_NEW: Mapping[str, Any] = {"shares": {}, "passed": {}, "ended": True, "number": 0}


@dataclass(frozen=True)
class Division:
    """`budgets` makes the budget of each trace that gets one, by id, in the order of the traces; `skipped` says why others get none."""

    budgets: Mapping[str, Callable[[], Budget]]
    skipped: Mapping[str, str] = field(default_factory=dict)


class Shares:
    """The shares of one job: of everything that is one command but for its traces. `key` identifies it.

    A trace that was given a share keeps it. Others wait for a job under way to end; then they get a whole budget of their own, less the
    shares beside them that are still to be used, and those that got nothing before compete again. A command of other traces alone ends a
    job that was killed and is a job of its own. What a job reads of other logged runs stays as it first found it, too. `end` says that the
    job has come to its end.
    """

    def __init__(self, store: Store, plan: Plan, key: str) -> None:
        self.store, self.plan, self.key = store, plan, key
        self.journal = store.journal(_SCOPE)
        known = self.journal.get(key)
        self.kept: dict[str, Any] = dict(_NEW) if known is None else loads(known)

    def of(self, traces: Sequence[Trace]) -> Division:
        """The division over these traces, made now where one of them was not asked about before."""
        whole, shares = Budget.parse(self.plan.budget), self.kept["shares"]
        divided, new = _divisible(whole), [trace for trace in traces if trace.id not in shares]
        known = shares.keys() | self.kept["passed"].keys()
        if self.kept["ended"] or (known and not any(trace.id in known for trace in traces)):
            if divided and any(trace.id not in self.kept["passed"] for trace in new):
                made = divide(self.store, new, self._left(traces))
                self.kept["shares"] = shares = {**shares, **{trace: _counted(make().limits) for trace, make in made.budgets.items()}}
                self.kept["passed"] = dict(made.skipped)
            self.kept["number"] += 1
            self._keep(ended=False)
        if not divided:
            return divide(self.store, traces, self.plan)
        passed = self.kept["passed"]
        common = whole.limits.seconds
        budgets = {t.id: self.plan.made_of(Amounts(**shares[t.id], seconds=common), whole) for t in traces if t.id in shares}
        return Division(budgets, {t.id: passed.get(t.id, _UNDIVIDED) for t in traces if t.id not in shares})

    def _left(self, traces: Sequence[Trace]) -> Plan:
        """The plan with what its budget leaves beside the shares that these traces hold and have not used: nothing is given out twice."""
        ended = {row.trace for row in self.store.searches() if row.stopped}
        held = [share for trace in traces if trace.id not in ended and (share := self.kept["shares"].get(trace.id)) is not None]
        limits = Budget.parse(self.plan.budget).limits
        left = {kind: limit for kind in KINDS if (limit := getattr(limits, kind)) is not None}
        for kind in left.keys() - {"seconds"}:
            left[kind] = max(0.0, left[kind] - sum(share.get(kind, 0) for share in held))
        return replace(self.plan, budget=",".join(f"{kind}={limit!r}" for kind, limit in left.items())) if held else self.plan

    def siblings(self, trace: Trace, found: Sequence[Trace]) -> Sequence[Trace]:
        """Those of the other logged runs `found` that were there when this job first asked for them."""
        key = content_key("siblings", self.key, str(self.kept["number"]), trace.task or "", trace.agent or "")
        known = self.journal.get(key)
        if known is None:
            self.journal.put(key, "siblings", dumps([trace.id, *(other.id for other in found)]))
            return found
        first = frozenset(loads(known))
        return tuple(other for other in found if other.id in first)

    def end(self) -> None:
        if not self.kept["ended"]:
            self._keep(ended=True)

    def _keep(self, *, ended: bool) -> None:
        self.kept["ended"] = ended
        self.journal.put(self.key, "shares", dumps(self.kept))


def light(row: LightRow, tool_calls: int = 0) -> Trace:
    """A trace that a budget is divided by like the whole one: of a few words, and its steps are shared by all of that length."""
    usage = Usage(row.input_tokens, row.output_tokens, cost_usd=row.cost_usd)
    calls = (Call(0, usage=usage),) if usage.tokens or row.cost_usd is not None else ()
    outcome = Outcome(row.reward, row.success)
    return Trace(row.id, _steps_alone(row.steps, tool_calls), _STORE, task=row.task, agent=row.agent, outcome=outcome, calls=calls)


@lru_cache(maxsize=4096)
def _steps_alone(steps: int, tool_calls: int) -> Trajectory:
    if not steps:
        return Trajectory()
    first = Step(Message.assistant(None, [ToolCall("", "", "")] * tool_calls))
    return Trajectory(steps=(first, *(Step(Message.assistant("")),) * (steps - 1)))


def divisible(budget: str) -> bool:
    """Whether a budget holds anything that is divided: all but seconds."""
    return _divisible(Budget.parse(budget))


def divide_light(rows: Iterable[LightRow], others: Iterable[LightRow], plan: Plan, tool_calls: Mapping[str, int]) -> Division:
    """`divide` over traces of which only rows are at hand. `others` are rows of all traces, whose outcomes say what may be gained;
    `tool_calls` counts those of each trace, where the budget has a limit of that kind.
    """
    traces = [light(row, tool_calls.get(row.id, 0)) for row in rows]
    tasks, ids = {trace.task for trace in traces if trace.task is not None}, {trace.id for trace in traces}
    beside = [light(row) for row in others if row.task in tasks and row.id not in ids] if plan.split != "even" else []
    known = estimates_of([*beside, *traces])
    return _divided(traces, plan, {trace.id: known[trace.id] for trace in traces})


def counted_share(make: Callable[[], Budget]) -> dict[str, float]:
    """What one trace gets, by kind, but for the time."""
    return _counted(make().limits)


def _divisible(whole: Budget) -> bool:
    return any(getattr(whole.limits, kind) is not None for kind in KINDS if kind != "seconds")


def _counted(limits: Amounts) -> dict[str, float]:
    """The limits there are but for the time, which is common to all."""
    return {kind: limit for kind in KINDS if kind != "seconds" and (limit := getattr(limits, kind)) is not None}


def divide(store: Store, traces: Sequence[Trace], plan: Plan) -> Division:
    """The plan's budget over `traces`: evenly to as many as it lasts for, or by expected gain (`search/sharing.py`).

    The gain rests on the outcomes of all traces of the same tasks in the store. Shares of all traces together are never above
    the whole. Where the budget does not last for one line of any trace, it is divided evenly.
    """
    if plan.split == "even" or not divisible(plan.budget):
        return _evenly(traces, plan)
    return _divided(traces, plan, estimates(store, traces))


def _divided(traces: Sequence[Trace], plan: Plan, known: Mapping[str, Estimate]) -> Division:
    """`divide` where it is known what may be gained on each trace."""
    whole = Budget.parse(plan.budget)
    if plan.split == "even" or not _divisible(whole):
        return _evenly(traces, plan)
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
    few = f"{lasting(plan, len(traces))}, and" if len(chosen) < len(traces) else "the budget"
    skipped = {trace.id: few if trace.id not in wanted else "the budget" for trace in traces if trace.id not in budgets}
    return Division(budgets, {trace: f"{why} brings more elsewhere ({_tried(known[trace])})" for trace, why in skipped.items()})


def estimates(store: Store, traces: Sequence[Trace]) -> dict[str, Estimate]:
    """By trace id, the outcomes of all traces of its task in the store, and its own where it is not in there."""
    tasks = {trace.task for trace in traces if trace.task is not None}
    rows = [row for row in store.traces() if row.task in tasks]
    held = {row.id for row in rows}
    outcomes = [Trace(row.id, Trajectory(), _STORE, task=row.task, outcome=Outcome(row.reward, row.success)) for row in rows]
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
    return Division(budgets, dict.fromkeys((trace.id for trace in traces[affordable:]), lasting(plan, len(traces))))


def lasting(plan: Plan, traces: int) -> str:
    """For how many of so many traces a budget lasts, and which kind of it is short, in words; empty where it lasts for all."""
    fitting = {kind: replace(plan, budget=f"{kind}={limit!r}").affordable(traces) for kind, limit in _limits(plan.budget).items()}
    kind = min(fitting, key=lambda name: fitting[name], default="")
    if not kind or fitting[kind] >= traces:
        return ""
    limit, each = _limits(plan.budget)[kind], _limits(plan.trace_budget).get(kind, 1)
    if not limit:
        return f"the budget has no {kind}: it is {limit:g}"
    return f"the budget of {limit:,.6g} {kind} lasts for {fitting[kind]:,} of {traces:,} traces at {each:,.6g} each"


def _limits(budget: str) -> dict[str, float]:
    return _counted(Budget.parse(budget).limits)


def _tried(estimate: Estimate) -> str:
    return f"{estimate.successes:g} of {estimate.attempts} logged runs of its task succeeded"
