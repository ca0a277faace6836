"""Does a verifier tell right from wrong, and do its numbers mean what they say? AUROC, Brier, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from counterplay.core.beta import wilson
from counterplay.verifiers.evaluation.intervals import Array, Estimate, mean, ratio, resampled, share

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram: items scored `low` to `high`, `said` on the mean, of which the share `seen` was right."""

    low: float
    high: float
    said: float
    seen: Estimate


@dataclass(frozen=True)
class Discrimination:
    """How scores in [0, 1] and a truth that is yes or no go together, over `n` items of which the share `base` is right.

    `auroc` is the chance that a right item is scored above a wrong one, ties half; None where all are right or all wrong. `brier` is
    the mean squared error, and the constant `base` has `base` (1 - `base`). `ece` is the mean distance between what is said and seen, over
    bins of equal mass (adaptive: ties stay together), `ece_width` over bins of equal width; a verifier with these very scores that is
    perfectly calibrated shows `ece_floor`. `reliability` are the bins of equal mass.
    """

    n: int
    base: float
    auroc: Estimate | None
    brier: Estimate
    ece: Estimate
    ece_width: Estimate
    ece_floor: float
    reliability: tuple[Bin, ...]


def discrimination(
    values: Sequence[float], truths: Sequence[bool], groups: Sequence[str], *, bins: int = BINS, seed: int = 0
) -> Discrimination | None:
    """All figures of `Discrimination`; None without items."""
    if not values:
        return None
    said, seen = np.asarray(values, dtype=float), np.asarray(truths, dtype=float)
    mass, width = equal_mass(said, bins), equal_width(said, bins)
    return Discrimination(
        n=len(said),
        base=float(seen.mean()),
        auroc=auroc(values, truths, groups, seed=seed),
        brier=cast("Estimate", mean(((said - seen) ** 2).tolist(), groups, seed=seed)),
        ece=cast("Estimate", resampled(lambda w: _ece(w, said, seen, mass), groups, least=0.0, seed=seed)),
        ece_width=cast("Estimate", resampled(lambda w: _ece(w, said, seen, width), groups, least=0.0, seed=seed)),
        ece_floor=_floor(said, mass, seed),
        reliability=tuple(_bars(said, seen, mass, groups)),
    )


def auroc(values: Sequence[float], truths: Sequence[bool], groups: Sequence[str], *, seed: int = 0) -> Estimate | None:
    """The Mann-Whitney AUROC with ties as halves. None where one class is empty.

    Exactly 0 or 1 shows no variance to resampling: there the open end is Wilson's for the groups of the smaller class.
    """
    said, right = np.asarray(values, dtype=float), np.asarray(truths, dtype=bool)
    if not right.any() or right.all():
        return None
    order = np.argsort(said, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(said[order]) > 0])
    positive = right[order].astype(float)

    def statistic(weights: Array) -> Array:
        here = weights[:, order]
        above = np.add.reduceat(here * positive, starts, axis=1)
        below = np.add.reduceat(here * (1 - positive), starts, axis=1)
        wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        return ratio(wins, above.sum(axis=1) * below.sum(axis=1))

    found = resampled(statistic, groups, seed=seed)
    if found is None or 0.0 < found.value < 1.0:
        return found
    named = np.asarray(groups)
    low, high = wilson(found.value, min(len(set(named[right])), len(set(named[~right]))))
    return Estimate(found.value, low, high, found.n, found.groups)


def equal_width(values: Array, bins: int) -> NDArray[np.intp]:
    """The bin of each value among `bins` of [0, 1]; 1 belongs to the last."""
    return np.minimum((values * bins).astype(np.intp), bins - 1)


def equal_mass(values: Array, bins: int) -> NDArray[np.intp]:
    """The bin of each value among at most `bins` of about equal number. Equal values share a bin, so order never matters."""
    ordered = np.sort(values)
    edges = ordered[np.minimum(len(ordered) - 1, np.arange(1, bins) * len(ordered) // bins)]
    return np.searchsorted(np.unique(edges), values, side="right").astype(np.intp)


def _ece(weights: Array, said: Array, seen: Array, bins: NDArray[np.intp]) -> Array:
    gaps = np.zeros(len(weights))
    for number in np.unique(bins):
        here = bins == number
        gaps += np.abs(weights[:, here] @ (said - seen)[here])
    return ratio(gaps, weights.sum(axis=1))


def _floor(said: Array, bins: NDArray[np.intp], seed: int, draws: int = 200) -> float:
    """The mean ECE of these scores where each is the true chance of being right."""
    rng = np.random.default_rng(seed)
    one = np.ones((1, len(said)))
    return float(np.mean([_ece(one, said, (rng.random(len(said)) < said).astype(float), bins)[0] for _ in range(draws)]))


def _bars(said: Array, seen: Array, bins: NDArray[np.intp], groups: Sequence[str]) -> list[Bin]:
    bars = []
    for number in np.unique(bins):
        here = np.flatnonzero(bins == number)
        estimate = cast("Estimate", share(seen[here].tolist(), [groups[int(i)] for i in here]))
        bars.append(Bin(float(said[here].min()), float(said[here].max()), float(said[here].mean()), estimate))
    return bars
