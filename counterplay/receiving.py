"""`counterplay receive`: any OpenTelemetry SDK exports straight into the store.

What is answered with 200 is on disk, in `STORE.inbox` (see `spool`); a trace goes into the store when it is whole, and again as a
new revision when spans come late. The store is open only while a batch is written, so that other commands can read it in between.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from counterplay.core.errors import StoreError
from counterplay.inbox import Due, Inbox
from counterplay.otlp_http import Endpoint, Export, Refused
from counterplay.reading import Door
from counterplay.serving import address, listening, server, until_signal
from counterplay.settling import Settler
from counterplay.spool import Spool

_BATCH_TRACES = 2048
_BATCH_BYTES = 64 << 20
_TICK_S = 0.25
_REST_S = 1.0
_RETRY_S = 1
_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Options:
    """How traces are gathered.

    A trace is stored `quiet_s` seconds after its root ended and nothing more came, or when it has waited `max_age_s`. Its spans are
    kept for late ones until `keep_hours` after, those of a trace without an end at least `max_age_s`. At most `max_waiting_mb` wait
    for the store; a request has at most `max_body_mb`.
    """

    quiet_s: float = 5.0
    max_age_s: float = 600.0
    keep_hours: float = 24.0
    max_waiting_mb: int = 1024
    max_body_mb: int = 64


@dataclass(frozen=True)
class Received:
    """What a receiver did. What waits is in the inbox and is taken up by the next one; `problem` is why it could not be stored."""

    exports: int
    refused: int
    spans: int
    passed_over: int
    traces_added: int
    traces_updated: int
    traces_known: int
    rejected: int
    waiting_traces: int
    waiting_spans: int
    inbox: str
    problem: str = ""


class Receiver:
    """A store's inbox and the two loops around it: what comes in is made durable, what is whole is stored."""

    def __init__(self, store: Path, options: Options, door: Door, say: Callable[[str], None]) -> None:
        """Raises StoreError where the store can't be written or its inbox is in use."""
        from counterplay.loop import opened

        with opened(store):
            pass  # refused now rather than with an inbox full of spans
        self._say = say
        self.inbox = Inbox(
            Spool(Path(f"{store}.inbox")),
            quiet_s=options.quiet_s,
            max_age_s=options.max_age_s,
            keep_s=options.keep_hours * 3600,
            max_waiting_bytes=options.max_waiting_mb << 20,
        )
        self.endpoint = Endpoint(self.keep, self.refusal, lambda: asdict(self.report()), max_body_bytes=options.max_body_mb << 20)
        self._settler = Settler(store, door, self.inbox)
        self._counts: Counter[str] = Counter()
        self._pending: list[tuple[Export, asyncio.Future[None]]] = []
        self._arrived, self._closing = asyncio.Event(), asyncio.Event()
        self._writing = False
        self._problem = ""
        self._disk, self._writer = ThreadPoolExecutor(1, "spool"), ThreadPoolExecutor(1, "store")

    def report(self) -> Received:
        told = self._counts
        return Received(
            exports=told["exports"],
            refused=told["refused"],
            spans=told["spans"],
            passed_over=told["passed_over"],
            traces_added=told["traces_added"],
            traces_updated=told["traces_updated"],
            traces_known=told["traces_known"],
            rejected=told["rejected_added"],
            waiting_traces=self.inbox.waiting_traces,
            waiting_spans=self.inbox.waiting_count,
            inbox=str(self.inbox.spool.folder),
            problem=self._problem,
        )

    def refusal(self) -> Refused | None:
        """Why nothing is taken at the moment; None where it is."""
        if not self._closing.is_set() and not self.inbox.full:
            return None
        self._counts["refused"] += 1
        if self._closing.is_set():
            return Refused(503, "the receiver is stopping", _RETRY_S)
        return Refused(429, "too much waits for the store", _RETRY_S)

    async def keep(self, export: Export) -> None:
        """Make an export durable. Those that come together share one write. Raises Refused where the disk does not take it."""
        if export.frames:
            kept = asyncio.get_running_loop().create_future()
            self._pending.append((export, kept))
            self._arrived.set()
            await kept
        self._counts.update(exports=1, spans=export.count, passed_over=export.passed_over)

    async def write(self) -> None:
        """Write what is pending, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._pending = self._pending, []
            self._writing = True
            await self._write(batch)
            self._writing = False

    async def settle(self) -> None:
        """Store what is due until the receiver closes. Between batches the store is left alone for as long as a batch took."""
        while not self._closing.is_set():
            began = time.monotonic()
            dues = self.inbox.due(time.time(), limit=_BATCH_TRACES, max_bytes=_BATCH_BYTES)
            if dues or self.inbox.damage:
                await self._store(dues)
                await self._pause(max(_REST_S, time.monotonic() - began))
            self.inbox.forget(time.time(), idle=not (self._writing or self._pending))
            await self._pause(_TICK_S)

    def stop(self) -> None:
        """From now on nothing more is taken."""
        self._closing.set()

    async def drain(self) -> None:
        """Store every trace whose root has ended, quiet or not. Gives up where the store stays in use."""
        deadline = time.monotonic() + _PATIENCE_S
        while dues := self.inbox.ended(limit=_BATCH_TRACES, max_bytes=_BATCH_BYTES):
            if not await self._store(dues):
                if time.monotonic() > deadline:
                    return
                await asyncio.sleep(_TICK_S)
        self.inbox.forget(time.time(), idle=True)

    def close(self) -> None:
        self.endpoint.close()
        self._disk.shutdown()
        self._writer.shutdown()
        self.inbox.close()

    async def _write(self, batch: Sequence[tuple[Export, asyncio.Future[None]]]) -> None:
        frames = [frame for export, _ in batch for frame in export.frames]
        refused = None
        try:
            places = await asyncio.get_running_loop().run_in_executor(self._disk, self.inbox.spool.append, frames)
        except OSError as error:
            self._say(f"the inbox can't be written ({error}); exports are refused")
            refused = Refused(503, f"the inbox can't be written: {error.strerror}", _RETRY_S)
            self._counts["refused"] += len(batch)
        else:
            for place, frame in zip(places, frames, strict=True):
                self.inbox.add(place, frame.meta, len(frame.data))
        for _, kept in batch:
            if kept.done():
                continue  # its client has gone
            if refused is None:
                kept.set_result(None)
            else:
                kept.set_exception(refused)

    async def _store(self, dues: Sequence[Due]) -> bool:
        """Store some traces; False where the store can't be had now, and they wait on."""
        damage = list(self.inbox.damage)
        try:
            counts, done = await asyncio.get_running_loop().run_in_executor(self._writer, self._settler.store, dues, damage)
        except StoreError as error:
            if str(error) != self._problem:
                self._say(f"{error} Until then traces wait in {self.inbox.spool.folder}.")
            self._problem = str(error)
            return False
        self._problem = ""
        self._counts += counts
        del self.inbox.damage[: len(damage)]
        self.inbox.settle(done, time.time())
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than until the receiver closes."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return


