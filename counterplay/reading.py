"""Logs as a stream of traces: read in processes of their own, redacted at the door, given out in one order.

Files that belong together (a connector that joins spans over files) are one unit; units are read ahead by a few processes, a large
one by several at once where its connector can read it in parts. All is given out in the order of one reader, so that what the store
holds does not depend on how many there were. A process sends what it read in batches and waits while nobody takes them: memory holds
what one unit needs, never the corpus.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import operator
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

from counterplay.connectors.base import Unit, get, read_unit, units
from counterplay.connectors.parts import Names, Owners, Part, PartConnector, Place, Undivided
from counterplay.connectors.redaction import Redactor, Rule, added_up, read_rules, rules_of
from counterplay.core.errors import CounterplayError, SourceError, UserError
from counterplay.core.nouns import ToolSpec, Trace
from counterplay.core.records import Rejected

Item: TypeAlias = Trace | Rejected
Counted: TypeAlias = tuple[Counter[str], dict[bytes, Counter[str]]]
"""What a redactor replaced, and what of it in texts that others may repeat."""

_LARGE_BYTES = 16 << 20
_BATCH_ITEMS = 16
_BATCH_MESSAGES = 1024
_LENGTH_BYTES = 8
_GC_OBJECTS = 200_000
_WAITING_BYTES = 48 << 20


def rules_for(kinds: Sequence[str] | None, table: Path | None, *, off: bool = False) -> tuple[Rule, ...]:
    """What a command line asks to redact: secrets and `kinds`, or what `table` says; nothing where it is `off`.

    Raises UserError where two of them are given, or where one can't be read.
    """
    if off and (kinds or table):
        raise UserError("got --no-redact and what to redact", "one of them")
    if kinds and table:
        raise UserError("got --redact and --redact-rules", "one of them", "Put the kinds into the table: kinds = [...].")
    if off:
        return ()
    return read_rules(table) if table else rules_of(("secrets", *(kinds or ())))


@dataclass(frozen=True)
class Door:
    """What happens to a trace between its source and the store.

    `effects` names a TOML table of tool effects that completes what the logs say, None: only what they say. `rules` are what is
    redacted, None: nothing; `salt` is the store's.
    """

    effects: Path | None = None
    rules: tuple[Rule, ...] | None = None
    salt: bytes = b""

    def opener(self) -> Through:
        """A function that takes one item through the door."""
        return Through(self)


class Through:
    """Takes items through a door. `counts` says how many values of each kind were redacted."""

    def __init__(self, door: Door) -> None:
        self._apply = _effect_table(door.effects)
        self._redactor = None if door.rules is None else Redactor(door.salt, door.rules)

    @property
    def counts(self) -> Counter[str]:
        return self.counted[0]

    @property
    def counted(self) -> Counted:
        return (Counter(), {}) if self._redactor is None else (self._redactor.counts, self._redactor.repeated)

    def __call__(self, item: Item) -> Item:
        try:
            passed = with_effects(item, self._apply) if isinstance(item, Trace) else item
            return passed if self._redactor is None else self._redactor(passed)
        except RecursionError:
            source = item.source if isinstance(item, Trace) else None
            where = (source.uri, source.line) if source else ("", None)
            return Rejected(where[0], "a trace that holds values nested too deeply to be looked through for secrets", where[1])


@dataclass
class Reading:
    """The items of some files and folders, in order. `redacted` counts what was replaced, by kind, as far as it was read."""

    paths: Sequence[Path]
    format: str = "auto"
    door: Door = field(default_factory=Door)
    processes: int | None = None
    redacted: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Item]:
        """Raises what reading raises (see `units`), in its place in the order."""
        ahead, spare = deque[_Process | _Divided](), list[_Process]()
        try:
            spare += (_Process() for _ in range(self._foreseen()))  # they start while it is found out what there is to read
            planned, rejected = units(self.paths, self.format)
            yield from self._through(rejected)
            waiting = deque((unit, self._is_large(unit)) for unit in planned)
            while waiting:
                self._start(waiting, ahead, spare)
                unit, large = waiting.popleft()
                if not large:
                    yield from self._through(blocking(read_unit(unit)))
                    continue
                yield from ahead[0].items()
                self.redacted += ahead.popleft().redacted
        finally:
            for process in (*ahead, *spare):
                process.stop()

    def _through(self, items: Iterable[Item]) -> Iterator[Item]:
        through = Through(self.door)
        yield from map(through, items)
        self.redacted += through.counts

    def _is_large(self, unit: Unit) -> bool:
        """Whether a unit is worth a process of its own, which costs half a second to start."""
        if self.processes == 0:
            return False
        return _size(unit.files) > (_LARGE_BYTES if self.processes is None else 0)

    def _foreseen(self) -> int:
        """How many processes will be at work at once if all files are of one format; none where that is not worth it."""
        return self._most() if self.processes != 0 and _size(self.paths) > _LARGE_BYTES else 0

    def _most(self) -> int:
        return self.processes or min(4, os.cpu_count() or 2)

    def _start(self, waiting: Iterable[tuple[Unit, bool]], ahead: deque[_Process | _Divided], spare: list[_Process]) -> None:
        """Let the next large units be read, as many as may be at work at once. Those at work are the first of them."""
        many = self.processes or max(1, min(4, (os.cpu_count() or 2) - 1))
        large = [unit for unit, is_large in waiting if is_large]
        parts = self._most() // max(1, min(len(large), many))
        ahead.extend(self._reader(unit, parts, spare) for unit in large[len(ahead) : many])

    def _reader(self, unit: Unit, parts: int, spare: list[_Process]) -> _Process | _Divided:
        connector = get(unit.connector)
        if parts > 1 and _size(unit.files) > _LARGE_BYTES and isinstance(connector, PartConnector) and connector.divides(unit.files):
            return _Divided(unit, self.door, [spare.pop() if spare else _Process() for _ in range(parts)])
        process = spare.pop() if spare else _Process()
        process.begin(unit, self.door)
        return process


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


class _Process:
    """One unit, or one part of it, read by a Python of its own that writes pickled batches to its standard output."""

    def __init__(self) -> None:
        self.counted: Counted = (Counter(), {})
        self._unit: Unit | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from counterplay.reading import main; main()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
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
        with _uncollected():
            return pickle.loads(data)  # noqa: S301  our own process wrote it


class _Divided:
    """One unit, read by several processes in parts; by one process after all where it turns out that the parts hang together."""

    def __init__(self, unit: Unit, door: Door, processes: list[_Process]) -> None:
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
        whole = _Process()
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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, which would look through all that is loaded while it is loaded."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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


def _effect_table(path: Path | None) -> Callable[[Sequence[ToolSpec]], tuple[ToolSpec, ...]]:
    if path is None:
        return tuple
    from counterplay.replay.effects import EffectTable

    return EffectTable.from_toml(path).apply


def with_effects(trace: Trace, apply: Callable[[Sequence[ToolSpec]], tuple[ToolSpec, ...]]) -> Trace:
    """`trace` with the effects of its tools replaced by `apply`."""
    if apply is tuple:
        return trace
    subs = tuple(replace(sub, trajectory=replace(sub.trajectory, tools=apply(sub.trajectory.tools))) for sub in trace.sub_trajectories)
    return replace(trace, trajectory=replace(trace.trajectory, tools=apply(trace.trajectory.tools)), sub_trajectories=subs)
