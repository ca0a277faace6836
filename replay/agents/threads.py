"""Threads that an agent starts belong to its run, and so does what it hands to a thread pool.

Python threads start with an empty context. While a run is active, those started in it, and calls submitted to executors
from it, know which run they belong to; the agent's own context variables stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from counterplay.replay.agents import ambient, calls

_NOBODY: Any = ambient.Nobody()


def started(original: Callable[..., Any]) -> Callable[..., Any]:
    """A thread may outlive the run that started it, so this is kept beside its context: it counts while that run is active."""

    @wraps(original)
    def start(self: Any) -> None:
        interceptor, covered, run = ambient.current() or _NOBODY, calls.covered(), self.run

        @wraps(run)
        def marked() -> None:
            ambient._OF_THREAD.interceptor, ambient._OF_THREAD.covered = interceptor, covered  # noqa: SLF001
            try:
                run()
            finally:
                vars(self).pop("run", None)  # no cycle is left behind

        if ambient._ACTIVE.interceptors:  # noqa: SLF001
            self.run = marked
        original(self)

    return start


def submitted(original: Callable[..., Any]) -> Callable[..., Any]:
    """Work from outside of all runs is marked as well: the worker that takes it may have been started by a run."""

    @wraps(original)
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return original(self, _marked(fn), *args, **kwargs)

    return submit


def _marked(function: Callable[..., Any]) -> Callable[..., Any]:
    interceptor, covered = ambient.current() or _NOBODY, calls.covered()

    def call(*args: Any, **kwargs: Any) -> Any:
        token = ambient._CURRENT.set(interceptor)  # noqa: SLF001
        covering = ambient._COVERED.set(covered)  # noqa: SLF001
        try:
            return function(*args, **kwargs)
        finally:
            ambient._COVERED.reset(covering)  # noqa: SLF001
            ambient._CURRENT.reset(token)  # noqa: SLF001

    return call
