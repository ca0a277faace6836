"""What every training needs of transformers: the model folder read and written, adapters, no noise and no telemetry."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from counterplay.core.errors import UserError

Task = Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"]
"""What a model is for, in peft's words: to write, or to judge a text by one number, or each of its tokens."""
_AUTO = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
_CALLED = {"CAUSAL_LM": "causal language model", "SEQ_CLS": "language model", "TOKEN_CLS": "language model"}
_HEADS = ("score", "classifier")


def settle_environment() -> None:
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


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer of a model folder. Raises UserError where there is none or it has no chat template."""
    settle_environment()
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


def load_model(model_dir: Path, task: Task) -> Any:
    """The model of a folder in float32; for judging with a head of one number, new unless the folder has it. Raises UserError."""
    import torch
    import transformers
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # that a head is new is what is wanted
    try:
        options: dict[str, Any] = {}
        if task != "CAUSAL_LM":
            options["config"] = transformers.AutoConfig.from_pretrained(str(model_dir), num_labels=1)
            options["config"].classifier_dropout = 0.0
        return getattr(transformers, _AUTO[task]).from_pretrained(
            str(model_dir), dtype=torch.float32, attn_implementation="sdpa", **options
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{model_dir} holds no {_CALLED[task]} that loads: {error}", "a transformers model folder") from error
    finally:
        logging.set_verbosity(level)


def check_vocabulary(model: Any, largest: int, model_dir: Path) -> None:
    """Raises UserError where the tokenizer writes ids that the model has no embedding for."""
    known = model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise UserError(f"the tokenizer in {model_dir} writes token id {largest}", f"ids below {known}, the size of the model's embedding")


def adapters(task: Task) -> Any:
    """Low-rank adapters (rank 16) on all linear layers; a head that judges is trained whole."""
    from peft import LoraConfig

    options: dict[str, Any] = {} if task == "CAUSAL_LM" else {"exclude_modules": list(_HEADS)}
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type=task, **options)


def save(model: Any, tokenizer: Any, out: Path) -> Any:
    """Write the model, its adapters merged, with its tokenizer; the model as it is written."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.config.use_cache = True
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    return model


def copy_settings(model_dir: Path, out: Path) -> None:
    """What else a model folder says about itself, such as how to sample from it."""
    for path in model_dir.iterdir():
        if path.suffix in {".json", ".jinja", ".txt", ".model"} and "index" not in path.name and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


def largest_id(rows: Sequence[Sequence[int]]) -> int:
    return max((max(ids, default=0) for ids in rows), default=0)
