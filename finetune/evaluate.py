"""Before and after: policies compared on the same held-out tasks, with intervals, and in words that claim no more than they show.

Takes plain outcomes per task, so that whoever calls it plays the rollouts. Resampling is over tasks, because attempts at one task are
not independent; differences are paired by task, which takes the tasks' own difficulty out of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from counterplay.core.beta import wilson
from counterplay.core.errors import UserError

Verdict: TypeAlias = Literal["better", "worse", "no evidence of lift"]
Interval: TypeAlias = tuple[float, float]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Results:
    """One policy's outcomes by task: one number in [0, 1], or one for every attempt. 1.0 is a success.

    `steps` holds model calls by task (the mean over attempts), `cost_usd` what all attempts cost; empty and None where not known.
    """

    name: str
    outcomes: Mapping[str, float | Sequence[float]]
    steps: Mapping[str, float] = field(default_factory=dict)
    cost_usd: float | None = None

    def attempts(self, task: str) -> tuple[float, ...]:
        outcome = self.outcomes[task]
        return (float(outcome),) if isinstance(outcome, int | float) else tuple(map(float, outcome))


@dataclass(frozen=True)
class Summary:
    """One policy alone. `rate` is the mean over tasks of the mean outcome, `interval` its 95 % interval: Wilson's where every task
    has one attempt that failed or succeeded, else a bootstrap over tasks. `pass_at` gives the unbiased pass@k up to the fewest attempts.
    """

    name: str
    tasks: int
    rate: float
    interval: Interval
    pass_at: Mapping[int, float]
    mean_steps: float | None = None
    cost_per_success_usd: float | None = None


@dataclass(frozen=True)
class Comparison:
    """`b` against `a` on their tasks: the mean paired difference b - a, its 95 % bootstrap interval, and the p-value of a two-sided
    sign-flip test. `gains` and `regressions` are the tasks on which b did better and worse, the largest changes first.
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
    return EvaluationReport(tuple(summarise(r, seed=seed, resamples=resamples) for r in results), comparisons, seed, resamples)


def summarise(results: Results, *, seed: int = 0, resamples: int = RESAMPLES) -> Summary:
    """One policy alone. Raises UserError where it played no task or an outcome is not in [0, 1]."""
    import numpy as np

    attempts = [_checked(results, task) for task in sorted(results.outcomes)]
    if not attempts:
        raise UserError(f"{results.name} has no outcomes", "at least one task")
    means = np.array([sum(outcomes) / len(outcomes) for outcomes in attempts])
    rate, total = float(means.mean()), sum(sum(outcomes) for outcomes in attempts)
    fewest = min(map(len, attempts))
    binary = all(outcomes in {(0.0,), (1.0,)} for outcomes in attempts)
    return Summary(
        name=results.name,
        tasks=len(attempts),
        rate=rate,
        interval=wilson(rate, len(attempts)) if binary else bootstrap(means, seed=seed, resamples=resamples),
        pass_at={k: sum(pass_at_k(len(o), sum(v >= 1.0 for v in o), k) for o in attempts) / len(attempts) for k in range(1, fewest + 1)},
        mean_steps=sum(results.steps.values()) / len(results.steps) if results.steps else None,
        cost_per_success_usd=results.cost_usd / total if results.cost_usd is not None and total else None,
    )


def compare(a: Results, b: Results, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """How `b` does against `a`, paired by task. Raises UserError where they did not play the same tasks.

    `better` and `worse` take an interval without zero and p <= 0.05: with a handful of tasks a bootstrap alone is too sure.
    """
    import numpy as np

    odd = sorted(set(a.outcomes) ^ set(b.outcomes))
    if odd or not a.outcomes:
        got = f"{len(odd)} tasks that only one of {a.name} and {b.name} played: {', '.join(odd[:5])}" if odd else "no tasks"
        raise UserError(got, "the same tasks for both, because differences are paired")
    tasks = sorted(a.outcomes)
    means = [np.array([sum(o) / len(o) for o in (_checked(results, task) for task in tasks)]) for results in (a, b)]
    differences = means[1] - means[0]
    mean, interval = float(differences.mean()), bootstrap(differences, seed=seed, resamples=resamples)
    p_value = sign_flip_p(differences, seed=seed, resamples=resamples)
    verdict: Verdict = "no evidence of lift"
    if p_value <= 0.05 and (interval[0] > 0 or interval[1] < 0):
        verdict = "better" if interval[0] > 0 else "worse"
    order = [int(i) for i in np.argsort(differences, kind="stable")]
    return Comparison(
        a=a.name,
        b=b.name,
        tasks=len(tasks),
        difference=mean,
        interval=interval,
        p_value=p_value,
        verdict=verdict,
        gains=tuple(tasks[i] for i in reversed(order) if differences[i] > 0),
        regressions=tuple(tasks[i] for i in order if differences[i] < 0),
    )


def _checked(results: Results, task: str) -> tuple[float, ...]:
    outcomes = results.attempts(task)
    if not outcomes or not all(0.0 <= outcome <= 1.0 for outcome in outcomes):
        raise UserError(f"{results.name} has outcomes {list(outcomes)} for task {task}", "at least one number in [0, 1]")
    return outcomes


def bootstrap(values: Any, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The 95 % percentile interval of the mean of `values` (n,), resampled with replacement."""
    import numpy as np

    means = _resampled(np.asarray(values, dtype=float), np.random.default_rng(seed), resamples, flip=False)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p(differences: Any, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """The p-value of the two-sided sign-flip test that paired `differences` (n,) are as likely positive as negative."""
    import numpy as np

    values = np.asarray(differences, dtype=float)
    flipped = _resampled(values, np.random.default_rng(seed), resamples, flip=True)
    as_far = np.abs(flipped) >= abs(values.mean()) - 1e-12
    return float((1 + as_far.sum()) / (1 + resamples))


def _resampled(values: Any, rng: Any, resamples: int, *, flip: bool) -> Any:
    """Means of resamples (or of sign flips), a block at a time so that memory stays bounded."""
    import numpy as np

    n = len(values)
    block = max(1, 2_000_000 // n)
    parts = []
    for start in range(0, resamples, block):
        shape = (min(block, resamples - start), n)
        parts.append((values * rng.choice((-1.0, 1.0), shape) if flip else values[rng.integers(0, n, shape)]).mean(axis=1))
    return np.concatenate(parts)


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
        if policy.mean_steps is not None:
            row["steps"] = f"{policy.mean_steps:.1f}"
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
