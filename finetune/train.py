"""Training with TRL's own SFTTrainer and DPOTrainer on datasets of ours: a model folder in, a model folder out.

Rows are tokenised here (`masks`), so that only sampled messages are trained on and nothing is ever truncated; TRL does the
rest. The defaults suit a CPU as well as a GPU, nothing is sent anywhere, and a run that is killed resumes from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from counterplay.core.canonical import loads
from counterplay.core.errors import UserError
from counterplay.finetune.masks import IGNORED, tokenised, tokenised_pair
from counterplay.finetune.records import Record
from counterplay.finetune.rows import Kind
from counterplay.finetune.trainers import CHECKPOINTS, Recipe, fit, load_tokenizer
from counterplay.finetune.write import read_dataset

STATE, METRICS = "training.json", "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One optimiser step that is done, of `total`. `metrics` are what TRL logs for it, `loss` among them."""

    step: int
    total: int
    loss: float
    seconds: float
    metrics: Mapping[str, float]


OnStep: TypeAlias = Callable[[TrainStep], None]


@dataclass(frozen=True)
class TrainReport:
    """What was trained. `sequences` exceed `rows` where a chat template rewrites history.

    `tokens` counts each once, `trained_tokens` those that carry loss; `loss` is the mean over the last tenth of the steps.
    """

    out_dir: Path
    recipe: Recipe
    rows: int
    sequences: int
    tokens: int
    trained_tokens: int
    longest: int
    steps: int
    loss: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "out_dir": str(self.out_dir)}


def train_sft(
    model_dir: str | Path,
    dataset: str | Path,
    out_dir: str | Path,
    *,
    split: str = "train",
    epochs: float = 2.0,
    steps: int | None = None,
    learning_rate: float = 2e-5,
    batch_size: int = 8,
    max_length: int = 8192,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Fine-tune on whole trajectories; the loss covers sampled messages alone.

    `lora` trains adapters (rank 16, all linear layers) and merges them. A checkpoint is kept every `checkpoint_steps` (None: none);
    `resume` goes on from the last one. `out_dir` becomes a model folder with tokenizer and chat template.
    Raises UserError for a missing model or dataset, a dataset of another kind, rows over `max_length` tokens and an occupied `out_dir`.
    """
    recipe = Recipe("sft", epochs, steps, learning_rate, batch_size, max_length, lora, seed)
    records = _records(dataset, split, "sft")
    tokenizer = load_tokenizer(Path(model_dir))
    sequences: list[dict[str, Any]] = []
    for record in records:
        made = tokenised(tokenizer, record["messages"], record["tools"], record["trained"])
        _check_length(record["name"], max((len(s["input_ids"]) for s in made), default=0), max_length)
        sequences += made
    run = _Run(Path(model_dir), Path(out_dir), checkpoint_steps, resume, on_step)
    return _train(recipe, run, len(records), sequences, tokenizer)


def train_dpo(
    model_dir: str | Path,
    dataset: str | Path,
    out_dir: str | Path,
    *,
    split: str = "train",
    epochs: float = 1.0,
    steps: int | None = None,
    learning_rate: float = 1e-6,
    batch_size: int = 8,
    max_length: int = 8192,
    beta: float = 0.1,
    label_smoothing: float | None = None,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Direct preference optimisation (arXiv:2305.18290) on step-level pairs, against the model in `model_dir` as reference.

    `label_smoothing` is the assumed share of wrong labels (conservative DPO); None takes the dataset's own estimate, the mean of
    1 - P. The rest is as in `train_sft`.
    """
    records = _records(dataset, split, "dpo")
    if label_smoothing is None:
        label_smoothing = min(0.49, sum(1 - record["probability"] for record in records) / len(records))
    recipe = Recipe("dpo", epochs, steps, learning_rate, batch_size, max_length, lora, seed, beta, label_smoothing)
    tokenizer = load_tokenizer(Path(model_dir))
    sequences = []
    for record in records:
        pair = tokenised_pair(tokenizer, record)
        _check_length(record["name"], len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])), max_length)
        sequences.append(pair)
    run = _Run(Path(model_dir), Path(out_dir), checkpoint_steps, resume, on_step)
    return _train(recipe, run, len(records), sequences, tokenizer)


