"""95 % intervals of shares over tasks, and of paired differences, chosen by how often they hold the truth (`bench/coverage.py`).

Values are one number a task: the mean outcome of its attempts. Percentile bootstraps are too narrow with few tasks and near 0 and 1, so
the intervals are score intervals: Wilson's and Tango's where every value is 0 or 1, and else Wilson's at the size that the spread
between tasks is worth, two of them put together for a difference. All take (tasks,) or (experiments, tasks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"
Interval: TypeAlias = tuple[float, float]

RESAMPLES = 10_000
_Z95 = 1.959963984540054
_HALVINGS = 50


def rate_interval(values: Any) -> Interval:
    """The interval of the mean of `values` (tasks,) in [0, 1]: Wilson 1927 at n tasks, or at the effective size n r (1 - r) / s^2.

    s^2 is the variance between tasks, to which a task's worth of r (1 - r) is added so that few tasks alike are not taken for certainty
    (Dean and Pagano 2015, Korn and Graubard 1998: Wilson's interval at the effective size of a clustered sample).
    """
    low, high = rate_bounds(_rows(values))
    return float(low[0]), float(high[0])


def difference_interval(before: Any, after: Any) -> Interval:
    """The interval of the mean of after - before, paired by task (tasks,), both in [0, 1].

    Tango 1998's score interval where every value is 0 or 1. Else Newcombe 1998's square-and-add of the two `rate_interval`s with
    the correlation of the tasks (method 10 without its continuity correction; for any two estimates: Zou and Donner 2008).
    """
    low, high = difference_bounds(_rows(before), _rows(after))
    return float(low[0]), float(high[0])


def rate_bounds(values: Array) -> tuple[Array, Array]:
    """`rate_interval` of every row of (experiments, tasks)."""
    rate = values.mean(axis=1)
    return wilson_bounds(rate, effective_tasks(values, rate))


def effective_tasks(values: Array, rate: Array) -> Array:
    """How many independent tasks with one attempt each would show the rate as surely: n where every value is 0 or 1."""
    import numpy as np

    n, independent = values.shape[1], rate * (1 - rate)
    spread = (((values - rate[:, None]) ** 2).sum(axis=1) + independent) / n
    sizes = np.divide(independent * n, spread, out=np.full(len(rate), float(n)), where=spread > 0)
    return np.where(_binary(values), float(n), sizes)


def wilson_bounds(rate: Array, n: Array) -> tuple[Array, Array]:
    """Wilson's score interval of shares of `n` independent trials, row by row."""
    import numpy as np

    square = _Z95**2
    middle, half = rate + square / (2 * n), _Z95 * np.sqrt(rate * (1 - rate) / n + square / (4 * n * n))
    low, high = (middle - half) / (1 + square / n), (middle + half) / (1 + square / n)
    return np.where(rate <= 0, 0.0, np.maximum(low, 0.0)), np.where(rate >= 1, 1.0, np.minimum(high, 1.0))


def difference_bounds(before: Array, after: Array) -> tuple[Array, Array]:
    """`difference_interval` of every row of (experiments, tasks)."""
    import numpy as np

    tasks, binary = before.shape[1], _binary(before) & _binary(after)
    score = tango_bounds((after > before).sum(axis=1), (after < before).sum(axis=1), tasks)
    if binary.all():
        return score
    added = square_and_add(before, after)
    return np.where(binary, score[0], added[0]), np.where(binary, score[1], added[1])


def square_and_add(before: Array, after: Array) -> tuple[Array, Array]:
    """Newcombe's interval for values that need not be 0 or 1, row by row.

    The correlation of n tasks is drawn to zero by n^2 / (n^2 + 8): of few tasks, one that is high by chance made it too narrow (5 tasks
    with 8 attempts: 89 % held the truth, with this 99 %); at 20 tasks it is 2 %.
    """
    import numpy as np

    old, new = before.mean(axis=1), after.mean(axis=1)
    (old_low, old_high), (new_low, new_high) = rate_bounds(before), rate_bounds(after)
    both = ((before - old[:, None]) * (after - new[:, None])).mean(axis=1)
    spread = before.std(axis=1) * after.std(axis=1)
    alike = np.clip(np.divide(both, spread, out=np.zeros(len(both)), where=spread > 0), -1.0, 1.0)
    alike *= before.shape[1] ** 2 / (before.shape[1] ** 2 + 8)
    down = _added(new - new_low, old_high - old, alike)
    up = _added(new_high - new, old - old_low, alike)
    return np.maximum(new - old - down, -1.0), np.minimum(new - old + up, 1.0)


def _added(one: Array, other: Array, correlation: Array) -> Array:
    import numpy as np

    return np.sqrt(np.maximum(one**2 - 2 * correlation * one * other + other**2, 0.0))


def tango_bounds(gained: Any, lost: Any, tasks: int) -> tuple[Array, Array]:
    """Tango 1998's interval of (gained - lost) / tasks: every difference that its score test of two paired shares does not reject."""
    import numpy as np

    gained, lost = np.asarray(gained, dtype=float), np.asarray(lost, dtype=float)
    difference = (gained - lost) / tasks
    ends = []
    for side in (-1.0, 1.0):
        inside, outside = difference, np.full_like(difference, side)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            held = np.abs(_tango(gained, lost, tasks, middle)) < _Z95
            inside, outside = np.where(held, middle, inside), np.where(held, outside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def _tango(gained: Array, lost: Array, tasks: int, difference: Array) -> Array:
    """The score statistic, with the share of losses at its likeliest value under `difference`."""
    import numpy as np

    b = (2 * tasks - gained + lost) * difference - gained - lost
    share = (np.sqrt(np.maximum(b * b + 8 * tasks * lost * difference * (1 - difference), 0.0)) - b) / (4 * tasks)
    variance = np.maximum(tasks * (2 * share + difference * (1 - difference)), 1e-12)
    statistic: Array = (gained - lost - tasks * difference) / np.sqrt(variance)
    return statistic


def student_t95(freedom: float) -> float:
    """The 0.975 quantile of Student's t, to 0.4 % from 4 degrees of freedom on (the expansion of Fisher and Cornish 1960)."""
    z, v = _Z95, max(freedom, 1.0)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, start=1))


