"""Handing traces on to other viewers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.datasets import export_app
from counterplay.commands.options import DEFAULT_STORE, Agent, AsJson, Limit, StoreFile, TraceIds, bounded
from counterplay.core.errors import UserError


@export_app.command("spans")
@bounded
def export_spans(
    out: Annotated[Path | None, typer.Option("--out", help="The file to write: JSON lines.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="In its place a collector or viewer, such as Phoenix's http://localhost:6006.")
    ] = None,
    store: StoreFile = DEFAULT_STORE,
    format: Annotated[  # noqa: A002  the user's word
        str, typer.Option("--format", help="otlp (OpenInference's attributes; Phoenix, Langfuse and others) or langsmith.")
    ] = "otlp",
    trace: TraceIds = None,
    agent: Agent = None,
    limit: Limit = None,
    branches: Annotated[bool, typer.Option("--branches/--no-branches", help="Counterfactual branches too, linked to their logs.")] = True,
    as_json: AsJson = False,
) -> None:
    """Traces and counterfactual branches as spans that other viewers open, and that ingest reads again without loss."""
    from counterplay.handing_on import hand_on
    from counterplay.looking import looked_at

    place = to if out is None else out
    if place is None or (out is not None and to is not None):
        raise UserError("got neither --out nor --to" if place is None else "got --out and --to", "one of them")
    with looked_at(store) as opened, console.ticking("handing on", quiet=as_json) as tick:
        report = hand_on(opened, place, format=format, trace_ids=trace, agent=agent, limit=limit, branches=branches, on_trace=tick.advance)
    if report.without_calls:
        console.err.print(f"{len(report.without_calls)} traces hold no model call and are left out", highlight=False)
    console.emit(report, as_json=as_json)
