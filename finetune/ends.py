"""The ends of a tree: finished lines with the score of their last state, each way of acting once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from counterplay.core.nouns import Grade
from counterplay.finetune.rows import SourcedTree, verifiers_of
from counterplay.finetune.trajectories import verified, worth
from counterplay.search.counts import lines
from counterplay.search.tree import Node


@dataclass(frozen=True)
class End:
    """A finished leaf. `score` is the verifier's; the reward of its last step only where the search asked no verifier.

    Where several lines act alike, `score` is their mean, `visits` their number, and `node` the one whose score lies nearest to it.
    """

    node: Node
    score: float
    visits: int = 1

    @property
    def verifiers(self) -> tuple[str, ...]:
        return tuple(sorted(verifiers_of(self.node)))

    @property
    def logged(self) -> bool:
        return all(node.logged for node in self.node.path()[1:])

    def calls(self) -> int:
        """Calls of the model and of tools, from the beginning of the trajectory."""
        return sum(1 + len(step.action.tool_calls) for step in self.node.state.steps)


def ends(source: SourcedTree) -> list[End]:
    """In the order of the tree. Lines whose machinery failed and lines that nobody scored are no evidence."""
    asked, counted = verified(source.tree), lines(source.tree)
    found: dict[tuple[str, ...], list[End]] = {}
    for leaf in source.tree.finished():
        if leaf.step is None or leaf.step.error is not None:
            continue
        score = worth(leaf, verified=asked)
        if score is not None:
            acted = tuple(step.action.signature for step in leaf.state.steps)
            found.setdefault(acted, []).append(End(leaf, score, max(1, counted[leaf.index][0])))
    return [_together(alike) for alike in found.values()]


def _together(alike: Sequence[End]) -> End:
    """Ends that act alike as one. A stale one says nothing of the others."""
    sound = [end for end in alike if end.node.state.grade is not Grade.STALE] or alike
    visits = sum(end.visits for end in sound)
    mean = sum(end.score * end.visits for end in sound) / visits
    return End(min(sound, key=lambda end: (abs(end.score - mean), end.node.state.key)).node, mean, visits)
