"""Recording agents that are not changed: a proxy before their model server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import AsJson, app, bounded


@app.command()
@bounded
def record(
    upstream: Annotated[str, typer.Option("--upstream", help="What to pass on to, e.g. http://localhost:8000/v1.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="The tape, .jsonl or .jsonl.gz; without it runs.jsonl, or STORE.tape.jsonl.")
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", help="A store that takes the tape in when the proxy stops.")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 4319,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    redact: Annotated[
        list[str] | None, typer.Option("--redact", help="Replace before writing: secrets, pii, or a kind; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record what agents in any language ask their models: a proxy before an OpenAI-compatible server, until stopped."""
    from counterplay import proxy

    with console.ticking("requests passed", quiet=as_json) as tick:
        report = proxy.serve(
            upstream,
            to=to,
            store=store,
            host=host,
            port=port,
            redact=redact or (),
            say=lambda text: console.err.print(text, highlight=False, markup=False, soft_wrap=True),
            watch=lambda now: tick.at(now.requests, None, f"{now.calls} model calls recorded"),
        )
    console.emit(report, as_json=as_json)
