"""From scores of steps to one score of a trajectory. Never a raw sum: it rewards length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from counterplay.core.errors import UserError


def last(scores: Sequence[float]) -> float:
    """v_{T-1}: right for values, which already look ahead."""
    return scores[-1]


def minimum(scores: Sequence[float]) -> float:
    """min_t v_t: right for irreversible steps, one of which spoils all."""
    return min(scores)


def product(scores: Sequence[float]) -> float:
    """prod_t v_t: right for independent probabilities that a step is correct; falls with length."""
    return math.prod(scores)


def mean(scores: Sequence[float], gamma: float = 1.0) -> float:
    """sum_t gamma^(T-1-t) v_t / sum_t gamma^(T-1-t), t from 0: with gamma < 1 the last steps weigh most."""
    weights = [gamma ** (len(scores) - 1 - t) for t in range(len(scores))]
    return sum(w * v for w, v in zip(weights, scores, strict=True)) / sum(weights)


def max_drop(scores: Sequence[float]) -> float:
    """1 - max_t (v_t - v_{t+1})^+: 1 where the value never falls."""
    return 1.0 - max((max(0.0, before - after) for before, after in pairwise(scores)), default=0.0)


AGGREGATIONS: Mapping[str, Callable[[Sequence[float]], float]] = MappingProxyType(
    {"last": last, "min": minimum, "product": product, "mean": mean, "max_drop": max_drop}
)


def aggregate(scores: Sequence[float | None], how: str = "last") -> float | None:
    """One score in [0, 1] for scores in the order of their steps. Steps without a score (None) are left out; None where none has one.

    Raises UserError where `how` is not a name in AGGREGATIONS.
    """
    if how not in AGGREGATIONS:
        raise UserError(f"got aggregation {how!r}", f"one of {', '.join(AGGREGATIONS)}")
    known = [score for score in scores if score is not None]
    return AGGREGATIONS[how](known) if known else None
