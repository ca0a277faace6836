"""The one place where an agent's model calls and tool calls are seen, and may be answered, whatever library makes them.

Transports, chat models and decorated tools ask `current()` for the interceptor of their run. A recorder only watches; a
replayer answers. The interceptor travels in a context variable, so that runs side by side never mix; a thread that was
started without the context belongs to the one active run, where there is only one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, cast

from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.nouns import parse_json_object
from counterplay.replay.agents.install import PATCHES

Api: TypeAlias = Literal["chat", "responses", "messages", "other"]
"""OpenAI Chat Completions, OpenAI Responses, Anthropic Messages; anything else that a model server offers, embeddings for one."""


@dataclass(frozen=True)
class ModelRequest:
    """One request to a model as it leaves the agent. `body` is the exact bytes; a chat model that runs in the
    process is shown as a Chat Completions request. `attempt` counts a client's own retries of one request, from 0.
    """

    api: Api
    body: bytes
    url: str = ""
    attempt: int = 0

    @cached_property
    def fields(self) -> Mapping[str, Any]:
        """The JSON object of the body; empty where it is none."""
        return parse_json_object(self.body.decode(errors="replace")) or {}

    @property
    def stream(self) -> bool:
        return self.fields.get("stream") is True


@dataclass(frozen=True)
class ModelAnswer:
    """What a model server answered. `body` is the exact bytes: JSON, or the server-sent events of a streamed answer.

    `error` names a failure to get any answer; `status` is then 0. Times are in seconds from the request; None is unknown.
    """

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    started_at_us: int | None = None
    latency_s: float | None = None
    first_token_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class ToolRequest:
    """One call of a tool's function, about to be executed. `arguments` are plain JSON data by parameter name."""

    name: str
    arguments: Mapping[str, Any]
    effect: Effect = EXTERNAL


@dataclass(frozen=True)
class ToolAnswer:
    """What a tool gave: `value` as plain JSON data, or the `error` it raised, as `Type: message`.

    `replayable` is False where the value is no JSON data and only its text is kept.
    """

    value: Any = None
    error: str | None = None
    replayable: bool = True
    started_at_us: int | None = None
    latency_s: float | None = None


class Interceptor(Protocol):
    """Sees every call of one run. The first of each pair may answer in place of the real thing; None lets it happen."""

    def model(self, request: ModelRequest) -> ModelAnswer | None: ...
    def model_answered(self, request: ModelRequest, answer: ModelAnswer) -> None: ...
    def tool(self, request: ToolRequest) -> ToolAnswer | None: ...
    def tool_answered(self, request: ToolRequest, answer: ToolAnswer) -> None: ...


class Interruption(BaseException):
    """Ends an agent's code from inside a call. Not an `Exception`, so that an agent that catches those does not swallow it."""


@dataclass
class _Active:
    """Every run in progress in this process, those whose agents were left behind, and the threads that runs were begun in."""

    interceptors: list[Interceptor] = field(default_factory=list)
    left_behind: list[Interceptor] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def has(self, interceptor: object) -> bool:
        return any(active is interceptor for active in self.interceptors)

    @property
    def awaited(self) -> list[Interceptor]:
        """The runs that somebody still waits for."""
        return [active for active in self.interceptors if not any(left is active for left in self.left_behind)]

    def leave_behind(self, interceptor: Interceptor) -> None:
        """Nobody waits for this run any more. Its own calls stay its own; threads of unknown origin are no longer taken for it."""
        with self.lock:
            if self.has(interceptor):
                self.left_behind.append(interceptor)

    def begin(self, interceptor: Interceptor) -> int:
        with self.lock:
            self.interceptors.append(interceptor)
            self.threads.append(here := threading.get_ident())
        return here

    def end(self, interceptor: Interceptor, thread: int) -> None:
        with self.lock:
            last = max(at for at, active in enumerate(self.interceptors) if active is interceptor)
            del self.interceptors[last]
            self.left_behind = [left for left in self.left_behind if left is not interceptor]
            self.threads.remove(thread)


class _OfThread(threading.local):
    """What the code that started this thread belonged to, where that is known; None is unknown."""

    interceptor: object | None = None
    covered = 0


_ACTIVE = _Active()
_CURRENT: ContextVar[Interceptor | None] = ContextVar("counterplay_interceptor", default=None)
_COVERED: ContextVar[int | None] = ContextVar("counterplay_covered", default=None)
"""What of the run's calls goes on round this code, see `calls.covered`. None is unknown: its thread may know."""
_OF_THREAD = _OfThread()


def current() -> Interceptor | None:
    """The interceptor of the run this code belongs to; None outside of all runs, and where threads make it ambiguous."""
    interceptors = _ACTIVE.interceptors
    if not interceptors:
        return None
    found = _CURRENT.get()
    if found is not None:
        return found if _ACTIVE.has(found) else None
    return _of_thread()


def _of_thread() -> Interceptor | None:
    """For code without the context: a thread that a run started is of that run. A thread of unknown origin, or of a run that
    is over, is of the one active run; but in the main thread, and in one that a run was begun in, such code is outside of it.
    """
    starter = _OF_THREAD.interceptor
    if isinstance(starter, Nobody):
        return None
    if starter is not None and _ACTIVE.has(starter):
        return cast("Interceptor", starter)
    here, interceptors = threading.get_ident(), _ACTIVE.awaited
    if len(interceptors) != 1 or here == threading.main_thread().ident or here in _ACTIVE.threads:
        return None
    return interceptors[0]


def leave_behind(interceptor: Interceptor) -> None:
    """An agent that would not end goes on in its thread, where it can reach nothing; nobody waits for its run any more."""
    _ACTIVE.leave_behind(interceptor)


class Nobody:
    """Stands for the run of code that is known to be outside of all runs."""


@contextmanager
def intercepting(interceptor: Interceptor) -> Iterator[None]:
    """Show every call made in this block, and in the tasks and threads it starts, to `interceptor`."""
    PATCHES.install()
    thread = _ACTIVE.begin(interceptor)
    token, covered = _CURRENT.set(interceptor), _COVERED.set(0)
    try:
        yield
    finally:
        _ACTIVE.end(interceptor, thread)
        PATCHES.uninstall()
        with suppress(ValueError):  # left in another context than it was entered in, as the blocks of async fixtures are
            _COVERED.reset(covered)
            _CURRENT.reset(token)
