"""Randomness and time as they were recorded, for agents that use them: a pinned run asks for the same as its recording.

Pinned are `random`, numpy's global generator where numpy is imported, `uuid` (1, 4 and those that follow), and, with a clock,
`time` and `datetime`. Not pinned are `secrets`, `os.urandom`, `random.SystemRandom`, generators without a seed of numpy's
`default_rng`, and ids that compiled libraries draw: they are meant to be unpredictable. All of it is process-wide.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from counterplay.core.errors import UserError

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# An offset other than UTC's: time-machine would set the process's own time zone to a named zone or to UTC.
_SOME_ZONE = dt.timezone(dt.timedelta(hours=1))
_ONE = threading.Lock()


class Pin:
    """The pinned clock of one run. It stands still between the calls that move it on."""

    def __init__(self, traveller: Any = None, now_us: int | None = None) -> None:
        self._traveller, self.now_us = traveller, now_us

    def move_to(self, us: int) -> None:
        """Move the clock on to this instant, in microseconds since 1970. It never goes back; without a clock nothing happens."""
        if self._traveller is not None and self.now_us is not None and us > self.now_us:
            self.now_us = us
            self._traveller.move_to(_instant(us))

    def let_run(self) -> None:
        """From here the clock goes on as fast as real time, as a live part needs where it waits for a moment to come."""
        if self._traveller is not None and self.now_us is not None:
            self._traveller.move_to(_instant(self.now_us), tick=True)


@contextmanager
def pinned(*, seed: int | None = None, clock: int | None = None) -> Iterator[Pin]:
    """Pin randomness to `seed` and time to `clock` (microseconds since 1970) in this block; None leaves it as it is.

    Everything is as before afterwards. Monotonic clocks are not touched, so time-outs work; code that waits for
    `time.time()` to reach a moment waits until the pin is moved. Raises UserError inside another pinned block, of whatever
    thread, and where time-machine, which the clock needs, is not installed.
    """
    if not _ONE.acquire(blocking=False):
        raise UserError("got a second pinned run", "one at a time in a process", "Pins are process-wide: use processes.")
    try:
        with ExitStack() as stack:
            if seed is not None:
                stack.enter_context(_randomness(seed))
                stack.enter_context(_identifiers(seed))
            yield Pin() if clock is None else stack.enter_context(_time(clock))
    finally:
        _ONE.release()


@contextmanager
def _randomness(seed: int) -> Iterator[None]:
    numpy: Any = sys.modules.get("numpy")
    state = random.getstate()
    generator = None if numpy is None else numpy.random.get_state()
    random.seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(generator)


class _SeededOs:
    """The `os` that the module `uuid` sees: its random bytes come from a seeded stream."""

    def __init__(self, stream: random.Random) -> None:
        self.urandom = stream.randbytes

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@contextmanager
def _identifiers(seed: int) -> Iterator[None]:
    """Also for code that holds `uuid4` itself: what is replaced is what the functions of the module look up when called.

    `uuid1` shows time, a sequence drawn from `random`, and a node, here a random one as RFC 9562 allows (multicast bit set).
    """
    stream = random.Random(f"uuid {seed}")
    pins = {
        "os": _SeededOs(stream),
        "_node": stream.getrandbits(48) | 1 << 40,
        "_generate_time_safe": None,
        "_UuidCreate": None,
        "_last_timestamp": None,
    }
    kept = {name: getattr(uuid, name, None) for name in pins}
    for name, value in pins.items():
        setattr(uuid, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(uuid, name, value)


@contextmanager
def _time(us: int) -> Iterator[Pin]:
    try:
        import time_machine
    except ImportError:
        raise UserError("time-machine is not installed", "it for a pinned clock", "pip install 'counterplay[pin]'") from None
    with time_machine.travel(_instant(us), tick=False) as traveller:
        yield Pin(traveller, us)


def _instant(us: int) -> dt.datetime:
    return (_EPOCH + dt.timedelta(microseconds=us)).astimezone(_SOME_ZONE)
