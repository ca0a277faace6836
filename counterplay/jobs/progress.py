"""How far a job is, for people who look on: a small file beside the store, replaced every second, and what a terminal makes of it.

Whoever reads it needs no access to the store, which belongs to the process that works.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

from counterplay import console

_EVERY_S = 1.0
_WINDOW_S = 60.0
_STALE_S = 60.0
_ERRORS = 5
SETTLED = ("done", "failed", "skipped", "parked")


@dataclass(frozen=True)
class Status:
    """One moment of a job. `states` counts units; `used` is what settled units were charged since the command began, by kind.

    `live_calls` are calls really made since then; `per_s` units settled a second in the last minute; `left_s` None where no rate is known.
    `doing` is in words; `errors` are the last few. `at_s` and `began_s` are seconds since 1970.
    """

    job: str
    doing: str
    states: Mapping[str, int]
    pid: int = 0
    began_s: float = 0.0
    at_s: float = 0.0
    used: Mapping[str, float] = field(default_factory=dict)
    live_calls: int = 0
    per_s: float = 0.0
    left_s: float | None = None
    errors: tuple[str, ...] = ()

    @property
    def settled(self) -> int:
        return sum(self.states.get(state, 0) for state in SETTLED)

    @property
    def units(self) -> int:
        return sum(self.states.values())


def status_file(store: Path | str) -> Path:
    return Path(f"{store}.status.json")


class Progress:
    """Counts what happens and shows it: in the status file once a second, and to `watch`."""

    def __init__(self, store: Path | str, job: str, states: Mapping[str, int], *, watch: Any = None) -> None:
        self.path, self.job, self.states, self.watch = status_file(store), job, dict(states), watch
        self.used: dict[str, float] = {}
        self.live_calls = 0
        self.doing = "working"
        self.waiting = ""
        """What is waited for, while nothing moves, in words; empty where nothing is."""
        self.errors: deque[str] = deque(maxlen=_ERRORS)
        self._began_s = time.time()
        self._shown_s = 0.0
        self._settled: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._count = 0

    def moved(self, before: str, after: str) -> None:
        """A unit changed its state."""
        self.states[before] = self.states.get(before, 0) - 1
        self.states[after] = self.states.get(after, 0) + 1
        self._count += after in SETTLED

    def charged(self, used: Mapping[str, float], live_calls: int) -> None:
        for kind, amount in used.items():
            self.used[kind] = self.used.get(kind, 0) + amount
        self.live_calls += live_calls

    @property
    def moves(self) -> tuple[float, ...]:
        """What is another whenever a unit has settled or a call was answered."""
        return (self._count, self.live_calls)

    def now(self) -> Status:
        moment = time.monotonic()
        self._settled.append((moment, self._count))
        while len(self._settled) > 2 and moment - self._settled[0][0] > _WINDOW_S:
            self._settled.popleft()
        then, count = self._settled[0]
        rate = (self._count - count) / (moment - then) if moment > then else 0.0
        states = {state: count for state, count in self.states.items() if count}
        left = sum(states.get(state, 0) for state in ("pending", "running"))
        return Status(
            self.job,
            f"waiting: {self.waiting}" if self.waiting else self.doing,
            states,
            os.getpid(),
            self._began_s,
            time.time(),
            dict(self.used),
            self.live_calls,
            rate,
            left / rate if rate else None,
            tuple(self.errors),
        )

    def show(self, doing: str | None = None) -> None:
        """Show where things are, if it is time or they have changed in kind."""
        if doing is not None and doing != self.doing:
            self.doing, self._shown_s = doing, 0.0
        if time.monotonic() - self._shown_s < _EVERY_S:
            return
        self._shown_s, status = time.monotonic(), self.now()
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        draft.write_text(json.dumps(asdict(status)), encoding="utf-8")
        draft.replace(self.path)
        if self.watch is not None:
            self.watch(status)

    @contextmanager
    def meanwhile(self, doing: str) -> Iterator[None]:
        """Show every second that something else is done, which takes its time."""
        over = Event()

        def beat() -> None:
            while not over.wait(_EVERY_S):
                self.show()

        self.show(doing)
        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def gone(self) -> None:
        """Nobody works on it any more."""
        self.path.unlink(missing_ok=True)


def read_status(store: Path | str) -> Status | None:
    """What the process that works on this store says; None where none does (it ended, or was killed)."""
    try:
        found = json.loads(status_file(store).read_text(encoding="utf-8"))
        status = Status(**{**found, "errors": tuple(found["errors"])})
        fresh = time.time() - status.at_s < _STALE_S and status.settled <= status.units
        return status if fresh and _lives(status.pid) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None  # cut short, or nobody's


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def shown(status: Status, total: Mapping[str, float] | None = None) -> Any:
    """A status as a person reads it. `total` is the budget, by kind."""
    rows: dict[str, Any] = {
        status.job: f"{status.doing}, {status.settled:,} of {status.units:,} units settled",
        "units": ", ".join(f"{count:,} {state}" for state, count in status.states.items()),
        "rate": f"{status.per_s:.2f} units/s" + (f", about {span(status.left_s)} left" if status.left_s is not None else ""),
        "calls": f"{status.live_calls:,} made since {span(status.at_s - status.began_s)} ago",
    }
    limits = total or {}
    used = [f"{amount:,.4g} {kind}" + (f" of {limits[kind]:,.4g}" if kind in limits else "") for kind, amount in status.used.items()]
    if used:
        rows["charged"] = ", ".join(used)
    if status.errors:
        rows["last errors"] = "\n".join(error[:200] for error in status.errors)
    return console.facts(rows)


def span(seconds: float) -> str:
    """A length of time in words that are short."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
