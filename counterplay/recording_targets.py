"""Where recorded runs go: a tape that is written event by event, a store that takes each run at its end, or a sink of the user's own."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, cast

from counterplay.core.canonical import loads
from counterplay.core.errors import StoreError, UserError
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected
from counterplay.replay.agents.tape import Sink, TapeFile, read_tape

if TYPE_CHECKING:
    from counterplay.core.store import Store

Target: TypeAlias = "str | os.PathLike[str] | Store | Sink"

STORE_SUFFIX = ".duckdb"
_PATIENCE_S = 3.0
_PAUSE_S = 0.05
_STORE_LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class Output(Protocol):
    """The sink of one run."""

    def write(self, line: bytes, /) -> object: ...

    def finish(self) -> None:
        """All that is known by now has been written. Raises where it can't be stored."""
        ...

    def events(self, run: str) -> Iterable[Mapping[str, Any]]:
        """What was written of the run. Raises UserError where that can't be read."""
        ...


class Outputs(Protocol):
    """Makes the sink of each run. Where `slow`, finishing one may take long, and is done beside an event loop."""

    slow: bool

    def new(self) -> Output: ...


def outputs_of(target: Target) -> Outputs:
    """Raises UserError where the target is none."""
    if isinstance(target, str | os.PathLike):
        path = Path(target)
        return _Stores(path) if path.suffix == STORE_SUFFIX else _Tapes(path)
    if is_store(target):
        return _Stores(target)
    if callable(getattr(target, "write", None)):
        return _Sinks(cast("Sink", target))
    raise UserError(f"got {target!r:.80} to record to", "a path, a store, or an object with write(line)")


def is_store(target: object) -> TypeGuard[Store]:
    """Whether this is an open store. Asked without importing DuckDB, which a tape does not need."""
    return type(target).__module__.startswith("counterplay.core.store")


def items_from(events: Iterable[Mapping[str, Any]], uri: str) -> list[Trace | Rejected]:
    """The traces that some events make up."""
    from counterplay.connectors.lines import Entry
    from counterplay.connectors.tape import items_of

    return list(items_of(Entry(dict(event), Path(uri), index, None, 0) for index, event in enumerate(events)))


class _Tapes:
    """A tape on disk, opened when the first event is written and closed with this."""

    slow = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: TapeFile | None = None

    def new(self) -> Output:
        return _OnTape(self)

    def write(self, line: bytes) -> int:
        with self._lock:
            if self._file is None:
                self._file = TapeFile(self.path)
                weakref.finalize(self, self._file.close)
        return self._file.write(line)


class _OnTape:
    def __init__(self, tapes: _Tapes) -> None:
        self._tapes = tapes
        self._start: int | None = None

    def write(self, line: bytes, /) -> None:
        place = self._tapes.write(line)
        self._start = place if self._start is None else self._start

    def finish(self) -> None:
        """Every event has been written."""

    def events(self, run: str) -> Iterator[Mapping[str, Any]]:
        if self._start is not None:
            yield from (event for event in read_tape(self._tapes.path, start=self._start) if event.get("run") == run)


class _Sinks:
    slow = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def new(self) -> Output:
        return _OnSink(self._sink)


class _OnSink:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, line: bytes, /) -> None:
        self._sink.write(line)

    def finish(self) -> None:
        """What becomes of its lines is the sink's business."""

    def events(self, run: str) -> Iterable[Mapping[str, Any]]:
        raise UserError(f"run {run} went to a sink of your own", "a tape or a store to read its trace from")


class _Stores:
    """A store, open or by its path. By path it is open only while a run is put into it, so that other programs have it in between."""

    def __init__(self, store: Store | Path) -> None:
        self.store = store
        self.slow = isinstance(store, Path)

    def new(self) -> Output:
        return _ToStore(self.store)


class _ToStore:
    """Keeps the events of a run until its end. Where the store is in use for long, they go to a tape beside it."""

    def __init__(self, store: Store | Path) -> None:
        self._store = store
        self._lines: list[bytes] = []

    def write(self, line: bytes, /) -> None:
        self._lines.append(line)

    def events(self, run: str) -> Iterator[Mapping[str, Any]]:  # noqa: ARG002  all of them are of this run
        return (loads(line.decode()) for line in self._lines)

    def finish(self) -> None:
        if not isinstance(self._store, Path):
            self._ingest(self._store)
            return
        with _STORE_LOCKS[os.path.realpath(self._store)]:
            self._ingest_at(self._store)

    def _ingest_at(self, path: Path) -> None:
        from counterplay.loop import opened

        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with opened(path) as store:
                    return self._ingest(store)
            except StoreError as error:
                if time.monotonic() > deadline:
                    return self._set_aside(path, error)
            time.sleep(_PAUSE_S)

    def _set_aside(self, path: Path, error: StoreError) -> None:
        tape = TapeFile(f"{path}.tape.jsonl")
        try:
            for line in self._lines:
                tape.write(line)
        finally:
            tape.close()
        do = f"The run is in {tape.path}: counterplay ingest {tape.path} --store {path}"
        warnings.warn(f"a run could not be stored: {error} {do}", RuntimeWarning, stacklevel=2)

    def _ingest(self, store: Store) -> None:
        from counterplay.connectors.lines import Line, parse_line
        from counterplay.connectors.redaction import rules_of
        from counterplay.connectors.tape import items_of
        from counterplay.reading import Door

        rows = (parse_line(Path("record"), Line(number, 0, line), number - 1) for number, line in enumerate(self._lines, 1))
        through = Door(rules=rules_of(), salt=store.salt).opener()
        store.ingest(map(through, items_of(rows)))
        store.count_redactions(through.counts)
