"""The example agent's logs and model, in a folder to try things in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from counterplay import console
from counterplay.commands.options import AsJson, app, bounded
from counterplay.core.errors import UserError

_NEXT = (
    "counterplay ingest {logs} --store s.duckdb",
    (
        "counterplay search --store s.duckdb --limit 20 --policy transformers:{model} --environment counterplay.examples.ledger:Ledger"
        " --verifier outcome --verifier ledger --max-tokens 64 --max-steps 40"
    ),
    "counterplay view --store s.duckdb",
)


@app.command()
@bounded
def example(
    folder: Annotated[Path, typer.Argument(help="Where the logs and the model go.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Put the example agent's logs and its small model into a folder, to try everything with. Nothing there is replaced."""
    from counterplay.demo import EXAMPLE

    logs, model = folder / "logs.jsonl.gz", folder / "model"
    there = next((path for path in (logs, model) if path.exists()), None)
    if there is not None:
        raise UserError(f"got {there}, which exists", "a folder without logs.jsonl.gz and model", "Give another folder.")
    if not (EXAMPLE / "logs.jsonl.gz").is_file():
        raise UserError(f"got no example in {EXAMPLE}", "its logs and model", "Install counterplay with its package data.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(EXAMPLE / "logs.jsonl.gz", logs)
    shutil.copytree(EXAMPLE / "model", model)
    steps = [line.format(logs=logs, model=model) for line in _NEXT]
    human: list[Any] = [console.facts({"logs": f"{logs}, 400 runs", "model": str(model)}), "Go on with:", *(f"  {step}" for step in steps)]
    console.emit({"logs": str(logs), "model": str(model), "next": steps}, as_json=as_json, human=human)