def bootstrap(values: Any, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The 95 % percentile interval of the mean of `values` (n,), resampled with replacement: for values without bounds, such as costs."""
    import numpy as np

    means = resampled_means(np.asarray(values, dtype=float), np.random.default_rng(seed), resamples, flip=False)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p(differences: Any, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """The p-value of the two-sided sign-flip test that paired `differences` (n,) are as likely positive as negative."""
    import numpy as np

    values = np.asarray(differences, dtype=float)
    flipped = resampled_means(values, np.random.default_rng(seed), resamples, flip=True)
    as_far = np.abs(flipped) >= abs(values.mean()) - 1e-12
    return float((1 + as_far.sum()) / (1 + resamples))


def resampled_means(values: Any, rng: Any, resamples: int, *, flip: bool) -> Any:
    """Means of resamples (or of sign flips), a block at a time so that memory stays bounded."""
    import numpy as np

    n = len(values)
    block = max(1, 2_000_000 // n)
    parts = []
    for start in range(0, resamples, block):
        shape = (min(block, resamples - start), n)
        parts.append((values * rng.choice((-1.0, 1.0), shape) if flip else values[rng.integers(0, n, shape)]).mean(axis=1))
    return np.concatenate(parts)


def _rows(values: Any) -> Array:
    import numpy as np

    return np.atleast_2d(np.asarray(values, dtype=float))


def _binary(values: Array) -> Any:
    """Which rows hold nothing but 0 and 1."""
    return ((values == 0.0) | (values == 1.0)).all(axis=1)
