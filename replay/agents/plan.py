"""What a re-enactment is to do, and what it notes as it goes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeAlias

from counterplay.core.nouns import Message, State, Step
from counterplay.replay.agents.differences import Difference
from counterplay.replay.agents.matching import Kind
from counterplay.replay.agents.tool_log import Where
from counterplay.replay.live import Comparable

OnDivergence: TypeAlias = Literal["abort", "warn", "live"]
AnsweredBy: TypeAlias = Literal["recorded", "given", "live", "nobody"]
StepIn: TypeAlias = Callable[[State, Message], Step]
"""The user's environment, waited for."""

HERE: ContextVar[Where | None] = ContextVar("counterplay_step", default=None)
"""The recorded step whose answer this code was given last; None where that is not known, in a thread without the context."""


@dataclass(frozen=True)
class Plan:
    """`fork` is None for a re-enactment that only checks; `action` None asks the model there.

    `live` says whether models are really asked after the fork on the main line, `live_sides` in other contexts.
    """

    fork: Where | None = None
    action: Message | None = None
    live: bool = True
    live_sides: bool = True
    execute_tools: Collection[str] = ()
    on_divergence: OnDivergence = "abort"
    comparable: Comparable | None = None
    window: int = 3


@dataclass(frozen=True)
class Seen:
    """One model request, or one call of a tool (`tool` names it), before the fork: what kind it is of and who answered it.

    `trajectory` and `step` say which recorded one it is or was meant to be, None where it is none; a missing call is no
    request at all. `difference` is the first one, None where there is none.
    """

    kind: Kind
    answered_by: AnsweredBy
    trajectory: int | None = None
    step: int | None = None
    difference: Difference | None = None
    tool: str = ""

    @property
    def place(self) -> str:
        where = "" if self.step is None else f"step {self.step}" + (f" of sub-trajectory {self.trajectory}" if self.trajectory else "")
        return " at ".join(part for part in (self.tool, where) if part) or "a request that was not recorded"

    def __str__(self) -> str:
        said = f"{self.kind.replace('_', ' ')} at {self.place}"
        return said if self.difference is None else f"{said}: {self.difference}"
