"""The actors of a Ray crew: one that works on units, and one that holds a part which those ask. Nothing here needs Ray itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import CounterplayError, StoreError
from counterplay.growing import Watching
from counterplay.jobs.desk import SentDesk
from counterplay.jobs.pools import HostedPolicy, HostedVerifier, PolicyHost, VerifierHost
from counterplay.jobs.work import TreeWantedError, Work, Worked, Worker, by_logs

if TYPE_CHECKING:
    from counterplay.core.journal import Journal
    from counterplay.parts import Asked
    from counterplay.plan import Plan


class UnitWorker:
    """What a worker actor does."""

    def __init__(self, path: Sequence[str], asked: Asked, plan: Plan, hosts: Mapping[str, Sequence[Any]]) -> None:
        sys.path += [place for place in path if place not in sys.path]
        self._asked, self._plan, self._hosts = asked, plan, hosts
        self._worker: Worker | None = None
        self._post: dict[str, _Post] = {}

    async def up(self) -> CounterplayError | None:
        """Make what is needed; why it can't be, or None."""
        try:
            parts: dict[str, Any] = {}
            for part, hosts in self._hosts.items():
                told = await hosts[0].told.remote()
                if isinstance(told, CounterplayError):
                    return told
                parts[part] = (HostedPolicy if part == "policy" else HostedVerifier)([host.answer.remote for host in hosts], told)
            if "policy" not in parts and self._plan.algorithm != "stitch" and not by_logs(self._asked):
                parts["policy"] = self._asked.make_policy(concurrency=self._plan.pace.requests)
            self._worker = Worker(self._asked, self._plan, **parts)
        except CounterplayError as error:
            return error
        return None

    async def alive(self) -> None:
        """Answers as long as the event loop turns."""

    async def work(self, work: Work) -> AsyncIterator[list[tuple[Any, ...]]]:
        """What is answered while the unit is under way, as soon as it is, and in the end what came of it."""
        self._post[work.unit] = post = _Post()
        working = asyncio.create_task(self._work(work, post))
        try:
            last = ""
            while last != "worked":
                messages = await post.next()
                last = messages[-1][0]
                yield messages
        finally:
            working.cancel()
            self._post.pop(work.unit, None)

    async def taken(self, unit: str, count: int) -> None:
        """The driver has so many more messages about a unit."""
        if unit in self._post:
            self._post[unit].confirm(count)

    async def _work(self, work: Work, post: _Post) -> None:
        watching = Watching(lambda record: post.put("grows", record))

        def new(scope: str, known: Mapping[str, str]) -> Journal:
            return SentJournal(post, scope, known)

        answer: Worked | Exception
        try:
            assert self._worker is not None  # it is up
            answer = await self._worker.work(work, SentDesk(work, new, watching.watch))
        except (StoreError, TreeWantedError) as error:
            answer = error
        post.put("worked", answer)


class _Post:
    """Messages about one unit, on their way to the driver."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self._sent = self._taken = 0
        self._confirmed = asyncio.Event()

    def put(self, *message: Any) -> None:
        self._sent += 1
        self._queue.put_nowait(message)

    async def next(self) -> list[tuple[Any, ...]]:
        """All that is there, at least one."""
        messages = [await self._queue.get()]
        while not self._queue.empty():
            messages.append(self._queue.get_nowait())
        return messages

    def confirm(self, count: int) -> None:
        self._taken += count
        self._confirmed.set()

    async def delivered(self) -> None:
        """Wait until the driver has all that was sent so far."""
        sent = self._sent
        while self._taken < sent:
            self._confirmed.clear()
            await self._confirmed.wait()


class SentJournal:
    """One scope, of which `known` was answered before: what is answered now is with the driver before it is used."""

    def __init__(self, post: _Post, scope: str, known: Mapping[str, str]) -> None:
        self._post, self._scope, self._known = post, scope, dict(known)

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def put(self, key: str, kind: str, answer: str) -> None:
        self._known[key] = answer
        self._post.put("answered", self._scope, key, kind, answer)

    async def delivered(self) -> None:
        await self._post.delivered()


class PartHost:
    """What the actor of a part does: a host of `pools.py`, whose making may fail."""

    def __init__(self, path: Sequence[str], part: str, asked: Asked) -> None:
        sys.path += [place for place in path if place not in sys.path]
        self._failure: CounterplayError | None = None
        try:
            self._host: PolicyHost | VerifierHost = PolicyHost(asked) if part == "policy" else VerifierHost(asked)
        except CounterplayError as error:
            self._failure = error

    async def alive(self) -> None:
        """Answers as long as the event loop turns."""

    async def told(self) -> dict[str, Any] | CounterplayError:
        return self._failure or self._host.told()

    async def answer(self, *asked: Any) -> Any:
        return await self._host.answer(*asked)
