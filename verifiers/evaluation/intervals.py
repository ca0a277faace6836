"""Figures with 95 % intervals. Items of one group (trajectories of a task, steps of one) are not independent: groups are resampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from counterplay.core.beta import wilson

Array: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Array], Array]
"""From weights of the items, one row a resample (r, n), to one figure a row (r,). NaN where a row holds too little."""

RESAMPLES = 2000
FEWEST = 5
"""Groups that it takes for an interval by resampling: fewer show too little of how groups differ."""

_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval, None where so few groups are no ground for one. `n` items in `groups` groups."""

    value: float
    low: float | None
    high: float | None
    n: int
    groups: int


def share(hits: Sequence[float], groups: Sequence[str]) -> Estimate | None:
    """The mean of `hits` in [0, 1], with Wilson's interval at the effective size n / design effect (at most n). None without items.

    The design effect is the variance between groups over that of independent items. A share of 0 or 1 shows no variance: there
    the number of groups counts.
    """
    values = np.asarray(hits, dtype=float)
    if not len(values):
        return None
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    n, count, rate = len(values), int(index.max()) + 1, float(values.mean())
    effective = float(count)
    if 0.0 < rate < 1.0:
        between = np.bincount(index, weights=values - rate)
        design = float((between**2).sum()) / (n * rate * (1 - rate))
        effective = min(n, n / design) if design > 0 else n
    return Estimate(rate, *wilson(rate, effective), n, count)


def mean(values: Sequence[float], groups: Sequence[str], *, seed: int = 0) -> Estimate | None:
    """The mean of any numbers, with the percentile interval of resampled groups. None without items."""
    items = np.asarray(values, dtype=float)
    return resampled(lambda weights: ratio(weights @ items, weights.sum(axis=1)), groups, seed=seed) if len(items) else None


def resampled(
    statistic: Statistic, groups: Sequence[str], *, least: float | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate | None:
    """A statistic of all items and the percentile interval of it over resampled groups. None where the items are too few for it.

    `least` says that the statistic is a distance, never below this, which resampling inflates: the inflation is taken off the interval.
    """
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    if not len(index):
        return None
    n, count = len(index), int(index.max()) + 1
    value = float(statistic(np.ones((1, n)))[0])
    if math.isnan(value):
        return None
    if count < FEWEST:
        return Estimate(value, None, None, n, count)
    found = np.concatenate([statistic(weights) for weights in weightings(index, count, seed=seed, resamples=resamples)])
    found = found[~np.isnan(found)]
    if len(found) < resamples / 2:
        return Estimate(value, None, None, n, count)
    low, high = (float(end) for end in np.quantile(found, [0.025, 0.975]))
    if least is not None:
        inflation = max(0.0, float(found.mean()) - value)
        low, high = max(least, min(value, low - inflation)), max(value, high - inflation)
    return Estimate(value, low, high, n, count)


def weightings(index: NDArray[np.intp], count: int, *, seed: int, resamples: int) -> Iterator[Array]:
    """How often each item is drawn when its groups are, a block of resamples at a time so that memory stays bounded."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(len(index), count))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        places = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        drawn = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count)
        yield drawn[:, index].astype(float)


def ratio(above: Array, below: Array) -> Array:
    """`above / below`, NaN where there is nothing below."""
    found: Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return found
