"""What selecting by a verifier really buys: gold against proxy for the best of N as N grows, from a fixed pool.

A verifier that stands for the truth takes gold with it; one that can be gamed is given ever higher scores by ever worse candidates
(over-optimisation: Gao et al., arXiv:2210.10760).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from counterplay.verifiers.evaluation.intervals import FEWEST, Array, weightings

RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Point:
    """The best of `n` by the verifier: its expected gold with a 95 % interval, its expected score, and the gold of the best by gold."""

    n: int
    gold: float
    low: float | None
    high: float | None
    proxy: float
    ceiling: float


@dataclass(frozen=True)
class Curve:
    """`gain` is gold at the largest N less gold at 1, `fall` gold at its peak less gold at the largest N, each with its interval
    (None where there are too few tasks).

    `pooled` says that the candidates of all tasks are one pool, because most tasks have but one. `over_optimised` says that selecting
    harder costs: the interval of the fall lies above 0.
    """

    points: tuple[Point, ...]
    candidates: int
    pools: int
    pooled: bool
    gain: tuple[float, float | None, float | None]
    fall: tuple[float, float | None, float | None]

    @property
    def over_optimised(self) -> bool:
        return self.fall[1] is not None and self.fall[1] > 0

    @property
    def pays(self) -> bool:
        """Whether selecting by it takes gold along: the interval of the gain lies above 0."""
        return self.gain[1] is not None and self.gain[1] > 0


def best_of(proxy: Sequence[float] | Array, gold: Sequence[float] | Array, n: int, copies: Array | None = None) -> float:
    """The expected gold of the one with the highest proxy among `n` drawn from the pool without replacement; ties go by lot.

    Unbiased: P(the best has rank at most k) = C(k, n) / C(m, n) for a pool of m. `copies` says how often the pool holds each candidate,
    None: once. NaN where the pool is smaller than `n`.
    """
    score, value = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    return float(_best(np.unique(score, return_inverse=True)[1], value, [n], copies)[0])


def _best(rank: NDArray[np.intp], value: Array, ns: Sequence[int], copies: Array | None = None) -> Array:
    """`best_of` for every N of `ns`, which ascend; `rank` is the place of each candidate's proxy among the different ones."""
    counts = np.ones(len(rank)) if copies is None else copies
    held = np.bincount(rank, weights=counts)
    worth = np.bincount(rank, weights=counts * value)
    each = np.divide(worth, held, out=np.zeros_like(worth), where=held > 0)
    upto = np.cumsum(held)
    below, found, drawn = np.ones(len(held)), [], 0
    for n in ns:
        if upto[-1] < n:
            found.append(float("nan"))
            continue
        while drawn < n:
            below *= np.maximum(upto - drawn, 0.0) / (upto[-1] - drawn)
            drawn += 1
        found.append(float(np.diff(below, prepend=0.0) @ each))
    return np.asarray(found)


def curve(proxy: Sequence[float], gold: Sequence[float], groups: Sequence[str], *, together: bool = False, seed: int = 0) -> Curve | None:
    """Gold and proxy for N = 1, 2, 4, ... over the same pools throughout: the groups that are large enough for the largest N.

    The largest N is what at least half of the groups of two or more reach. Where fewer than half of the candidates have a sibling, or
    `together` says so, all are one pool, and N goes up to a quarter of it. None where there are no two candidates of different gold.
    """
    pools = _pools(groups)
    siblings = sum(len(pool) for pool in pools if len(pool) > 1)
    pooled = together or siblings * 2 < len(groups) or len(pools) == 1
    if pooled:
        pools = [list(range(len(groups)))]
    sizes = sorted(len(pool) for pool in pools if len(pool) > 1)
    if not sizes or len(set(gold)) < 2:
        return None
    most = max(2, sizes[0] // 4) if pooled else sizes[(len(sizes) - 1) // 2]
    ns = [1]
    while ns[-1] * 2 <= most:
        ns.append(ns[-1] * 2)
    pools = [pool for pool in pools if len(pool) >= ns[-1]]
    score, value = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if len(pools) == 1:
        drawn = _of_one_pool(score[pools[0]], value[pools[0]], [groups[i] for i in pools[0]], ns, seed)
    else:
        drawn = _of_pools(_table(score, value, pools, ns), seed)
    golds, proxies, ceilings = (_means(a, b, pools, ns) for a, b in ((score, value), (score, score), (value, value)))
    points = [Point(n, float(golds[i]), *_interval(drawn, i), float(proxies[i]), float(ceilings[i])) for i, n in enumerate(ns)]
    peak, last = int(np.argmax(golds)), len(ns) - 1
    gain, fall = ((float(golds[a] - golds[b]), *_interval(drawn, a, b)) for a, b in ((last, 0), (peak, last)))
    return Curve(tuple(points), sum(map(len, pools)), len(pools), pooled, gain, fall)


def _pools(groups: Sequence[str]) -> list[list[int]]:
    order = sorted(range(len(groups)), key=lambda i: groups[i])
    return [list(members) for _, members in groupby(order, key=lambda i: groups[i])]


def _means(score: Array, value: Array, pools: Sequence[Sequence[int]], ns: Sequence[int]) -> Array:
    means: Array = _table(score, value, pools, ns).mean(axis=0)
    return means


def _table(score: Array, value: Array, pools: Sequence[Sequence[int]], ns: Sequence[int]) -> Array:
    """`best_of` by pool and N."""
    return np.asarray([_best(np.unique(score[pool], return_inverse=True)[1], value[pool], ns) for pool in pools])


def _of_one_pool(score: Array, value: Array, groups: Sequence[str], ns: Sequence[int], seed: int) -> Array | None:
    """Gold by resample and N, where the tasks of one pool are resampled; its candidates where they are all of one task. None: too few."""
    names = np.unique(np.asarray(groups), return_inverse=True)[1]
    index = names if names.max() else np.arange(len(score))
    if index.max() + 1 < FEWEST:
        return None
    rank = np.unique(score, return_inverse=True)[1]
    drawn = weightings(index, int(index.max()) + 1, seed=seed, resamples=RESAMPLES)
    return np.asarray([_best(rank, value, ns, copies) for block in drawn for copies in block])


def _of_pools(table: Array, seed: int) -> Array | None:
    """Gold by resample and N, where pools are resampled. `table` holds gold by pool and N. None: too few."""
    if len(table) < FEWEST:
        return None
    index = np.arange(len(table))
    return np.concatenate([block @ table / len(table) for block in weightings(index, len(table), seed=seed, resamples=RESAMPLES)])


def _interval(drawn: Array | None, plus: int, minus: int | None = None) -> tuple[float | None, float | None]:
    """The 95 % interval of the gold at one N, or of its difference from that at another. None where nothing could be drawn."""
    if drawn is None:
        return None, None
    values = drawn[:, plus] if minus is None else drawn[:, plus] - drawn[:, minus]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
