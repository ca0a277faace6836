"""Simulation of tools: how true it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import (
    DEFAULT_STORE,
    Agent,
    AsJson,
    BaseUrl,
    Limit,
    Seed,
    StoreFile,
    TraceIds,
    bounded,
    group,
    some,
)

simulate_app = group("simulate", "Simulation of tools that no environment answers: how true it is.")


@simulate_app.command("check")
@bounded
def simulate_check(
    simulator: Annotated[str, typer.Option("--simulator", help="nearest, openai:MODEL, or module:attr.")] = "nearest",
    store: StoreFile = DEFAULT_STORE,
    effects: Annotated[Path | None, typer.Option("--effects", help="A TOML table of the tools' effects, where the log has none.")] = None,
    trace: TraceIds = None,
    agent: Agent = None,
    limit: Limit = None,
    base_url: BaseUrl = None,
    min_likeness: Annotated[
        float | None, typer.Option("--min-likeness", min=0.0, max=1.0, help="How near a recorded call must be, for nearest (default 0.9).")
    ] = None,
    simulate_writes: Annotated[bool, typer.Option("--simulate-writes", help="Ask for writes too.")] = False,
    folds: Annotated[int, typer.Option("--folds", min=2, help="In how many parts the runs are held out.")] = 5,
    within_task: Annotated[bool, typer.Option("--within-task", help="Leave it the other attempts at the same task.")] = False,
    max_calls: Annotated[int | None, typer.Option("--max-calls", min=1, help="Ask for at most so many results.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Ask a simulation for recorded results that it was not shown, and say by tool how often it is right."""
    from counterplay import loop, simulating
    from counterplay.replay.effects import EffectTable

    table = EffectTable.from_toml(effects).effects() if effects is not None else None
    with loop.opened(store, read_only=True) as opened:
        chosen = loop.select(opened, trace_ids=trace, which="all", agent=agent, limit=limit)
        some(chosen, store)
    with console.ticking("simulating", quiet=as_json) as tick:
        report = asyncio.run(
            simulating.check(
                chosen,
                simulator,
                effects=table,
                base_url=base_url,
                min_likeness=min_likeness,
                simulate_writes=simulate_writes,
                folds=folds,
                within_task=within_task,
                max_calls=max_calls,
                seed=seed,
                on_call=tick.advance,
            )
        )
    console.emit(simulating.plain(report), as_json=as_json, human=simulating.view(report))
