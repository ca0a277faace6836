"""Local models and verifiers in places of their own, asked by many workers in batches.

A host holds the part and answers; what a worker holds in its place has the part's fingerprint, name and version, and asks a host. Nothing
here knows how a question travels: `Ask` does.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from counterplay.core.errors import CounterplayError, VerifierError
from counterplay.core.journal import ask_all, batch_of, is_relative, verifier_identity
from counterplay.core.protocols import fingerprint_of, first_draw

if TYPE_CHECKING:
    from counterplay.core.nouns import Proposal, Score, State, Trajectory
    from counterplay.core.protocols import Policy, Verifier
    from counterplay.parts import Asked

Ask: TypeAlias = "Callable[..., Awaitable[Any]]"
"""Asks one host: its arguments are those of the host's method."""

_IN_FLIGHT = 64


class PolicyHost:
    """Holds the policy that `asked` names."""

    def __init__(self, asked: Asked) -> None:
        self.policy: Policy = asked.make_policy()

    def told(self) -> dict[str, Any]:
        """What a worker's `HostedPolicy` has to know."""
        return {"fingerprint": fingerprint_of(self.policy)}

    async def answer(self, state: State, n: int, first: int) -> Sequence[Proposal] | Failed:
        """`n` proposals from draw `first` on."""
        token = first_draw.set(first)
        try:
            given: Any = self.policy.propose(state, n)
            return list(await given if inspect.isawaitable(given) else given)
        except Exception as error:  # noqa: BLE001  it is raised where the question came from
            return Failed.of(error)
        finally:
            first_draw.reset(token)


class HostedPolicy:
    """A policy at other places: each state is asked about where those of its trace are, and at most 64 at once."""

    def __init__(self, hosts: Sequence[Ask], told: Mapping[str, Any]) -> None:
        self.fingerprint = told["fingerprint"]
        self._hosts = hosts
        self._gate = asyncio.Semaphore(_IN_FLIGHT)

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        host = self._hosts[int(state.prefix_keys[0][:8], 16) % len(self._hosts)]
        async with self._gate:
            answer = await host(state, n, first_draw.get())
        if isinstance(answer, Failed):
            raise answer.error()
        proposals: Sequence[Proposal] = answer
        return proposals


class VerifierHost:
    """Holds the verifier that `asked` names. Questions that come together are answered together, but where it compares them."""

    def __init__(self, asked: Asked) -> None:
        self.verifier: Verifier = asked.make_verifier()
        self._together = batch_of(self.verifier) is not None and not is_relative(self.verifier)
        self._waiting: list[tuple[Sequence[Trajectory], asyncio.Future[list[Any]]]] = []

    def told(self) -> dict[str, Any]:
        """What a worker's `HostedVerifier` has to know."""
        name, version = verifier_identity(self.verifier)
        relative = is_relative(self.verifier)
        return {"name": name, "version": version, "fingerprint": fingerprint_of(self.verifier), "relative": relative}

    async def answer(self, trajectories: Sequence[Trajectory]) -> list[Score | Failed | None]:
        """An opinion on each, or why there is none."""
        if not self._together:
            return await self._asked(trajectories)
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((trajectories, future))
        if len(self._waiting) == 1:
            await asyncio.sleep(0)  # whatever else has come in joins
            waiting, self._waiting = self._waiting, []
            answers = iter(await self._asked([trajectory for some, _ in waiting for trajectory in some]))
            for some, one in waiting:
                one.set_result([next(answers) for _ in some])
        return await future

    async def _asked(self, trajectories: Sequence[Trajectory]) -> list[Score | Failed | None]:
        answers = await ask_all(self.verifier, trajectories)
        return [Failed.of(answer.__cause__ or answer) if isinstance(answer, VerifierError) else answer for answer in answers]


class HostedVerifier:
    """A verifier at other places, asked by turns."""

    def __init__(self, hosts: Sequence[Ask], told: Mapping[str, Any]) -> None:
        self.name, self.version, self.fingerprint = told["name"], told["version"], told["fingerprint"]
        self.relative = told["relative"]
        self._hosts, self._turn = hosts, count()
        self._gate = asyncio.Semaphore(_IN_FLIGHT)

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        (answer,) = await self.batch([trajectory])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def batch(self, trajectories: Sequence[Trajectory]) -> list[Score | Exception | None]:
        async with self._gate:
            answers = await self._hosts[next(self._turn) % len(self._hosts)](list(trajectories))
        return [answer.error() if isinstance(answer, Failed) else answer for answer in answers]


class Failed:
    """An exception that may not be picklable, so that what is told of it is the same wherever it is raised again."""

    def __init__(self, name: str, text: str, known: CounterplayError | None) -> None:
        self.name, self.text, self.known = name, text, known

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        return cls(type(error).__name__, str(error), error if isinstance(error, CounterplayError) else None)

    def error(self) -> Exception:
        return self.known or type(self.name, (Exception,), {})(self.text)
