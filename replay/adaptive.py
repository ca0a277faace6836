"""How many requests a server gets at once, found while working.

Additive increase, multiplicative decrease (Chiu & Jain 1989, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance
in Computer Networks"), begun by a slow start (Jacobson 1988, "Congestion Avoidance and Control"). Latency is watched as TCP Vegas (Brakmo
& Peterson 1995) and Netflix's concurrency-limits do: as a gradient against the best of a long window. When a request is made decides
nothing about what is asked or answered.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

START = 16
_CUT, _DEEPEST_CUT = 0.9, 0.5  # Netflix's backoff ratio; a round is never cut deeper than TCP would
_SAMPLES, _MOST_SAMPLES = 32, 64  # a median of fewer latencies says little, one of more comes late
_ENDED = 0.75  # of a window, whose median is then known
_LONG = 32  # windows
_TOLERANCE = 2.5  # so many times the best latency is the price of a full batch; beyond it requests stand in a queue
_STRAINED, _POORER = 1.5, 0.9  # latency above the best, and answers a second below it, where more in flight brings less
_DEEPEST_SLOWED = 0.8
_SLOW_SHARE = 0.1  # so many of a window may time out without being a sign of load


class Sign(Enum):
    """What the end of a request says about the load on the server."""

    ANSWERED = "answered"
    BUSY = "busy"  # 429, 503, 529: it said so
    SLOW = "slow"  # no answer in time
    NONE = "none"  # failed or given up for another reason


@dataclass(slots=True, eq=False)
class _Sample:
    """Requests that began one after another, among so many in all; those that began together end the quick ones first."""

    begun: int = 0
    among: int = 0
    judged: bool = False
    latencies_s: list[float] = field(default_factory=list)

    @property
    def known(self) -> bool:
        return not self.judged and len(self.latencies_s) >= max(1, _ENDED * self.begun)

    def window(self) -> Window:
        """Those that have not ended are taken for the slowest."""
        return Window(sorted(self.latencies_s)[self.begun // 2], self.among / self.begun)


@dataclass(frozen=True, slots=True)
class Begun:
    """One request in flight: when it began, after how many cuts, and whether no further one would have fitted."""

    at_s: float
    cuts: int
    full: bool
    sample: _Sample


@dataclass(frozen=True, slots=True)
class Window:
    """The median latency of a window's answers, and how many requests were in flight meanwhile."""

    latency_s: float
    in_flight: float

    @property
    def rate(self) -> float:
        """Answers a second, by Little's law."""
        return self.in_flight / max(self.latency_s, 1e-9)


class Concurrency:
    """The limit of one server, from `least` to `most`, and what is in flight there.

    It grows only where it was reached: by one an answer in slow start, then by one a round trip. A round in which the server says that it
    is busy, or in which over a tenth of the requests time out, takes a tenth of it, or as much as was turned away where that is more, at
    most half. So does latency, the median of 32 to 64 requests that began one after another: beyond 2.5 times the best of the last 32
    such windows it takes up to a fifth; beyond 1.5 times it ends a slow start, and takes a tenth where fewer requests in flight had
    brought a tenth more answers a second. The limit never falls below what was in flight then.
    With `least` equal to `most` it is a fixed limit. `clock` gives seconds that never go back.
    """

    def __init__(self, *, most: int, least: int = 1, start: int = START, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.least, self.clock = most, least, clock
        self.in_flight = 0
        self.latency_s: float | None = None
        """The moving average of its answers' latencies, each weighing a tenth; None before the first."""
        self._limit = float(max(least, min(start, most)))
        self._starting = True
        self._cuts = self._turned_away = self._slow = 0
        self._before_cut = self._limit
        self._sample = _Sample()
        self._windows: deque[Window] = deque(maxlen=_LONG)

    @property
    def limit(self) -> int:
        """How many requests may be in flight now: at least 1."""
        return int(self._limit)

    @property
    def room(self) -> int:
        return max(0, self.limit - self.in_flight)

    def begin(self) -> Begun:
        """Count a request as in flight; the caller has seen that there is room."""
        self.in_flight += 1
        if self._sample.begun >= max(_SAMPLES, min(self.limit, _MOST_SAMPLES)):
            ended = self._sample
            self._next_sample()
            self._look(ended)
        self._sample.begun += 1
        self._sample.among += self.in_flight
        return Begun(self.clock(), self._cuts, self.in_flight >= self.limit, self._sample)

    def end(self, begun: Begun, sign: Sign) -> None:
        """The request is over. Call it once."""
        full = begun.full or self.in_flight >= self.limit
        self.in_flight -= 1
        if sign is Sign.ANSWERED:
            self._answered(begun, full=full)
            return
        begun.sample.begun -= 1
        begun.sample.among -= begun.sample.among // (begun.sample.begun + 1)
        if sign is Sign.BUSY:
            self._turn_away(begun)
        elif sign is Sign.SLOW:
            self._slow += 1
            if self._slow > max(1.0, _SLOW_SHARE * max(self._limit, _SAMPLES)):
                self._turn_away(begun)

    def _answered(self, begun: Begun, *, full: bool) -> None:
        took_s = self.clock() - begun.at_s
        self.latency_s = took_s if self.latency_s is None else 0.9 * self.latency_s + 0.1 * took_s
        if begun.cuts == self._cuts:
            if full:
                self._limit = min(float(self.most), self._limit + (1.0 if self._starting else 1.0 / self._limit))
            sample = begun.sample
            sample.latencies_s.append(took_s)
            self._look(sample)

    def _look(self, sample: _Sample) -> None:
        """Judge a sample that no further request belongs to, once enough of it has ended."""
        if sample is not self._sample and sample.known:
            sample.judged = True
            self._judge(sample.window())

    def _turn_away(self, begun: Begun) -> None:
        """One cut a round: what was begun before it is the same sign again, and deepens it where more was turned away."""
        if begun.cuts == self._cuts:
            self._before_cut, self._turned_away = self._limit, 0
            self._new_round()
        self._turned_away += 1
        base = self._before_cut
        self._limit = min(self._limit, max(self.least, base * _DEEPEST_CUT, min(base * _CUT, base - self._turned_away)))

    def _judge(self, window: Window) -> None:
        """A window has ended: is its latency worth it?"""
        best = min(self._windows, key=lambda known: known.latency_s, default=window)
        richest = max(self._windows, key=lambda known: known.rate, default=window)
        self._windows.append(window)
        inflation = window.latency_s / max(best.latency_s, 1e-9)
        poorer = richest.in_flight < window.in_flight and window.rate < _POORER * richest.rate
        if self._starting:
            if inflation > _STRAINED and poorer:
                self._shrink(richest.in_flight / self._limit, best.in_flight)
            self._starting = self._starting and inflation <= _STRAINED
        elif inflation > _TOLERANCE:
            self._shrink(max(_DEEPEST_SLOWED, _TOLERANCE / inflation), best.in_flight)
        elif inflation > _STRAINED and poorer:
            self._shrink(_CUT, richest.in_flight)

    def _shrink(self, factor: float, floor: float) -> None:
        self._limit = max(self.least, min(self._limit, floor), self._limit * min(1.0, factor))
        self._before_cut, self._turned_away = self._limit, 0
        self._new_round()

    def _new_round(self) -> None:
        self._cuts += 1
        self._starting = False
        self._next_sample()

    def _next_sample(self) -> None:
        self._sample, self._slow = _Sample(), 0


def share_of(total: int, weight: float, weights: float, *, slack: float) -> int:
    """The bounded load of one server: `slack` times its share of `total`, rounded up."""
    return math.ceil(slack * total * weight / weights)
