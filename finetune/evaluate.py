"""Before and after: policies compared on the same held-out tasks, with intervals, and in words that claim no more than they show.

Takes plain outcomes per task, so that whoever calls it plays the rollouts. Tasks are the sample, because attempts at one task are
not independent; differences are paired by task, which takes the tasks' own difficulty out of them. The intervals are those of
`finetune.intervals`, chosen by how often they hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from counterplay.core.errors import UserError
from counterplay.finetune.failures import SUCCESS, told
from counterplay.finetune.intervals import RESAMPLES, Interval, bootstrap, difference_interval, rate_interval, sign_flip_p

__all__ = [
    "RESAMPLES",
    "Comparison",
    "EvaluationReport",
    "FailureChange",
    "FailureShare",
    "Interval",
    "Results",
    "Summary",
    "Verdict",
    "bootstrap",
    "compare",
    "evaluate",
    "pass_at_k",
    "sign_flip_p",
    "summarise",
    "table",
]

Verdict: TypeAlias = Literal["better", "worse", "no evidence of lift"]


@dataclass(frozen=True)
class Results:
    """One policy's outcomes by task: one number in [0, 1], or one for every attempt. 1.0 is a success.

    `steps` holds model calls by task (the mean over attempts), `cost_usd` what all attempts cost; empty and None where not known.
    `ends` says of every attempt how it ended: `failures.SUCCESS` or a class of failure; empty where not known.
    """

    name: str
    outcomes: Mapping[str, float | Sequence[float]]
    steps: Mapping[str, float] = field(default_factory=dict)
    cost_usd: float | None = None
    ends: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def attempts(self, task: str) -> tuple[float, ...]:
        outcome = self.outcomes[task]
        return (float(outcome),) if isinstance(outcome, int | float) else tuple(map(float, outcome))


@dataclass(frozen=True, slots=True)
class FailureShare:
    """The share of all attempts that ended in this class of failure, the mean over tasks, with its 95 % interval."""

    failure: str
    share: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class FailureChange:
    """A class of failure before and after: shares of all attempts, and their paired difference with its 95 % interval."""

    failure: str
    before: float
    after: float
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Summary:
    """One policy alone. `rate` is the mean over tasks of the mean outcome, `interval` its 95 % interval.

    `pass_at` gives the unbiased pass@k up to the fewest attempts, with intervals. `successes` counts attempts; `steps_per_success` and
    `cost_per_success_usd` are what all attempts took for each of them, None where that is not known or there is none.
    """

    name: str
    tasks: int
    rate: float
    interval: Interval
    pass_at: Mapping[int, float]
    mean_steps: float | None = None
    cost_per_success_usd: float | None = None
    attempts: int = 1
    successes: int = 0
    pass_intervals: Mapping[int, Interval] = field(default_factory=dict)
    steps_per_success: float | None = None
    failures: tuple[FailureShare, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """`b` against `a` on their tasks: the mean paired difference b - a, its 95 % interval, and the p-value of a two-sided
    sign-flip test. `gains` and `regressions` are the tasks on which b did better and worse, the largest changes first; `ends` says of
    each how its runs by a and by b ended. `failures` are classes of failure, the largest changes first, where both say how runs ended.
    """

    a: str
    b: str
    tasks: int
    difference: float
    interval: Interval
    p_value: float
    verdict: Verdict
    gains: tuple[str, ...]
    regressions: tuple[str, ...]
    ends: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    failures: tuple[FailureChange, ...] = ()

    def sentence(self) -> str:
        """The verdict for a person to read."""
        low, high = self.interval
        points = f"{100 * self.difference:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {self.tasks} tasks"
        says = (
            f"no evidence of lift of {self.b} over {self.a}"
            if self.verdict == "no evidence of lift"
            else f"{self.b} is {self.verdict} than {self.a}"
        )
        return f"{says}: {points}"


@dataclass(frozen=True)
class EvaluationReport:
    """All policies and the comparisons asked for."""

    policies: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    seed: int = 0
    resamples: int = RESAMPLES

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    results: Sequence[Results], *, against: Sequence[str] | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> EvaluationReport:
    """Summarise every policy and compare each with the earlier ones named in `against` (None: with the first and with its predecessor).

    Raises UserError where there is nothing to compare, a name is twice there, or the policies did not play the same tasks.
    """
    names = [result.name for result in results]
    if not results or len(set(names)) < len(names):
        raise UserError(f"got results of {names or 'no policy'}", "at least one policy, each under its own name")
    unknown = set(against or ()) - set(names)
    if unknown:
        raise UserError(f"got {sorted(unknown)} to compare with", f"names out of {names}")
    chosen = {names[0]} if against is None else set(against)
    pairs = [
        (a, b) for j, b in enumerate(results) for i, a in enumerate(results[:j]) if a.name in chosen or (against is None and i == j - 1)
    ]
    comparisons = tuple(compare(a, b, seed=seed, resamples=resamples) for a, b in pairs)
    return EvaluationReport(tuple(summarise(r) for r in results), comparisons, seed, resamples)


def summarise(results: Results) -> Summary:
    """One policy alone. Raises UserError where it played no task or an outcome is not in [0, 1]."""
    tasks = sorted(results.outcomes)
    attempts = [_checked(results, task) for task in tasks]
    if not attempts:
        raise UserError(f"{results.name} has no outcomes", "at least one task")
    means = _means(attempts)
    wins = [sum(outcome >= 1.0 for outcome in outcomes) for outcomes in attempts]
    fewest, successes = min(map(len, attempts)), sum(wins)
    passed = {k: [pass_at_k(len(o), won, k) for o, won in zip(attempts, wins, strict=True)] for k in range(1, fewest + 1)}
    calls = sum(results.steps.get(task, 0.0) * len(o) for task, o in zip(tasks, attempts, strict=True)) if results.steps else None
    return Summary(
        name=results.name,
        tasks=len(attempts),
        rate=sum(means) / len(means),
        interval=rate_interval(means),
        pass_at={k: sum(values) / len(values) for k, values in passed.items()},
        mean_steps=sum(results.steps.values()) / len(results.steps) if results.steps else None,
        cost_per_success_usd=results.cost_usd / successes if results.cost_usd is not None and successes else None,
        attempts=fewest,
        successes=successes,
        pass_intervals={k: rate_interval(values) for k, values in passed.items()},
        steps_per_success=calls / successes if calls is not None and successes else None,
        failures=_failures(results, tasks),
    )


def _failures(results: Results, tasks: Sequence[str]) -> tuple[FailureShare, ...]:
    """Classes of failure, the most frequent first; none where the ends of some task are not known."""
    if not all(results.ends.get(task) for task in tasks):
        return ()
    shares = {name: _shares(results, tasks, name) for name in {end for task in tasks for end in results.ends[task]} - {SUCCESS}}
    found = [FailureShare(name, sum(values) / len(values), rate_interval(values)) for name, values in shares.items()]
    return tuple(sorted(found, key=lambda share: (-share.share, share.failure)))


def _shares(results: Results, tasks: Sequence[str], failure: str) -> list[float]:
    return [list(results.ends[task]).count(failure) / len(results.ends[task]) for task in tasks]


def compare(a: Results, b: Results, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """How `b` does against `a`, paired by task. Raises UserError where they did not play the same tasks.

    `better` and `worse` take an interval without zero and p <= 0.05: with a handful of tasks one of the two alone is too sure.
    """
    odd = sorted(set(a.outcomes) ^ set(b.outcomes))
    if odd or not a.outcomes:
        got = f"{len(odd)} tasks that only one of {a.name} and {b.name} played: {', '.join(odd[:5])}" if odd else "no tasks"
        raise UserError(got, "the same tasks for both, because differences are paired")
    tasks = sorted(a.outcomes)
    before, after = (_means([_checked(results, task) for task in tasks]) for results in (a, b))
    differences = [new - old for old, new in zip(before, after, strict=True)]
    interval = difference_interval(before, after)
    p_value = sign_flip_p(differences, seed=seed, resamples=resamples)
    verdict: Verdict = "no evidence of lift"
    if p_value <= 0.05 and (interval[0] > 0 or interval[1] < 0):
        verdict = "better" if interval[0] > 0 else "worse"
    order = sorted(range(len(tasks)), key=lambda i: differences[i])
    known = bool(a.ends and b.ends)
    return Comparison(
        a=a.name,
        b=b.name,
        tasks=len(tasks),
        difference=sum(differences) / len(differences),
        interval=interval,
        p_value=p_value,
        verdict=verdict,
        gains=tuple(tasks[i] for i in reversed(order) if differences[i] > 0),
        regressions=tuple(tasks[i] for i in order if differences[i] < 0),
        ends={tasks[i]: (told(a.ends[tasks[i]]), told(b.ends[tasks[i]])) for i in order if differences[i]} if known else {},
        failures=_changes(a, b, tasks) if known else (),
    )


def _changes(a: Results, b: Results, tasks: Sequence[str]) -> tuple[FailureChange, ...]:
    found = []
    for name in {end for results in (a, b) for task in tasks for end in results.ends[task]} - {SUCCESS}:
        before, after = (_shares(results, tasks, name) for results in (a, b))
        rates = [sum(values) / len(values) for values in (before, after)]
        found.append(FailureChange(name, rates[0], rates[1], rates[1] - rates[0], difference_interval(before, after)))
    return tuple(sorted(found, key=lambda change: (-abs(change.difference), change.failure)))


def _means(attempts: Sequence[Sequence[float]]) -> list[float]:
    return [sum(outcomes) / len(outcomes) for outcomes in attempts]


def _checked(results: Results, task: str) -> tuple[float, ...]:
    outcomes = results.attempts(task)
    if not outcomes or not all(0.0 <= outcome <= 1.0 for outcome in outcomes):
        raise UserError(f"{results.name} has outcomes {list(outcomes)} for task {task}", "at least one number in [0, 1]")
    return outcomes


def pass_at_k(n: int, successes: int, k: int) -> float:
    """The unbiased estimate of P(at least one of k attempts succeeds) out of n attempts (Chen et al., arXiv:2107.03374)."""
    return 1.0 - math.comb(n - successes, k) / math.comb(n, k)


def table(report: EvaluationReport) -> list[dict[str, str]]:
    """One row of text cells a policy, for a terminal or a README: success with interval, and every paired difference asked for."""
    baselines = list(dict.fromkeys(comparison.a for comparison in report.comparisons))
    rows = []
    for policy in report.policies:
        low, high = policy.interval
        row = {
            "policy": policy.name,
            "tasks": str(policy.tasks),
            "success": f"{100 * policy.rate:.1f} %",
            "95 %": f"{100 * low:.1f} to {100 * high:.1f}",
        }
        if policy.attempts > 1:
            row[f"pass@{policy.attempts}"] = f"{100 * policy.pass_at[policy.attempts]:.1f} %"
        if policy.mean_steps is not None:
            row["steps"] = f"{policy.mean_steps:.1f}"
        if policy.steps_per_success is not None:
            row["steps a success"] = f"{policy.steps_per_success:.1f}"
        if policy.cost_per_success_usd is not None:
            row["usd a success"] = f"{policy.cost_per_success_usd:.4f}"
        for baseline in baselines:
            found = next((c for c in report.comparisons if (c.a, c.b) == (baseline, policy.name)), None)
            row[f"over {baseline}"] = "" if found is None else _cell(found)
        rows.append(row)
    return rows


def _cell(comparison: Comparison) -> str:
    low, high = comparison.interval
    mark = {"better": "", "worse": " (worse)", "no evidence of lift": " (no evidence of lift)"}[comparison.verdict]
    return f"{100 * comparison.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{mark}"
