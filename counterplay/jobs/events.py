"""What happens in a job, said once: every event is a record of standard logging under `counterplay.jobs`, and goes to who listens.

Events tell of units, counts and amounts, never of what was said: no prompt, no answer, no secret. Of an error they have its class and
its words without what stands in quotation marks.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from counterplay.core.store import Settled, UnitRow
    from counterplay.jobs.datasets import Made
    from counterplay.jobs.report import Report
    from counterplay.jobs.work import Worked

LOGGER = "counterplay.jobs"
FIELDS = "counterplay"
"""Under which name a record of logging carries an event's fields."""
_LOG = logging.getLogger(LOGGER)
_LOG.addHandler(logging.NullHandler())
_QUOTED = re.compile(r"(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|\"(?:[^\"\\]|\\.)*\"|`[^`]*`|\{.*\}", re.DOTALL)
_KEY = re.compile(
    r"\b(?:sk|pk)-\S+|\bbearer\s+\S+|\b(?:api[_-]?key|key|token|secret|password)\s*[:=]\s*\S+"
    r"|(?<![\w-])(?![0-9a-f-]{32,64}(?![\w-]))[A-Za-z0-9+_-]{32,}",
    re.IGNORECASE,
)
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `unit` is empty where it is about the whole job, `at_us` in microseconds since 1970, `fields` JSON."""

    name: str
    job: str
    unit: str = ""
    level: int = logging.INFO
    at_us: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


Listener: TypeAlias = Callable[[Event], None]


class Events:
    """Tells of one job. `listeners` are called in the thread in which something happens, and do not raise."""

    def __init__(self, job: str, listeners: Sequence[Listener] = ()) -> None:
        self.job, self.listeners = job, tuple(listeners)
        self._began_us: dict[str, int] = {}
        self._ended_us: dict[str, int] = {}

    def tell(self, name: str, /, *, unit: str = "", level: int = logging.INFO, at_us: int | None = None, **fields: Any) -> None:
        """Log an event and hand it to who listens."""
        if not self.listeners and not _LOG.isEnabledFor(level):
            return
        event = Event(name, self.job, unit, level, _now_us() if at_us is None else at_us, fields)
        if _LOG.isEnabledFor(level):
            _LOG.log(level, "%s%s", name, f" {unit}" if unit else "", extra={FIELDS: event})
        for listener in self.listeners:
            listener(event)

    @contextmanager
    def command(self, name: str) -> Iterator[None]:
        """One command on the job: from its beginning to its end, or to what it failed with."""
        self.tell("job.began", name=name)
        try:
            yield
        except BaseException as error:
            self.tell("job.failed", level=logging.ERROR, error=type(error).__name__, reason=cleaned(str(error)))
            raise

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """ingest, units or exports: from its beginning to its end, which tells what the block put into the dict it is given."""
        self.tell("stage.began", stage=name)
        told: dict[str, Any] = {}
        try:
            yield told
        except BaseException as error:
            self.tell("stage.ended", level=logging.ERROR, stage=name, error=type(error).__name__)
            raise
        self.tell("stage.ended", stage=name, **told)

    @contextmanager
    def exporting(self, kind: str, folder: str) -> Iterator[None]:
        """One dataset, from its beginning to its end."""
        self.tell("export.began", level=logging.DEBUG, kind=kind, folder=folder)
        try:
            yield
        finally:
            self.tell("export.ended", level=logging.DEBUG, kind=kind, folder=folder)

    def opened(self, job: str, states: Mapping[Any, int], settled: int) -> None:
        """The job's units are there: all new, or some settled by a command before this one."""
        self.job = job
        counts = {str(state): count for state, count in states.items() if count}
        self.tell("job.resumed" if settled else "job.planned", units=sum(counts.values()), states=counts)

    def began(self, unit: UnitRow) -> None:
        """A unit was handed to a worker."""
        self._began_us[unit.id] = _now_us()
        about = {"trace": unit.traces[0]} if len(unit.traces) == 1 else {"traces": len(unit.traces)}
        self.tell("unit.began", unit=unit.id, level=logging.DEBUG, at_us=self._began_us[unit.id], attempt=unit.attempts, **about)

    def finished(self, unit: UnitRow) -> None:
        """A worker came back; what the unit came to is told once that is stored."""
        self._ended_us[unit.id] = _now_us()

    def settled(self, unit: UnitRow, worked: Worked, settled: Settled) -> None:
        """What a unit came to, as it is stored now."""
        ended_us = self._ended_us.pop(unit.id, None) or _now_us()
        began_us = self._began_us.pop(unit.id, ended_us)
        name = "retried" if settled.state == "pending" else settled.state
        fields: dict[str, Any] = {
            "attempt": unit.attempts,
            "seconds": round((ended_us - began_us) / 1e6, 3),
            "used": {kind: amount for kind, amount in worked.used.items() if amount},
            "live_calls": worked.live_calls,
            "tally": dict(worked.tally),
            "task": next((record.task for record in worked.records if record.task is not None), None),
            "class": settled.error_class,
            "reason": cleaned(settled.reason),
        }
        if settled.not_before_us is not None:
            fields["wait_s"] = round(max(0, settled.not_before_us - _now_us()) / 1e6, 3)
        level = logging.WARNING if name in ("failed", "parked", "retried") else logging.INFO
        told = {key: value for key, value in fields.items() if value not in ("", None, {})}
        self.tell(f"unit.{name}", unit=unit.id, level=level, at_us=ended_us, **told)
        bound = [record.stopped for record in worked.records if record.stopped.startswith("budget")]
        if bound:
            self.tell("budget.reached", unit=unit.id, limit=bound[0])

    def lost(self, unit: UnitRow, error: Exception) -> None:
        """The worker of a unit is gone."""
        self.tell("worker.lost", unit=unit.id, level=logging.WARNING, reason=cleaned(str(error)))

    def stopping(self, why: str) -> None:
        """The job begins nothing more."""
        self.tell("budget.reached" if "time" in why else "job.stopping", level=logging.WARNING, limit=why)

    def released(self, units: Sequence[UnitRow]) -> None:
        """Units were given back unfinished."""
        for unit in units:
            self._began_us.pop(unit.id, None)
        self.tell("units.released", count=len(units), units=[unit.id for unit in units])

    def made(self, made: Made) -> None:
        """A dataset was written, or there is none."""
        if made.problem:
            self.tell("export.empty", level=logging.WARNING, kind=made.kind, folder=made.folder, reason=cleaned(made.problem))
        else:
            self.tell("export.written", kind=made.kind, folder=made.folder, rows=dict(made.rows), dropped=dict(made.dropped))

    def ended(self, report: Report) -> None:
        """The command is done."""
        told: dict[str, Any] = {"states": dict(report.states), "used": dict(report.used)}
        told |= {"live_calls": report.live_calls, "seconds": report.seconds}
        if report.stopped:
            told["stopped"] = {stop["kind"]: stop["units"] for stop in report.stopped}
        self.tell("job.ended", ended=report.ended, **told)


def cleaned(text: str) -> str:
    """An error's words without what was quoted in it, without what looks like a key, and not long."""
    kept = _KEY.sub("…", _QUOTED.sub("…", text))
    return " ".join(kept.split())[:_LONGEST]


def _now_us() -> int:
    return time.time_ns() // 1000
