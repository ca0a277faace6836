"""A span exporter for OpenTelemetry's SDK that puts an application's traces into a store, without a server in between.

It goes the way of `counterplay receive`: spans are on disk, in a folder beside the store, before an export succeeds; a trace is stored
when it is whole, by a thread of the exporter's own, and again when spans come late. What a killed process leaves behind is taken up
by the next exporter of the same store. Nothing that goes wrong here reaches the application.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from counterplay.connectors.redaction import rules_of
from counterplay.core.errors import StoreError, UserError
from counterplay.inbox import Inbox
from counterplay.otlp_parts import parts_of
from counterplay.reading import Door
from counterplay.settling import Settler
from counterplay.spool import Frame, Meta, Spool

_LOG = logging.getLogger("counterplay.otel")
_BATCH_TRACES = 2048
_BATCH_BYTES = 64 << 20
_TICK_S = 0.25
_REST_S = 1.0
_KEEP_S = 3600.0
_PATIENCE_S = 3.0
_MAX_WAITING_BYTES = 1 << 30
_FOREVER = float("inf")


class CounterplaySpanExporter(SpanExporter):
    """Exports spans into the store at `store`, which is open only while a batch is written.

    A trace is stored `quiet_s` seconds after its root ended and nothing more came, or when it has waited `max_age_s`; all that is left is
    stored at shutdown. `redact` are the kinds that are replaced on the way in, empty: none; `effects` names a TOML table of tool effects.
    Traces whose spans come from several processes need one place to meet: `counterplay receive`.

    Raises UserError where a kind is unknown, or where OpenTelemetry's OTLP encoder is not installed.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        quiet_s: float = 2.0,
        max_age_s: float = 600.0,
        redact: Sequence[str] = ("secrets",),
        effects: Path | None = None,
    ) -> None:
        _check_encoder()
        self._store, self._quiet_s, self._max_age_s = Path(store).absolute(), quiet_s, max_age_s
        self._door = Door(effects, rules_of(redact) if redact else None)
        self._desk: _Desk | None = None
        self._opening, self._stopped = threading.Lock(), False
        self._said = ""
        _EXPORTERS.add(self)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Make spans durable. FAILURE, with a warning in the log, where that can't be; they are then lost."""
        if self._stopped:
            return SpanExportResult.FAILURE
        try:
            self._opened().keep(_frames(spans))
        except Exception as error:  # noqa: BLE001  the application has nothing to do with it
            self.complain(f"{len(spans)} spans could not be kept ({type(error).__name__}: {error})")
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Store every trace whose root has ended, now. False where the store could not be had in time; they wait on."""
        return self._drained(timeout_millis / 1000, everything=False)

    def shutdown(self) -> None:
        """Store all that is there, and stop. What can't be stored stays on disk, for the next exporter of this store."""
        self._stopped = True
        self._drained(_PATIENCE_S, everything=True)
        with self._opening:
            desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

    def complain(self, text: str) -> None:
        """Warn in the log, once for the same thing."""
        if text != self._said:
            self._said = text
            _LOG.warning(text)

    def before_fork(self) -> None:
        """Nobody is in the middle of anything when the process is copied."""
        self._opening.acquire()
        if self._desk is not None:
            self._desk.kept.acquire()

    def after_fork(self, *, child: bool) -> None:
        """A child has a folder and a thread of its own, once it exports."""
        if self._desk is not None:
            self._desk.kept.release()
            if child:
                self._desk.inbox.spool.close()
                self._desk = None
        self._opening.release()

    def _opened(self) -> _Desk:
        with self._opening:
            if self._desk is None:
                folder = Path(f"{self._store}.inbox-{os.getpid()}-{secrets.token_hex(4)}")
                self._desk = _Desk(self._store, self._door, _inbox(folder, self._quiet_s, self._max_age_s))
                threading.Thread(target=_settle, args=(weakref.ref(self), self._desk), name="counterplay", daemon=True).start()
            return self._desk

    def _drained(self, patience_s: float, *, everything: bool) -> bool:
        try:
            if self._desk is not None:
                self._desk.drain(patience_s, everything=everything)
        except Exception as error:  # noqa: BLE001  the application has nothing to do with it
            self.complain(f"traces could not be stored ({type(error).__name__}: {error})")
            return False
        return True


