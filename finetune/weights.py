"""Importance of SFT rows and of their steps: how far an attempt exceeds the others of its task, and which of its steps made it good.

Both columns are 1 on average over the rows they are computed for, so that they move the loss between rows, not its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from counterplay.core.nouns import Trace
from counterplay.finetune.labels.steps import SUCCESS
from counterplay.finetune.rows import Drop, Harvest, SFTRow, SourcedTree
from counterplay.finetune.spool import Objects
from counterplay.finetune.trajectories import attempts
from counterplay.search.counts import lines, mean
from counterplay.search.tree import Node


def advantages(values: Sequence[float]) -> list[float]:
    """A_i = r_i - mean(r): what each attempt at a task is worth above the mean of all."""
    average = sum(values) / len(values) if values else 0.0
    return [value - average for value in values]


def reshaped(values: Sequence[float], *, negative: float = 0.5) -> list[float]:
    """OREAL's reward of each of n attempts at one task, with r_i = 1 for a success and -1 for a failure (a value below 0.5).

    Lyu et al. 2025, arXiv:2502.06781, as in the authors' code: A_i = r_i - sum_{j != i} r_j / (n - 1), and `negative` A_i for failures.
    Of k successes each gets 2 (n - k) / (n - 1), so that rare ones weigh most, and each failure -2 `negative` k / (n - 1), so that
    failing where success is common weighs most. All 0 where all or none succeed, and for one attempt alone.
    """
    n, k = len(values), sum(value >= SUCCESS for value in values)
    if n < 2:
        return [0.0] * n
    return [2 * (n - k) / (n - 1) if value >= SUCCESS else -2 * negative * k / (n - 1) for value in values]


def importance(values: Sequence[float], *, success: bool = True) -> list[float]:
    """OREAL's weight of each step: max(2 v - 1, 0) in a success, max(1 - 2 v, 0) in a failure.

    `values` are the chances of success after each step, in [0, 1]; the paper has them, a token at a time, from a reward model: v =
    sigmoid of the mean of its outputs so far.
    """
    return [max(2 * value - 1 if success else 1 - 2 * value, 0.0) for value in values]


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights, none below 0, scaled to mean 1. All 0 where all are."""
    total = sum(weights)
    return [weight * len(weights) / total for weight in weights] if total > 0 else [0.0] * len(weights)


def advantage_weighted(harvest: Harvest[SFTRow], trees: Iterable[SourcedTree], traces: Iterable[Trace] = ()) -> Harvest[SFTRow]:
    """Rows weighted by their advantage over the mean of all attempts at their task, failures included (`attempts`).

    `trees` and `traces` are those the rows were made of. Rows that are no better than the mean teach nothing and are left out. A row
    without a score counts as 1.
    """
    return _scaled_at_once(advantages_of(harvest, trees, traces))


def oreal_weighted(harvest: Harvest[SFTRow], trees: Iterable[SourcedTree], traces: Iterable[Trace] = ()) -> Harvest[SFTRow]:
    """Successes weighted as OREAL does it: rows by `reshaped`, steps by `importance`.

    The chances after a step are the score of an end, else the mean of the posterior Beta(1 + W, 1 + N - W) of the lines played through the
    state, else its process reward, else those before it (one half at first). Rows of logs alone have no such values, and all their
    steps weigh alike. Failures have no row: TRL's SFT loss has no place for a negative weight; KTO's and GRPO's have.
    """
    return _scaled_at_once(oreal_of(harvest, trees, traces))


def advantages_of(harvest: Harvest[SFTRow], trees: Iterable[SourcedTree], traces: Iterable[Trace] = ()) -> Harvest[SFTRow]:
    """`advantage_weighted` for some tasks of many: the weights are still to be brought to mean 1 (`scaled`)."""
    return _weighted(harvest, attempts(trees, traces), lambda score, made: score - sum(made) / len(made))


def oreal_of(harvest: Harvest[SFTRow], trees: Iterable[SourcedTree], traces: Iterable[Trace] = ()) -> Harvest[SFTRow]:
    """`oreal_weighted` for some tasks of many: the weights are still to be brought to mean 1 (`scaled`)."""
    trees = list(trees)
    weighted = _weighted(harvest, attempts(trees, traces), lambda score, made: max(0.0, reshaped([score, *_others(score, made)])[0]))
    return _step_weighted(weighted, trees)


