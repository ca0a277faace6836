"""When a search has found enough: conditions that every search keeps to between its waves, without knowing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.beta import probability_better
from counterplay.core.errors import UserError
from counterplay.search.counts import OPINIONS, lines, mean
from counterplay.search.tree import Node, SearchTree


@dataclass(frozen=True, slots=True)
class StopWhen:
    """Stop a search between two waves where any of these holds; None never does.

    `value`: a finished branch scored at least this much. `finished`: so many finished branches are scored. `decided`: the probability that
    the root's best action is better than its second best, under Beta(1 + W, 1 + N - W) posteriors of played lines (`counts.lines`), is at
    least this much. Branches of the log do not count as finished ones. A search that scores nothing before all its lines have ended,
    as best-of-N does, is never stopped. Raises UserError where a threshold is out of its range.
    """

    value: float | None = None
    finished: int | None = None
    decided: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "decided"):
            threshold = getattr(self, name)
            if threshold is not None and not 0 <= threshold <= 1:
                raise UserError(f"got {name}={threshold}", "a number in [0, 1]")
        if self.finished is not None and self.finished < 1:
            raise UserError(f"got finished={self.finished}", "at least 1")

    @classmethod
    def parse(cls, text: str) -> StopWhen:
        """Read `value=1,finished=8,decided=0.95`; empty text is never. Raises UserError where it can't be read."""
        known: dict[str, Callable[[str], Any]] = {"value": float, "finished": int, "decided": float}
        given: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, threshold = (piece.strip() for piece in part.partition("="))
            if name not in known or name in given:
                raise UserError(f"got stop condition {part!r}", f"{', '.join(f'{each}=number' for each in known)}, each at most once")
            try:
                given[name] = known[name](threshold)
            except ValueError:
                wanted = "a whole number" if known[name] is int else "a number"
                raise UserError(f"got stop condition {part!r}", f"{name}={wanted}") from None
        return cls(**given)

    def reason(self, tree: SearchTree, ends: Ends) -> str:
        """Why to stop, empty where there is no reason."""
        if self.value is not None and ends.count and ends.highest >= self.value:
            return f"a branch scored {ends.highest:g}"
        if self.finished is not None and ends.count >= self.finished:
            return f"{ends.count} branches finished"
        sure = 0.0 if self.decided is None else certainty(tree, ends)
        if self.decided is not None and sure >= self.decided:
            return f"the best action is {sure:.3f} certain"
        return ""


NEVER = StopWhen()


@dataclass(slots=True)
class Ends:
    """The scored ends of a growing tree, counted as they come in, so that no wave walks the tree.

    `count` of those that are not logged, the `highest` score among them, and for each action at the root N and W of the ends below it
    (logged ones included), where `by_action` says that they are wanted. Searches score an end once.
    """

    by_action: bool = True
    count: int = 0
    highest: float = 0.0
    played: dict[int, tuple[int, float]] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """Take in a node that was just scored; those that are no ends do not count."""
        if node.score is None or not node.finished:
            return
        value = node.score.value
        if not node.logged:
            self.count += 1
            self.highest = max(self.highest, value)
        if self.by_action and node.depth:
            action = _action(node)
            visits, won = self.played.get(action, (0, 0.0))
            self.played[action] = (visits + 1, won + value)


def _action(node: Node) -> int:
    """The index of the action at the root that led to this node."""
    while node.depth > 1 and node.parent is not None:
        node = node.parent
    return node.index


def certainty(tree: SearchTree, ends: Ends | None = None) -> float:
    """P(Q_best > Q_second) over the actions at the root through which lines were played; 0 where they are fewer than two.

    The best are those with the highest mean of Beta(1 + W, 1 + N - W). N and W are `counts.lines`; `ends` has them counted up where those
    of the nodes themselves are opinions, None counts them in the tree.
    """
    if ends is None or tree.algorithm not in OPINIONS:
        known: Mapping[int, tuple[int, float]] = lines(tree) if ends is None else _own(tree.root.children)
    else:
        known = ends.played
    played = [known[node.index] for node in tree.root.children if known.get(node.index, (0, 0.0))[0]]
    if len(played) < 2:
        return 0.0
    (best, won), (second, second_won) = sorted(played, key=lambda counted: -mean(*counted))[:2]
    return probability_better(won, best, second_won, second)


def _own(nodes: Sequence[Node]) -> dict[int, tuple[int, float]]:
    return {node.index: (node.visits, node.value_sum) for node in nodes}


stop_when: ContextVar[StopWhen] = ContextVar("stop_when", default=NEVER)
"""The condition for the searches that begin in this context."""


@contextmanager
def stopping(condition: StopWhen) -> Iterator[None]:
    """Every search that begins inside, in this task or in tasks made inside, stops on `condition`."""
    token = stop_when.set(condition)
    try:
        yield
    finally:
        stop_when.reset(token)
