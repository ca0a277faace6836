"""One budget over many traces: more for those where it will bring more, the unsure and the nearly solved first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterplay.core.budget import Amounts, Budget
from counterplay.core.nouns import Trace, Usage

_COUNTED = ("simulations", "model_calls", "tokens", "tool_calls")
_LINES = 8
_FEW = 256
_BLOCKS = 1 << 15


@dataclass(frozen=True, slots=True)
class Estimate:
    """How often a task was solved: `successes` (a sum of rewards in [0, 1]) in `attempts`. Its success rate is Beta(1 + W, 1 + N - W)."""

    successes: float = 0.0
    attempts: int = 0

    def left(self, lines: int) -> float:
        """E[(1 - p)^lines]: that so many lines all fail, prod_{k < lines} (b + k) / (a + b + k) = B(a, b + lines) / B(a, b)."""
        a, b = 1 + self.successes, 1 + self.attempts - self.successes
        if lines <= _FEW:
            return math.prod((b + k) / (a + b + k) for k in range(lines))
        return math.exp(math.lgamma(b + lines) - math.lgamma(a + b + lines) + math.lgamma(a + b) - math.lgamma(b))

    def gain(self, lines: int) -> float:
        """E[(1 - p) (1 - (1 - p)^lines)]: how often the agent fails the task, times how surely a success is found in so many lines."""
        return self.left(1) - self.left(lines + 1)


@dataclass(frozen=True, slots=True)
class Share:
    """What one trace gets: `lines` of play, `gain` expected of them, and the limits of its own budget."""

    trace: str
    lines: int
    gain: float
    limits: Amounts


def estimates_of(traces: Sequence[Trace]) -> dict[str, Estimate]:
    """By trace id, the outcomes of all given traces of its task, pooled; a trace whose task is not known stands alone.

    Traces without an outcome are no attempts.
    """
    tallies: dict[str, list[float]] = {}
    for trace in traces:
        outcomes = tallies.setdefault(_unit(trace), [])
        reward = trace.outcome.reward if trace.outcome.reward is not None else trace.outcome.success
        if reward is not None:
            outcomes.append(min(1.0, max(0.0, float(reward))))
    pooled = {unit: Estimate(sum(outcomes), len(outcomes)) for unit, outcomes in tallies.items()}
    return {trace.id: pooled[_unit(trace)] for trace in traces}


def split_budget(traces: Sequence[Trace], estimates: Mapping[str, Estimate], budget: Budget) -> list[Share]:
    """Shares of what is left of `budget`, one for each trace in order, that make the sum of expected gains largest.

    n lines of play bring G(n) = E[(1 - p)(1 - (1 - p)^n)] with p ~ Beta(1 + W, 1 + N - W) by `estimates` (by trace id; none is Beta(1, 1)):
    how often the agent fails the task, times how surely a success is found. The n-th line adds E[p (1 - p)^n], which falls with n,
    so giving line after line to where it adds most for its cost is best. Tasks with p near 1/2 come first, then the nearly
    solved; the mastered and the hopeless come last, perhaps to nothing.

    A line costs what the logged run took. The scarcest kind of the budget says how many lines there are, 8 a trace where none can.
    Counted kinds are split into whole numbers, in proportion to cost; seconds are not split.
    """
    costs, left = _scarcest(traces, budget)
    rates = [estimates.get(trace.id, Estimate()) for trace in traces]
    lines = _greedy(rates, costs, left)
    whole = sum(cost * n for cost, n in zip(costs, lines, strict=True))
    parts = [cost * n / whole if whole else 0.0 for cost, n in zip(costs, lines, strict=True)]
    limits = _limits(parts, budget)
    return [Share(trace.id, n, rate.gain(n), each) for trace, n, rate, each in zip(traces, lines, rates, limits, strict=True)]


def _greedy(rates: Sequence[Estimate], costs: Sequence[float], left: float) -> list[int]:
    """Lines by trace, each to where it adds most for its cost, the first of equals.

    Where there are very many they are given in blocks, of at most 1/16 of what a trace gets on average: the work is bounded by the number
    of traces, not by that of lines.
    """
    lines, survival = [0] * len(rates), [rate.left(1) for rate in rates]
    many = left * len(rates) / sum(costs) if costs else 0.0
    block = max(1, int(many / max(_BLOCKS, 16 * len(rates))))

    def entry(i: int) -> tuple[float, int]:
        a, n = 1 + rates[i].successes, lines[i] + 1
        return -survival[i] * a / (2 + rates[i].attempts + n) / costs[i], i

    queue = [entry(i) for i in range(len(rates))]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        if costs[i] <= left:
            given = 1 if block == 1 else min(block, int(left / costs[i]))
            left -= given * costs[i]
            lines[i] += given
            if block > 1:
                survival[i] = rates[i].left(1 + lines[i])
            else:
                failed = 1 + rates[i].attempts - rates[i].successes
                survival[i] *= (failed + lines[i]) / (2 + rates[i].attempts + lines[i])
            heapq.heappush(queue, entry(i))
    return lines


def _scarcest(traces: Sequence[Trace], budget: Budget) -> tuple[list[float], float]:
    """What a line of each trace costs in the kind of which there are the fewest lines, and how much of it is left."""
    found = [([1.0] * len(traces), float(_LINES * len(traces)), math.inf)]
    for kind in ("model_calls", "tool_calls", "tokens", "usd"):
        left, costs = budget.left(kind), _costs(traces, kind)
        if left < math.inf and costs:
            found.append((costs, left, left / sum(costs)))
    costs, left, _ = min(found, key=lambda each: each[2])
    return costs, left


def _costs(traces: Sequence[Trace], kind: str) -> list[float]:
    """What each logged run took of a kind; the mean of the others where the log does not say. Empty where none does."""
    known = [_cost(trace, kind) for trace in traces]
    told = [cost for cost in known if cost]
    return [cost or sum(told) / len(told) for cost in known] if told else []


def _cost(trace: Trace, kind: str) -> float | None:
    if kind == "model_calls":
        return float(len(trace.trajectory))
    if kind == "tool_calls":
        return float(sum(len(step.action.tool_calls) for step in trace.trajectory.steps))
    usage = sum((call.usage for call in trace.calls), Usage())
    return float(usage.tokens) if kind == "tokens" else usage.cost_usd


def _limits(parts: Sequence[float], budget: Budget) -> list[Amounts]:
    """The limits of each part; counted kinds by largest remainders, so that their sum is never above the whole."""
    split: dict[str, list[float]] = {}
    for kind in (*_COUNTED, "usd"):
        left = budget.left(kind)
        if left == math.inf:
            continue
        split[kind] = [left * part for part in parts]
        if kind in _COUNTED:
            floors = [math.floor(amount + 1e-9) for amount in split[kind]]
            over = round(math.floor(left) * bool(sum(parts))) - sum(floors)
            first = sorted(range(len(parts)), key=lambda i: (floors[i] - split[kind][i], i))[: max(0, over)]
            split[kind] = [float(floor + (i in first)) for i, floor in enumerate(floors)]
    return [Amounts(**{kind: amounts[i] for kind, amounts in split.items()}, seconds=budget.limits.seconds) for i in range(len(parts))]


def _unit(trace: Trace) -> str:
    return f"trace {trace.id}" if trace.task is None else f"task {trace.task}"
