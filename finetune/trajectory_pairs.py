"""Pairs of whole ways to the end: two branches of one fork, the better against the worse, or the shorter of two that succeed.

Both sides hold tool results, which `trained` masks: a trainer that knows no masks would train on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, pairwise, permutations
from typing import Literal, TypeAlias

from counterplay.core.nouns import Grade
from counterplay.finetune.beta import probability_better
from counterplay.finetune.ends import End, ends
from counterplay.finetune.evidence import ActionEvidence, surest
from counterplay.finetune.rows import DPORow, Drop, Harvest, SourcedTree, too_low, trained_flags
from counterplay.search.tree import Node

Pairing: TypeAlias = Literal["best_worst", "nearest"]
_Found: TypeAlias = "tuple[Node, End, End, float]"


def trajectory_rows(
    trees: Iterable[SourcedTree],
    *,
    pairing: Pairing = "best_worst",
    min_score: float = 1.0,
    min_gap: float = 0.5,
    min_grade: Grade = Grade.EXECUTED,
    per_tree: int = 4,
    per_task: int = 32,
) -> Harvest[DPORow]:
    """Pairs of branches from one fork to their ends: chosen scored at least `min_score`, rejected at least `min_gap` below it.

    `best_worst` takes the two ends of every fork that lie furthest apart; `nearest` takes for every good end the bad one that leaves
    its way last, so that the two differ as late as can be. `margin` is the difference of the scores. `probability` is 1: the ends
    themselves were verified. At most `per_tree` pairs come from a tree, those of the widest gap (or the latest fork) first, and `per_task`
    from a task.
    """
    find = _best_against_worst if pairing == "best_worst" else _nearest

    def found(evidence: ActionEvidence) -> Iterator[tuple[_Found, str]]:
        for pair in find(ends(evidence.source), min_score, min_gap):
            yield pair, ""

    return _harvest(trees, found, min_grade, per_tree, per_task)


def shorter_rows(
    trees: Iterable[SourcedTree],
    *,
    min_saved: int = 1,
    min_score: float = 1.0,
    left_out: bool = False,
    tau: float = 0.9,
    min_grade: Grade = Grade.EXECUTED,
    per_tree: int = 4,
    per_task: int = 32,
) -> Harvest[DPORow]:
    """Pairs of two branches of one fork that both scored at least `min_score`, where chosen made at least `min_saved` calls fewer.

    Calls are those of the model and of tools; `margin` says how many were saved. With `left_out` the tool calls of chosen must be those of
    rejected with some left out and none added (SMART, arXiv:2502.11435: what the run succeeds without was not needed). Where
    P(Q_longer > Q_shorter) >= `tau`, the shorter branch succeeded by luck, and the pair is left out.
    """

    def found(evidence: ActionEvidence) -> Iterator[tuple[_Found, str]]:
        good = [end for end in ends(evidence.source) if end.score >= min_score]
        for fork, short, long, saved in _savings(good, left_out=left_out):
            if saved >= min_saved:
                risky = probability_better(*_tally(evidence, fork, long), *_tally(evidence, fork, short)) >= tau
                yield (fork, short, long, saved), "the shorter branch fails more often" if risky else ""

    return _harvest(trees, found, min_grade, per_tree, per_task)


def _harvest(
    trees: Iterable[SourcedTree],
    find: Callable[[ActionEvidence], Iterable[tuple[_Found, str]]],
    min_grade: Grade,
    per_tree: int,
    per_task: int,
) -> Harvest[DPORow]:
    rows: list[DPORow] = []
    drops: list[Drop] = []
    for source in trees:
        drops += source.drops
        evidence, mine = ActionEvidence(source), []
        for pair, reason in find(evidence):
            row = _row(evidence, *pair)
            refusal = reason or too_low(row.lineage.grade, min_grade) or _untaught(row)
            if refusal:
                drops.append(Drop(refusal, row.name))
            else:
                mine.append(row)
        rows += mine[:per_tree]
        drops += [Drop(f"over the cap of {per_tree} pairs a tree", row.name) for row in mine[per_tree:]]
    kept, over = surest(rows, lambda row: row.lineage.unit, per_task, f"over the cap of {per_task} pairs a task")
    return Harvest(tuple(kept), (*drops, *over))


def _untaught(row: DPORow) -> str:
    """Why the sides can't teach what sets them apart: their first actions, where they part, must both have been sampled."""
    return "" if all(flags[:1] == (True,) for flags in row.trained) else "the action that sets a side apart was not sampled"


