"""One command on one job: take logs in, make units, work, make datasets, report. What was done before is found and gone on with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from counterplay.core.budget import Budget
from counterplay.core.canonical import dumps, loads
from counterplay.jobs import report as reports
from counterplay.jobs.beginning import check_sources
from counterplay.jobs.beginning import opened as store_of
from counterplay.jobs.datasets import Made, family, make_datasets
from counterplay.jobs.driver import Driver
from counterplay.jobs.events import Events, Listener
from counterplay.jobs.loading import Loader
from counterplay.jobs.planning import planned
from counterplay.jobs.progress import SETTLED, Progress
from counterplay.jobs.ready import check_parts
from counterplay.jobs.retries import Retries
from counterplay.jobs.stopping import Interrupts
from counterplay.jobs.taken import Taken, taken
from counterplay.jobs.unmatched import nothing_selected
from counterplay.jobs.waiting import Waiting, servers_of
from counterplay.jobs.wording import of_job

if TYPE_CHECKING:
    from counterplay.core.store import IngestReport, JobRow, Store
    from counterplay.jobs.report import Report
    from counterplay.jobs.spec import Job
    from counterplay.jobs.work import Crew

INTERRUPTED = "interrupted"
_PACE = "pace"


@dataclass(frozen=True)
class Opened:
    """A job in its store: its row, what was read for it, and what a person should know about which job it is."""

    row: JobRow
    read: Taken = field(default_factory=Taken)
    said: tuple[str, ...] = ()


def run(
    job: Job,
    *,
    only: int | None = None,
    watch: Callable[[Any], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
    listeners: Sequence[Listener] = (),
) -> Report:
    """Work on the job until every unit has settled, then make its datasets; the report is in its output folder as well.

    `only` so many units are worked on and no dataset is made (a probe); None: all. `watch` is shown how far it is every second, `say` told
    what a person should know, `listeners` all that happens (docs/operations.md). Ctrl-C is a way to end it: the same command goes on. While
    units are worked on it leads to a report, before and after to KeyboardInterrupt. Raises StoreError where the store can't be had.
    """
    command = _Command(job, only, watch, say, Events(job.job.name, listeners))
    with command.events.command(job.job.name), command.interrupts.heard():
        return _ran(command)


@dataclass(frozen=True)
class _Command:
    """What one command was told, and what it hears meanwhile."""

    job: Job
    only: int | None
    watch: Callable[[Any], None] | None
    say: Callable[[str], None]
    events: Events
    interrupts: Interrupts = field(default_factory=Interrupts)


def _ran(command: _Command) -> Report:
    job, only, say, events = command.job, command.only, command.say, command.events
    job.hand_over_key()
    check_parts(job)
    began_s = time.monotonic()
    with store_of(job) as store:
        with events.stage("ingest") as told:
            opened = begin(store, job, say=say, events=events)
            told.update(opened.read.counts)
            command.interrupts.check()
        for line in opened.said:
            say(line)
        before = store.unit_counts(opened.row.id)
        events.opened(opened.row.id, before, _settled(before))
        progress = Progress(job.job.store, opened.row.id, _at_start(before), watch=command.watch)
        try:
            with events.stage("units"):
                ended = _worked(store, command, progress)
            made: list[Made] = []
            if not ended and only is None:
                with progress.meanwhile("making datasets"), events.stage("exports"):
                    made = make_datasets(store, job, job.output.folder, events)
                store.end_job(opened.row.id, "done")
            found = reports.reported(
                store,
                job,
                opened.row.id,
                ended=ended,
                datasets=made,
                settled_before=_settled(before),
                live_calls=progress.live_calls,
                seconds=time.monotonic() - began_s,
                read=opened.read,
            )
        finally:
            progress.gone()
    if only is None:
        reports.write(found, job.output.folder)
    events.ended(found)
    return found


def begin(store: Store, job: Job, *, say: Callable[[str], None] = lambda _: None, events: Events | None = None) -> Opened:
    """The job that this command is about: the one under way, else a new one over what is new, else the last one, which has ended."""
    rows, named = family(store, job), [row for row in store.jobs() if row.name == job.job.name]
    said = []
    under_way = next((row for row in rows if _unsettled(store, row)), None)
    if under_way is not None:
        counts = store.unit_counts(under_way.id)
        settled = _settled(counts)
        if settled:
            said.append(f"going on with {under_way.id}: {settled:,} of {sum(counts.values()):,} units have settled")
        return Opened(store.put_job(under_way.id, job.job.name, job.to_json()), said=tuple(said))
    if not rows and named:
        do = f"its answers stay in the journal and are not asked for again; go on with the old one by its own file: {named[-1].id}"
        said.append(f"the job {job.job.name!r} is another than before, for what decides its results has changed; {do}")
    read = taken(store, lambda: take_in(store, job, say))
    if read.unreadable:
        said.append(read.said(job))
        if events is not None:
            events.tell("inputs.rejected", level=logging.WARNING, **read.logged())
    row = _made(store, job, rows, read)
    if row is None:
        said.append(f"nothing new for {rows[-1].id}; its datasets are made again from what is stored")
        return Opened(rows[-1], read, tuple(said))
    return Opened(row, read, tuple(said))


def _unsettled(store: Store, row: JobRow) -> bool:
    """Whether something is left of the job: units, or its datasets, in whose making it was cut short."""
    counts = store.unit_counts(row.id)
    return bool(counts["pending"] or counts["running"] or (row.state == "running" and sum(counts.values())))


def _made(store: Store, job: Job, rows: Sequence[JobRow], read: Taken) -> JobRow | None:
    """A new job with its units; None where there is nothing that the jobs before it did not have. A job without units was never made."""
    empty = next((row for row in rows if not sum(store.unit_counts(row.id).values())), None)
    units = planned(store, job, [row for row in rows if row is not empty])
    first = next(units, None)
    if first is None and rows:
        return None
    if first is None:
        raise nothing_selected(store, job, read)
    name = empty.id if empty is not None else job.family if not rows else f"{job.family}.{len(rows) + 1}"
    row = store.put_job(name, job.job.name, job.to_json())
    store.add_units(name, chain([first], units))
    return row


def take_in(store: Store, job: Job, say: Callable[[str], None]) -> IngestReport | None:
    """What the job's sources have that the store has not."""
    from counterplay import loop, reading
    from counterplay.pulling import together

    check_sources(job)
    taken = []
    for source in job.source:
        rules = reading.rules_for(source.redact, source.redact_rules, off=source.no_redact)
        how: dict[str, Any] = {"format": source.format, "effects": source.effects, "redact": rules, "together": source.together}
        with of_job(f"[[source]] {source.path}"):
            taken.append(loop.ingest([source.path], store, **how, on_note=say))
    return together(taken) if taken else None


