"""Labels from searches, and verifiers that are trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, Agent, AsJson, MaxLength, Seed, StoreFile, app, bounded
from counterplay.commands.training import CheckpointSteps, MicroBatch, Resume, train_app
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade

if TYPE_CHECKING:
    from counterplay.finetune.rows import SourcedTree

LabelKind = Annotated[
    str, typer.Option("--labels", help="mc-soft, mc-hard, omega, sorm, advantage, rest, td or reflection: how steps are labelled.")
]
MinGrade = Annotated[str, typer.Option("--min-grade", help="exact, reused, executed or simulated: the worst that may enter.")]
Only = Annotated[list[str] | None, typer.Option("--algorithm", help="Only trees of this search; repeatable.")]


_OF_SEARCHES = ("store", "kind", "min_grade", "algorithm", "agent")


@app.command("labels")
@bounded
def labels(
    out: Annotated[Path, typer.Option("--out", help="The folder to write: train.jsonl, test.jsonl, report.json.")],
    store: StoreFile = DEFAULT_STORE,
    kind: LabelKind = "mc-soft",
    hard: Annotated[float | None, typer.Option("--hard", help="Write booleans: whether a value reaches this.")] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Model folder; write text as its chat template renders it.")] = None,
    min_grade: MinGrade = "executed",
    held_out: Annotated[float, typer.Option("--held-out", min=0, max=0.9, help="Share of tasks kept for the test split.")] = 0.0,
    algorithm: Only = None,
    agent: Agent = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Step labels from every search in the store, as prompt, completions and labels."""
    from counterplay.finetune.labels.write import label_rows, write_labels
    from counterplay.finetune.trainers import load_tokenizer

    rows, drops = label_rows(kind, _sources(store, agent, algorithm), min_grade=_grade(min_grade))
    loaded = None if tokenizer is None else load_tokenizer(Path(tokenizer))
    report = write_labels(rows, out, drops=drops, hard=hard, tokenizer=loaded, held_out=held_out, seed=seed)
    console.emit(report.to_json(), as_json=as_json)


@app.command("train-prm", hidden=True)
@train_app.command("prm")
@bounded
def train_prm(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="The model folder to start from: causal, or a reward model to go on from.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the verifier, then --verifier prm:OUT.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="A dataset folder of kind prm; without it, the searches in --store are labelled.")
    ] = None,
    store: StoreFile = DEFAULT_STORE,
    what: Annotated[
        str, typer.Option("--kind", help="prm: values of steps; ppm: siblings compared; orm: outcomes; implicit: a policy from outcomes.")
    ] = "prm",
    kind: LabelKind = "mc-soft",
    min_grade: MinGrade = "executed",
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the data.")] = 2.0,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest, of a cosine schedule.")] = 2e-5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows a step, over all processes.")] = 8,
    micro_batch: MicroBatch = None,
    max_length: MaxLength = 8192,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters and merge them, in place of all weights.")] = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    algorithm: Only = None,
    agent: Agent = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a learned verifier on a dataset, or on the searches in the store. --labels is for prm alone."""
    from counterplay.finetune import prm
    from counterplay.finetune.training.processes import leads

    if data is not None and what != "prm":
        raise UserError(f"got --data with --kind {what}", "--kind prm, or --store in place of --data")
    if data is not None:
        _refuse(context, _OF_SEARCHES, "--data", "--data, whose rows are labelled already, or these with --store")
    if what != "prm":
        _refuse(context, ("kind",), f"--kind {what}", "--labels with --kind prm alone")
    parts = _from_dataset(data) if data is not None else _from_store(_sources(store, agent, algorithm), kind, _grade(min_grade))
    with console.ticking("training", quiet=as_json or not leads()) as tick:
        report = prm.train(
            what,
            model,
            out,
            **parts,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            micro_batch=micro_batch,
            max_length=max_length or 8192,
            lora=lora,
            checkpoint_steps=checkpoint_steps,
            resume=resume,
            seed=seed,
            note=lambda step, total, loss: tick.at(step, total, f"loss {loss:.3f}"),
        )
    if leads():
        console.emit(report.to_json(), as_json=as_json)


def _refuse(context: typer.Context, names: Sequence[str], beside: str, wanted: str) -> None:
    """Raises UserError for options that were given, but say nothing `beside` another."""
    given = [name for name in names if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"]
    flags = {option.name: option.opts[0] for option in context.command.params}
    if given:
        raise UserError(f"got {', '.join(flags[name] for name in given)} with {beside}", wanted)


def _from_dataset(data: Path) -> dict[str, Any]:
    from counterplay.finetune.prm import dataset_rows

    return {"rows": lambda: dataset_rows(data), "nodes": list, "ends": list}


def _from_store(sources: list[SourcedTree], kind: str, grade: Grade) -> dict[str, Any]:
    from counterplay.finetune.labels.pairwise import pairwise
    from counterplay.finetune.labels.write import label_rows, outcomes

    return {
        "rows": lambda: label_rows(kind, sources, min_grade=grade)[0],
        "nodes": lambda: [node for source in sources for node in pairwise(source, min_grade=grade)],
        "ends": lambda: outcomes(sources, min_grade=grade),
    }


def _sources(store: Path, agent: str | None, algorithms: list[str] | None) -> list[SourcedTree]:
    from counterplay import exporting, loop

    with loop.opened(store, read_only=True) as opened:
        found = exporting.trees(opened, loop.select(opened, agent=agent), algorithms)
    if not found:
        raise UserError(f"got no finished search in {store}", "at least one", "Search first: counterplay search --store STORE ...")
    return found


def _grade(name: str) -> Grade:
    try:
        return Grade.parse(name)
    except ValueError as error:
        raise UserError(f"got --min-grade {name!r}", "exact, reused, executed or simulated") from error
