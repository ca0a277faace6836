"""The driver: claims units, hands each to the crew with all it needs, writes what comes back, and settles. One process, the one writer.

Trees are written and their units settled in one transaction, so a kill finds a unit either done, with its trees, or still to do. What it
loses of a unit under way was journalled call by call, and what an attempt paid for of which nobody heard again, be its worker gone or its
driver, is counted there. Memory holds the units in flight and the next few, never the job.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from counterplay.jobs.events import Events
from counterplay.jobs.retries import EVERYBODY, LOST, Retries
from counterplay.jobs.totals import paid_result, result_of, with_earlier
from counterplay.jobs.work import Work, Worked, WorkerLostError

if TYPE_CHECKING:
    from counterplay.core.store import Settled, Store, UnitRow
    from counterplay.jobs.loading import Loader
    from counterplay.jobs.progress import Progress
    from counterplay.jobs.work import Crew

_TICK_S = 0.5
_AHEAD = 64
_WRITE_S = 2.0
_WRITE_UNITS = 256
_WRITE_NODES = 20_000


class Driver:
    """Works on the units of one job until none is left, `stop` is called, or `seconds` have passed (None: as long as it takes).

    Then the crew is closed.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        loader: Loader,
        crew: Crew,
        progress: Progress,
        *,
        retries: Retries | None = None,
        lease_s: float = 300.0,
        seconds: float | None = None,
        limit: int | None = None,
        events: Events | None = None,
    ) -> None:
        self.events = events or Events(job)
        self.store, self.job, self.loader, self.crew, self.progress = store, job, loader, crew, progress
        self.retries, self.lease_s, self.owner = retries or Retries(), lease_s, uuid4().hex
        self.stopping = ""
        self._until_s = None if seconds is None else time.monotonic() + seconds
        self._left = limit
        self._claimed: deque[UnitRow] = deque()
        self._loaded: deque[tuple[UnitRow, Work | Worked]] = deque()
        self._flying: dict[asyncio.Task[Worked], UnitRow] = {}
        self._finished: list[tuple[UnitRow, Worked]] = []
        self._nodes = 0
        self._due_s = 0.0
        self._written_s = self._renewed_s = time.monotonic()

    def stop(self, why: str = "stopped") -> None:
        """Begin nothing more; what is under way is given up where it is."""
        if not self.stopping:
            self.stopping = why
            self.events.stopping(why)

    async def run(self) -> str:
        """Why it ended: empty where every unit has settled."""
        try:
            while await self._turn():
                pass
        finally:
            for task in self._flying:
                task.cancel()
            await asyncio.gather(*self._flying, return_exceptions=True)
            await self._write()
            await self.crew.close()  # what it was answered is journalled now, and can be counted
            await self._release()
        return self.stopping

    async def _turn(self) -> bool:
        """One round; False where there is nothing more to do."""
        if self._until_s is not None and time.monotonic() >= self._until_s:
            self.stop("its time is over")
        if self.stopping:
            return False
        await self._begin()
        if self._flying:
            done, _ = await asyncio.wait(self._flying, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._take(task)
        await self._keep()
        if self._flying or self._loaded or self._claimed:
            return True
        await self._write()
        return await self._wait()

    async def _begin(self) -> None:
        """Fill the crew. Units are loaded many together, ahead of being begun: one at a time costs several times as much."""
        while len(self._flying) < self.crew.size and (self._loaded or await self._load()):
            unit, work = self._loaded.popleft()
            if isinstance(work, Worked):
                self._finish(unit, work)
            else:
                self.events.began(unit)
                self._flying[asyncio.create_task(self.crew.submit(work))] = unit
        self.progress.show()

    async def _load(self) -> bool:
        """Load the next units; False where none can be had now."""
        if not self._claimed and time.monotonic() >= self._due_s:
            self._claim()
        left = self.loader.at_once
        units: list[UnitRow] = []
        while self._claimed and (not units or len(self._claimed[0].traces) <= left):
            units.append(self._claimed.popleft())
            left -= len(units[-1].traces)
        if units:
            try:
                works = await asyncio.to_thread(self.loader.load, units)
                self._loaded.extend(zip(await self._known(units), works, strict=True))
            except BaseException:
                self._claimed.extendleft(reversed(units))
                raise
        return bool(units)

    async def _known(self, units: Sequence[UnitRow]) -> list[UnitRow]:
        """The units, in their results what attempts before paid for of which nobody heard again."""
        gone = [unit for unit in units if unit.attempts > 1]
        counted = await self._counted(gone)
        now_us = time.time_ns() // 1000
        known = {unit.id: replace(unit, at_us=now_us, result=with_earlier(unit.result, counted[unit.id])) for unit in gone}
        return [known.get(unit.id, unit) for unit in units]

    async def _counted(self, units: Sequence[UnitRow]) -> dict[str, dict[str, Any]]:
        """What each unit has paid for since its `at_us` by the journal, in the form of a result."""
        if not units:
            return {}
        paid = await asyncio.to_thread(self.store.paid_since, {unit.traces[0]: unit.at_us for unit in units})
        return {unit.id: paid_result(paid.get(unit.traces[0], {})) for unit in units}

    def _claim(self) -> None:
        many = max(_AHEAD, self.crew.size) if self._left is None else min(self._left, max(_AHEAD, self.crew.size))
        found = self.store.claim(self.job, self.owner, many, lease_s=self.lease_s) if many else []
        busy = {unit.id for unit in (*self._flying.values(), *(unit for unit, _ in (*self._loaded, *self._finished)))}
        fresh = [unit for unit in found if unit.id not in busy]
        self._claimed.extend(fresh)
        if self._left is not None:
            self._left -= len(fresh)
        for _ in fresh:
            self.progress.moved("pending", "running")
        if fresh:
            self.events.tell("units.claimed", count=len(fresh))
        if not found:
            self._due_s = time.monotonic() + _TICK_S

    def _take(self, task: asyncio.Task[Worked]) -> None:
        unit = self._flying.pop(task)
        try:
            worked = task.result()
        except WorkerLostError as error:
            self.events.lost(unit, error)
            worked = Worked(unit.id, "failed", str(error), "lost" if error.alone else "beside")
        self._finish(unit, worked)

    def _finish(self, unit: UnitRow, worked: Worked) -> None:
        self._finished.append((unit, worked))
        self.events.finished(unit)
        self._nodes += sum(len(record.nodes) for record in worked.records)
        self.progress.charged(worked.used, worked.live_calls)
        if worked.state == "failed":
            self.progress.errors.append(f"{unit.id}: {worked.reason}")

    async def _keep(self) -> None:
        """Write and renew leases where it is time."""
        moment = time.monotonic()
        late = moment - self._written_s >= _WRITE_S and self._finished
        if late or len(self._finished) >= _WRITE_UNITS or self._nodes >= _WRITE_NODES:
            await self._write()
        if moment - self._renewed_s >= self.lease_s / 3:
            held = [unit.id for unit in self._held()]
            lost = set(await asyncio.to_thread(self.store.renew, self.job, held, self.owner, lease_s=self.lease_s) if held else ())
            self._claimed = deque(unit for unit in self._claimed if unit.id not in lost)
            self._loaded = deque((unit, work) for unit, work in self._loaded if unit.id not in lost)
            self._renewed_s = moment

    def _held(self) -> list[UnitRow]:
        """The units that are claimed and not finished."""
        return [*self._flying.values(), *(unit for unit, _ in self._loaded), *self._claimed]

    async def _write(self) -> None:
        """Write the trees of finished units, then what came of them."""
        finished, self._finished, self._nodes = self._finished, [], 0
        self._written_s = time.monotonic()
        if not finished:
            return
        finished = await self._with_lost(finished)
        settled = [self._settled(unit, worked) for unit, worked in finished]
        await asyncio.to_thread(self._store, [worked for _, worked in finished], settled)
        for (unit, worked), one in zip(finished, settled, strict=True):
            self.progress.moved("running", one.state)
            self.events.settled(unit, worked, one)

    async def _with_lost(self, finished: Sequence[tuple[UnitRow, Worked]]) -> list[tuple[UnitRow, Worked]]:
        """What came of units, with what those paid for whose workers can't tell any more."""
        counted = await self._counted([unit for unit, worked in finished if worked.error_class in LOST])
        for paid in counted.values():
            self.progress.charged({}, paid.get("live_calls", 0))
        return [(unit, replace(worked, **counted.get(unit.id, {}))) for unit, worked in finished]

    def _store(self, finished: Sequence[Worked], settled: Sequence[Settled]) -> None:
        records = [record for worked in finished for record in worked.records if not worked.held]
        with self.store.transaction():
            if records:
                self.store.put_searches(records)
            self.store.settle(self.job, settled, self.owner)

    def _settled(self, unit: UnitRow, worked: Worked) -> Settled:
        from counterplay.core.store import Settled

        result = with_earlier(result_of(worked), unit.result)
        if worked.state != "failed":
            return Settled(worked.unit, worked.state, worked.reason, result=result)
        tries = int(self.retries.counts(worked.error_class)) + (unit.result.get("tries", 0) if unit.attempts > 1 else 0)
        wait_s = self.retries.again_s(worked.error_class, tries)
        told = {**result, "tries": tries}
        if wait_s is None and worked.error_class in EVERYBODY:
            self.stop(worked.reason)
            return Settled(worked.unit, "pending", worked.reason, worked.error_class, {**result, "tries": 0})
        if wait_s is None:
            return Settled(worked.unit, self.retries.given_up(worked.error_class), worked.reason, worked.error_class, told)
        due_us = time.time_ns() // 1000 + round(wait_s * 1e6)
        return Settled(worked.unit, "pending", worked.reason, worked.error_class, with_earlier({"tries": tries}, result), due_us)

    async def _release(self) -> None:
        """Give back what was claimed and not finished."""
        from counterplay.core.store import Settled

        left = self._held()
        if left:
            flying = list(self._flying.values())
            counted = await self._counted([*flying, *(unit for unit in left[len(flying) :] if unit.attempts > 1)])
            for unit in flying:
                self.progress.charged({}, counted[unit.id].get("live_calls", 0))
            results = [with_earlier(unit.result, counted.get(unit.id, {})) for unit in left]
            given = [Settled(unit.id, "pending", *self._why(unit), found) for unit, found in zip(left, results, strict=True)]
            await asyncio.to_thread(self.store.settle, self.job, given, self.owner)
            self.events.released(left)

    def _why(self, unit: UnitRow) -> tuple[str, str]:
        """Why a unit that is given back is not done, and the class of that: what is waited for, else what went wrong in its last try."""
        return (self.progress.waiting, "server") if self.progress.waiting else (unit.reason, unit.error_class)

    async def _wait(self) -> bool:
        """Wait for the next unit to fall due; False where none will."""
        due_us = None if self._left == 0 else self.store.due_us(self.job)
        if due_us is None and not (self.store.unit_counts(self.job)["pending"] and self._left != 0):
            return False
        if due_us is not None:
            self.progress.show("waiting for the next try")
            await asyncio.sleep(min(_TICK_S, max(0.0, due_us / 1e6 - time.time())))
        self._due_s = 0.0
        return True
