"""Siblings to compare: the better and the worse actions of one state, as a process preference model is trained on.

Guan et al. 2025, "rStar-Math": at most two of each a node, those with the highest and the lowest Q.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from counterplay.core.beta import probability_better
from counterplay.core.nouns import Grade, Trajectory
from counterplay.finetune.labels.steps import evidence, lineage_of
from counterplay.finetune.rows import Lineage, SourcedTree, too_low
from counterplay.search.tree import Node


@dataclass(frozen=True)
class PairwiseNode:
    """States after the better and after the worse actions of one state, one or two of each."""

    better: tuple[Trajectory, ...]
    worse: tuple[Trajectory, ...]
    lineage: Lineage


def pairwise(
    source: SourcedTree,
    *,
    per_side: int = 2,
    margin: float = 0.5,
    tau: float = 0.9,
    min_edits: int = 1,
    min_grade: Grade = Grade.EXECUTED,
) -> list[PairwiseNode]:
    """The states whose actions part by `margin` in Q = W / N, and surely: every better one beats every worse one with P >= `tau`.

    Q and P are of played lines, under Beta(1 + W, 1 + N - W). Actions are alternatives where their signatures differ by at least
    `min_edits` characters; tool calls that differ in ids alone are one action.
    """
    known = evidence(source.tree)

    def beats(up: Node, down: Node) -> bool:
        one, other = known[up.index], known[down.index]
        sure = probability_better(one.w, one.n, other.w, other.n) >= tau
        return sure and one.mean - other.mean >= margin and _edits(up, down) >= min_edits

    made = []
    for parent in source.tree.nodes:
        children = [child for child in parent.children if known[child.index].n and _fit(child, min_grade)]
        ranked = sorted(children, key=lambda child: (-known[child.index].mean, -known[child.index].n, child.index))
        better = [child for child in ranked[:per_side] if beats(child, ranked[-1])]
        worse = [child for child in reversed(ranked) if better and all(beats(up, child) for up in better)][:per_side]
        if worse:
            states = [tuple(node.state for node in side) for side in (better, worse)]
            made.append(PairwiseNode(states[0], states[1], lineage_of(source, better[0])))
    return made


def _fit(node: Node, min_grade: Grade) -> bool:
    return node.step is not None and node.step.error is None and not too_low(node.state.grade, min_grade)


def _edits(one: Node, other: Node) -> int:
    """How many characters of the two actions differ, moved ones apart."""
    left, right = (node.state.steps[-1].action.signature for node in (one, other))
    same = sum(block.size for block in difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks())
    return max(len(left), len(right)) - same
