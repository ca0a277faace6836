"""A worker in a process of its own: it works on the units that its driver sends, and ends with it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from counterplay.core.errors import CounterplayError, StoreError
from counterplay.growing import Watching
from counterplay.jobs.desk import SentDesk
from counterplay.jobs.pipes import Pipe, die_with
from counterplay.jobs.spools import Spool, SpooledJournal
from counterplay.jobs.work import TreeWantedError, Work, Worked, Worker
from counterplay.searching import collected_seldom

if TYPE_CHECKING:
    from counterplay.core.journal import Journal


def main() -> None:
    """What a worker does, in a process of its own."""
    handle, parent = map(int, sys.argv[1:])
    die_with(parent)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(socket.socket(fileno=handle)))


async def _serve(connected: socket.socket) -> None:
    pipe = await Pipe.over(connected)
    sys.path[:] = await pipe.next() or os._exit(1)
    base, every_s, asked, plan = await pipe.next() or os._exit(1)
    try:
        worker = Worker(asked, plan)
    except CounterplayError as error:
        await pipe.send(("refused", error))
        return
    await pipe.send(("up",))
    with collected_seldom():
        await _Serving(pipe, worker, Spool(base), every_s).run()
    await worker.close()


class _Serving:
    """The units under way, and what is said of them. Every `every_s` seconds the driver is told that this process goes on."""

    def __init__(self, pipe: Pipe, worker: Worker, spool: Spool, every_s: float) -> None:
        self.pipe, self.worker, self.spool, self.every_s = pipe, worker, spool, every_s
        self.watching = Watching(lambda record: pipe.put(("grows", record)))
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._told_s = 0.0

    async def run(self) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            await self._serve()
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            self._alive()
            await asyncio.sleep(self.every_s)

    def _alive(self) -> None:
        self._told_s = time.monotonic()
        self.pipe.put(("alive",))

    async def _serve(self) -> None:
        while (message := await self.pipe.next()) is not None:
            match message:
                case ("work", work):
                    self.tasks[work.unit] = asyncio.create_task(self._one(work))
                case ("cancel", unit) if unit in self.tasks:
                    self.tasks[unit].cancel()
                case ("end",):
                    break
        else:
            os._exit(1)  # the driver is gone: nothing more is asked of anybody
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _one(self, work: Work) -> None:
        answer: Worked | Exception
        try:
            answer = await self.worker.work(work, SentDesk(work, self._journal, self.watching.watch))
        except (StoreError, TreeWantedError) as error:
            answer = error
        finally:
            self.tasks.pop(work.unit, None)
        if isinstance(answer, Exception) or (isinstance(answer, Worked) and answer.state == "failed"):
            self.spool.cut()  # so that whoever tries again knows what this worker was answered
        await self.pipe.send(("worked", work.unit, answer, self.spool.taken()))

    def _journal(self, scope: str, known: Mapping[str, str]) -> Journal:
        return SpooledJournal(self.spool, scope, known, self._answered)

    def _answered(self) -> None:
        """Verifiers that do not wait keep the event loop from beating; each answer of theirs is a sign of life as well."""
        if time.monotonic() - self._told_s >= self.every_s:
            self._alive()
