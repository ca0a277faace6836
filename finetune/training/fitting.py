"""One training from ready rows to a model folder, whatever its kind: places, processes, checkpoints, metrics, plot and report."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from counterplay.core.errors import UserError
from counterplay.finetune.batches import LengthBatches
from counterplay.finetune.trained_positions import head_on_trained_positions
from counterplay.finetune.trainers import copy_settings, quiet, save, settle_environment
from counterplay.finetune.training import processes
from counterplay.finetune.training.folder import CHECKPOINTS, append_metrics, prepare, read_metrics, rows_key, write_state
from counterplay.finetune.training.plots import plot
from counterplay.finetune.training.recipe import Recipe
from counterplay.verifiers.learned.loading import folder_version


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

    `tokens` counts each once, `trained_tokens` those that carry loss (for GRPO the prompts' and 0: the model writes the rest itself).
    `metrics` are means over the last tenth of the steps, `loss` among them. `plot` shows them; None where matplotlib is not installed.
    `repeated` rows are taken twice in every epoch, which several processes do to fill its last step. `foreign` counts messages whose
    recorded token ids are of another tokenizer, so that those of their text were taken (SFT).
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
    metrics: Mapping[str, float] = field(default_factory=dict)
    plot: Path | None = None
    repeated: int = 0
    foreign: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "out_dir": str(self.out_dir), "plot": None if self.plot is None else self.plot.name}


@dataclass(frozen=True, slots=True)
class Run:
    """What does not decide the result: places, checkpoints, progress."""

    model_dir: Path
    out: Path
    checkpoint_steps: int | None = None
    resume: bool = False
    on_step: OnStep | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of one row: all, and those that carry loss."""

    tokens: int
    trained: int


@dataclass(frozen=True)
class Job:
    """What a kind's trainer is built from. `options` are of transformers' TrainingArguments."""

    recipe: Recipe
    run: Run
    rows: Sequence[Mapping[str, Any]]
    tokenizer: Any
    options: Mapping[str, Any]
    callbacks: Sequence[Any]

    def dataset(self, *, on_disk: bool = False, features: Any = None) -> Any:
        """The rows as `datasets` has them; `on_disk` where several processes must find what one of them caches beside them."""
        from datasets import Dataset

        made = Dataset.from_list([dict(row) for row in self.rows], features=features)
        if not on_disk or processes.count() == 1:
            return made
        folder = self.run.out / CHECKPOINTS / "rows"
        if processes.leads():
            shutil.rmtree(folder, ignore_errors=True)
            made.save_to_disk(str(folder))
        processes.wait()
        return Dataset.load_from_disk(str(folder))


def train(
    recipe: Recipe,
    run: Run,
    rows: Sequence[Mapping[str, Any]],
    *,
    count: int,
    tokenizer: Any,
    build: Callable[[Job], Any],
    size: Callable[[Mapping[str, Any]], Sizes],
    finish: Callable[[Any], None] = lambda _model: None,
    foreign: int = 0,
) -> TrainReport:
    """Train what `build` makes of `rows`, which come from `count` rows of a dataset, and leave model and report in the run's folder.

    `finish` is called with the model before it is saved; `foreign` is for the report. Every process calls this; the first one writes.
    """
    sizes = [size(row) for row in rows]
    if not rows or (recipe.kind != "grpo" and not any(one.trained for one in sizes)):
        raise UserError("no message of the dataset is to be trained on", "at least one sampled message")
    processes.rows_each(recipe.batch_size, recipe.micro_batch)
    decisive = _decisive(recipe, run, rows) if processes.leads() else {}
    checkpoint = prepare(run.out, run.model_dir, decisive, resume=run.resume)
    started = time.monotonic()

    def note(step: int, total: int, metrics: Mapping[str, float]) -> None:
        seconds = time.monotonic() - started
        known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_metrics(run.out, {"step": step, "total": total, "seconds": round(seconds, 3), **known})
        if run.on_step is not None:
            run.on_step(TrainStep(step, total, metrics["loss"], seconds, metrics))

    settle_environment()
    with quiet():
        trainer = build(Job(recipe, run, rows, tokenizer, _options(recipe, run), [_callback(note)]))
        _silence(trainer)
        if checkpoint is None or not _taken_up(trainer, checkpoint):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if processes.leads():
            finish(trainer.accelerator.unwrap_model(trainer.model))
            save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, run.out)
            copy_settings(run.model_dir, run.out)
    means = _last_tenth(read_metrics(run.out))
    report = TrainReport(
        out_dir=run.out,
        recipe=recipe,
        rows=count,
        sequences=len(rows),
        tokens=sum(one.tokens for one in sizes),
        trained_tokens=sum(one.trained for one in sizes),
        longest=max(one.tokens for one in sizes),
        steps=int(trainer.state.global_step),
        loss=means["loss"],
        seconds=time.monotonic() - started,
        metrics=means,
        plot=plot(run.out) if processes.leads() else None,
        repeated=0 if recipe.kind == "grpo" else processes.repeated(len(rows), recipe.batch_size, recipe.micro_batch),
        foreign=foreign,
    )
    if processes.leads():
        shutil.rmtree(run.out / CHECKPOINTS / "rows", ignore_errors=True)
        write_state(run.out, decisive, report.to_json())
    processes.wait()
    return report


