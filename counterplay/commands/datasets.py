"""From searched trees to datasets, and from datasets to a tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from counterplay import console
from counterplay.commands.options import (
    DEFAULT_STORE,
    Agent,
    AsJson,
    MaxLength,
    Seed,
    StoreFile,
    bounded,
    group,
)

export_app = group("export", "Datasets for TRL from logged and searched trajectories.")
train_app = group("train", "Fine-tune a local model with TRL's trainers.")

OutFolder = Annotated[Path, typer.Option("--out", help="The dataset folder to write.")]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", help="Model folder whose chat template audits the lengths.")]
MinGrade = Annotated[str, typer.Option("--min-grade", help="exact, reused, executed or simulated: the worst that may enter.")]
HeldOut = Annotated[float, typer.Option("--held-out", help="Share of tasks kept for the test split.")]
Only = Annotated[list[str] | None, typer.Option("--algorithm", help="Only trees of this search; repeatable.")]


@export_app.command("sft")
@bounded
def export_sft(
    out: OutFolder,
    store: StoreFile = DEFAULT_STORE,
    source: Annotated[str, typer.Option("--source", help="logged: by their own outcome; searched: by the verifiers; or both.")] = "both",
    min_score: Annotated[float, typer.Option("--min-score", help="The verified score or reward a trajectory needs.")] = 1.0,
    min_grade: MinGrade = "executed",
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    held_out: HeldOut = 0.0,
    algorithm: Only = None,
    agent: Agent = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Whole trajectories that succeeded, logged or searched, as SFT rows."""
    from counterplay import exporting, loop

    with loop.opened(store, read_only=True) as opened:
        report = exporting.export_sft(
            opened,
            out,
            source=source,
            min_score=min_score,
            min_grade=min_grade,
            tokenizer=tokenizer,
            max_length=max_length,
            held_out=held_out,
            algorithms=algorithm,
            agent=agent,
            seed=seed,
        )
    console.emit(report, as_json=as_json)


@export_app.command("dpo")
@bounded
def export_dpo(
    out: OutFolder,
    store: StoreFile = DEFAULT_STORE,
    tau: Annotated[float, typer.Option("--tau", help="Least P(Q_chosen > Q_rejected) for a pair, in (0.5, 1).")] = 0.9,
    min_grade: MinGrade = "executed",
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    held_out: HeldOut = 0.0,
    algorithm: Only = None,
    agent: Agent = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Sibling actions with one shared prompt as step-level DPO pairs."""
    from counterplay import exporting, loop

    with loop.opened(store, read_only=True) as opened:
        report = exporting.export_dpo(
            opened,
            out,
            tau=tau,
            min_grade=min_grade,
            tokenizer=tokenizer,
            max_length=max_length,
            held_out=held_out,
            algorithms=algorithm,
            agent=agent,
            seed=seed,
        )
    console.emit(report, as_json=as_json)


@export_app.command("parquet")
@bounded
def export_parquet(
    out: Annotated[Path, typer.Option("--out", help="The folder to write; files of earlier exports in it are replaced.")],
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """The views that counterplay sql asks, one Parquet file each, for pandas, polars, Spark and the like."""
    from counterplay import loop

    with loop.opened(store, read_only=True) as opened:
        rows = opened.write_parquet(out)
    console.emit({f"{view}.parquet": count for view, count in rows.items()}, as_json=as_json)


ModelFolder = Annotated[str, typer.Option("--model", help="The model folder to start from.")]
DataFolder = Annotated[Path, typer.Option("--data", help="A dataset folder written by export.")]
ModelOut = Annotated[Path, typer.Option("--out", help="The folder of the tuned model; a policy as it is.")]
Epochs = Annotated[float, typer.Option("--epochs", help="Passes over the data.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="Without it, the recipe's own.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows a step.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Stop after so many optimiser steps, in place of --epochs.")]
CheckpointSteps = Annotated[int | None, typer.Option("--checkpoint-steps", help="Keep a checkpoint every so many steps.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
Lora = Annotated[bool, typer.Option("--lora", help="Train low-rank adapters and merge them, in place of all weights.")]


@train_app.command("sft")
@bounded
def train_sft(
    model: ModelFolder,
    data: DataFolder,
    out: ModelOut,
    epochs: Epochs = 2.0,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    lora: Lora = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Supervised fine-tuning on what the agent sampled, and on nothing else."""
    from counterplay import exporting

    with console.ticking("training", quiet=as_json) as tick:
        report = exporting.train(
            "sft",
            model,
            data,
            out,
            epochs=epochs,
            steps=steps,
            checkpoint_steps=checkpoint_steps,
            resume=resume,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            lora=lora,
            seed=seed,
            on_step=tick.at,
        )
    console.emit(report, as_json=as_json)


@train_app.command("dpo")
@bounded
def train_dpo(
    model: ModelFolder,
    data: DataFolder,
    out: ModelOut,
    epochs: Epochs = 1.0,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    beta: Annotated[float, typer.Option("--beta", help="Strength of the pull to the reference model.")] = 0.1,
    label_smoothing: Annotated[
        float | None, typer.Option("--label-smoothing", help="Expected share of wrong pairs; without it, the dataset's own estimate.")
    ] = None,
    lora: Lora = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Step-level preference tuning (DPO) on sibling actions."""
    from counterplay import exporting

    with console.ticking("training", quiet=as_json) as tick:
        report = exporting.train(
            "dpo",
            model,
            data,
            out,
            epochs=epochs,
            steps=steps,
            checkpoint_steps=checkpoint_steps,
            resume=resume,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            lora=lora,
            seed=seed,
            on_step=tick.at,
            beta=beta,
            label_smoothing=label_smoothing,
        )
    console.emit(report, as_json=as_json)
