"""Model folders as transformers saves them, with errors that say what was wrong with them."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError

_CONTENT = frozenset({".json", ".jinja", ".safetensors", ".bin", ".model", ".txt"})
_NOT_THE_MODEL = "training.json"  # what counterplay.finetune keeps of a training beside the model: its times and places


def load_folder(folder: Path, auto_class: str, dtype: str | None, device: str | None) -> tuple[Any, Any]:
    """Tokenizer and model, the latter made by a class of transformers such as `AutoModelForCausalLM`. Raises UserError."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"got model folder {folder} without config.json", "a transformers model folder", "Give the folder that save_pretrained wrote."
        )
    import torch
    import transformers
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, told = getattr(transformers, auto_class).from_pretrained(
            folder, local_files_only=True, dtype=dtype or "auto", output_loading_info=True
        )
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"got folder {folder}, which {auto_class} can't load: {first}", "a model of that kind with a tokenizer") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if told["missing_keys"]:
        missing = ", ".join(sorted(told["missing_keys"])[:3])
        raise UserError(
            f"got folder {folder} without the weights {missing}", f"a model saved as one for {auto_class}", "Train or save it as such."
        )
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"the tokenizer in {folder} has no chat template", "one, because trajectories are conversations")
    return tokenizer, model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def backbone_of(model: Any) -> Any:
    """The model without its head."""
    return getattr(model, model.base_model_prefix)


def folder_version(folder: Path) -> str:
    """A short key of a model folder's content: 12 hex digits."""
    digest = blake2b(digest_size=6)
    for file in sorted(entry for entry in folder.iterdir() if entry.suffix in _CONTENT and entry.name != _NOT_THE_MODEL):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