def _taken_up(trainer: Any, checkpoint: Path) -> bool:
    """Whether all steps were taken when `checkpoint` was made; the model is then as it was, for the trainer would take one step more."""
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    trainer._load_from_checkpoint(str(checkpoint))  # noqa: SLF001  what `train` itself does; there is no public name
    trainer.state = state
    return True


def _decisive(recipe: Recipe, run: Run, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"recipe": asdict(recipe), "dataset": rows_key(rows), "model": folder_version(run.model_dir)}


def _last_tenth(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tail = lines[-max(1, len(lines) // 10) :]
    names = {name for line in tail for name in line} - {"step", "total", "seconds"}
    seen = {name: [line[name] for line in tail if line.get(name) is not None] for name in sorted(names)}
    return {name: sum(values) / len(values) for name, values in seen.items() if values}


def _options(recipe: Recipe, run: Run) -> dict[str, Any]:
    import torch

    on_gpu = torch.cuda.is_available()
    rows, passes = processes.rows_each(recipe.batch_size, recipe.micro_batch)
    return {
        "output_dir": str(run.out / CHECKPOINTS),
        "num_train_epochs": recipe.epochs,
        "max_steps": -1 if recipe.steps is None else recipe.steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # as a share of all steps
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "save_strategy": "no" if run.checkpoint_steps is None else "steps",
        "save_steps": run.checkpoint_steps or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": recipe.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def trl_options(job: Job) -> dict[str, Any]:
    """The options of a TRL trainer on ready rows, whose lengths were checked before: TRL's default truncates silently."""
    return {**job.options, "max_length": None, "activation_checkpointing": not job.options["use_cpu"]}


def _callback(note: Callable[[int, int, Mapping[str, float]], None]) -> Any:
    from transformers import TrainerCallback

    class Notes(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                note(state.global_step, state.max_steps, {name: float(value) for name, value in logs.items()})

    return Notes()


def _silence(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def by_length(base: Any, lengths: Sequence[int], batch_size: int, *, ready: bool, columns: Sequence[str] = ()) -> Any:
    """A trainer of TRL with batches by length, whose head reads the trained positions alone.

    `ready` rows are taken as they are; `columns` reach the collator beside those that TRL knows.
    """

    class ByLength(base):  # type: ignore[misc]
        _signature_columns: Any

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*dict.fromkeys([*self._signature_columns, *columns])]

        def _get_train_sampler(self, *_: Any) -> Any:
            return LengthBatches(lengths, batch_size, self.args.seed)

        def _prepare_dataset(self, dataset: Any, *rest: Any, **named: Any) -> Any:
            return dataset if ready else super()._prepare_dataset(dataset, *rest, **named)

        def _precompute_ref_logps(self, *rest: Any, **named: Any) -> Any:
            self.narrow_head()  # here, because the constructor already runs the model
            return super()._precompute_ref_logps(*rest, **named)

        def narrow_head(self) -> None:
            if self.accelerator.device.type == "cpu":
                head_on_trained_positions(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Checkpoints are for resuming; they are not published."""

    return ByLength
