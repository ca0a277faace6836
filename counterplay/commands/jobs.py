"""Batch jobs: run one, watch it, look at its units, give those that were given up another start."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, AsJson, StoreFile, app, bounded
from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from counterplay.core.store import JobRow, Store
    from counterplay.jobs.progress import Status
    from counterplay.jobs.spec import Job

jobs_app = typer.Typer(help="Jobs in a store: without a command, a list of them.", invoke_without_command=True)
app.add_typer(jobs_app, name="jobs")

JobId = Annotated[str, typer.Argument(metavar="ID", help="The id of a job, or how it begins: the newest of several.")]
State = Annotated[str | None, typer.Option("--state", help="pending, running, done, failed, skipped or parked.")]
_LOOK_S = 0.5


@app.command("run")
@bounded
def run_job(
    file: Annotated[Path | None, typer.Argument(metavar="JOB", help="A job file, TOML: docs/jobs.md.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and what it is expected to use; nothing is called.")] = False,
    probe: Annotated[
        int | None, typer.Option("--probe", min=1, help="Work on so many units, keep what came of them, and estimate the rest by them.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show how far it is; of a job that runs elsewhere, only that.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a job file.")] = False,
    init: Annotated[bool, typer.Option("--init", help="Print a job file to begin with.")] = False,
    log: Annotated[str | None, typer.Option("--log", help="Append what happens to this file as JSON lines; - for stderr.")] = None,
    otel: Annotated[bool, typer.Option("--otel", help="Send spans and metrics of the job to OTEL_EXPORTER_OTLP_ENDPOINT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a batch job. Killed and run again it goes on; exit code 3 where units are left, failed or parked, 130 where interrupted."""
    if schema or init:
        _print_start(schema=schema)
        return
    if file is None:
        raise UserError("got no job file", "one", "Begin with: counterplay run --init > job.toml")
    from counterplay.jobs.spec import Job

    job = Job.load(file)
    if dry_run:
        _estimated(job, as_json=as_json)
    elif watch and _runs_elsewhere(job):
        _follow(job)
    else:
        with _observed(log, otel=otel) as listeners:
            _run(job, only=probe, watch=watch, as_json=as_json, listeners=listeners)
        if probe is not None:
            _estimated(job, as_json=as_json)


def _print_start(*, schema: bool) -> None:
    import json

    from counterplay.jobs import spec, starter

    sys.stdout.write(json.dumps(spec.schema(), indent=2) + "\n" if schema else starter.STARTER)


def _estimated(job: Job, *, as_json: bool) -> None:
    from counterplay.jobs import dry, shown
    from counterplay.jobs.stopping import Interrupts

    with Interrupts().heard():
        found = dry.estimated(job)
    console.emit(found, as_json=as_json, human=shown.estimate(found))


@contextmanager
def _observed(log: str | None, *, otel: bool) -> Iterator[list[Any]]:
    """Who listens to what happens in the job, beside those whom standard logging tells."""
    with ExitStack() as stack:
        if log is not None:
            from counterplay.jobs.logs import logged

            stack.enter_context(logged(log))
        listeners: list[Any] = []
        if otel:
            from counterplay.jobs.telemetry import exported

            listeners.append(stack.enter_context(exported()))
        yield listeners


def _run(job: Job, *, only: int | None, watch: bool, as_json: bool, listeners: list[Any]) -> None:
    from counterplay.jobs import running, shown

    def say(text: str) -> None:
        console.err.print(text, highlight=False, markup=False, soft_wrap=True)

    with _screen(job, watch=watch and not as_json) as show:
        report = running.run(job, only=only, watch=show, say=say, listeners=listeners)
    if only is not None and report.ended != running.INTERRUPTED:
        return
    console.emit(report, as_json=as_json, human=shown.report(report))
    if report.ended:
        say(f"{report.ended}; what is stored and what was answered is kept, run the same command to go on")
    if report.ended == running.INTERRUPTED:
        raise typer.Exit(130)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


@contextmanager
def _screen(job: Job, *, watch: bool) -> Iterator[Any]:
    """What shows a status on the terminal: a table that is kept up to date, or one line."""
    from rich.live import Live

    from counterplay.core.budget import KINDS, Budget
    from counterplay.jobs.progress import shown

    limits = Budget.parse(job.budget.total).limits
    total = {kind: limit for kind in KINDS if (limit := getattr(limits, kind)) is not None}
    if watch:
        with Live(console=console.err, auto_refresh=False, transient=True) as live:
            yield lambda status: live.update(shown(status, total), refresh=True)
        return
    with console.ticking(job.job.name, quiet=not console.err.is_terminal) as tick:
        yield lambda status: tick.at(status.settled, status.units, status.doing)


