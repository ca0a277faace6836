"""The four protocols, one method each. Any object or function of the right shape will do; no base class is needed.

Optional attributes that the toolkit reads where they are present, on any of them:
`fingerprint: str` (policy, environment) identifies configuration, so that recorded answers are reused only where they apply;
`name: str` and `version: str` (verifier) travel with every score;
`batch` (verifier) is `Batch`: many trajectories asked about at once, for models that score them in one forward pass. It is used wherever
several questions are open together; None in its place means the same as none. Trajectories that share a prefix share `prefix_keys`;
`relative: bool` (verifier) says that its batch compares what is in it, so that the answers hold for that batch alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from counterplay.core.budget import Budget
    from counterplay.core.nouns import Message, Proposal, Score, State, Step, Trajectory

first_draw: ContextVar[int] = ContextVar("first_draw", default=0)
"""How many proposals this search has already drawn from the state a policy is being asked about. A policy that derives
its random seed from (its own seed, state key, first_draw + i) samples the same at any concurrency and after any restart."""


class Requests(Protocol):
    """Answers to the single requests of one proposal, by what was asked."""

    def get(self, asked: str) -> str | None: ...
    def put(self, asked: str, answer: str) -> None: ...


requests: ContextVar[Requests | None] = ContextVar("requests", default=None)
"""Where a policy with `keeps_requests` keeps each answer when it makes several requests for one proposal, and looks before it makes them:
what was answered before a search was killed is then not asked again, though the proposal was not complete. None: nowhere."""

calls_at_once: ContextVar[int] = ContextVar("calls_at_once", default=64)
"""How many calls of one verifier may be in flight where it is asked about many trajectories one by one (`journal.ask_all`)."""


@runtime_checkable
class Policy(Protocol):
    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        """Up to `n` candidate actions for `state`, drawn independently; may hold equal actions; empty where it has none."""
        ...


@runtime_checkable
class Environment(Protocol):
    async def step(self, state: State, action: Message) -> Step:
        """Execute the tool calls of `action` in `state` and say what followed. A tool's own error is an observation."""
        ...


Opinion: TypeAlias = "Score | float | None"
Batch: TypeAlias = "Callable[[Sequence[Trajectory]], Sequence[Opinion | Exception] | Awaitable[Sequence[Opinion | Exception]]]"
"""Opinions in the order of the trajectories, as many as there are; an exception stands for one that failed. Equal to asking one by one,
but for a `relative` verifier."""


class Verifier(Protocol):
    def __call__(self, trajectory: Trajectory, /) -> Opinion | Awaitable[Opinion]:
        """How good a trajectory or a prefix of one is, in [0, 1]; None where the verifier has no opinion on it."""
        ...


Search: TypeAlias = "Callable[[State, Policy, Environment, Verifier, Budget], Awaitable[Any]]"
"""Any search: a function of a state, a policy, an environment, a verifier and a budget whose result is a `SearchTree`."""


def fingerprint_of(part: object) -> str:
    """The configuration identity of a policy, environment or verifier: its `fingerprint`, else `name@version`, else its qualified name."""
    declared = getattr(part, "fingerprint", None)
    if isinstance(declared, str):
        return declared
    kind = part if hasattr(part, "__qualname__") else type(part)
    name = getattr(part, "name", None) or f"{kind.__module__}:{kind.__qualname__}"
    return f"{name}@{getattr(part, 'version', '')}"
