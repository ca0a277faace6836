"""Ctrl-C and SIGTERM while a command runs: the first ends it in good order, wherever it is, and nothing else is heard of it.

Raised as KeyboardInterrupt, an interrupt may land inside a library that makes another error of it (DuckDB: "Query interrupted"), or in the
event loop, whose tasks would be torn. So it is remembered that one came: what goes wrong after it is the interrupt, and while an event loop
works on units, the loop is told instead.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE_S = 2.0


class Interrupts:
    """What came of signals since `heard` began. In a thread that is not the main one, nothing does."""

    def __init__(self) -> None:
        self.came = False
        """Whether one was raised as KeyboardInterrupt, whatever became of that."""
        self._tell: Callable[[], None] | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Raises KeyboardInterrupt on a signal, and for every error that follows from it."""
        before = self._listening()
        try:
            yield
            self.check()
        except Exception as error:
            if self.came:
                raise KeyboardInterrupt from error
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises KeyboardInterrupt where a signal came and was lost in code that can't raise it."""
        if self.came:
            raise KeyboardInterrupt

    @contextmanager
    def told(self, stop: Callable[[], None]) -> Iterator[None]:
        """Within the block, which the running event loop is in, the first signal calls `stop` in the loop in place of raising.

        Where the loop does not come to it for two seconds, as something keeps it busy, or on a second signal, it is raised after all.
        """
        loop, heard = asyncio.get_running_loop(), threading.Event()

        def stopping() -> None:
            heard.set()
            stop()

        def tell() -> None:
            loop.call_soon_threadsafe(stopping)
            threading.Thread(target=late, daemon=True).start()

        def late() -> None:
            if not heard.wait(_GRACE_S):
                os.kill(os.getpid(), signal.SIGINT)

        self._tell = tell
        try:
            yield
        finally:
            self._tell = None

    def _on(self, *_: Any) -> None:
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()
        else:
            self.came = True
            raise KeyboardInterrupt

    def _listening(self) -> dict[int, Any]:
        """Hear of signals; what was done with them before."""
        before: dict[int, Any] = {}
        with suppress(ValueError):  # not in the main thread
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                signal.signal(number, self._on)
                before[number] = handler if handler is not None else signal.SIG_DFL
        return before
