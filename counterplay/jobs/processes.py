"""`Processes`: units worked on by Pythons of their own on this machine, each an event loop with many units in flight.

A worker writes each answer to its own side file before it is used, and is sent what the store knows of a unit with the unit. The driver
alone has the store: it folds side files in, and writes what comes back. A worker that ends, however it ends, costs what was not answered
yet, and so does one whose event loop stands still, which is then killed; one whose driver has ended ends with it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from pickle import PicklingError, dumps
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import CounterplayError, StoreError, UserError
from counterplay.jobs.pipes import Pipe
from counterplay.jobs.spools import spools_of
from counterplay.jobs.team import SILENT_S, STUCK, Silence, Team, divided
from counterplay.jobs.work import Work, Worked, WorkerLostError, check_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from counterplay.core.store import Store
    from counterplay.parts import Asked
    from counterplay.plan import Plan

_STARTS = 3
_CLOSING_S = 10.0


class Processes(Team):
    """`workers` processes that share the concurrency and the pace of `plan`. They start with the first unit.

    One that says nothing for `silent_s` seconds, neither by its event loop nor by an answer that it journals, is killed. Raises UserError
    where a job can't be run so.
    """

    def __init__(self, store: Store, asked: Asked, plan: Plan, *, workers: int, silent_s: float = SILENT_S) -> None:
        check_plan(asked, plan)
        if workers < 1:
            raise UserError(f"got {workers} workers", "at least 1")
        super().__init__(store, plan, silent_s=silent_s)
        self._folder = TemporaryDirectory() if store.path == ":memory:" else None
        base = store.path if self._folder is None else str(Path(self._folder.name) / "store")
        plans = divided(plan, workers, local=asked.local)
        self._members = [_Process(self, asked, each, f"{base}.journal.w{number}") for number, each in enumerate(plans)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def members(self) -> list[_Process]:
        return self._members

    def start(self) -> None:
        self._tasks = [asyncio.create_task(process.run()) for process in self._members]

    async def close(self) -> None:
        for process in self._members:
            process.end()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSING_S)
            for process in self._members:
                process.kill()
            if late:
                await asyncio.wait(late)
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that are at work."""
        return [process.pid for process in self._members if process.pid]

    async def fold(self, paths: Sequence[str]) -> None:
        """Take side files into the store, away from the loop."""
        if paths:
            await asyncio.to_thread(self._fold, paths)

    def _fold(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.store.fold_spool(path)
            Path(path).unlink(missing_ok=True)


class _Process:
    """One process after another: where one is lost, the next takes its place."""

    def __init__(self, crew: Processes, asked: Asked, plan: Plan, base: str) -> None:
        self.crew, self.capacity, self.base = crew, plan.concurrency, base
        self.alone = ""
        self.flying: dict[str, asyncio.Future[Worked]] = {}
        self.is_up = False
        self.ended = False
        self._orders = (asked, plan)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None
        self.failure: CounterplayError | None = None
        self._fruitless = 0
        self._stuck = ""
        check_picklable(self._orders)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    async def work(self, work: Work) -> Worked:
        if self.failure is not None:
            raise self.failure
        if self._pipe is None or not self.is_up:
            raise WorkerLostError(f"the worker of unit {work.unit} is gone", do="It is tried again.", alone=False)
        future: asyncio.Future[Worked] = asyncio.get_running_loop().create_future()
        self.flying[work.unit] = future
        try:
            await self._pipe.send(("work", work))
            return await future
        except asyncio.CancelledError:
            if self._pipe is not None:
                self._pipe.put(("cancel", work.unit))
            raise
        finally:
            self.flying.pop(work.unit, None)

    async def run(self) -> None:
        """Start a process, pass on what it says, and start the next where it ends, till this is ended."""
        try:
            while not self.ended and self.failure is None:
                base = f"{self.base}.{os.getpid()}-{time.time_ns()}"
                await self._one(base)
                code = await asyncio.to_thread(self._process.wait) if self._process is not None else 0
                ending = self._stuck or _ending(code)
                await self.crew.fold(spools_of(base))  # before anybody tries again
                self._lose(ending)
                if self._fruitless >= _STARTS:
                    got = f"{_STARTS} workers, one after another, {ending}, before they began"
                    self.failure = UserError(got, "workers that start", "Try it in this process.")
                await self.crew.changed()
        except asyncio.CancelledError:
            self.kill()
            raise
        except Exception as error:  # noqa: BLE001  whoever waits for this process is told
            self.failure = error if isinstance(error, CounterplayError) else StoreError(f"{type(error).__name__}: {error}")
            self.kill()
            self._fail(self.failure)
            await self.crew.changed()

    def end(self) -> None:
        self.ended = True
        if self._pipe is not None:
            self._pipe.put(("end",))
        self._fail(WorkerLostError("the crew was closed", alone=False))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _one(self, base: str) -> None:
        self._process, ours = _started(len(self.crew.members))
        self._fruitless += 1
        self._stuck = ""
        self._pipe = pipe = await Pipe.over(ours)
        silence = Silence(self.crew.silent_s, coming_up=True)
        watching = asyncio.create_task(self._watch(silence))
        try:
            pipe.put(sys.path)
            pipe.put((base, silence.every_s, *self._orders))
            while (message := await pipe.next()) is not None:
                silence.broken()
                await self._heard(*message)
                if self.is_up:
                    silence.up(self.crew.silent_s)
        finally:
            watching.cancel()
            self.is_up, self._pipe = False, None
            pipe.close()

    async def _watch(self, silence: Silence) -> None:
        """Kill the process where it is silent for too long."""
        await silence.too_long()
        self._stuck = str(silence)
        if self._process is not None:
            self._process.kill()  # its pipe ends with it, which `_one` waits for

    async def _heard(self, kind: str, *said: Any) -> None:
        match kind:
            case "up":
                self.is_up, self._fruitless = True, 0
                if self.ended and self._pipe is not None:
                    self._pipe.put(("end",))
                await self.crew.changed()
            case "refused":
                self.failure = said[0]
            case "grows":
                self.crew.watching.take(said[0])
            case "worked":
                unit, answer, complete = said
                await self.crew.fold(complete)
                future = self.flying.get(unit)
                if future is not None and not future.done():
                    future.set_exception(answer) if isinstance(answer, BaseException) else future.set_result(answer)

    def _lose(self, ending: str) -> None:
        """Tell the units that were under way."""
        do = STUCK if self._stuck else "It is tried again; what was answered is kept."
        self._fail(WorkerLostError(f"a worker {ending}", do=do, alone=len(self.flying) == 1))

    def _fail(self, error: CounterplayError) -> None:
        for future in self.flying.values():
            if not future.done():
                future.set_exception(error)


def _started(workers: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A new process, one of so many, and the socket that it is talked to by."""
    ours, theirs = socket.socketpair()
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    with theirs:
        command = [sys.executable, "-c", "from counterplay.jobs.child import main; main()", str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(  # noqa: S603  our own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__ or subprocess.DEVNULL,  # what a verifier prints is no part of what the driver prints
            pass_fds=[theirs.fileno()],
            env={**threads, **os.environ},
            start_new_session=True,  # the driver alone is interrupted from a terminal
        )
    return process, ours


def check_picklable(orders: tuple[object, ...]) -> None:
    """Raises UserError where a job can't be sent to another process."""
    try:
        dumps(orders)
    except (PicklingError, TypeError, AttributeError) as error:
        do = "Name them as module:attr, or work in this process."
        raise UserError(f"the parts of this job can't be sent to another process: {error}", "parts that can be pickled", do) from error


def _ending(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"ended by exit code {code}"