class _Desk:
    """An inbox on disk, and the way from there into the store."""

    def __init__(self, store: Path, door: Door, inbox: Inbox) -> None:
        self.path, self.door, self.inbox = store, door, inbox
        self.kept, self.closing = threading.Lock(), threading.Event()  # held by who uses the inbox; set when it is to stop
        self._settler = Settler(store, door, inbox)

    def keep(self, frames: Sequence[Frame]) -> None:
        """Write frames and wait until they are durable. Raises OSError or StoreError where they are not taken."""
        with self.kept:
            if self.inbox.full:
                raise StoreError(f"too much waits for the store {self.path}", do="See what keeps it from being written.")
            for place, frame in zip(self.inbox.spool.append(frames), frames, strict=True):
                self.inbox.add(place, frame.meta, len(frame.data))

    def store(self, until: float | None) -> int:
        """Store what is due at `until`, None: all traces whose root has ended; how many were stored.

        Raises StoreError where the store can't be had now.
        """
        with _STORING:
            with self.kept:
                damage = list(self.inbox.damage)
                limits = {"limit": _BATCH_TRACES, "max_bytes": _BATCH_BYTES}
                dues = self.inbox.ended(**limits) if until is None else self.inbox.due(until, **limits)
            if not dues and not damage:
                return 0
            _, done = self._settler.store(dues, damage)
            with self.kept:
                del self.inbox.damage[: len(damage)]
                self.inbox.settle(done, time.time())
                self.inbox.forget(time.time(), idle=True)
            return len(done)

    def drain(self, patience_s: float, *, everything: bool) -> None:
        """Store all traces, or all whose root has ended. Raises StoreError where the store stays in use."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                if not self.store(_FOREVER if everything else None):
                    return
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_TICK_S)

    def close(self) -> None:
        """Stop, and delete the folder where nothing in it is needed any more."""
        self.closing.set()
        with _STORING, self.kept:
            waits = bool(self.inbox.waiting_traces or self.inbox.damage)
            self.inbox.close()
        folder = self.inbox.spool.folder
        if not waits and not any(folder.glob("*.damaged")):
            shutil.rmtree(folder, ignore_errors=True)


def _settle(exporter: weakref.ref[CounterplaySpanExporter], desk: _Desk) -> None:
    """What the exporter's thread does: store what is due until the exporter stops or is forgotten."""
    pause = 0.0
    adopted = False
    while not desk.closing.wait(pause):
        owner = exporter()
        began = time.monotonic()
        try:
            if owner is None:
                desk.drain(_PATIENCE_S, everything=True)
                desk.close()
                return
            if not adopted:
                adopted = True
                _adopt(desk)
            stored = desk.store(time.time())
            pause = max(_REST_S, time.monotonic() - began) if stored else _TICK_S
        except Exception as error:  # noqa: BLE001  the application has nothing to do with it
            pause = _REST_S
            if owner is None:
                desk.close()
                return
            owner.complain(f"traces wait in {desk.inbox.spool.folder} ({type(error).__name__}: {error})")
        del owner


def _adopt(desk: _Desk) -> None:
    """Store what exporters of this store left behind that are no longer there."""
    for folder in sorted(desk.path.parent.glob(f"{desk.path.name}.inbox-*")):
        if folder == desk.inbox.spool.folder:
            continue
        try:
            left = _Desk(desk.path, desk.door, _inbox(folder, 0.0, 0.0))
        except StoreError:
            continue  # its exporter is at work
        try:
            left.drain(_PATIENCE_S, everything=True)
        finally:
            left.close()


def _inbox(folder: Path, quiet_s: float, max_age_s: float) -> Inbox:
    """Raises StoreError where the folder is another's, UserError where it can't be made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Inbox(Spool(folder), quiet_s=quiet_s, max_age_s=max_age_s, keep_s=_KEEP_S, max_waiting_bytes=_MAX_WAITING_BYTES)


def _frames(spans: Sequence[ReadableSpan]) -> list[Frame]:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    parts, _ = parts_of(encode_spans(spans).SerializeToString(), "traces", "protobuf")
    now = time.time()
    metas = [Meta(part.trace, "traces", "protobuf", part.count, part.ended, now, len(part.payload)) for part in parts]
    return [Frame.of(meta, part.payload) for meta, part in zip(metas, parts, strict=True)]


def _check_encoder() -> None:
    try:
        import opentelemetry.exporter.otlp.proto.common.trace_encoder  # noqa: F401  whether it is there
    except ImportError:
        got = "opentelemetry-exporter-otlp-proto-common is not installed"
        raise UserError(got, "it to write spans down", "pip install 'counterplay[otel]'") from None


_EXPORTERS: weakref.WeakSet[CounterplaySpanExporter] = weakref.WeakSet()
_STORING = threading.Lock()  # a process has a store open once at a time
_held: list[CounterplaySpanExporter] = []


def _before_fork() -> None:
    _STORING.acquire()
    _held[:] = list(_EXPORTERS)
    for exporter in _held:
        exporter.before_fork()


def _after_fork(*, child: bool) -> None:
    for exporter in _held:
        exporter.after_fork(child=child)
    _held.clear()
    _STORING.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=lambda: _after_fork(child=False), after_in_child=lambda: _after_fork(child=True)
    )