@dataclass(frozen=True, slots=True)
class _Total:
    """What weights of rows and of steps come to, over how many of either."""

    rows: int = 0
    weight: float = 0.0
    trained: int = 0
    steps: float = 0.0

    def and_of(self, row: SFTRow) -> _Total:
        trained = sum(row.trained) if row.step_weights else 0
        return _Total(self.rows + 1, self.weight + row.weight, self.trained + trained, self.steps + sum(row.step_weights))

    def scaled(self, row: SFTRow) -> SFTRow:
        weight = row.weight * self.rows / self.weight if self.weight > 0 else 0.0
        scale = self.trained / self.steps if self.steps else 0.0
        return replace(row, weight=weight, step_weights=tuple(each * scale for each in row.step_weights))


def scaled(found: Iterable[Harvest[SFTRow]], folder: Path) -> Iterator[Harvest[SFTRow]]:
    """Many harvests of weighted rows, set aside in `folder`, with weights of rows and of steps that are 1 on average over all of them."""
    rows, total = Objects(folder), _Total()
    for harvest in found:
        for row in harvest.rows:
            rows.add(row)
            total = total.and_of(row)
        yield Harvest((), harvest.drops)
    for number in range(len(rows)):
        yield Harvest((total.scaled(rows.get(number)),))


def _scaled_at_once(found: Harvest[SFTRow]) -> Harvest[SFTRow]:
    total = reduce(_Total.and_of, found.rows, _Total())
    return Harvest(tuple(map(total.scaled, found.rows)), found.drops)


def _others(score: float, made: Sequence[float]) -> list[float]:
    """All attempts but one of this score."""
    rest = list(made)
    if score in rest:
        rest.remove(score)
    return rest


def _weighted(harvest: Harvest[SFTRow], made: dict[str, list[float]], weigh: Callable[[float, Sequence[float]], float]) -> Harvest[SFTRow]:
    kept: list[SFTRow] = []
    drops = list(harvest.drops)
    for row in harvest.rows:
        score = 1.0 if row.score is None else min(1.0, row.score)
        others = made.get(row.lineage.unit, [])
        weight = weigh(score, others) if len(others) > 1 else 0.0
        if weight > 1e-12:
            kept.append(replace(row, weight=weight))
        else:
            reason = "no better than the mean of its task" if len(others) > 1 else "one attempt alone has nothing to be better than"
            drops.append(Drop(reason, row.name))
    return Harvest(tuple(kept), tuple(drops))


def _step_weighted(harvest: Harvest[SFTRow], trees: Sequence[SourcedTree]) -> Harvest[SFTRow]:
    ends = {(source.search, leaf.state.key): (source, leaf) for source in trees for leaf in source.tree.finished()}
    made: list[SFTRow] = []
    drops = list(harvest.drops)
    for row in harvest.rows:
        found = ends.get((row.lineage.search, row.lineage.nodes[0])) if row.lineage.nodes else None
        weights = [float(flag) for flag in row.trained] if found is None else _of_messages(row, *found)
        if any(weights):
            made.append(replace(row, step_weights=tuple(weights)))
        else:
            drops.append(Drop("no trained step of it raises its chances above one half", row.name))
    return Harvest(tuple(made), tuple(drops))


def _of_messages(row: SFTRow, source: SourcedTree, leaf: Node) -> list[float]:
    by_step = dict(zip(range(len(source.tree.root.state), len(leaf.state)), importance(chances(source, leaf)), strict=True))
    weights = [0.0] * len(row.messages)
    at = len(leaf.state.prompt)
    for index, step in enumerate(leaf.state.steps):
        if at >= len(weights):
            break  # a row may end before its line does
        weights[at] = by_step.get(index, 0.0) * row.trained[at]
        at += len(step.messages)
    return weights


def chances(source: SourcedTree, leaf: Node) -> list[float]:
    """The chances of success after each step of the line to `leaf`, from the root of the tree on."""
    counted, value, values = lines(source.tree), 0.5, []
    for node in leaf.path()[1:]:
        visits, value_sum = counted[node.index]
        if node.score is not None and (node.finished or not visits):
            value = node.score.value
        elif visits:
            value = mean(visits, value_sum)
        values.append(value)
    return values
