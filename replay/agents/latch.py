"""The end of a re-enactment that an agent can't talk itself out of.

Once a run has been interrupted, every further call of a model or a tool interrupts again. Code that swallows interruptions
and asks on for ever is stopped where it asks: its thread waits there and is left behind.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from counterplay.replay.agents.ambient import Interruption

PATIENCE = 100
"""How many interruptions one task or thread may swallow."""
_PATIENCE_IN_ALL = 10_000


class NotInRecording(Interruption):
    """The agent asked for what the recording does not hold, and nobody else may answer."""


class Diverged(Interruption):
    """The agent asked for something else than the recorded one."""


class BranchEnd(Interruption):
    """The branch is as long as was asked for."""


class OutOfTime(Interruption):
    """The agent took longer than it was given."""


class Latch:
    """Holds the first interruption of a run. `on_change` is called when it comes, and when a thread is left behind, from that thread."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.first: Interruption | None = None
        self.abandoned = False
        self._swallowed: Counter[object] = Counter()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise again what the run was interrupted with, if it was."""
        if self.first is None:
            return
        with self._lock:
            asker = _asker()
            self._swallowed[asker] += 1
            self._threads.add(threading.current_thread())
            patience = 1 if self.abandoned else PATIENCE
            endless = self._swallowed[asker] > patience or self._swallowed.total() > _PATIENCE_IN_ALL
        if endless:
            self._leave_behind()
        raise _again(self.first)

    def stop(self, interruption: Interruption) -> NoReturn:
        """Interrupt the run; what it was interrupted with before comes first."""
        self.set(interruption)
        raise _again(self.first or interruption)

    def set(self, interruption: Interruption) -> None:
        """Interrupt the run at its next call."""
        with self._lock:
            if self.first is not None:
                return
            self.first = interruption
        self.on_change()

    def _leave_behind(self) -> NoReturn:
        with self._lock:
            first, self.abandoned = not self.abandoned, True
        if first:
            _before_exit(self._forget)
            self.on_change()
        while True:
            threading.Event().wait()

    def _forget(self) -> None:
        """Python waits for every worker of a thread pool before it exits; for those that are left behind it must not."""
        from concurrent.futures import thread as pools

        for thread in self._threads:
            if thread.daemon:
                getattr(pools, "_threads_queues", {}).pop(thread, None)


def _again(interruption: Interruption) -> Interruption:
    """A new one of its kind: one that is raised in several threads would mix up their tracebacks."""
    kind = type(interruption)
    again = kind.__new__(kind, *interruption.args)
    again.__dict__.update(interruption.__dict__)
    return again


def _asker() -> object:
    """The task that asks, or its thread where it is in none."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident() if task is None else task


def _before_exit(function: Callable[[], None]) -> None:
    """Call `function` before Python waits for threads at its exit, for which it has no public place."""
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        with suppress(RuntimeError):  # it is exiting already
            register(function)
