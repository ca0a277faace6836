"""From logs to a store, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import (
    DEFAULT_STORE,
    AsJson,
    NoRedact,
    Redact,
    RedactRules,
    StoreFile,
    app,
    bounded,
)


@app.command()
@bounded
def ingest(
    paths: Annotated[list[str], typer.Argument(help="Log files, folders, s3://BUCKET/PREFIX (gs, az), servers: langfuse://HOST/PROJECT.")],
    store: StoreFile = DEFAULT_STORE,
    format: Annotated[str, typer.Option("--format", help="auto (by content), or a format by name: docs/formats.md.")] = "auto",  # noqa: A002  the user's word
    effects: Annotated[Path | None, typer.Option("--effects", help="TOML table of tool effects.")] = None,
    redact: Redact = None,
    redact_rules: RedactRules = None,
    no_redact: NoRedact = False,
    processes: Annotated[int | None, typer.Option("--processes", min=0, help="Processes that read; 0: none but this one.")] = None,
    again: Annotated[
        bool | None,
        typer.Option("--again/--only-new", help="Read what has not changed, or don't; not given: of folders and prefixes only the new."),
    ] = None,
    together: Annotated[
        str | None,
        typer.Option("--together", help="Which files may hold parts of one trace: all (folders), partition (prefixes) or file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take logged traces into the store. Doing it twice changes nothing; what can't be read is quarantined by name.

    Ends with 0 where anything was read, though some of it could not be: how much is said, and in --json it is rejected_added. 1 where
    nothing was.
    """
    from counterplay import incremental, loop, pulling, reading
    from counterplay.core.store import IngestReport
    from counterplay.jobs.taken import taken

    _, named = incremental.trees_of(paths, files=False)
    servers, files = pulling.told_apart(named)
    loop.check_paths([file for file in files if not loop.is_postgres(file)])
    rules = reading.rules_for(redact, redact_rules, off=no_redact)
    with loop.opened(store) as opened, console.ticking("ingesting", quiet=as_json) as tick:
        report = IngestReport()

        def take() -> IngestReport:
            nonlocal report
            report = loop.ingest(
                paths,
                opened,
                format=format,
                effects=effects,
                redact=rules,
                processes=processes,
                again=again,
                together=together,
                on_item=tick.advance,
                on_note=tick.note,
            )
            return report

        read = taken(opened, take)
    console.emit({**console.plain(report), "unreadable": list(read.first)} if as_json else report, as_json=as_json)
    if read.unreadable and not as_json:
        console.err.print(f"{read.said()}. In quarantine: counterplay stats --store {store}", markup=False, soft_wrap=True)
    if not (report.traces_added or report.traces_known or report.traces_updated or report.files_unchanged or servers):
        raise typer.Exit(1)


@app.command()
@bounded
def receive(
    store: StoreFile = DEFAULT_STORE,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 4318,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    quiet_s: Annotated[float, typer.Option("--quiet-s", min=0, help="Store a trace so long after its root ended and the last span.")] = 5.0,
    max_age_s: Annotated[float, typer.Option("--max-age-s", min=0, help="Store a trace that waited so long, ended or not.")] = 600.0,
    keep_hours: Annotated[float, typer.Option("--keep-hours", min=0, help="Keep spans so long for late ones of their trace.")] = 24.0,
    max_waiting_mb: Annotated[int, typer.Option("--max-waiting-mb", min=1, help="Answer 429 where more waits for the store.")] = 1024,
    max_body_mb: Annotated[int, typer.Option("--max-body-mb", min=1, help="The most an export may have, unpacked.")] = 64,
    effects: Annotated[Path | None, typer.Option("--effects", help="TOML table of tool effects.")] = None,
    redact: Redact = None,
    redact_rules: RedactRules = None,
    no_redact: NoRedact = False,
    as_json: AsJson = False,
) -> None:
    """Take traces that OpenTelemetry SDKs export over HTTP into the store, until stopped. What is answered with 200 is never lost."""
    from counterplay import reading, receiving

    door = reading.Door(effects, reading.rules_for(redact, redact_rules, off=no_redact) or None)
    options = receiving.Options(quiet_s, max_age_s, keep_hours, max_waiting_mb, max_body_mb)
    with console.ticking("spans received", quiet=as_json) as tick:
        report = receiving.receive(
            store,
            host=host,
            port=port,
            options=options,
            door=door,
            say=lambda text: console.err.print(text, highlight=False, markup=False, soft_wrap=True),
            watch=lambda now: tick.at(now.spans, None, f"{now.traces_added} traces stored, {now.waiting_traces} waiting"),
        )
    console.emit(report, as_json=as_json)
    if report.problem:
        raise typer.Exit(1)


@app.command()
@bounded
def stats(
    store: StoreFile = DEFAULT_STORE,
    verify: Annotated[bool, typer.Option("--verify", help="Re-derive every key and re-assemble every trace.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the store holds, what its sources could not give, and what could not be read."""
    from counterplay import loop, views

    with loop.opened(store, read_only=True) as opened:
        held = opened.stats()
        found = console.plain(held)
        problems = opened.verify() if verify else None
    if problems is not None:
        found["verified"], found["problems"] = not problems, console.plain(problems)
    console.emit(found, as_json=as_json, human=None if as_json else views.held(held, problems))
    if problems:
        raise typer.Exit(1)


@app.command()
@bounded
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over traces, steps, calls, scores, branches, messages; - reads it from stdin.")],
    store: StoreFile = DEFAULT_STORE,
    format: Annotated[str, typer.Option("--format", help="table, json (one array) or csv.")] = "table",  # noqa: A002  the user's word
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=0.001, help="Stop a query that takes longer.")] = 60.0,
    max_memory: Annotated[str, typer.Option("--max-memory", help="Stop a query that takes more, e.g. 500MB.")] = "2GB",
) -> None:
    """Ask the store in SQL. It only reads this one file: no writing, no other files, no network, no settings."""
    from counterplay import storing

    storing.sql(store, query, format=format, max_seconds=max_seconds, max_memory=max_memory)


@app.command()
@bounded
def compact(
    store: StoreFile = DEFAULT_STORE,
    drop_old_revisions: Annotated[
        bool, typer.Option("--drop-old-revisions", help="Leave out trace revisions that later ones superseded.")
    ] = False,
    drop_before: Annotated[
        str | None,
        typer.Option("--drop-before", help="Forget traces that ended before a date, or an age such as 90d, and all that was made of them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite the store without the holes that deletions leave, and in the newest schema. Killed at any time, it leaves a good store."""
    from counterplay import storing
    from counterplay.core.store import compact as rewrite

    before_us = None if drop_before is None else storing.moment(drop_before)
    report = rewrite(str(store), drop_old_revisions=drop_old_revisions, before_us=before_us)
    console.emit(report, as_json=as_json)
