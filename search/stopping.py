"""When a search has found enough: conditions that every search keeps to between its waves, without knowing of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from counterplay.core.beta import probability_better
from counterplay.core.errors import UserError
from counterplay.search.tree import Node, SearchTree


@dataclass(frozen=True, slots=True)
class StopWhen:
    """Stop a search between two waves where any of these holds; None never does.

    `value`: a finished branch scored at least this much. `finished`: so many finished branches are scored. `decided`: the probability that
    the root's best action is better than its second best, under Beta(1 + W, 1 + N - W) posteriors, is at least this much.
    Branches of the log do not count. A search that scores nothing before all its lines have ended, as best-of-N does, is never stopped.
    Raises UserError where a threshold is out of its range.
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

    def reason(self, tree: SearchTree, ends: int, highest: float) -> str:
        """Why to stop, empty where there is no reason. `ends` branches are finished and scored, the best of them `highest`."""
        if self.value is not None and ends and highest >= self.value:
            return f"a branch scored {highest:g}"
        if self.finished is not None and ends >= self.finished:
            return f"{ends} branches finished"
        sure = 0.0 if self.decided is None else certainty(tree.root)
        if self.decided is not None and sure >= self.decided:
            return f"the best action is {sure:.3f} certain"
        return ""


NEVER = StopWhen()


def certainty(root: Node) -> float:
    """P(Q_best > Q_second) over the visited actions of `root`; 0 where fewer than two were visited."""
    visited = sorted((node for node in root.children if node.visits), key=lambda node: -(node.value or 0.0))[:2]
    if len(visited) < 2:
        return 0.0
    best, second = visited
    return probability_better(best.value_sum, best.visits, second.value_sum, second.visits)


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
