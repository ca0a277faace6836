"""Carrying the questions of a batch policy to a server, and the answers back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import AsJson, BaseUrl, app, bounded


@app.command()
@bounded
def batch(
    folder: Annotated[Path, typer.Argument(help="The folder of a --policy batch:FOLDER:MODEL.")],
    base_url: BaseUrl = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every batch has ended.")] = True,
    every: Annotated[float, typer.Option("--every", min=0, help="Seconds between two looks.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Send a batch policy's questions to the OpenAI Batch API and fetch the answers. Exits with 1 where there was nothing to do."""
    from counterplay.replay.openai_batches import Batches

    batches = Batches(folder, base_url=base_url)
    try:
        with console.ticking("batches", None, quiet=as_json) as tick:
            carried = batches.wait(every_s=every, on_look=lambda _: tick.advance()) if wait else batches.carry()
    finally:
        batches.close()
    console.emit(carried, as_json=as_json)
    if not (carried.sent or carried.running or carried.lines):
        raise typer.Exit(1)