def _runs_elsewhere(job: Job) -> bool:
    from counterplay.jobs.progress import read_status

    status = read_status(job.job.store)
    return status is not None and (status.job == job.family or status.job.startswith(f"{job.family}."))


def _follow(job: Job) -> None:
    """Show what the process that works says, until it is gone. The store is not touched."""
    from counterplay.jobs.progress import read_status

    last: Status | None = None
    with _screen(job, watch=True) as show:
        while (status := read_status(job.job.store)) is not None:
            last = status
            show(status)
            time.sleep(_LOOK_S)
    if last is not None:
        console.err.print(f"{last.job}: {last.settled:,} of {last.units:,} units had settled when its process ended", highlight=False)


@jobs_app.callback()
@bounded
def list_jobs(context: typer.Context, store: StoreFile = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """The jobs in a store."""
    if context.invoked_subcommand is not None:
        return
    with _looked_at(store, as_json=as_json) as opened:
        if opened is not None:
            rows = [{**console.plain(row), "units": opened.unit_counts(row.id)} for row in opened.jobs()]
            for row in rows:
                del row["spec"]
            table = [(row["id"], row["state"], _when(row["created_us"]), _counted(row["units"])) for row in rows]
            human = console.table("jobs", ["id", "state", "began", "units"], table) if rows else f"no job in {store}"
            console.emit({"jobs": rows}, as_json=as_json, human=human)


@jobs_app.command("show")
@bounded
def show_job(job: JobId, store: StoreFile = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """What became of a job so far: states, reasons, what was used."""
    from counterplay.jobs import shown
    from counterplay.jobs.report import reported
    from counterplay.jobs.spec import Job

    with _looked_at(store, as_json=as_json) as opened:
        if opened is not None:
            row = _named(opened, job)
            report = reported(opened, Job.model_validate_json(row.spec), row.id, ended="" if row.state == "done" else row.state)
            console.emit(report, as_json=as_json, human=shown.report(report))


@jobs_app.command("units")
@bounded
def list_units(
    job: JobId,
    state: State = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
    after: Annotated[int | None, typer.Option("--after", help="Only units with a number above this one.")] = None,
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Units of a job: what they are about, their state and why."""
    from counterplay.jobs import shown

    known = _state(state)
    with _looked_at(store, as_json=as_json) as opened:
        if opened is not None:
            row = _named(opened, job)
            found = opened.units(row.id, state=known, limit=limit, after=after)
            counts = opened.unit_counts(row.id)
            held = sum(counts.values()) if known is None else counts[known]
            columns = ["number", "id", "state", "claimed", "class", "reason"]
            rows = [(unit.number, unit.id, unit.state, unit.attempts, unit.error_class, shown.why(unit)[:300]) for unit in found]
            human = console.table(f"{len(found):,} of {held:,} units", columns, rows) if rows else "no unit of that kind"
            console.emit({"units": found}, as_json=as_json, human=human)


@jobs_app.command("retry")
@bounded
def retry_units(job: JobId, state: State = None, store: StoreFile = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Give units that failed or were parked (or those of one --state) another start; the next run of the job works on them."""
    known = _state(state)
    from counterplay import loop

    with loop.opened(store, existing=True) as opened:
        row = _named(opened, job)
        count = opened.reopen_units(row.id, [known] if known else ["failed", "parked"])
    console.emit({"job": row.id, "reopened": count}, as_json=as_json)


@contextmanager
def _looked_at(store: Path, *, as_json: bool) -> Iterator[Store | None]:
    """The store, to be read; None, and what the process that has it says of its job is shown, where one works."""
    from counterplay import loop
    from counterplay.jobs.progress import read_status, shown

    status = read_status(store)
    if status is not None:
        console.emit(status, as_json=as_json, human=[shown(status), f"process {status.pid} works on it; its store can be read afterwards"])
        yield None
        return
    with loop.opened(store, read_only=True) as opened:
        yield opened


def _named(store: Store, given: str) -> JobRow:
    """The job of this id, else the newest whose id begins so."""
    rows = store.jobs()
    found = [row for row in rows if row.id == given] or [row for row in rows if row.id.startswith(given)]
    return found[-1] if found else store.job(given)


def _state(given: str | None) -> Any:
    from counterplay.core.store import UNIT_STATES
    from counterplay.search.registry import meant

    if given is not None and given not in UNIT_STATES:
        raise UserError(f"got --state {given}", f"one of {', '.join(UNIT_STATES)}", meant(given, UNIT_STATES))
    return given


def _counted(units: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in units.items() if count)


def _when(moment_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment_us / 1e6))
