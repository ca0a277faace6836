"""A world: one live instance of what an agent acts on, given by the user as a factory.

`LiveEnvironment` brings a fresh instance to any recorded state (by snapshot, by copy, or by executing the prefix again)
and never lets two branches share one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from counterplay.core.nouns import Message, ToolSpec

Content: TypeAlias = str | Sequence[Mapping[str, Any]]
"""What a tool answers: text, or content parts in OpenAI form, such as `{"type": "image_url", "image_url": {"url": "data:..."}}`."""


@runtime_checkable
class World(Protocol):
    """What a user implements. The required part is `tools`, `prompt` and `call`; the rest is used where it is present.

    Optional attributes and methods:
    `done: bool`            the episode has ended (without it, an action without tool calls and without a reply ends it);
    `truncated: bool`       a limit cut the episode short;
    `reward: float | None`  what the episode earned, in [0, 1], read when it ends;
    `reply(action) -> Sequence[Message]`  answers an action without tool calls, as a user would;
    `snapshot() -> object` and `restore(snapshot)`  capture and reinstate all state; a snapshot is never mutated;
    `copy() -> World`       an independent instance in the same state;
    `close()`               releases what the instance holds; called once, when nothing needs it any more;
    `fingerprint: str`      version of rules and data, so that drift is seen;
    `replayable: bool`      False: executing a prefix again does not lead to its state (a live browser, a production system),
                            so it is never done, and a world with neither snapshot nor copy can't be restored at all;
    `snapshot_bytes(snapshot or copy) -> int`  its size, where that of its pickle is not right;
    `idle_limit: int`       at most so many instances without snapshot or copy are kept open (processes, connections).

    Every method may be a coroutine function; instances that wait for something are then played together without threads.
    """

    tools: Sequence[ToolSpec]
    prompt: Sequence[Message]

    def call(self, name: str, arguments: Mapping[str, Any]) -> Content | Awaitable[Content]:
        """Execute one tool and return its result. Raise ToolError for an error the agent should read."""
        ...


Factory: TypeAlias = Callable[[], World | Awaitable[World]]
"""Makes a fresh instance, always in the same beginning. May be a coroutine function."""


class ToolError(Exception):
    """An error a tool answers with: the agent sees its text as an observation."""
