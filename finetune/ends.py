"""The ends of a tree: finished lines with the score of their last state, each way of acting once."""

from __future__ import annotations

from dataclasses import dataclass

from counterplay.finetune.rows import SourcedTree, verifiers_of
from counterplay.finetune.trajectories import verified, worth
from counterplay.search.tree import Node


@dataclass(frozen=True)
class End:
    """A finished leaf. `score` is the verifier's; the reward of its last step only where the search asked no verifier."""

    node: Node
    score: float

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
    asked = verified(source.tree)
    found: dict[tuple[str, ...], End] = {}
    for leaf in source.tree.finished():
        if leaf.step is None or leaf.step.error is not None:
            continue
        score = worth(leaf, verified=asked)
        if score is not None:
            found.setdefault(tuple(step.action.signature for step in leaf.state.steps), End(leaf, score))
    return list(found.values())