def _row(evidence: ActionEvidence, fork: Node, chosen: End, rejected: End, margin: float) -> DPORow:
    source, states = evidence.source, (chosen.node.state, rejected.node.state)
    start = len(fork.state.messages)
    good, bad = (trained_flags(state, source.trainable(state))[start:] for state in states)
    (won, played), (lost, others) = (_tally(evidence, fork, end) for end in (chosen, rejected))
    lineage = replace(
        source.lineage,
        fork_step=len(fork.state),
        nodes=(fork.state.key, *(state.key for state in states)),
        verifiers=tuple(sorted({*chosen.verifiers, *rejected.verifiers})),
        grade=min(state.grade for state in states),
        logged=chosen.logged and rejected.logged,
    )
    return DPORow(
        prompt=fork.state.messages,
        chosen=states[0].messages[start:],
        rejected=states[1].messages[start:],
        tools=fork.state.tools,
        visits=(played, others),
        value_sums=(won, lost),
        trained=(good, bad),
        lineage=lineage,
        margin=margin,
    )


def _tally(evidence: ActionEvidence, fork: Node, end: End) -> tuple[float, int]:
    """W and N of the branch of `fork` that leads to an end."""
    visits, value_sum = evidence.lines[end.node.path()[fork.depth + 1].index]
    return value_sum, visits


def _forks(found: Iterable[End]) -> list[tuple[Node, list[list[End]]]]:
    """Every node with the ends of each of its branches, in the order of the tree."""
    nodes: dict[int, Node] = {}
    branches: dict[int, dict[int, list[End]]] = {}
    for end in found:
        for node, child in pairwise(end.node.path()):
            nodes[node.index] = node
            branches.setdefault(node.index, {}).setdefault(child.index, []).append(end)
    return [(nodes[index], list(branches[index].values())) for index in sorted(nodes)]


def _best_against_worst(found: list[End], min_score: float, min_gap: float) -> list[_Found]:
    """One pair a fork, the widest gap first."""
    pairs: list[_Found] = []
    for fork, branches in _forks(found):
        spans = [(max(branch, key=lambda end: end.score), min(branch, key=lambda end: end.score)) for branch in branches]
        sides = [(fork, best, worst, best.score - worst.score) for (best, _), (_, worst) in permutations(spans, 2)]
        pairs += sorted((side for side in sides if side[1].score >= min_score and side[3] >= min_gap), key=_by_margin)[:1]
    return sorted(pairs, key=_by_margin)


def _nearest(found: list[End], min_score: float, min_gap: float) -> list[_Found]:
    """One pair a good end, the latest fork first."""
    worst = {fork.index: min(chain(*branches), key=lambda end: end.score) for fork, branches in _forks(found)}
    pairs: list[_Found] = []
    for good in (end for end in found if end.score >= min_score):
        for fork in reversed(good.node.path()[:-1]):
            gap = good.score - worst[fork.index].score
            if gap >= min_gap:
                pairs.append((fork, good, worst[fork.index], gap))
                break
    return sorted(pairs, key=lambda pair: -pair[0].depth)


def _savings(good: list[End], *, left_out: bool) -> list[_Found]:
    """One pair a fork, the most calls saved first."""
    pairs: list[_Found] = []
    for fork, branches in _forks(good):
        chosen_from = branches if left_out else [[min(branch, key=End.calls), max(branch, key=End.calls)] for branch in branches]
        sides = [
            (fork, short, long, float(long.calls() - short.calls()))
            for ours, theirs in permutations(chosen_from, 2)
            for short in ours
            for long in theirs
            if not left_out or _is_part(_signatures(fork, short), _signatures(fork, long))
        ]
        pairs += sorted(sides, key=_by_margin)[:1]
    return sorted(pairs, key=_by_margin)


def _signatures(fork: Node, end: End) -> list[str]:
    return [call.signature for step in end.node.state.steps[len(fork.state) :] for call in step.action.tool_calls]


def _is_part(some: list[str], every: list[str]) -> bool:
    """Whether `some` is `every` with something left out, in its order."""
    rest = iter(every)
    return len(some) < len(every) and all(item in rest for item in some)


def _by_margin(pair: _Found) -> tuple[float, int, int]:
    return -pair[3], pair[1].node.index, pair[2].node.index
