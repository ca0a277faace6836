"""Effects of tools: what the logs say about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, Agent, AsJson, Limit, StoreFile, bounded, group, some

effects_app = group("effects", "What tools do to the world: pure, read, write or external.")


@effects_app.command("suggest")
@bounded
def effects_suggest(
    store: StoreFile = DEFAULT_STORE,
    out: Annotated[Path | None, typer.Option("--out", help="Write the table here, as TOML, with its evidence in comments.")] = None,
    agent: Agent = None,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """Propose a table of effects with its evidence. It proposes and does not know: read it before you use it."""
    from counterplay import loop, suggesting

    with loop.opened(store, read_only=True) as opened:
        chosen = loop.select(opened, agent=agent, limit=limit)
        some(chosen, store)
    with console.ticking("reading", len(chosen), quiet=as_json) as tick:
        found = suggesting.suggest_effects(chosen, on_trace=tick.advance)
    if out is not None:
        suggesting.write_table(found, out)
    console.emit(suggesting.as_json(found), as_json=as_json, human=suggesting.shown(found))
