"""Verifiers: what there is, and whether one is fit for use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import (
    DEFAULT_STORE,
    AsJson,
    StoreFile,
    bounded,
    group,
)
from counterplay.core.errors import UserError

verifiers_app = group("verifiers", "Verifiers: what there is, and whether one is fit for use.")


@verifiers_app.command("list")
@bounded
def verifiers_list(as_json: AsJson = False) -> None:
    """Every verifier that can be given by name."""
    from counterplay.verifiers.registry import available, forms

    found = available()
    rows = [*((v.name, v.target, v.origin) for v in found), *((form, reader, "built-in") for form, reader in forms())]
    human = console.table("verifiers", ["name", "target", "origin"], rows)
    console.emit({"verifiers": found, "forms": [form for form, _ in forms()]}, as_json=as_json, human=human)


@verifiers_app.command("new")
@bounded
def verifiers_new(
    name: Annotated[str, typer.Argument(help="What the verifier is to be called, e.g. refunds.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the package (default counterplay-NAME).")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a small installable package: a verifier of ten lines, its entry point, its test and a README."""
    from counterplay.verifiers.scaffold import files, write

    folder = write(name, out)
    made = [str(folder / file) for file in files(name)]
    human = f"{folder}: {', '.join(files(name))}\nNext: pip install -e '{folder}[test]' && pytest {folder}"
    console.emit({"folder": str(folder), "files": made}, as_json=as_json, human=human)


@verifiers_app.command("check")
@bounded
def verifiers_check(
    name: Annotated[str, typer.Argument(help="NAME, a form such as policy:FILE.toml (see list), or module:attr.")],
    store: StoreFile = DEFAULT_STORE,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Logged traces to ask it about.")] = 50,
    hostile: Annotated[bool, typer.Option("--hostile", help="Ask it also about empty, huge and odd trajectories (2 MB of text).")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a verifier about logged traces and prefixes: does it answer, in range, alike each time and in company, and tell good from bad?"""
    from counterplay import loop
    from counterplay.verifiers.check import check
    from counterplay.verifiers.evaluation.truth import gold_of
    from counterplay.verifiers.hostile import hostile as probes_of
    from counterplay.verifiers.registry import load

    verifier = load(name)
    with loop.opened(store, read_only=True) as opened:
        traces = loop.select(opened, limit=limit)
    if not traces:
        raise UserError(
            f"got a store without traces: {store}", "at least one", f"Take some in first: counterplay ingest LOGS --store {store}"
        )
    golds = [gold_of(trace.outcome) for trace in traces]
    successes = [None if gold is None else gold > 0.5 for gold in golds]
    trajectories = [trace.trajectory for trace in traces]
    report = asyncio.run(check(verifier, trajectories, successes=successes, probes=probes_of() if hostile else None))
    console.emit(report, as_json=as_json)
    if report.problems:
        raise typer.Exit(1)
