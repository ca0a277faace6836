"""Turns: what is awaited before each request to a model, so that many searches share one server.

A search lays its `Turns` into the context it asks its policy in. Whatever makes the requests takes a turn for each: a policy that
says `takes_turns` does so itself, and a journal only where it has no answer; for any other policy one `propose` is one request.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from counterplay.core.nouns import Proposal, State
    from counterplay.core.protocols import Policy


class Turn(Protocol):
    """Leave to make one request."""

    def end(self, tokens: float | None = None) -> None:
        """The request is over. `tokens` is what it really used, None where that is not known. Call it once, whatever happened."""
        ...


class Turns(Protocol):
    """The turns of one search."""

    async def take(self, state: State, tokens: float = 0) -> Turn:
        """Wait for leave to ask about `state`; `tokens` is what the request is expected to use."""
        ...

    def pause(self, seconds: float) -> None:
        """The server asked for no further requests for so long (`Retry-After`): no turn begins before."""
        ...


turns: ContextVar[Turns | None] = ContextVar("turns", default=None)
"""The turns of the search that a policy is being asked by; None where nothing limits it."""


async def propose_in_turn(policy: Policy, state: State, n: int) -> Sequence[Proposal]:
    """What `policy` proposes, also one that answers at once, within a turn where there are turns to take and `policy` takes none itself."""
    taking = turns.get()
    if taking is None or takes_turns(policy):
        return await _answer(policy, state, n)
    turn, tokens = await taking.take(state), None
    try:
        proposals = await _answer(policy, state, n)
        tokens = sum(proposal.usage.tokens for proposal in proposals) or None
    finally:
        turn.end(tokens)
    return proposals


async def _answer(policy: Policy, state: State, n: int) -> Sequence[Proposal]:
    answer: Any = policy.propose(state, n)
    return cast("Sequence[Proposal]", await answer if inspect.isawaitable(answer) else answer)


def takes_turns(policy: object) -> bool:
    """Whether a policy, or what it wraps (shown as `.policy`), takes its turns itself."""
    while policy is not None:
        if getattr(policy, "takes_turns", False):
            return True
        policy = getattr(policy, "policy", None)
    return False
