"""An agent run under an interceptor, in a thread of its own, from which it can be left behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from counterplay.replay.agents.ambient import Interceptor, Interruption, intercepting, leave_behind
from counterplay.replay.agents.guard import guarded
from counterplay.replay.agents.latch import Latch, OutOfTime

_GRACE_S = 10.0
"""How long an interrupted agent may take to clean up."""
_GRACE_AFTER_TIMEOUT_S = 1.0


@dataclass
class Ended:
    """How a run of an agent ended. `error` is the agent's own; None where it had none. An agent left behind has not ended."""

    returned: Any = None
    error: BaseException | None = None
    done: bool = False
    abandoned: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


async def run_agent(
    agent: Callable[[], Any], interceptor: Interceptor, latch: Latch, *, allow_hosts: Iterable[str] = (), timeout_s: float | None = None
) -> Ended:
    """Run a sync or async agent to its end. What it gives piece by piece, as a generator, is collected into a list.

    Nothing that it does reaches out, but for what the interceptor lets through and the hosts in `allow_hosts`. After `timeout_s`
    seconds it is interrupted at its next call (None: never). One that does not end then, for it swallows interruptions or waits
    for what will never come, is left behind.
    """
    ended, loop, changed = Ended(), asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(changed.set)

    latch.on_change = wake
    body = partial(_body, agent, interceptor, latch, tuple(allow_hosts), ended)
    context = copy_context()

    def run() -> None:
        context.run(body)
        ended.done = True
        wake()

    threading.Thread(target=run, name="counterplay-agent", daemon=True).start()
    try:
        await _until(lambda: ended.done or latch.first is not None, changed, timeout_s)
        if not ended.done and latch.first is None:
            latch.set(OutOfTime(f"the agent took more than {timeout_s} s"))
            await _until(lambda: ended.done or latch.abandoned, changed, _GRACE_AFTER_TIMEOUT_S)
        elif not ended.done:
            await _until(lambda: ended.done or latch.abandoned, changed, _GRACE_S)
    except asyncio.CancelledError:
        latch.set(OutOfTime("nobody waits for the agent any more"))
        raise
    ended.abandoned = not ended.done
    if ended.abandoned:
        leave_behind(interceptor)
    return ended


class _Quiet:
    """While any agent runs, threads of agents' own that are interrupted end without a message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = self._hook = threading.excepthook

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before, self._hook = threading.excepthook, self._told
                threading.excepthook = self._hook

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and threading.excepthook == self._hook:
                threading.excepthook = self._before

    def _told(self, failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, Interruption):
            self._before(failure)


_QUIET = _Quiet()


async def _until(condition: Callable[[], bool], changed: asyncio.Event, timeout_s: float | None) -> None:
    """Wait until `condition` holds, which can only come to be when `changed` is set, or until the time is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not condition():
                changed.clear()
                if not condition():
                    await changed.wait()


def _body(agent: Callable[[], Any], interceptor: Interceptor, latch: Latch, allow_hosts: tuple[str, ...], ended: Ended) -> None:
    # A thread that is left behind stays in here, so that it can never reach out.
    try:
        with _QUIET, intercepting(interceptor), guarded(allow_hosts=allow_hosts, on_effect=latch.set):
            ended.returned = _call(agent)
    except Interruption as interruption:
        latch.set(interruption)
    except BaseExceptionGroup as group:
        ours, theirs = group.split(Interruption)
        if ours is not None:
            latch.set(_first(ours))
        ended.error = theirs
    except BaseException as error:  # noqa: BLE001  the agent's own, whatever it is
        ended.error = error


def _first(group: BaseExceptionGroup[Interruption]) -> Interruption:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _call(agent: Callable[[], Any]) -> Any:
    if _is_async(agent):
        return _in_loop(agent)
    result = agent()
    if inspect.isawaitable(result) or inspect.isasyncgen(result):
        return _in_loop(lambda: result)
    return list(result) if inspect.isgenerator(result) else result


def _in_loop(agent: Callable[[], Any]) -> Any:
    async def main() -> Any:
        result = agent()
        return [piece async for piece in result] if inspect.isasyncgen(result) else await result

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(_quiet)
        return runner.run(main())


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A task that was interrupted, and that nobody waited for, is not worth a message."""
    if not isinstance(context.get("exception"), Interruption):
        loop.default_exception_handler(context)


def _is_async(agent: Callable[..., Any]) -> bool:
    inner = agent
    while isinstance(inner, partial):
        inner = inner.func
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return any(is_kind(found) for is_kind in kinds for found in (inner, getattr(inner, "__call__", None)))  # noqa: B004  not whether it can be called