def receive(
    store: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 4318,
    options: Options | None = None,
    door: Door | None = None,
    say: Callable[[str], None] = lambda _: None,
    watch: Callable[[Received], None] = lambda _: None,
) -> Received:
    """Receive until SIGINT or SIGTERM; then store what is whole and say what remains.

    `say` is told what a person should know, `watch` shown how it goes. Port 0 is any free one. Raises UserError where the address
    can't be had, StoreError where the store or its inbox can't.
    """
    with listening(host, port) as listener:
        receiver = Receiver(store, options or Options(), door or Door(), say)
        if receiver.inbox.spool.torn:
            say(f"{receiver.inbox.spool.torn} bytes at the end of the inbox were never acknowledged and are cut off")
        ready = f"receiving OTLP/HTTP at http://{address(listener)} into {store}; Ctrl-C stops"
        asyncio.run(_receive(receiver, listener, watch, lambda: say(ready)))
        return receiver.report()


async def _receive(receiver: Receiver, listener: socket.socket, watch: Callable[[Received], None], ready: Callable[[], None]) -> None:
    http = server(receiver.endpoint.app)
    with until_signal() as stopped:
        ready()
        serving, writing, settling, told = tasks = [
            asyncio.create_task(work) for work in (http.serve([listener]), receiver.write(), receiver.settle(), stopped.wait())
        ]
        try:
            while not any(task.done() for task in tasks):
                watch(receiver.report())
                await asyncio.wait(tasks, timeout=_REST_S, return_when=asyncio.FIRST_COMPLETED)
            receiver.stop()
            http.should_exit = True
            await serving
            await settling
            await receiver.drain()
        finally:
            writing.cancel()
            told.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            receiver.close()
    for defect in ended:
        if isinstance(defect, Exception):
            raise defect
