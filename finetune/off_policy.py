"""What a new policy would achieve, estimated from the logged runs of another, before anything is trained or played.

Every action is weighed by how much likelier the new policy makes it than the one that took it; actions of the environment cancel out.
The weights of long runs spread without bounds, so an estimate is refused where they leave the worth of too few tasks, and where they add
up to less than they must: then the new policy does what the logs never show, of which nothing can be said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from counterplay.core.errors import UserError
from counterplay.finetune.intervals import Interval, student_t95

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"

FEWEST = 30.0
"""The least effective sample size, in tasks, for which an estimate is given."""

COVERED = 0.95
"""The least mean weight. It is 1 for logs that show everything the new policy would do (Sachdeva et al. 2020: deficient support)."""

RESAMPLES = 2000
_LARGEST = 300.0  # a log-ratio above it would overflow where it is squared


@dataclass(frozen=True, slots=True)
class Decision:
    """One action of a logged run: its log-probability under the policy that took it (`behaviour`) and under the new one (`target`).

    `reward` is what was paid for it. `value` is a model's guess at the new policy's return from the state, Q^(s) summed over its actions;
    `action_value` the same after this action, Q^(s, a). None in place of `action_value` takes `value` for it, which leaves every estimate
    unbiased whatever the guess; a model of both must be consistent: V^(s) = sum_a pi(a | s) Q^(s, a).
    """

    behaviour: float
    target: float
    reward: float = 0.0
    value: float = 0.0
    action_value: float | None = None


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """The decisions of one run of a task, in order. What was put in the agent's mouth is no decision."""

    task: str
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's mean return, what it is above that of the logs, and the 95 % intervals of both."""

    method: str
    value: float
    interval: Interval
    lift: float
    lift_interval: Interval


@dataclass(frozen=True)
class OffPolicy:
    """What the logs say of the new policy. `logged` is the mean return of the policy that made them.

    `effective` is how many tasks played by the new policy the weights are worth, (sum w)^2 / sum w^2 over tasks; `largest` the largest
    share that one task has in them; `covered` their mean, about 1 where the logs show all that it would do. The estimates: `weighted`
    per-decision importance sampling, `doubly robust`, and `weighted doubly robust`.
    """

    runs: int
    tasks: int
    effective: float
    largest: float
    covered: float
    logged: float
    estimates: tuple[Estimate, ...]

    def __getitem__(self, method: str) -> Estimate:
        return next(estimate for estimate in self.estimates if estimate.method == method)

    def sentence(self, name: str = "the new policy") -> str:
        """The verdict for a person to read, by the weighted doubly robust estimate."""
        best = self["weighted doubly robust"]
        low, high = best.lift_interval
        points = f"{100 * best.lift:+.1f} points over the logs, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        says = f"{name} would be better" if low > 0 else f"{name} would be worse" if high < 0 else f"no evidence of lift of {name}"
        return f"{says}: {points}; {self.runs} runs of {self.tasks} tasks are worth {self.effective:.0f} tasks of its own"


def estimate(
    runs: Sequence[LoggedRun], *, fewest: float = FEWEST, least_covered: float = COVERED, seed: int = 0, resamples: int = RESAMPLES
) -> OffPolicy:
    """The new policy's mean return, every task counting the same, from runs that another policy made.

    With rho_t = prod_{u <= t} pi(a_u | s_u) / b(a_u | s_u) and w_t the rho_t of all runs over their sum:
    weighted (Precup et al. 2000 per decision, each step self-normalised as in Thomas 2015): sum_t sum_i w_t r_t; doubly robust (Jiang
    and Li 2016): the mean of sum_t rho_t (r_t - Q^(s_t, a_t)) + rho_{t-1} V^(s_t); weighted doubly robust (Thomas and Brunskill 2016):
    that with w_t for rho_t.
    Intervals: the standard error over resampled tasks times Student's t with `effective` - 1 degrees of freedom.

    Raises UserError where a log-probability is no number, there are fewer than two tasks, the effective sample size is below `fewest`
    (the policies differ too much), or the mean weight is surely below `least_covered` (the new policy does what the logs never show, and
    weights that are shared out again would hide it).
    """
    import numpy as np

    table = _Table.of(runs)
    tasks = len(table.sums["weight"])
    weights = table.sums["weight"][:, -1]
    effective = float(weights.sum() ** 2 / (weights**2).sum()) if weights.sum() > 0 else 0.0
    if effective < fewest - 1e-6:
        raise _too_few(effective, fewest, tasks)
    covered, reach = float(weights.mean()), student_t95(effective - 1)
    if covered + reach * float(weights.std(ddof=1)) / tasks**0.5 < least_covered:
        raise _uncovered(covered, least_covered)
    counts = np.random.default_rng(seed).multinomial(tasks, np.full(tasks, 1 / tasks), size=resamples).astype(float)
    found, drawn = table.estimates(np.ones((1, tasks))), table.estimates(counts)
    estimates = []
    for name, whole in found.items():
        value, lift = float(whole[0]), float(whole[0] - table.logged.mean())
        half, lift_half = (reach * float(one.std(ddof=1)) for one in (drawn[name], drawn[name] - counts @ table.logged / tasks))
        estimates.append(Estimate(name, value, (value - half, value + half), lift, (lift - lift_half, lift + lift_half)))
    share = float(weights.max() / weights.sum())
    return OffPolicy(len(runs), tasks, effective, share, covered, float(table.logged.mean()), tuple(estimates))


