"""Which calls are shown to a run's interceptor: the outermost of each kind, and none that the interceptor makes itself.

A chat model that goes through an HTTP transport, or a tool that calls another tool, is one call and is seen once. A model
that is asked from inside a tool is a call of its own: `inside_tool()` tells a recorder so.
"""

from __future__ import annotations

import builtins
import threading
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from counterplay.core.effects import Effect
from counterplay.replay.agents.ambient import (
    _ACTIVE,
    _COVERED,
    _CURRENT,
    _OF_THREAD,
    Interceptor,
    Interruption,
    ModelAnswer,
    ModelRequest,
    ToolAnswer,
    ToolRequest,
    current,
)

MODEL: Final = 1
TOOL: Final = 2
LET_THROUGH: Final = 4
INSIDE_TOOL: Final = 8


def covered() -> int:
    """What is going on round this code: a union of MODEL and TOOL (no such call is shown), LET_THROUGH (a call that may
    reach out), INSIDE_TOOL.
    """
    found = _COVERED.get()
    if found is not None:
        return found
    return _OF_THREAD.covered if _ACTIVE.has(_OF_THREAD.interceptor) else 0


@contextmanager
def covering(what: int) -> Iterator[None]:
    token = _COVERED.set(covered() | what)
    try:
        yield
    finally:
        _COVERED.reset(token)


@contextmanager
def unseen() -> Iterator[None]:
    """Calls in this block are not the agent's: no interceptor sees them and no guard stops them."""
    token = _COVERED.set(MODEL | TOOL | LET_THROUGH)
    try:
        yield
    finally:
        _COVERED.reset(token)


def inside_tool() -> bool:
    """Whether this code was called by a tool that an interceptor was shown, as the models of a sub-agent are."""
    return bool(covered() & INSIDE_TOOL)


def watching(kind: int) -> Interceptor | None:
    """The interceptor to show a call of this kind (MODEL or TOOL) to; None where there is no run or the call is not its agent's."""
    found = current()
    return None if found is None or covered() & kind else found


def check_unseen(name: str, effect: Effect) -> None:
    """Ask about a tool call that no interceptor is shown. Interrupts where a run that is re-enacted must not have it.

    That is an external tool which a tool that was let through calls in turn, and one that reaches out or writes in a thread of which
    nobody knows to whose run it belongs, while one of them is re-enacted.
    """
    if effect.kind == "external" and covered() & TOOL and not covered() & MODEL:
        nested = getattr(current(), "nested", None)
        if nested is not None:
            nested(name)
    if effect.kind in ("external", "write") and is_nobodys() and any(hasattr(active, "nested") for active in _ACTIVE.awaited):
        msg = f"{name} was called in a thread that may belong to any of the runs in progress, and was not executed"
        raise Interruption(msg)


def is_nobodys() -> bool:
    """Whether several runs are in progress and this code, in a thread of its own, may belong to any of them."""
    here = threading.get_ident()
    known = _CURRENT.get() is not None or _OF_THREAD.interceptor is not None or covered() & TOOL
    return len(_ACTIVE.awaited) > 1 and not known and here != threading.main_thread().ident and here not in _ACTIVE.threads


class _Busy(threading.local):
    """The interceptors that this thread is inside of, and what is to be told to them when they are done."""

    def __init__(self) -> None:
        self.interceptors: list[Interceptor] = []
        self.waiting: list[tuple[Interceptor, Callable[[], None]]] = []


_BUSY = _Busy()


@contextmanager
def _aside(interceptor: Interceptor) -> Iterator[None]:
    """Inside of an interceptor: as `unseen`, and still known to be inside of a tool where it is."""
    token = _COVERED.set(covered() | MODEL | TOOL | LET_THROUGH)
    _BUSY.interceptors.append(interceptor)
    try:
        yield
    finally:
        _BUSY.interceptors.pop()
        _COVERED.reset(token)


def ask_model(interceptor: Interceptor, request: ModelRequest) -> ModelAnswer | None:
    with _aside(interceptor):
        answer = interceptor.model(request)
    _tell_waiting(interceptor)
    return answer


def tell_model(interceptor: Interceptor, request: ModelRequest, answer: ModelAnswer) -> None:
    _tell(interceptor, partial(interceptor.model_answered, request, answer))


def ask_tool(interceptor: Interceptor, request: ToolRequest) -> ToolAnswer | None:
    with _aside(interceptor):
        answer = interceptor.tool(request)
    _tell_waiting(interceptor)
    return answer


def tell_tool(interceptor: Interceptor, request: ToolRequest, answer: ToolAnswer) -> None:
    _tell(interceptor, partial(interceptor.tool_answered, request, answer))


def _tell(interceptor: Interceptor, report: Callable[[], None]) -> None:
    """A stream that nobody closed is closed by the garbage collector, at any line: also inside of the interceptor, and its locks."""
    if any(busy is interceptor for busy in _BUSY.interceptors):
        _BUSY.waiting.append((interceptor, report))
        return
    with _aside(interceptor):
        report()
    _tell_waiting(interceptor)


def _tell_waiting(interceptor: Interceptor) -> None:
    for waiting in [each for each in _BUSY.waiting if each[0] is interceptor]:
        _BUSY.waiting.remove(waiting)
        with _aside(interceptor):
            waiting[1]()


class Clock:
    """When a call began, by the wall clock, and how long it has taken, by one that a pinned wall clock does not stop."""

    def __init__(self) -> None:
        self.started_at_us = time.time_ns() // 1000
        self._start = time.perf_counter()

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start


def named_error(failure: BaseException) -> str:
    """An error as recordings keep it: `Type: message`."""
    return f"{type(failure).__name__}: {failure}"


def restored_error(text: str, otherwise: type[Exception]) -> Exception:
    """The error that `text`, as `named_error` gave it, tells of: of its builtin type where it is one, else `otherwise`."""
    name, _, message = text.partition(": ")
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return otherwise(message if name.isidentifier() else text)
    # KeyError shows its argument's repr, where all others show the argument.
    for argument in (message, _literal(message)):
        try:
            made = kind(argument)
        except TypeError:
            continue
        if str(made) == message:
            return made
    return otherwise(message)


def _literal(text: str) -> object:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
