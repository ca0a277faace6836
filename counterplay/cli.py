"""`counterplay`: the loop on the command line. Every command prints a table, or one JSON object with `--json`.

Exit codes: 0 done, 1 the check failed or nothing could be done, 2 bad usage or input.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from counterplay import console
from counterplay.commands import (
    batching,
    costs,
    datasets,
    doctor,
    effects,
    evaluating_verifiers,
    examples,
    improving,
    jobs,
    learning,
    logs,
    playing,
    recording,
    simulating,
    spans,
    training,
    trees,
    verifying,
    viewing,
)
from counterplay.commands.options import AsJson, app, bounded

__all__ = [
    "app",
    "batching",
    "costs",
    "datasets",
    "doctor",
    "effects",
    "evaluating_verifiers",
    "examples",
    "improving",
    "jobs",
    "learning",
    "logs",
    "main",
    "playing",
    "recording",
    "simulating",
    "spans",
    "training",
    "trees",
    "verifying",
    "viewing",
]


@app.command()
@bounded
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where store, datasets and tuned models go.")] = Path("demo"),
    tasks: Annotated[int, typer.Option("--tasks", help="Held-out tasks to evaluate on.")] = 300,
    as_json: AsJson = False,
) -> None:
    """The whole loop on the example agent, from its logs to the table that says whether it got better."""
    from counterplay import demo as example

    report = example.run(folder, held_out_tasks=tasks, quiet=as_json)
    console.emit(report, as_json=as_json, human=example.table(report))


@app.callback(invoke_without_command=True)
def front(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    """Counterfactual replay: logged agent traces in, a better agent out."""
    if version:
        from counterplay import __version__

        console.out.print(__version__)
        raise typer.Exit


def main() -> Any:
    """The console script."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that spins for work slows torch sevenfold where cores are shared
    return app()


if __name__ == "__main__":
    main()
