"""Does a verifier put siblings in the right order, whatever their length? One against many, pairs, length-bias slope."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from counterplay.verifiers.evaluation.intervals import Array, Estimate, mean, ratio, resampled, share


@dataclass(frozen=True)
class Siblings:
    """Right against wrong siblings, over the groups that hold both; figures are means over groups, each counted once.

    `pairs` is the share of pairs in the right order, ties half. `one_against_many` is the share of right ones scored above all the
    wrong ones of their group (RewardMATH, arXiv:2410.01729; a tie with a wrong one is lost), `reciprocal_rank` the mean of 1 over a right
    one's place among the wrong ones, a tie taking the worse place. `chance` is what `one_against_many` would be by lot.
    """

    pairs: Estimate
    one_against_many: Estimate
    reciprocal_rank: Estimate
    chance: float


def siblings(values: Sequence[float], truths: Sequence[bool], groups: Sequence[str], *, seed: int = 0) -> Siblings | None:
    """None where no group holds a right and a wrong one."""
    pairs, firsts, ranks, chances, names = [], [], [], [], []
    for name, right, wrong in _sides(values, truths, groups):
        names.append(name)
        pairs.append(float(np.mean([[_wins(a, b) for b in wrong] for a in right])))
        places = [1 + sum(b >= a for b in wrong) for a in right]
        firsts.append(float(np.mean([place == 1 for place in places])))
        ranks.append(float(np.mean([1 / place for place in places])))
        chances.append(1 / (1 + len(wrong)))
    ordered, best, rank = share(pairs, names), share(firsts, names), mean(ranks, names, seed=seed)
    if ordered is None or best is None or rank is None:
        return None
    return Siblings(ordered, best, rank, sum(chances) / len(chances))


def _sides(values: Sequence[float], truths: Sequence[bool], groups: Sequence[str]) -> Iterator[tuple[str, list[float], list[float]]]:
    """The groups with a right and a wrong item: name, values of the right ones, of the wrong ones."""
    order = sorted(range(len(values)), key=lambda i: groups[i])
    for name, held in groupby(order, key=lambda i: groups[i]):
        members = list(held)
        right, wrong = ([values[i] for i in members if truths[i] is side] for side in (True, False))
        if right and wrong:
            yield name, right, wrong


def _wins(a: float, b: float) -> float:
    return 0.5 if a == b else float(a > b)


def length_slope(
    values: Sequence[float], lengths: Sequence[float], truths: Sequence[bool], groups: Sequence[str], *, seed: int = 0
) -> Estimate | None:
    """By how much the score rises when the length (at least 1) doubles and the truth stays the same.

    Least squares of the score on log2 of the length, each truth about its own means. 0 is no bias. None where lengths do not vary.
    """
    if not values:
        return None
    said, doubled = np.asarray(values, dtype=float), np.log2(np.maximum(1.0, np.asarray(lengths, dtype=float)))
    said, doubled = said - said[0], doubled - doubled[0]  # so that a constant is exactly 0
    sides = [np.asarray(truths, dtype=bool) == side for side in (True, False)]

    def statistic(weights: Array) -> Array:
        above, below = np.zeros(len(weights)), np.zeros(len(weights))
        for side in sides:
            here, x, y = weights[:, side], doubled[side], said[side]
            total = here.sum(axis=1)
            x_mean, y_mean = (np.nan_to_num(ratio(here @ each, total)) for each in (x, y))
            above += here @ (x * y) - total * x_mean * y_mean
            below += here @ (x * x) - total * x_mean**2
        return ratio(above, np.where(below > 1e-12, below, 0.0))

    return resampled(statistic, groups, seed=seed)