def _settled(counts: Mapping[Any, int]) -> int:
    return sum(counts.get(state, 0) for state in SETTLED)


def _at_start(counts: Mapping[Any, int]) -> dict[str, int]:
    """Units that run when a job begins are those of a driver that is gone."""
    return {**counts, "pending": counts["pending"] + counts["running"], "running": 0}


def _worked(store: Store, command: _Command, progress: Progress) -> str:
    """Why the work ended; empty where all has settled. Nothing is made ready where there is nothing to do."""
    if not progress.states["pending"]:
        return ""
    with Waiting(servers_of(command.job), progress, command.say).meanwhile():
        return asyncio.run(_work(store, command, progress))


async def _work(store: Store, command: _Command, progress: Progress) -> str:
    job, events = command.job, command.events
    asked, plan = prepared(store, job)
    crew = crew_of(store, job)
    driver = Driver(
        store,
        events.job,
        Loader(store, events.job, asked, plan),
        crew,
        progress,
        retries=Retries(job.engine.attempts, job.engine.backoff_s),
        lease_s=job.engine.lease_s,
        seconds=Budget.parse(job.budget.total).limits.seconds,
        limit=command.only,
        events=events,
    )
    began_s, settled = time.monotonic(), progress.now().settled
    try:
        with command.interrupts.told(partial(driver.stop, INTERRUPTED)):
            return await driver.run()
    finally:
        _keep_pace(store, job, time.monotonic() - began_s, progress.live_calls, progress.now().settled - settled)
        await crew.close()


def pace_of(store: Store, job: Job) -> dict[str, float] | None:
    """How fast the job went, over all commands: seconds, calls that were made, units that were settled. None where it never began."""
    known = store.journal(f"job/{job.family}").get(_PACE)
    return None if known is None else dict(loads(known))


def _keep_pace(store: Store, job: Job, seconds: float, calls: int, units: int) -> None:
    before = pace_of(store, job) or {}
    now = {"seconds": seconds, "calls": calls, "units": units}
    store.journal(f"job/{job.family}").put(_PACE, "pace", dumps({name: before.get(name, 0) + amount for name, amount in now.items()}))


def prepared(store: Store, job: Job) -> tuple[Any, Any]:
    """The job's parts and plan, as they match what is in the store."""
    from dataclasses import replace

    from counterplay.loop import comparable_of

    return replace(job.asked(), comparable=comparable_of(store)), replace(job.plan(), budget="")


def crew_of(store: Store, job: Job) -> Crew:
    """Who works on the job. Raises UserError where the engine is not installed."""
    from counterplay.jobs.crews import InProcess
    from counterplay.jobs.processes import Processes

    asked, plan = prepared(store, job)
    engine = job.engine
    if engine.kind == "ray":
        from counterplay.jobs.rayed import RayCrew

        return RayCrew(store, asked, plan, address=engine.address, workers=engine.processes, actors=engine.actors, silent_s=engine.silent_s)
    if engine.processes:
        return Processes(store, asked, plan, workers=engine.processes, silent_s=engine.silent_s)
    return InProcess(store, asked, plan)
