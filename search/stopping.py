"""When a search has found enough: conditions that every search keeps to between its waves, without knowing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from counterplay.core.beta import probability_better
from counterplay.core.errors import UserError
from counterplay.search.counts import lines, mean
from counterplay.search.tree import SearchTree


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

    def reason(self, tree: SearchTree, ends: int, highest: float) -> str:
        """Why to stop, empty where there is no reason. `ends` branches are finished and scored, the best of them `highest`."""
        if self.value is not None and ends and highest >= self.value:
            return f"a branch scored {highest:g}"
        if self.finished is not None and ends >= self.finished:
            return f"{ends} branches finished"
        sure = 0.0 if self.decided is None else certainty(tree)
        if self.decided is not None and sure >= self.decided:
            return f"the best action is {sure:.3f} certain"
        return ""


NEVER = StopWhen()


def certainty(tree: SearchTree) -> float:
    """P(Q_best > Q_second) over the actions at the root through which lines were played; 0 where they are fewer than two.

    The best are those with the highest mean of Beta(1 + W, 1 + N - W).
    """
    known = lines(tree)
    played = [known[node.index] for node in tree.root.children if known[node.index][0]]
    if len(played) < 2:
        return 0.0
    (best, won), (second, second_won) = sorted(played, key=lambda counted: -mean(*counted))[:2]
    return probability_better(won, best, second_won, second)


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
