"""What a tree knows of the actions of a state: lines played, what they scored, and what that rests on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

from counterplay.core.nouns import Grade, Message
from counterplay.finetune.rows import Drop, SourcedTree, verifiers_of
from counterplay.search.counts import lines
from counterplay.search.tree import Node


@dataclass(frozen=True)
class Action:
    """One action of a state, with the evidence of all children that carry it out: statistics, worst grade, verifiers."""

    nodes: tuple[Node, ...]
    visits: int
    value_sum: float
    grade: Grade
    verifiers: frozenset[str]

    @property
    def rate(self) -> float:
        """W / N."""
        return self.value_sum / self.visits

    @property
    def message(self) -> Message:
        return self.nodes[0].state.steps[-1].action

    @property
    def refusal(self) -> str:
        """Why it may not be trained on; empty where it may."""
        steps = [node.step for node in self.nodes if node.step is not None]
        if any(step.error is not None for step in steps):
            return "the machinery failed on an action"
        return "" if all(step.sampled for step in steps) else "an action was not sampled"


@dataclass(frozen=True)
class ActionEvidence:
    """The actions of a tree. Children with one signature are one action and pool their W and N; without a line there is no evidence."""

    source: SourcedTree

    def states(self) -> Iterator[tuple[Node, list[Action]]]:
        """Every state with the actions that were tried in it."""
        for parent in self.source.tree.nodes:
            actions = self.actions(parent)
            if actions:
                yield parent, actions

    def actions(self, parent: Node) -> list[Action]:
        groups: dict[str, list[Node]] = defaultdict(list)
        for child in parent.children:
            if child.step is not None and self.lines[child.index][0]:
                groups[child.step.action.signature].append(child)
        return [self._pooled(nodes) for nodes in groups.values()]

    def unseen(self, parent: Node) -> str:
        """Why a state may be no prompt; empty where it may."""
        return "" if self.source.whole(parent.state)[-1] else "the prompt is not known whole"

    @cached_property
    def lines(self) -> Mapping[int, tuple[int, float]]:
        """N and W of every node, by index, as counts of played lines."""
        return lines(self.source.tree)

    @cached_property
    def _rests(self) -> Mapping[int, tuple[Grade, frozenset[str]]]:
        """What each node's value rests on: the worst grade and all verifiers at or below it, by node index."""
        rests: dict[int, tuple[Grade, frozenset[str]]] = {}
        for node in reversed(self.source.tree.nodes):
            below = [rests[child.index] for child in node.children]
            own = Grade.EXACT if node.step is None else node.step.grade
            verifiers = frozenset(verifiers_of(node)).union(*(names for _, names in below))
            rests[node.index] = min([own, *(grade for grade, _ in below)]), verifiers
        return rests

    def _pooled(self, nodes: Sequence[Node]) -> Action:
        grades, verifiers = zip(*(self._rests[node.index] for node in nodes), strict=True)
        visits, value_sum = sum(self.lines[node.index][0] for node in nodes), sum(self.lines[node.index][1] for node in nodes)
        return Action(tuple(nodes), visits, value_sum, min(grades), frozenset[str]().union(*verifiers))


class Weighed(Protocol):
    """A row that says how sure it is of what it teaches."""

    @property
    def probability(self) -> float: ...
    @property
    def name(self) -> str: ...


W = TypeVar("W", bound=Weighed)


def surest(rows: Sequence[W], unit: Callable[[W], Hashable], cap: int, reason: str) -> tuple[list[W], list[Drop]]:
    """At most `cap` rows of a unit, the surest first; otherwise in the order given."""
    taken: dict[Hashable, int] = defaultdict(int)
    kept = set()
    for index in sorted(range(len(rows)), key=lambda i: -rows[i].probability):
        taken[unit(rows[index])] += 1
        if taken[unit(rows[index])] <= cap:
            kept.add(index)
    return [row for i, row in enumerate(rows) if i in kept], [Drop(reason, row.name) for i, row in enumerate(rows) if i not in kept]
