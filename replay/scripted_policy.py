"""A policy that is written down: for tests, and for agents that are deterministic programs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Message, Proposal, State
from counterplay.core.protocols import first_draw

Script: TypeAlias = "Callable[[State, int], Message | Awaitable[Message | None] | None]"
"""What is done in a state on draw number i; None for nothing."""


class ScriptedPolicy:
    """Plays `actions[len(state)]`, counted from the bare prompt, or what a function of (state, draw) returns.

    An element that is itself a sequence holds alternatives: draw i takes alternative i modulo their number. Past the end, and where
    the function returns None, there are no proposals.
    """

    def __init__(self, actions: Sequence[Message | Sequence[Message]] | Script) -> None:
        self._actions = actions
        if callable(actions):
            self.fingerprint = (
                f"scripted:{getattr(actions, '__module__', '')}:{getattr(actions, '__qualname__', type(actions).__qualname__)}"
            )
        else:
            wires = ["|".join(m.wire for m in _alternatives(action)) for action in actions]
            self.fingerprint = f"scripted:{content_key(*wires)}"

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        start = first_draw.get()
        drawn = [await self._act(state, start + at) for at in range(n)]
        return [Proposal(action, model="scripted") for action in drawn if action is not None]

    async def _act(self, state: State, draw: int) -> Message | None:
        if callable(self._actions):
            answer = self._actions(state, draw)
            return await answer if inspect.isawaitable(answer) else answer
        if len(state) >= len(self._actions):
            return None
        alternatives = _alternatives(self._actions[len(state)])
        return alternatives[draw % len(alternatives)]


def _alternatives(action: Message | Sequence[Message]) -> Sequence[Message]:
    return (action,) if isinstance(action, Message) else action
