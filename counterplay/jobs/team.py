"""Which worker gets which unit, where the workers are elsewhere: who has least to do, and nobody beside a unit that lost its worker.

And which worker does not answer any more: one whose event loop stands still, in native code or in a loop without an end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence, Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from counterplay.core.errors import CounterplayError
from counterplay.growing import Watching
from counterplay.jobs.desk import Filling
from counterplay.jobs.work import TreeWantedError, Work, Worked, WorkerLostError
from counterplay.plan import Pace, Plan

if TYPE_CHECKING:
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store

SILENT_S = 900.0
_PATIENCE_S = 10.0


class Member(Protocol):
    """One place for a worker. `alone` names the unit that it is kept for, `failure` says why nobody can work here."""

    capacity: int
    alone: str
    is_up: bool
    failure: CounterplayError | None

    @property
    def flying(self) -> Sized: ...

    async def work(self, work: Work) -> Worked:
        """Raises WorkerLostError where the worker is gone, `failure` where there is one."""
        ...


class Team:
    """What crews of workers without the store have in common.

    A unit whose worker was lost is worked on alone the next time, so that one which kills its worker takes no other with it, and is
    known by that. A worker that is silent for `silent_s` seconds is ended.
    """

    def __init__(self, store: Store, plan: Plan, *, silent_s: float) -> None:
        self.store, self.size, self.silent_s = store, plan.concurrency, silent_s
        self.watching = Watching(store.put_search)
        self._searched = plan.algorithm != "stitch"
        self._filling = Filling(store)
        self._suspects: set[str] = set()
        self._gate = asyncio.Semaphore(self.size)
        self._changed = asyncio.Condition()
        self._started = self._began = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def members(self) -> Sequence[Member]:
        raise NotImplementedError

    def start(self) -> None:
        """Let the members come up; called once, in the event loop."""
        raise NotImplementedError

    async def submit(self, work: Work) -> Worked:
        async with self._gate:
            if not self._started:
                self._started = True
                self.start()
            trees: dict[str, SearchRecord] = {}
            while True:
                filled = await self._filling.filled(replace(work, trees=trees), searched=self._searched)
                try:
                    return await self._by_one(filled)
                except TreeWantedError as wanted:
                    trees = {**trees, wanted.search_id: self.store.search(wanted.search_id)}

    async def changed(self) -> None:
        """Tell those who wait for a member that one may be free. Who comes up first does not get everything: others have a while."""
        if not self._began and any(member.is_up or member.failure for member in self.members):
            if all(member.is_up or member.failure for member in self.members):
                self._began = True
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._begin)
        async with self._changed:
            self._changed.notify_all()

    def _begin(self) -> None:
        self._began = True
        self._beginning = asyncio.create_task(self.changed())

    async def _by_one(self, work: Work) -> Worked:
        member = await self._free_for(work.unit)
        try:
            worked = await member.work(work)
        except WorkerLostError:
            self._suspects.add(work.unit)
            raise
        finally:
            if member.alone == work.unit:
                member.alone = ""
            await self.changed()
        self._suspects.discard(work.unit)
        return worked

    async def _free_for(self, unit: str) -> Member:
        """The member that has the least to do; for a unit whose worker was lost one that has nothing else to do till it is done."""
        async with self._changed:
            if unit not in self._suspects:
                await self._changed.wait_for(lambda: self._began and any(map(_is_free, self.members)))
                return min(filter(_is_free, self.members), key=_load)
            await self._changed.wait_for(lambda: any(not member.alone for member in self.members))
            member = min((member for member in self.members if not member.alone), key=_load)
            member.alone = unit
            try:
                await self._changed.wait_for(lambda: member.failure or (member.is_up and not member.flying))
            except BaseException:
                member.alone = ""
                raise
            return member


class Silence:
    """How long a worker has said nothing. Time in which this process did not look, because it stood still itself, does not count.

    A worker that is `coming_up` has a quarter of an hour at least: it may have a model to load.
    """

    def __init__(self, limit_s: float, *, coming_up: bool = False) -> None:
        self.limit_s, self.every_s = max(limit_s, SILENT_S) if coming_up else limit_s, min(1.0, limit_s / 4)
        self._silent_s = 0.0

    def up(self, limit_s: float) -> None:
        """The worker is up: from now on this is the limit."""
        self.limit_s = limit_s

    def broken(self) -> None:
        """The worker said something."""
        self._silent_s = 0.0

    async def too_long(self) -> None:
        """Return once the worker has been silent for the limit."""
        while self._silent_s < self.limit_s:
            began_s = time.monotonic()
            await asyncio.sleep(self.every_s)
            self._silent_s += min(time.monotonic() - began_s, 2 * self.every_s)

    def __str__(self) -> str:
        return f"did not answer for {self.limit_s:g} s and was ended: its event loop stood still"


STUCK = "Look at the verifier, the environment or the model; [engine] silent_s is how long a single call of theirs may take."


def _is_free(member: Member) -> bool:
    return member.failure is not None or (member.is_up and not member.alone and len(member.flying) < member.capacity)


def _load(member: Member) -> float:
    return len(member.flying) / member.capacity


def divided(plan: Plan, workers: int, *, local: bool) -> list[Plan]:
    """The plan of each worker, so that all together keep to the pace and the concurrency of `plan`; fewer than asked for where it
    does not last for so many. `local` says that the policy is no server, and makes batches of what it is asked.
    """
    pace = plan.pace
    unlimited = local and pace.in_flight is None
    limits = [plan.concurrency, None if unlimited else pace.requests, pace.requests_per_minute, pace.tokens_per_minute]
    count = max(1, min(workers, *(int(limit) for limit in limits if limit is not None)))

    def part(limit: float | None) -> float | None:
        return None if limit is None else limit / count

    def paced(number: int) -> Pace:
        in_flight = None if unlimited else _share(pace.requests, count, number)
        return Pace(in_flight, part(pace.requests_per_minute), part(pace.tokens_per_minute))

    return [replace(plan, concurrency=_share(plan.concurrency, count, number), pace=paced(number)) for number in range(count)]


def _share(whole: int, parts: int, number: int) -> int:
    return whole // parts + (number < whole % parts)
