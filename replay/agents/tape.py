"""A tape: what an agent's run asked and was answered, event by event, as lines of JSON that several runs and processes may share.

Requests and answers stand in it as they were sent, byte for byte, and never a header. Each event is written when its call is over,
so a run that is killed loses only the calls that were in flight.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import orjson

from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Outcome, parse_json_object
from counterplay.replay.agents.ambient import Interruption, ModelAnswer, ModelRequest, ToolAnswer, ToolRequest
from counterplay.replay.agents.calls import inside_tool
from counterplay.replay.agents.functions import DECLARED
from counterplay.replay.appending import Appender, lines

VERSION = "tape/1"
EVENT_STREAM = "text/event-stream"

_OPENINGS = (b'{"counterplay":"tape/', b'{"kind":"')
_LINE_BREAKS = re.compile(rb"[\r\n][ \t\r\n]*")  # none can stand inside a JSON string
_REFUSED = (401, 403)
_STREAMED = (b"data:", b"event:", b":")

Clean: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Takes an event before it is written, and gives the one to write. Values that are `bytes` are JSON text, written as it stands."""


class Sink(Protocol):
    """Where events go. `write` takes one line of JSON that ends in a line break; several threads may call it at once."""

    def write(self, line: bytes, /) -> object: ...


class TapeFile:
    """A tape on disk, open for appending: `.jsonl`, or `.gz` where each event is compressed by itself."""

    def __init__(self, path: str | Path) -> None:
        """Raises OSError where the file can't be opened."""
        self._file = Appender(path, openings=_OPENINGS, kind="a tape", writer="counterplay.record")
        self.path = self._file.path

    def write(self, line: bytes, /) -> int:
        """Append an event and give the byte at which it stands, for `read_tape`; it has left the process when this returns.

        Raises OSError where it can't be written, UserError where the file is no tape; the file is then as it was.
        """
        return self._file.write(line)

    def close(self) -> None:
        self._file.close()


class RecordingFailed(Interruption):
    """Ends the agent of a strict recording whose event can't be written."""


@dataclass(frozen=True)
class _Begun:
    """A call in flight. `request` is held so that no other can be taken for it."""

    request: ModelRequest | ToolRequest
    number: int
    at: int
    inside_tool: bool


