"""A reward model from pairs (Bradley-Terry with margins): one number for a whole conversation, read at its last token.

Touvron et al. 2023, Llama 2, arXiv:2307.09288, equation 2. The folder is an ordinary sequence-classification model and, as
`prm:FOLDER`, a verifier of finished trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolSpec, Trajectory
from counterplay.finetune.trainers import adapters, check_vocabulary, largest_id, load_model, load_tokenizer
from counterplay.finetune.training.data import check_length, check_rates, messages_of, records_of
from counterplay.finetune.training.fitting import Job, OnStep, Run, Sizes, TrainReport, by_length, train, trl_options
from counterplay.finetune.training.recipe import Recipe
from counterplay.verifiers.learned.prm import SETTINGS
from counterplay.verifiers.learned.rendering import StepRenderer

_SIDES = ("chosen", "rejected")


def train_reward(
    model_dir: str | Path,
    dataset: str | Path,
    out_dir: str | Path,
    *,
    split: str = "train",
    epochs: float = 1.0,
    steps: int | None = None,
    learning_rate: float = 1e-5,
    batch_size: int = 8,
    micro_batch: int | None = None,
    max_length: int = 8192,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """A reward model on pairs: -log sigmoid(r_chosen - r_rejected - margin), the row's `margin` where it has one.

    `model_dir` holds a causal model, whose body is taken over, or a reward model to go on from. `prm:OUT_DIR` loads the result as a
    verifier, whose value is the sigmoid of the reward. The rest is as in `train_sft`.
    """
    check_rates(epochs=epochs, steps=steps, learning_rate=learning_rate, batch_size=batch_size)
    recipe = Recipe("reward", epochs, steps, learning_rate, batch_size, max_length, lora, seed, micro_batch)
    records = records_of(dataset, split, "reward", ("prompt", "chosen", "rejected", "tools", "name"))
    tokenizer = load_tokenizer(Path(model_dir))
    renderer = StepRenderer(tokenizer)
    rows = []
    for record in records:
        row: dict[str, Any] = {f"{side}_ids": _ids(renderer, record, side) for side in _SIDES}
        if row["chosen_ids"] == row["rejected_ids"]:
            raise UserError(f"row {record['name']} has two sides that read the same", "sides that differ as the chat template renders them")
        check_length(record["name"], _size(row).tokens, max_length)
        rows.append({**row, "margin": float(record.get("margin") or 0.0)})
    rows.sort(key=_length, reverse=True)
    run = Run(Path(model_dir), Path(out_dir), checkpoint_steps, resume, on_step)
    return train(recipe, run, rows, count=len(records), tokenizer=tokenizer, build=_trainer, size=_size, finish=_as_verifier)


def _ids(renderer: StepRenderer, record: Mapping[str, Any], side: str) -> list[int]:
    """What the verifier reads of the conversation, up to the token its score is read at."""
    tools = tuple(ToolSpec.from_openai(fields) for fields in record["tools"] or ())
    ids = renderer.whole(Trajectory(tools, messages_of((*record["prompt"], *record[side]))))
    return ids[: renderer.last(ids) + 1]


def _length(row: Mapping[str, Any]) -> int:
    return sum(len(row[f"{side}_ids"]) for side in _SIDES)


def _size(row: Mapping[str, Any]) -> Sizes:
    return Sizes(max(len(row[f"{side}_ids"]) for side in _SIDES), len(_SIDES))


def _trainer(job: Job) -> Any:
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    base = by_length(RewardTrainer, [_length(row) for row in job.rows], job.recipe.batch_size, ready=True)
    set_seed(job.recipe.seed)  # before a head is made
    model = load_model(job.run.model_dir, "SEQ_CLS")
    ids = [row[f"{side}_ids"] for row in job.rows for side in _SIDES]
    check_vocabulary(model, largest_id(ids), job.run.model_dir)
    _pad_otherwise(job.tokenizer, {row[-1] for row in ids})
    return base(
        model=model,
        args=RewardConfig(**trl_options(job)),
        train_dataset=job.dataset(),
        processing_class=job.tokenizer,
        peft_config=adapters("SEQ_CLS") if job.recipe.lora else None,
        callbacks=list(job.callbacks),
    )


def _pad_otherwise(tokenizer: Any, ends: set[int]) -> None:
    """The reward is read at the last token that is not padding: what ends a text must not be what fills it up."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return
    free = [token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special and number not in ends]
    if not free:
        got = f"got a tokenizer that pads with {tokenizer.pad_token!r}, which ends texts"
        raise UserError(got, "a padding token of its own", "Add one to the tokenizer and the model.")
    tokenizer.pad_token = free[0]


def _as_verifier(model: Any) -> None:
    """Say in `config.json` what `prm:` needs to know: an opinion on finished trajectories, from a head without bias."""
    setattr(model.config, SETTINGS, {"kind": "orm"})
    model.config.token_classification_bias = False