def _records(dataset: str | Path, split: str, wanted: Kind) -> list[Record]:
    kind, records = read_dataset(dataset, split)
    if kind != wanted:
        raise UserError(f"{dataset} holds {kind} rows", f"{wanted} rows", f"Train it with: counterplay train {kind}")
    if not records:
        raise UserError(f"the split {split!r} of {dataset} is empty", "at least one row")
    return records


def _check_length(name: str, length: int, max_length: int) -> None:
    if length > max_length:
        do = "Export with max_length, which drops such rows by name, or raise it here."
        raise UserError(f"row {name} has {length} tokens", f"at most {max_length}; nothing is truncated", do)


@dataclass(frozen=True, slots=True)
class _Run:
    """What does not decide the result: places, checkpoints, progress."""

    model_dir: Path
    out: Path
    checkpoint_steps: int | None
    resume: bool
    on_step: OnStep | None


def _train(recipe: Recipe, run: _Run, rows: int, sequences: Sequence[dict[str, Any]], tokenizer: Any) -> TrainReport:
    if not sequences:
        raise UserError("no message of the dataset is to be trained on", "at least one sampled message")
    out = run.out
    if out.resolve() in {run.model_dir.resolve(), *run.model_dir.resolve().parents}:
        raise UserError(f"{out} holds the model that is trained", "another folder for the result")
    checkpoint = _prepare(out, recipe, resume=run.resume)
    started = time.monotonic()
    losses: list[float] = []

    def note(step: int, total: int, metrics: Mapping[str, float]) -> None:
        seconds = time.monotonic() - started
        losses.append(metrics["loss"])
        with (out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "total": total, "seconds": round(seconds, 3), **metrics}) + "\n")
        if run.on_step is not None:
            run.on_step(TrainStep(step, total, metrics["loss"], seconds, metrics))

    steps = fit(
        recipe,
        sequences,
        tokenizer,
        model_dir=run.model_dir,
        out=out,
        checkpoint_steps=run.checkpoint_steps,
        checkpoint=checkpoint,
        note=note,
    )
    tail = losses[-max(1, len(losses) // 10) :]
    sizes = [_size(sequence) for sequence in sequences]
    report = TrainReport(
        out_dir=out,
        recipe=recipe,
        rows=rows,
        sequences=len(sequences),
        tokens=sum(size for size, _ in sizes),
        trained_tokens=sum(trained for _, trained in sizes),
        longest=max(size for size, _ in sizes),
        steps=steps,
        loss=sum(tail) / len(tail),
        seconds=time.monotonic() - started,
    )
    _write_state(out, recipe, report)
    return report


def _size(sequence: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Tokens of a sequence or pair, and how many of them carry loss."""
    if "labels" in sequence:
        return len(sequence["input_ids"]), sum(label != IGNORED for label in sequence["labels"])
    prompt, chosen, rejected = (len(sequence[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
    return prompt + max(chosen, rejected), chosen + rejected


def _prepare(out: Path, recipe: Recipe, *, resume: bool) -> Path | None:
    """Make room in `out`; the checkpoint to go on from, None to start afresh."""
    state = out / STATE
    if out.exists() and not state.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and is no training of counterplay", "a new or empty folder, or a training to replace", "Give another folder."
        )
    checkpoint = _last_checkpoint(out / CHECKPOINTS) if resume else None
    if checkpoint is not None and loads(state.read_text(encoding="utf-8"))["recipe"] != asdict(recipe):
        raise UserError(
            f"{out} holds a training with another recipe", "the same options to resume it", f"See {state}, or train without resume."
        )
    if checkpoint is None and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint is not None:
        _forget_steps_after(out / METRICS, int(checkpoint.name.rpartition("-")[2]))
    _write_state(out, recipe, None)
    return checkpoint


def _forget_steps_after(metrics: Path, step: int) -> None:
    """Steps after the checkpoint are taken, and noted, again."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
    metrics.write_text("".join(line for line in lines if line.endswith("\n") and loads(line)["step"] <= step), encoding="utf-8")


def _last_checkpoint(folder: Path) -> Path | None:
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _write_state(out: Path, recipe: Recipe, report: TrainReport | None) -> None:
    """The mark of a training folder; `report` is null until it is finished."""
    state = {"format": 1, "recipe": asdict(recipe), "report": None if report is None else report.to_json()}
    fresh = out / f".{STATE}"
    fresh.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    fresh.replace(out / STATE)