class Tape:
    """The interceptor that records one run into a sink. It answers nothing itself, and never changes what the agent sees.

    `run` None is a new id; empty, calls of no known run, without `begin` and `end`. `pins` is what was pinned of clock and chance.
    An event that can't be written is warned of once and the run is marked as incomplete; where the tape is `strict`, the agent is
    ended by RecordingFailed. `clean` may change events on their way.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        run: str | None = None,
        task: str | None = None,
        session: str | None = None,
        agent: str | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        pins: Mapping[str, Any] | None = None,
        clean: Clean | None = None,
        strict: bool = False,
    ) -> None:
        self.run = new_run_id() if run is None else run
        self.task, self.session, self.agent = task, session, agent
        self.tags, self.metadata, self.pins = list(tags), dict(metadata or {}), dict(pins or {})
        self.failure: BaseException | None = None
        self._sink, self._clean, self._strict = sink, clean, strict
        self._lock = threading.Lock()
        self._begun: dict[int, _Begun] = {}
        self._told: set[str] = set()
        self._count = 0
        self._over = False

    def begin(self) -> None:
        """Write who this run is. What is tagged or told of it later stands in the line that ends it."""
        about = {"task": self.task, "session": self.session, "agent": self.agent}
        known = {key: value for key, value in about.items() if value is not None}
        listed = {"tags": self.tags, "metadata": self.metadata, "pins": self.pins}
        head = {"counterplay": VERSION, "kind": "run", "run": self.run, "at": _now_us()}
        self._write({**head, **known, **{key: value for key, value in listed.items() if value}})

    def end(
        self,
        *,
        error: str | None = None,
        outcome: Outcome | None = None,
        scores: Iterable[Mapping[str, Any]] = (),
        tags: Iterable[str] = (),
    ) -> None:
        """Write how the run ended; nothing is recorded of it after that. Calls still in flight are written down as unanswered."""
        with self._lock:
            self._over, pending = True, list(self._begun.values())
            self._begun.clear()
        for begun in pending:
            self._unanswered(begun)
        incomplete = None if self.failure is None else f"{type(self.failure).__name__}: {self.failure}"
        told = None if outcome is None else {key: value for key, value in asdict(outcome).items() if value not in (None, {})}
        fields = {"error": error, "outcome": told, "scores": list(scores), "tags": list(tags), "incomplete": incomplete}
        known = {key: value for key, value in fields.items() if value not in (None, [])}
        self._write({"kind": "end", "run": self.run, "at": _now_us(), **known})

    def model(self, request: ModelRequest) -> None:
        self._begin(request)

    def model_answered(self, request: ModelRequest, answer: ModelAnswer) -> None:
        begun = self._taken(request)
        if begun is not None:
            self._model_event(begun, request, answer)

    def tool(self, request: ToolRequest) -> None:
        self._begin(request)

    def tool_answered(self, request: ToolRequest, answer: ToolAnswer) -> None:
        begun = self._taken(request)
        if begun is not None:
            self._tool_event(begun, request, answer)

    def failed(self, failure: Exception) -> None:
        """Something of the run could not be written: warn of it, once. Raises RecordingFailed where the tape is strict."""
        first, self.failure = self.failure is None, self.failure or failure
        if self._strict:
            raise RecordingFailed(f"{type(failure).__name__}: {failure}") from failure
        if first:
            warnings.warn(f"the recording of run {self.run} is not complete: {failure}", RuntimeWarning, stacklevel=2)

    def _begin(self, request: ModelRequest | ToolRequest) -> None:
        with self._lock:
            if not self._over:
                self._begun[id(request)] = self._numbered(request)

    def _taken(self, request: ModelRequest | ToolRequest) -> _Begun | None:
        """The call that has been answered; None after the end of the run. Callbacks tell of a call only when it is answered."""
        with self._lock:
            return None if self._over else self._begun.pop(id(request), None) or self._numbered(request)

    def _numbered(self, request: ModelRequest | ToolRequest) -> _Begun:
        self._count += 1
        return _Begun(request, self._count - 1, _now_us(), inside_tool())

    def _unanswered(self, begun: _Begun) -> None:
        reason = "the run ended before it was answered"
        if isinstance(begun.request, ModelRequest):
            self._model_event(begun, begun.request, ModelAnswer(status=0, error=reason))
        else:
            self._tool_event(begun, begun.request, ToolAnswer(error=reason, replayable=False))

    def _model_event(self, begun: _Begun, request: ModelRequest, answer: ModelAnswer) -> None:
        fields: dict[str, Any] = {
            **self._head("model", begun, answer.started_at_us),
            "api": request.api,
            "url": urlsplit(request.url).path,
            "attempt": request.attempt,
            **_embedded("request", request.body),
            **_answered(answer),
            "status": answer.status,
            "latency_s": _seconds(answer.latency_s),
            "first_token_s": _seconds(answer.first_token_s),
            "effects": self._effects(request.body) or None,
        }
        if answer.error is not None:
            fields["error"] = answer.error
        self._write({key: value for key, value in fields.items() if value is not None})

    def _effects(self, body: bytes) -> dict[str, str]:
        """The effects of declared tools that a request offers, told once a run: a tool that is never called has one as well."""
        fresh = {name: found for name, found in DECLARED.items() if name not in self._told and len(found) == 1}
        offered = {name: str(*found) for name, found in fresh.items() if f'"{name}"'.encode() in body}
        self._told.update(offered)
        return offered

    def _tool_event(self, begun: _Begun, request: ToolRequest, answer: ToolAnswer) -> None:
        arguments, _ = _json(dict(request.arguments))
        value, whole = _json(answer.value)
        fields: dict[str, Any] = {
            **self._head("tool", begun, answer.started_at_us),
            "name": request.name,
            "arguments": arguments,
            "effect": str(request.effect),
            "value": value,
            "error": answer.error,
            "replayable": answer.replayable and whole,
            "latency_s": _seconds(answer.latency_s),
        }
        self._write({key: value for key, value in fields.items() if value is not None})

    def _head(self, kind: str, begun: _Begun, started_at_us: int | None) -> dict[str, Any]:
        at = begun.at if started_at_us is None else started_at_us
        head = {"kind": kind, "run": self.run, "n": begun.number, "at": at}
        return {**head, "inside_tool": True} if begun.inside_tool else head

    def _write(self, event: Mapping[str, Any]) -> None:
        """Write an event in which `bytes` are JSON as it stands. Nothing that goes wrong here reaches an agent that is not strict."""
        try:
            self._sink.write(_line(event if self._clean is None else self._clean(event)))
        except Exception as failure:  # noqa: BLE001  whatever a sink may raise is none of the agent's business
            self.failed(failure)


def read_tape(path: str | Path, *, start: int = 0) -> Iterator[dict[str, Any]]:
    """Every event of a tape, in the order in which they were written, from byte `start` of the file; a torn last one is passed over.

    Raises UserError where the file can't be read, or holds something else.
    """
    file = Path(path)
    try:
        with file.open("rb", buffering=0) as stream:
            for end, line in lines(stream, compressed=file.suffix == ".gz", start=start):
                event = parse_json_object(line.decode(errors="replace"))
                if event is not None and "kind" in event:
                    yield event
                elif line.endswith(b"\n") or line == b"\0":
                    got = f"{file} holds something that is not an event of a tape near byte {end}"
                    raise UserError(got, "lines that counterplay.record wrote")
    except OSError as error:
        raise UserError(f"got {file}, which can't be read ({error.strerror})", "a tape") from error


def _line(event: Mapping[str, Any]) -> bytes:
    parts = (dumps(key).encode() + b":" + (value if isinstance(value, bytes) else dumps(value).encode()) for key, value in event.items())
    return b"{" + b",".join(parts) + b"}\n"


def _embedded(name: str, body: bytes) -> dict[str, Any]:
    """A body under its name: JSON as it was sent, save for line breaks between its tokens; other text as a text; else its size."""
    if not body:
        return {}
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return {name: body.decode()}
        except UnicodeDecodeError:
            return {f"{name}_bytes": len(body)}
    return {name: _LINE_BREAKS.sub(b"", body) if b"\n" in body or b"\r" in body else body}


def _answered(answer: ModelAnswer) -> dict[str, Any]:
    """The answer. One that refuses a key may repeat it, so of that only the status is kept."""
    if answer.status in _REFUSED:
        return {"error": f"the server refused access ({answer.status})"}
    if answer.content_type.startswith(EVENT_STREAM) or answer.body[:6].lstrip().startswith(_STREAMED):
        return {"events": answer.body.decode(errors="replace")} if answer.body else {}
    return _embedded("response", answer.body)


def _json(value: Any) -> tuple[bytes | None, bool]:
    """A value as strict JSON, and whether it is all there; where it is no JSON data, its text."""
    if value is None:
        return None, True
    try:
        json.dumps(value, allow_nan=False)
        return dumps(value).encode(), True
    except (TypeError, ValueError, RecursionError):
        return dumps(str(value)).encode(), False


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _now_us() -> int:
    return time.time_ns() // 1000


def new_run_id() -> str:
    """A random id of 32 hex digits. Not by `uuid4` or `random`, which may be pinned: two runs of one seed are two runs."""
    return uuid.UUID(bytes=os.urandom(16), version=4).hex
