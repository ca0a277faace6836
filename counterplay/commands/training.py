"""From datasets to a tuned model. Each of these can be started by `accelerate launch -m counterplay train ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from counterplay import console
from counterplay.commands.options import AsJson, MaxLength, Seed, bounded, group

train_app = group("train", "Fine-tune a local model with TRL's trainers.")

ModelFolder = Annotated[str, typer.Option("--model", help="The model folder to start from.")]
DataFolder = Annotated[Path, typer.Option("--data", help="A dataset folder written by export.")]
ModelOut = Annotated[Path, typer.Option("--out", help="The folder of the tuned model, its metrics and its checkpoints.")]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the data; without it, the recipe's own.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="Without it, the recipe's own.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Rows a step, over all processes; without it, the recipe's own.")
]
MicroBatch = Annotated[int | None, typer.Option("--micro-batch", min=1, help="Rows a forward pass; fewer take less memory.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Stop after so many optimiser steps, in place of --epochs.")]
CheckpointSteps = Annotated[int | None, typer.Option("--checkpoint-steps", min=1, help="Keep a checkpoint every so many steps.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
Lora = Annotated[bool, typer.Option("--lora", help="Train low-rank adapters and merge them, in place of all weights.")]
Beta = Annotated[float | None, typer.Option("--beta", help="Strength of the pull to the reference model; 0.1 without it.")]


@train_app.command("sft")
@bounded
def train_sft(
    model: ModelFolder,
    data: DataFolder,
    out: ModelOut,
    epochs: Epochs = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    max_length: MaxLength = None,
    lora: Lora = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Supervised fine-tuning on what the agent sampled, and on nothing else."""
    _train("sft", **locals())


@train_app.command("dpo")
@bounded
def train_dpo(
    model: ModelFolder,
    data: DataFolder,
    out: ModelOut,
    epochs: Epochs = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    max_length: MaxLength = None,
    beta: Beta = None,
    loss: Annotated[
        str | None, typer.Option("--loss", help="robust (the default), conservative, sigmoid, hinge, ipo or sigmoid_norm.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option("--label-smoothing", help="Expected share of wrong pairs; without it, the dataset's own estimate.")
    ] = None,
    lora: Lora = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Preference tuning (DPO) on pairs of actions, or of whole ways on, of which only what was sampled counts."""
    _train("dpo", **locals())


@train_app.command("kto")
@bounded
def train_kto(
    model: ModelFolder,
    data: DataFolder,
    out: ModelOut,
    epochs: Epochs = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    max_length: MaxLength = None,
    beta: Beta = None,
    lora: Lora = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Preference tuning (KTO) on single answers that are desirable or not."""
    _train("kto", **locals())


@train_app.command("reward")
@bounded
def train_reward(
    model: ModelFolder,
    data: DataFolder,
    out: ModelOut,
    epochs: Epochs = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    max_length: MaxLength = None,
    lora: Lora = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A reward model from pairs, then --verifier prm:OUT for finished trajectories."""
    _train("reward", **locals())


@train_app.command("grpo")
@bounded
def train_grpo(
    model: ModelFolder,
    data: DataFolder,
    out: ModelOut,
    environment: Annotated[
        str | None, typer.Option("--environment", help="module:attr, a factory of worlds by task, or a class as TRL takes it.")
    ] = None,
    verifier: Annotated[
        list[str] | None, typer.Option("--verifier", help="What judges whole lines, in place of what the world pays; repeatable.")
    ] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    generations: Annotated[int | None, typer.Option("--generations", min=2, help="Lines played from each prompt; 8 without it.")] = None,
    max_completion: Annotated[int | None, typer.Option("--max-completion", min=1, help="Tokens a line may have; 2048 without it.")] = None,
    max_length: MaxLength = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Of sampling; 1 without it.")] = None,
    lora: Lora = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Reinforcement learning (GRPO) in a live world, from the states of a dataset of kind grpo."""
    given = locals()
    _train("grpo", verifiers=given.pop("verifier"), **given)


def _train(kind: str, *, model: str, data: Path, out: Path, as_json: bool, **settings: Any) -> None:
    from counterplay import training
    from counterplay.finetune.training.processes import leads

    with console.ticking("training", quiet=as_json or not leads()) as tick:
        report = training.train(kind, model, data, out, on_step=tick.at, **settings)
    if leads():
        console.emit(report.to_json(), as_json=as_json)
