"""Does a verifier find the step that went wrong? First errors, ternary steps, prefixes, each with thresholds chosen on other data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from counterplay.core.canonical import content_key
from counterplay.verifiers.evaluation.intervals import Array, Estimate, ratio, resampled, share

Values = Sequence[float | None]
"""What a verifier said after each step of a trajectory, None where it said nothing."""

T = TypeVar("T")


@dataclass(frozen=True)
class FirstErrors:
    """ProcessBench (arXiv:2412.06559): the exact first wrong step named (`erroneous`), "no error" said where there is none (`correct`).

    `f1` is the harmonic mean of the two. A trajectory on which the verifier said nothing is not found. None where the data hold no such
    trajectory. `thresholds` are those used, each chosen on the half of the tasks that it was not used on; empty where it was given.
    """

    erroneous: Estimate | None
    correct: Estimate | None
    f1: Estimate | None
    thresholds: tuple[float, ...] = ()


def first_below(values: Values, threshold: float) -> int | None:
    """The first step scored below `threshold`, -1 where none is; None where nothing was said at all."""
    if all(value is None for value in values):
        return None
    return next((step for step, value in enumerate(values) if value is not None and value < threshold), -1)


def first_errors(
    predicted: Sequence[int | None], truth: Sequence[int], groups: Sequence[str], *, thresholds: Sequence[float] = (), seed: int = 0
) -> FirstErrors:
    """The scores of predictions: a step, -1 for no error, None for no answer."""
    hit = np.asarray([a == b for a, b in zip(predicted, truth, strict=True)], dtype=float)
    wrong = np.asarray([step >= 0 for step in truth], dtype=bool)
    sides = [share(hit[side].tolist(), [group for group, held in zip(groups, side, strict=True) if held]) for side in (wrong, ~wrong)]

    def statistic(weights: Array) -> Array:
        found = [ratio(weights[:, side] @ hit[side], weights[:, side].sum(axis=1)) for side in (wrong, ~wrong)]
        product, total = found[0] * found[1], found[0] + found[1]
        return np.where(total == 0, 0.0, ratio(2 * product, total))

    f1 = resampled(statistic, groups, seed=seed)
    if f1 is not None and f1.value in (0.0, 1.0) and sides[0] and sides[1]:  # resampling sees no variance there: Wilson's ends
        low, high = (_harmonic(a or 0.0, b or 0.0) for a, b in ((sides[0].low, sides[1].low), (sides[0].high, sides[1].high)))
        f1 = Estimate(f1.value, low, high, f1.n, f1.groups)
    return FirstErrors(sides[0], sides[1], f1, tuple(thresholds))


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def find_first_errors(said: Sequence[Values], truth: Sequence[int], groups: Sequence[str], *, seed: int = 0) -> FirstErrors | None:
    """`first_errors` of a verifier's values: the first step below a threshold, which is chosen on the other half of the tasks.

    None where the data can't be halved: fewer than two tasks, or a half without erroneous or without correct trajectories. None too where
    nothing was said on any step.
    """
    if all(value is None for values in said for value in values):
        return None
    split = halves(groups, [step >= 0 for step in truth])
    predicted: list[int | None] = [None] * len(said)
    thresholds = []
    for half in (False, True):
        chosen = [i for i, side in enumerate(split) if side is not half]
        if {truth[i] >= 0 for i in chosen} != {True, False}:
            return None
        threshold = choose_threshold([said[i] for i in chosen], [truth[i] for i in chosen])
        thresholds.append(threshold)
        for i, side in enumerate(split):
            if side is half:
                predicted[i] = first_below(said[i], threshold)
    return first_errors(predicted, truth, groups, thresholds=thresholds, seed=seed)


def choose_threshold(said: Sequence[Values], truth: Sequence[int]) -> float:
    """The threshold of the highest F1 on these trajectories; of several the middle of the widest run of them.

    A trajectory is found by exactly the thresholds above the value of its first error (no error: all) up to the least value before it.
    """
    held = sorted({value for values in said for value in values if value is not None})
    if not held:
        return 0.5
    candidates = np.asarray([held[0] - 1e-9, *((a + b) / 2 for a, b in pairwise(held)), held[-1] + 1e-9])
    wrong = sum(step >= 0 for step in truth)
    hits = {True: np.zeros(len(candidates)), False: np.zeros(len(candidates))}
    for values, step in zip(said, truth, strict=True):
        low, high = _found_between(values, step)
        hits[step >= 0] += (candidates > low) & (candidates <= high)
    erroneous, correct = hits[True] / max(1, wrong), hits[False] / max(1, len(truth) - wrong)
    total = erroneous + correct
    f1 = np.divide(2 * erroneous * correct, total, out=np.zeros_like(total), where=total > 0)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    widest = max(runs, key=lambda run: float(candidates[run[-1]] - candidates[run[0]]))
    return float((candidates[widest[0]] + candidates[widest[-1]]) / 2)


def _found_between(values: Values, step: int) -> tuple[float, float]:
    """The thresholds in (low, high] that find the first error of this trajectory; an empty range where none does."""
    if step >= len(values) or all(value is None for value in values):
        return math.inf, -math.inf
    before = values if step < 0 else values[:step]
    high = min((value for value in before if value is not None), default=math.inf)
    at = -math.inf if step < 0 else values[step]
    return (math.inf, -math.inf) if at is None else (at, high)


def halves(groups: Sequence[str], erroneous: Sequence[bool]) -> list[bool]:
    """Which half each item is in. Whole groups, those with an erroneous item and those without dealt out in turn, in an order of their own.

    The same groups give the same halves in any order.
    """
    bad = {group for group, wrong in zip(groups, erroneous, strict=True) if wrong}
    ordered = sorted(set(groups), key=lambda group: (group in bad, content_key("half", group)))
    half = {group: bool(place % 2) for place, group in enumerate(ordered)}
    return [half[group] for group in groups]


@dataclass(frozen=True)
class Ternary:
    """AgentProcessBench (arXiv:2603.14465): the share of steps whose +1, 0 or -1 is said right, over all labelled steps.

    `cuts` are the pairs (below: -1, from: +1, between: 0) used, each chosen on the half of the tasks that it was not used on. `majority` is
    the share of the commonest label. `prefix` is the mean part of a trajectory's labels said right before the first mistake (ProcBench).
    """

    accuracy: Estimate
    prefix: Estimate
    majority: float
    cuts: tuple[tuple[float, float], ...]


def ternary(said: Sequence[Values], labels: Sequence[Sequence[int | None]], groups: Sequence[str]) -> Ternary | None:
    """Steps that are not labelled do not count; one that nothing was said on is not right. None where the data can't be halved."""
    split = halves(groups, [any(mark is not None and mark < 0 for mark in marks) for marks in labels])
    hits, names, prefixes, prefix_names, cuts = [], [], [], [], []
    for half in (False, True):
        others = [i for i, side in enumerate(split) if side is not half]
        cut = choose_cuts(*_pairs([said[i] for i in others], [labels[i] for i in others]))
        if cut is None:
            return None
        cuts.append(cut)
        for i in (i for i, side in enumerate(split) if side is half):
            marks = [(mark_of(value, cut), mark) for value, mark in zip(said[i], labels[i], strict=True) if mark is not None]
            if marks:
                hits += [float(got == wanted) for got, wanted in marks]
                names += [groups[i]] * len(marks)
                prefixes.append(prefix_accuracy([got for got, _ in marks], [wanted for _, wanted in marks]))
                prefix_names.append(groups[i])
    accuracy, prefix = share(hits, names), share(prefixes, prefix_names)
    if accuracy is None or prefix is None:
        return None
    known = [mark for marks in labels for mark in marks if mark is not None]
    return Ternary(accuracy, prefix, max(known.count(mark) for mark in (-1, 0, 1)) / len(known), tuple(cuts))


