"""A world: one live instance of what an agent acts on, given by the user as a factory.

`LiveEnvironment` brings a fresh instance to any recorded state (by snapshot, by copy, or by executing the prefix again)
and never lets two branches share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from counterplay.core.nouns import Message, ToolSpec


@runtime_checkable
class World(Protocol):
    """What a user implements. The required part is `tools`, `prompt` and `call`; the rest is used where it is present.

    Optional attributes and methods:
    `done: bool`            the episode has ended (without it, an action without tool calls and without a reply ends it);
    `reward: float | None`  what the episode earned, in [0, 1], read when it ends;
    `reply(action) -> Sequence[Message]`  answers an action without tool calls, as a user would;
    `snapshot() -> object` and `restore(snapshot)`  capture and reinstate all state; a snapshot is never mutated;
    `copy() -> World`       an independent instance in the same state;
    `close()`               releases what the instance holds; called once, when nothing needs it any more;
    `fingerprint: str`      version of rules and data, so that drift is seen.
    """

    tools: Sequence[ToolSpec]
    prompt: Sequence[Message]

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Execute one tool and return its result as text. Raise ToolError for an error the agent should read."""
        ...


class ToolError(Exception):
    """An error a tool answers with: the agent sees its text as an observation."""