def _too_few(effective: float, fewest: float, tasks: int) -> UserError:
    got = f"logs of {tasks} tasks, worth {effective:.1f} tasks played by the new policy"
    if tasks < fewest:
        return UserError(f"got {got}", f"at least {fewest:g}", "Log more tasks, or play held-out tasks.")
    do = "It does something else too often: log more tasks, compare policies closer to each other, or play held-out tasks."
    return UserError(f"got {got}", f"an effective sample size of at least {fewest:g}", do)


def _uncovered(covered: float, least: float) -> UserError:
    return UserError(
        f"got logs that show {100 * covered:.0f} % of what the new policy would do",
        f"at least {100 * least:g} %, for of the rest they can't tell how it ends",
        "Log runs of a policy that also does these things (at a higher temperature), or play held-out tasks.",
    )


@dataclass(frozen=True)
class _Table:
    """The runs summed by task and step, (tasks, steps) each: what the estimates are made of. `logged` are mean returns by task."""

    logged: Array
    sums: dict[str, Array]

    @classmethod
    def of(cls, runs: Sequence[LoggedRun]) -> _Table:
        import numpy as np

        names, index = np.unique([run.task for run in runs], return_inverse=True)
        if len(names) < 2:
            raise UserError(f"got runs of {len(names)} tasks", "runs of at least two tasks, for tasks are what is resampled")
        logs, rewards, values, actions = np.zeros((4, len(runs), max(1, *(len(run.decisions) for run in runs))))
        for i, run in enumerate(runs):
            for t, decision in enumerate(run.decisions):
                logs[i, t] = decision.target - decision.behaviour
                rewards[i, t], values[i, t] = decision.reward, decision.value
                actions[i, t] = decision.value if decision.action_value is None else decision.action_value
        if np.isnan(logs).any() or np.isposinf(logs).any():
            raise UserError("got a log-probability that is no number", "a finite one of every action, under the policy that took it")
        shares = (1.0 / np.bincount(index))[index][:, None]
        ratios = np.exp(np.minimum(logs.cumsum(axis=1), _LARGEST))
        before = np.concatenate([np.ones((len(runs), 1)), ratios[:, :-1]], axis=1)
        parts = {
            "weight": ratios,
            "before": before,
            "paid": ratios * rewards,
            "corrected": ratios * (rewards - actions),
            "expected": before * values,
        }
        sums = {name: np.zeros((len(names), ratios.shape[1])) for name in parts}
        for name, part in parts.items():
            np.add.at(sums[name], index, part * shares)
        return cls(np.bincount(index, weights=shares[:, 0] * rewards.sum(axis=1)).astype(float), sums)

    def estimates(self, counts: Array) -> dict[str, Array]:
        """Every estimate with each task counted so often, (resamples, tasks). A run that has ended keeps its last rho."""
        tasks = counts.sum(axis=1, keepdims=True)
        weight, before, paid, corrected, expected = (
            counts @ self.sums[name] for name in ("weight", "before", "paid", "corrected", "expected")
        )
        return {
            "weighted": _shared(paid, weight).sum(axis=1),
            "doubly robust": ((corrected + expected) / tasks).sum(axis=1),
            "weighted doubly robust": (_shared(corrected, weight) + _shared(expected, before)).sum(axis=1),
        }


def _shared(above: Array, below: Array) -> Array:
    import numpy as np

    found: Array = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found
