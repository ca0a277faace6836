"""Processes that read: each a Python of its own, which sends what it read in batches and waits while nobody takes them."""

from __future__ import annotations

import gc
import heapq
import operator
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import IO, Any, Self

from counterplay.connectors.base import Unit, get, read_unit
from counterplay.connectors.parts import Names, Owners, Part, PartConnector, Place, Undivided
from counterplay.connectors.redaction import added_up
from counterplay.core.collecting import uncollected
from counterplay.core.errors import CounterplayError, SourceError
from counterplay.core.nouns import Trace
from counterplay.door import Counted, Door, Item, Through

_BATCH_ITEMS = 16
_BATCH_MESSAGES = 1024
_LENGTH_BYTES = 8
_GC_OBJECTS = 200_000
_WAITING_BYTES = 48 << 20


class Process:
    """One unit, or one part of it, read by a Python of its own that writes pickled batches to its standard output."""

    def __init__(self) -> None:
        self.counted: Counted = (Counter(), {})
        self._unit: Unit | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from counterplay.readers import main; main()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._process.stdin is None or self._process.stdout is None:
            msg = "a process without pipes"
            raise RuntimeError(msg)
        self._orders: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def begin(self, unit: Unit, door: Door, part: Part | None = None) -> None:
        """Say what is to be read."""
        self._unit = unit
        pickle.dump((sys.path, unit, door, part), self._orders)
        self._orders.close()

    @property
    def redacted(self) -> Counter[str]:
        return self.counted[0]

    def items(self) -> Iterator[Any]:
        """What it read; of a part each item with its place. Raises what reading raised."""
        while (batch := self.next()) is not None:
            if isinstance(batch, tuple):
                self.counted = batch
            elif isinstance(batch, BaseException):
                self.stop()
                raise batch
            else:
                yield from batch
        self._answers.close()
        code = self._process.wait()
        if code:
            files = ", ".join(map(str, self._unit.files[:3] if self._unit else ()))
            do = "What was read before it is stored. Run again, with --processes 0 to read in this process."
            raise SourceError(f"got an end by {_ending(code)} of the process that read {files}", "an end without error", do)

    def stop(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._orders.close()
        self._answers.close()
        self._process.wait()

    def next(self) -> Any:
        """What it sends next; None where it has ended."""
        length = self._answers.read(_LENGTH_BYTES)
        size = int.from_bytes(length, "big")
        data = self._answers.read(size)
        if len(length) < _LENGTH_BYTES or len(data) < size:
            return None
        with uncollected():
            return pickle.loads(data)  # noqa: S301  our own process wrote it


class Divided:
    """One unit, read by several processes in parts; by one process after all where it turns out that the parts hang together."""

    def __init__(self, unit: Unit, door: Door, processes: list[Process]) -> None:
        self._unit, self._door, self._processes = unit, door, processes
        for index, process in enumerate(processes):
            process.begin(unit, door, Part(index, len(processes)))

    @property
    def redacted(self) -> Counter[str]:
        return added_up(process.counted for process in self._processes)

    def items(self) -> Iterator[Item]:
        if self._agree():
            placed = heapq.merge(*(process.items() for process in self._processes), key=operator.itemgetter(0))
            yield from map(operator.itemgetter(1), placed)
            return
        self.stop()
        whole = Process()
        self._processes = [whole]
        whole.begin(self._unit, self._door)
        yield from whole.items()

    def stop(self) -> None:
        for process in self._processes:
            process.stop()

    def _agree(self) -> bool:
        """Whether the parts have nothing to do with each other, once all is read. They tell names in step, so that none waits for long."""
        owners, reading = Owners(), dict(enumerate(self._processes))
        while reading:
            for part, process in list(reading.items()):
                told = process.next()
                if not isinstance(told, Names) or not owners.agree(part, told):
                    return False
                if told.last:
                    del reading[part]
        return True


def main() -> None:
    """What the reading process does: a unit, a door and a part from standard input, batches to standard output."""
    try:
        sys.path[:], unit, door, part = pickle.load(sys.stdin.buffer)  # noqa: S301  our own process wrote it
    except (EOFError, KeyboardInterrupt):
        return  # there was nothing to read after all
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a connector prints is not taken for a batch
    gc.freeze()
    gc.set_threshold(_GC_OBJECTS, 1000, 1000)  # what is read stays till it is sent: to look for garbage in it is a fifth of the time
    if part is not None:
        gc.disable()  # who reads in parts leaves no cycles behind
    through = Through(door)
    whole = part is None
    try:
        with _Sender(out) as sender:
            try:
                for batch in _batches(map(through, blocking(read_unit(unit))) if whole else _part_of(unit, part, through, sender)):
                    sender.send(batch)
                sender.send((through.counts, {}) if whole else through.counted)
            except (CounterplayError, Undivided) as error:
                sender.send(error)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # the reader has gone: nothing is left to say
    out.close()


class _Sender:
    """Writes pickled values from a thread. Some megabytes may wait: who takes them takes many at once, and then none for a while.

    `send` raises BrokenPipeError once nobody takes them any more.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._waiting = deque[bytes]()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended, self._broken = False, False
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def send(self, value: object) -> None:
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        with self._changed:
            self._changed.wait_for(lambda: self._broken or not self._waiting or self._bytes + len(data) <= _WAITING_BYTES)
            if self._broken:
                raise BrokenPipeError
            self._waiting.append(data)
            self._bytes += len(data)
            self._changed.notify_all()

    def _write(self) -> None:
        while data := self._next():
            try:
                self._out.write(len(data).to_bytes(_LENGTH_BYTES, "big"))
                self._out.write(data)
                self._out.flush()
            except OSError:
                with self._changed:
                    self._broken = True
                    self._changed.notify_all()
                return

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return None
            data = self._waiting.popleft()
            self._bytes -= len(data)
            self._changed.notify_all()
            return data


def _part_of(unit: Unit, part: Part, through: Through, sender: _Sender) -> Iterator[tuple[Place, Item]]:
    """The items of one part with their places, once its names have been sent."""
    connector = get(unit.connector)
    if not isinstance(connector, PartConnector):
        raise Undivided
    for told in connector.read_part(unit.files, part):
        if isinstance(told, Names):
            sender.send(told)
        else:
            yield told[0], through(told[1])


def _batches(items: Iterator[Item] | Iterator[tuple[Place, Item]]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for each in items:
        batch.append(each)
        item = each[1] if isinstance(each, tuple) else each
        size += len(item.trajectory) if isinstance(item, Trace) else 1
        if len(batch) >= _BATCH_ITEMS or size >= _BATCH_MESSAGES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def blocking(items: AsyncIterator[Item]) -> Iterator[Item]:
    """An async iterator as a plain one, without reading ahead."""
    import asyncio

    with asyncio.Runner() as runner:
        loop, context = runner.get_loop(), copy_context()
        while True:
            try:  # as the runner's own `run`, which would write out each item in looking after signals
                item = loop.run_until_complete(loop.create_task(_next(items), context=context))
            except StopAsyncIteration:
                return
            yield item


async def _next(items: AsyncIterator[Item]) -> Item:
    return await anext(items)
