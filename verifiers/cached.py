"""One question asked once: answers kept by content, shared by whoever asks at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask_all, batch_of, is_relative, question, verifier_identity
from counterplay.core.nouns import Score, Trajectory
from counterplay.core.protocols import Batch, Verifier, fingerprint_of

Answer = Score | VerifierError | None
Key = tuple[str, str, int]
Told = tuple[Answer] | None  # None: who asked was cancelled before there was an answer


class Cached:
    """`verifier` with its last `size` answers kept, under its own identity. Errors are told to all who wait, and not kept.

    A question that is being asked is waited for, from any task, event loop or thread; where who asked it is cancelled, the next
    in line asks.
    """

    def __init__(self, verifier: Verifier, size: int) -> None:
        if size < 1:
            msg = f"got size {size}, wanted at least 1"
            raise ValueError(msg)
        if is_relative(verifier):
            msg = f"got {verifier_identity(verifier)[0]}, which compares, wanted a verifier whose answers can be kept"
            raise ValueError(msg)
        self.verifier, self.size = verifier, size
        self.name, self.version = verifier_identity(verifier)
        self.fingerprint = fingerprint_of(verifier)
        self._known: OrderedDict[Key, Answer] = OrderedDict()
        self._asking: dict[Key, Future[Told]] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.verifier, self.size)

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        (answer,) = await self.answers([trajectory])
        if isinstance(answer, VerifierError):
            raise answer
        return answer

    @property
    def batch(self) -> Batch | None:
        return None if batch_of(self.verifier) is None else self.answers

    async def answers(self, trajectories: Sequence[Trajectory]) -> list[Answer]:
        """The answer on each, in order; those that nobody has asked for yet in one batch."""
        keys = [(*question(trajectory), len(trajectory)) for trajectory in trajectories]
        found: dict[Key, Answer] = {}
        while missing := {key: t for key, t in zip(keys, trajectories, strict=True) if key not in found}:
            mine, others = self._sorted(missing, found)
            if mine:
                found.update(await self._asked(mine))
            for key, future in others.items():
                told = await asyncio.shield(asyncio.wrap_future(future))
                if told is not None:
                    found[key] = told[0]
        return [found[key] for key in keys]

    def _sorted(self, missing: dict[Key, Trajectory], found: dict[Key, Answer]) -> tuple[dict[Key, Trajectory], dict[Key, Future[Told]]]:
        """What is to be asked here, and what is being asked elsewhere; what is known goes to `found`."""
        mine: dict[Key, Trajectory] = {}
        others: dict[Key, Future[Told]] = {}
        with self._lock:
            for key, trajectory in missing.items():
                if key in self._known:
                    self._known.move_to_end(key)
                    found[key] = self._known[key]
                elif key in self._asking:
                    others[key] = self._asking[key]
                else:
                    self._asking[key] = Future()
                    mine[key] = trajectory
        return mine, others

    async def _asked(self, mine: dict[Key, Trajectory]) -> dict[Key, Answer]:
        answers: dict[Key, Answer] = {}
        try:
            given = await ask_all(self.verifier, list(mine.values()), (self.name, self.version))
            answers = dict(zip(mine, given, strict=True))
        finally:
            with self._lock:
                futures = [(key, self._asking.pop(key)) for key in mine]
                for key, answer in answers.items():
                    if not isinstance(answer, VerifierError):
                        self._known[key] = answer
                while len(self._known) > self.size:
                    self._known.popitem(last=False)
            for key, future in futures:
                future.set_result((answers[key],) if key in answers else None)
        return answers


def cached(verifier: Verifier, *, size: int = 4096) -> Cached:
    """`verifier`, asked once about equal trajectories (messages, ending, number of steps); one that is cached already stays as it is."""
    return verifier if isinstance(verifier, Cached) else Cached(verifier, size)
