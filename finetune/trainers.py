"""TRL's trainers, set up for ready token ids: batches by length, no truncation, no telemetry, no reference model in memory."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError
from counterplay.finetune.batches import LengthBatches
from counterplay.finetune.rows import Kind
from counterplay.finetune.shared_prompt import share_prompts
from counterplay.finetune.trained_positions import head_on_trained_positions

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training besides model and data. `steps` overrides `epochs`; None leaves it to them."""

    kind: Kind
    epochs: float
    steps: int | None
    learning_rate: float
    batch_size: int
    max_length: int
    lora: bool
    seed: int
    beta: float | None = None
    label_smoothing: float | None = None


Note = Callable[[int, int, Mapping[str, float]], None]


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer of a model folder. Raises UserError where there is none or it has no chat template."""
    _settle_environment()
    from transformers import AutoTokenizer

    if not (model_dir / "config.json").is_file():
        raise UserError(f"no model in {model_dir}", "a folder with config.json, weights and a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
    except (OSError, ValueError) as error:
        raise UserError(f"{model_dir} holds no tokenizer that loads: {error}", "a transformers model folder") from error
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {model_dir} has no chat template", "one, because rows are conversations")
    return tokenizer


def fit(
    recipe: Recipe,
    sequences: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    model_dir: Path,
    out: Path,
    checkpoint_steps: int | None,
    checkpoint: Path | None,
    note: Note,
) -> int:
    """Train and save model and tokenizer in `out`; the number of steps taken in all.

    `note` is called after every step with its number, the number of all steps and TRL's metrics.
    """
    _settle_environment()
    from datasets import Dataset
    from transformers import PrinterCallback

    ordered = sorted(sequences, key=_length, reverse=True)
    with quiet():
        model = _load_model(model_dir)
        _check_vocabulary(model, ordered, model_dir)
        if recipe.kind == "dpo":
            share_prompts(model)
        trainer = _class(recipe)(
            model=model,
            args=_config(recipe, out, checkpoint_steps),
            train_dataset=Dataset.from_list([dict(sequence) for sequence in ordered]),
            processing_class=tokenizer,
            peft_config=_lora() if recipe.lora else None,
            callbacks=[_callback(note)],
        )
        trainer.remove_callback(PrinterCallback)
        if recipe.kind == "sft":
            trainer.data_collator = _seeing_padding(trainer.data_collator)
            trainer.narrow_head()
        trainer.row_lengths = [_length(sequence) for sequence in ordered]
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        _save(trainer, model_dir, out, tokenizer)
    return int(trainer.state.global_step)


def _settle_environment() -> None:
    """Before the libraries are imported: no network, no telemetry, and threads that yield the processor where it is shared."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRL_EXPERIMENTAL_SILENCE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the libraries, since progress is reported by `note`, and no warning about what they call in one another."""
    import datasets
    from transformers.utils import logging

    bars, model_bars, tqdm = datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled(), os.environ.get("TQDM_DISABLE")
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        if model_bars:
            logging.enable_progress_bar()
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm


def _length(sequence: Mapping[str, Any]) -> int:
    return sum(len(ids) for name, ids in sequence.items() if name.endswith("_ids"))


def _load_model(model_dir: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise UserError(f"{model_dir} holds no causal language model that loads: {error}", "a transformers model folder") from error


def _check_vocabulary(model: Any, sequences: Sequence[Mapping[str, Any]], model_dir: Path) -> None:
    largest = max((max(ids, default=0) for sequence in sequences for name, ids in sequence.items() if name.endswith("_ids")), default=0)
    known = model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise UserError(f"the tokenizer in {model_dir} writes token id {largest}", f"ids below {known}, the size of the model's embedding")


def _config(recipe: Recipe, out: Path, checkpoint_steps: int | None) -> Any:
    import torch
    from trl import DPOConfig, SFTConfig

    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {
        "output_dir": str(out / CHECKPOINTS),
        "num_train_epochs": recipe.epochs,
        "max_steps": -1 if recipe.steps is None else recipe.steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # as a share of all steps
        "per_device_train_batch_size": recipe.batch_size,
        "max_length": None,  # lengths are checked before; TRL's default truncates silently
        "bf16": on_gpu,
        "activation_checkpointing": on_gpu,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "save_strategy": "no" if checkpoint_steps is None else "steps",
        "save_steps": checkpoint_steps or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": recipe.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }
    if recipe.kind == "sft":
        return SFTConfig(**options)
    # the reference's log-probabilities are computed once, before training: no second model, no second forward pass an epoch
    return DPOConfig(**options, beta=recipe.beta, label_smoothing=recipe.label_smoothing, precompute_ref_log_probs=True)


def _class(recipe: Recipe) -> Any:
    """TRL's trainer with batches by length; for DPO with ready ids taken as they are, as SFTTrainer takes them itself."""
    from trl import DPOTrainer, SFTTrainer

    base = SFTTrainer if recipe.kind == "sft" else DPOTrainer

    class ByLength(base):  # type: ignore[misc, valid-type]
        row_lengths: Sequence[int]

        def _get_train_sampler(self, *_: Any) -> LengthBatches:
            return LengthBatches(self.row_lengths, self.args.train_batch_size, self.args.seed)

        def _prepare_dataset(self, dataset: Any, *rest: Any, **named: Any) -> Any:
            return dataset if recipe.kind == "dpo" else super()._prepare_dataset(dataset, *rest, **named)

        def _precompute_ref_logps(self, *rest: Any, **named: Any) -> Any:
            self.narrow_head()  # here, because DPOTrainer's constructor already runs the model
            return super()._precompute_ref_logps(*rest, **named)

        def narrow_head(self) -> None:
            if self.accelerator.device.type == "cpu":
                head_on_trained_positions(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Checkpoints are for resuming; they are not published."""

    return ByLength


def _seeing_padding(collate: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Batches without a padding mask, which lets attention take its faster causal path.

    The result is the same: padding stands on the right, where no token of a causal model sees it, and carries no loss.
    """

    def collated(examples: Any) -> dict[str, Any]:
        batch = collate(examples)
        batch["attention_mask"] = batch["attention_mask"].new_ones(batch["attention_mask"].shape)
        return batch

    return collated


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _callback(note: Note) -> Any:
    from transformers import TrainerCallback

    class Notes(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                note(state.global_step, state.max_steps, {name: float(value) for name, value in logs.items()})

    return Notes()


def _save(trainer: Any, model_dir: Path, out: Path, tokenizer: Any) -> None:
    """A folder that is a policy: merged weights, tokenizer, chat template, and what else the model folder said about them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.config.use_cache = True
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    for path in model_dir.iterdir():
        if path.suffix in {".json", ".jinja", ".txt", ".model"} and "index" not in path.name and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