def _pairs(said: Sequence[Values], labels: Sequence[Sequence[int | None]]) -> tuple[list[float], list[int]]:
    both = [
        (value, mark)
        for values, marks in zip(said, labels, strict=True)
        for value, mark in zip(values, marks, strict=True)
        if value is not None and mark is not None
    ]
    return [value for value, _ in both], [mark for _, mark in both]


def mark_of(value: float | None, cuts: tuple[float, float]) -> int | None:
    """-1 below the first cut, +1 from the second on, 0 between."""
    return None if value is None else -1 if value < cuts[0] else 1 if value >= cuts[1] else 0


def choose_cuts(values: Sequence[float], marks: Sequence[int]) -> tuple[float, float] | None:
    """The two cuts that mark the most of these values right; of several the first. None without values."""
    if not values:
        return None
    held = sorted(set(values))
    edges = np.asarray([held[0] - 1e-9, *((a + b) / 2 for a, b in pairwise(held)), held[-1] + 1e-9])
    counts = {mark: np.sort([value for value, other in zip(values, marks, strict=True) if other == mark]) for mark in (-1, 0, 1)}
    below = {mark: np.searchsorted(found, edges, side="left") for mark, found in counts.items()}
    first = below[-1] - below[0]  # right marks that a first cut here gives and takes
    second = below[0] + len(counts[1]) - below[1]
    upto = np.maximum.accumulate(first)
    b = int(np.argmax(upto + second))
    a = int(np.argmax(first[: b + 1]))
    return float(edges[a]), float(edges[b])


def prefix_accuracy(got: Sequence[T], wanted: Sequence[T]) -> float:
    """ProcBench (arXiv:2410.03117): the length of the longest common prefix over that of the longer sequence; 1 where both are empty."""
    longest = max(len(got), len(wanted))
    if not longest:
        return 1.0
    return next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))) / longest
