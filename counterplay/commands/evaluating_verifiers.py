"""Evaluating verifiers: how far each one may be trusted, on a store's traces or on a file of step-labelled data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, AsJson, Limit, Seed, bounded
from counterplay.commands.verifying import verifiers_app
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace

if TYPE_CHECKING:
    from counterplay.core.protocols import Verifier
    from counterplay.verifiers.evaluation.evaluate import Evaluation
    from counterplay.verifiers.evaluation.truth import Labelled


@verifiers_app.command("evaluate")
@bounded
def verifiers_evaluate(
    names: Annotated[list[str], typer.Argument(help="NAME, a form such as policy:FILE.toml, or module:attr; several are compared.")],
    store: Annotated[
        Path | None, typer.Option("--store", help="The store whose traces hold the truth.", envvar="COUNTERPLAY_STORE")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="A file of labelled data: ProcessBench, PRM800K, any log; repeatable.")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="The logged step score that is the label, e.g. rating.")] = None,
    limit: Limit = None,
    probed: Annotated[int, typer.Option("--probed", min=0, help="Trajectories to probe; 0 leaves the probes out.")] = 100,
    seed: Seed = 0,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a verifier can be gamed, or fails on any question.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Folder for index.html, report.md and report.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """How far verifiers may be trusted: right from wrong, first errors, calibration, siblings, length, hacking, over-optimisation."""
    from counterplay.verifiers.evaluation.page import named, probe_rows, rows, verdict
    from counterplay.verifiers.evaluation.truth import labelled
    from counterplay.verifiers.registry import load

    verifiers = [load(name) for name in names]
    items = labelled(_traces(store, data or [], limit), labels=labels)
    if not items:
        wanted = "outcomes or step labels" if labels is None else f"outcomes or step scores named {labels!r}"
        raise UserError("got traces without any truth", wanted, "See what a store knows: counterplay stats --store STORE")
    evaluations = asyncio.run(_evaluate(verifiers, items, probed=probed, seed=seed, quiet=as_json))
    if report is not None:
        _write(report, evaluations)
    shown = [console.table("verifiers evaluated", ["", *(named(e) for e in evaluations)], rows(evaluations))]
    for evaluation in evaluations:
        columns = ["probe", "trajectories", "share that rises", "mean change"]
        shown += [console.table(f"{named(evaluation)}: {verdict(evaluation)}", columns, probe_rows(evaluation))]
    human = [*shown, *(f"{named(e)}: {note}" for e in evaluations for note in e.notes)]
    console.emit({"evaluations": evaluations}, as_json=as_json, human=human)
    if any(_unfit(evaluation, check) for evaluation in evaluations):
        raise typer.Exit(1)


def _unfit(evaluation: Evaluation, check: bool) -> bool:
    """Whether questions failed and none got a score; with `check`, whether any failed, or the verifier can be gamed."""
    return evaluation.answers.useless or (check and bool(evaluation.answers.errors or evaluation.failed_probes))


def _traces(store: Path | None, data: Sequence[Path], limit: int | None) -> list[Trace]:
    """The traces of the files where there are any, else those of the store."""
    from counterplay import loop

    if not data:
        with loop.opened(store or DEFAULT_STORE, read_only=True) as opened:
            return loop.select(opened, limit=limit)
    if store is not None:
        raise UserError("got --store and --data", "one of them", "Take the file into the store: counterplay ingest FILE --store STORE")
    from counterplay.reading import Reading

    items = list(Reading(loop.check_paths(data), processes=0))
    found = [item for item in items if isinstance(item, Trace)]
    if len(found) < len(items):
        console.err.print(f"{len(items) - len(found)} rows could not be read and are left out")
    return found[:limit]


async def _evaluate(verifiers: Sequence[Verifier], items: Sequence[Labelled], *, probed: int, seed: int, quiet: bool) -> list[Evaluation]:
    from counterplay.verifiers.evaluation.evaluate import evaluate

    found = []
    for verifier in verifiers:
        with console.ticking("asking", quiet=quiet) as ticker:
            found.append(await evaluate(verifier, items, probed=probed, seed=seed, on_question=ticker.advance))
    return found


def _write(folder: Path, evaluations: Sequence[Evaluation]) -> None:
    from counterplay.verifiers.evaluation.page import markdown, page

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page(evaluations), encoding="utf-8")
    (folder / "report.md").write_text(markdown(evaluations), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(console.plain({"evaluations": evaluations}), indent=1) + "\n", encoding="utf-8")
