"""One limit over many searches: requests in flight, requests and tokens a minute, shared fairly.

Each search has a lane. The lane that was served least goes next (start-time fair queuing: Goyal, Vin & Cheng 1996, "Start-time Fair
Queuing"), so a search with a wave of 64 does not keep one with a single request waiting. Within a lane the request goes first whose
prefix the server has seen last, as that is likeliest to be still in its prompt cache. When a request is made decides nothing about what
a search asks or answers, so trees are the same under any limit.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from counterplay.core.errors import UserError
from counterplay.core.nouns import State

_MINUTE_S = 60.0
_BURST = 1 / 12  # of a minute's limit: five seconds' worth may be used at once
_NOTHING = 1e-6  # what rounding may leave to wait for
_PREFIXES = 1 << 16  # so many prefixes are remembered as warm


class Limiter:
    """At most `concurrency` requests in flight over all searches of one event loop, and no more a minute than the limits say.

    The limits hold in every minute: a bucket of 1/12 of the limit (at least 1) fills with the rest of it. A request whose expected
    tokens are more than the bucket holds waits for it to be full. None is no limit. `clock` gives seconds that never go back.
    """

    def __init__(
        self,
        concurrency: int = 64,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        wrong = [f"{name}={limit}" for name, limit in limits.items() if limit is not None and limit < 1]
        if concurrency < 1 or wrong:
            raise UserError(f"got {', '.join(wrong) or f'concurrency={concurrency}'}", "at least 1, or None for no limit a minute")
        self.concurrency, self.clock = concurrency, clock
        self.in_flight = 0
        self._requests = None if requests_per_minute is None else _Bucket(requests_per_minute, clock())
        self._tokens = None if tokens_per_minute is None else _Bucket(tokens_per_minute, clock())
        self._lanes: WeakKeyDictionary[asyncio.Task[object], Lane] = WeakKeyDictionary()
        self._ready: list[tuple[float, int, Lane]] = []
        self._served, self._arrived = 0.0, 0
        self._open_at = -float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._warm: dict[str, int] = {}

    def lane(self) -> Lane:
        """The lane of the running task: the searches that one task runs within one another or one after another share it."""
        task = asyncio.current_task()
        if task is None:
            return Lane(self)
        return self._lanes.setdefault(task, Lane(self))

    def pause(self, seconds: float) -> None:
        """Begin no request for so long: the server said `Retry-After`."""
        self._open_at = max(self._open_at, self.clock() + seconds)

    def warmth(self, state: State) -> tuple[int, int]:
        """When a request with the longest known prefix of `state` was last made (later is larger, 0 is never), and its steps."""
        warm, keys = self._warm, state.prefix_keys
        return next(((warm[keys[length]], length) for length in range(len(keys) - 1, -1, -1) if keys[length] in warm), (0, 0))

    def _join(self, lane: Lane) -> None:
        """A lane that has something to ask again: it does not get back what it did not ask for."""
        if not lane.queued:
            lane.served = max(lane.served, self._served)
            self._queue(lane)

    def _queue(self, lane: Lane) -> None:
        lane.queued = True
        heapq.heappush(self._ready, (lane.served, lane.number, lane))

    def _serve(self) -> None:
        """Begin what may begin."""
        while self._ready and self.in_flight < self.concurrency:
            lane = self._ready[0][2]
            request = lane.next()
            if request is None:
                heapq.heappop(self._ready)
                lane.queued = False
                continue
            if request.leave.cancelled():  # given up a moment ago: its task has not come round to taking it out
                lane.remove(request)
                continue
            wait_s = self._wait_s(request.tokens)
            if wait_s > 0:
                self._later(wait_s)
                return
            heapq.heappop(self._ready)
            self._served, lane.queued = lane.served, False
            lane.served += max(1.0, request.tokens) if self._tokens else 1.0
            lane.remove(request)
            if lane.waiting:
                self._queue(lane)
            self._begin(request.state, request.tokens)
            request.leave.set_result(None)

    def _wait_s(self, tokens: float) -> float:
        """Seconds until a request of so many tokens may begin."""
        now_s = self.clock()
        waits = [self._open_at - now_s]
        if self._requests:
            waits.append(self._requests.wait_s(1, now_s))
        if self._tokens:
            waits.append(self._tokens.wait_s(tokens, now_s))
        return max(waits)

    def _begin(self, state: State, tokens: float) -> None:
        self.in_flight += 1
        if self._requests:
            self._requests.level -= 1
        if self._tokens:
            self._tokens.level -= tokens
        self._arrived += 1
        self._warm.update(dict.fromkeys(state.prefix_keys, self._arrived))
        if len(self._warm) > 2 * _PREFIXES:
            latest = sorted(self._warm, key=self._warm.__getitem__)[-_PREFIXES:]
            self._warm = {key: self._warm[key] for key in latest}

    def _end(self, correction: float) -> None:
        self.in_flight -= 1
        if self._tokens:
            self._tokens.level -= correction
        self._serve()

    def _later(self, wait_s: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._serve()


@dataclass(slots=True, eq=False)
class _Request:
    state: State
    tokens: float
    leave: asyncio.Future[None]


class Lane:
    """The turns of one search: `core.turns.Turns`. `served` is what it was given, in requests, or tokens where those are limited."""

    _numbers = 0

    def __init__(self, limiter: Limiter) -> None:
        Lane._numbers += 1
        self.limiter, self.number = limiter, Lane._numbers
        self.served, self.queued = 0.0, False
        self.waiting: dict[str, deque[_Request]] = {}
        self._last = ""

    async def take(self, state: State, tokens: float = 0) -> _Turn:
        """Wait for leave to ask about `state`."""
        limiter = self.limiter
        request = _Request(state, tokens, asyncio.get_running_loop().create_future())
        self.waiting.setdefault(state.key, deque()).append(request)
        limiter._join(self)  # noqa: SLF001  lane and limiter are one mechanism
        limiter._serve()  # noqa: SLF001
        try:
            await request.leave
        except asyncio.CancelledError:
            if request.leave.done() and not request.leave.cancelled():
                limiter._end(-tokens)  # noqa: SLF001  leave was given, and nothing asked
            else:
                self.remove(request)
            raise
        return _Turn(limiter, tokens)

    def pause(self, seconds: float) -> None:
        self.limiter.pause(seconds)

    def next(self) -> _Request | None:
        """What this lane asks next: more about the state it asked about last, else the warmest, the first of equals. None: nothing."""
        if not self.waiting:
            return None
        if self._last not in self.waiting:
            warmth = self.limiter.warmth
            only = len(self.waiting) == 1
            self._last = next(iter(self.waiting)) if only else max(self.waiting, key=lambda key: warmth(self.waiting[key][0].state))
        return self.waiting[self._last][0]

    def remove(self, request: _Request) -> None:
        """Take a request out, where it waits still."""
        key = request.state.key
        here = self.waiting.get(key)
        if here is None or request not in here:
            return
        here.remove(request)
        if not here:
            del self.waiting[key]


@dataclass(slots=True)
class _Turn:
    limiter: Limiter
    tokens: float

    def end(self, tokens: float | None = None) -> None:
        self.limiter._end(0.0 if tokens is None else tokens - self.tokens)  # noqa: SLF001


@dataclass(slots=True)
class _Bucket:
    """A token bucket that lets at most `limit` through in any minute."""

    limit: float
    at_s: float
    size: float = field(init=False)
    rate: float = field(init=False)
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.level = max(1.0, self.limit * _BURST)
        self.rate = max(self.limit - self.size, 1.0) / _MINUTE_S

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` may be taken; more than the bucket holds may be taken when it is full."""
        self.level = min(self.size, self.level + (now_s - self.at_s) * self.rate)
        self.at_s = now_s
        missing = min(amount, self.size) - self.level
        return missing / self.rate if missing > _NOTHING else 0.0


limiting: ContextVar[Limiter | None] = ContextVar("limiting", default=None)
"""The limiter of the searches that begin in this context; None where each has only its own limit."""


@contextmanager
def shared(limiter: Limiter) -> Iterator[Limiter]:
    """Every search that begins inside, in this task or in tasks made inside, takes its turns from `limiter`."""
    token = limiting.set(limiter)
    try:
        yield limiter
    finally:
        limiting.reset(token)
