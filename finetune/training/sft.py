"""Supervised fine-tuning: the loss covers sampled messages alone, each row by its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError
from counterplay.finetune.answers import foreign
from counterplay.finetune.exactness import recorded_in
from counterplay.finetune.masks import IGNORED, segments, spliced, tokenised
from counterplay.finetune.records import Record
from counterplay.finetune.trainers import adapters, check_vocabulary, largest_id, load_model, load_tokenizer
from counterplay.finetune.training.data import check_length, check_rates, records_of
from counterplay.finetune.training.fitting import Job, OnStep, Run, Sizes, TrainReport, by_length, train, trl_options
from counterplay.finetune.training.recipe import Recipe
from counterplay.finetune.training.sides import pad_of, padded


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
    micro_batch: int | None = None,
    max_length: int = 8192,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Fine-tune on whole trajectories; the loss covers sampled messages alone.

    A row's `weight`, times that of a message in `step_weights`, multiplies the loss of its tokens (1 where there is none); the sum is
    divided by the number of trained tokens, so that weights of 1 change nothing. `batch_size` rows make a step, over all processes,
    `micro_batch` of them a forward pass of a process (None: as many as there are). `lora` trains adapters (rank 16, all linear layers) and
    merges them. A checkpoint is kept every `checkpoint_steps`
    (None: none); `resume` goes on from the last one. `out_dir` becomes a model folder with tokenizer and chat template.
    Raises UserError for a missing model or dataset, a dataset of another kind, rows over `max_length` tokens and an occupied `out_dir`.
    """
    check_rates(epochs=epochs, steps=steps, learning_rate=learning_rate, batch_size=batch_size)
    recipe = Recipe("sft", epochs, steps, learning_rate, batch_size, max_length, lora, seed, micro_batch)
    records = records_of(dataset, split, "sft", ("messages", "tools", "trained", "name"))
    tokenizer = load_tokenizer(Path(model_dir))
    rows, strange = [], 0
    weighted = any(_weights(record) for record in records)
    for record in records:
        made = _sequences(tokenizer, record, weighted=weighted)
        check_length(record["name"], max((len(row["input_ids"]) for row in made), default=0), max_length)
        rows += made
        strange += _foreign(tokenizer, record)
    rows.sort(key=lambda row: -len(row["input_ids"]))
    run = Run(Path(model_dir), Path(out_dir), checkpoint_steps, resume, on_step)
    return train(recipe, run, rows, count=len(records), tokenizer=tokenizer, build=_trainer, size=_size, foreign=strange)


def _sequences(tokenizer: Any, record: Record, *, weighted: bool) -> list[dict[str, Any]]:
    """Ready ids of a row: those that were sampled where they are recorded, else the text's. Raises UserError by the row's name."""
    try:
        if weighted:
            return _weighted(tokenizer, record)
        return tokenised(tokenizer, record["messages"], record["tools"], record["trained"], recorded_in(record))
    except ValueError as error:
        do = "Export with --tokenizer, which drops such rows by name, or use another chat template."
        raise UserError(
            f"row {record['name']} can't be trained on: {error}", "messages that the chat template renders whole", do
        ) from error


def _foreign(tokenizer: Any, record: Record) -> int:
    recorded = recorded_in(record) or [None] * len(record["messages"])
    taken = zip(record["messages"], recorded, record["trained"], strict=True)
    return sum(trained and ids is not None and foreign(tokenizer, message, ids) for message, ids, trained in taken)


def _weights(record: Record) -> list[float]:
    """What the loss of each message is multiplied by; empty where it is 1 for all."""
    weight, steps = record.get("weight"), record.get("step_weights") or []
    if steps and len(steps) != len(record["messages"]):
        raise UserError(
            f"row {record['name']} has {len(steps)} step weights for {len(record['messages'])} messages", "one for every message"
        )
    made = [(1.0 if weight is None else weight) * step for step in steps or [1.0] * len(record["messages"])]
    if not all(0.0 <= one < math.inf for one in made):
        raise UserError(
            f"row {record['name']} has a weight of {next(one for one in made if not 0.0 <= one < math.inf):g}", "weights of 0 and more"
        )
    return [] if all(one == 1.0 for one in made) else made


def _weighted(tokenizer: Any, record: Record) -> list[dict[str, Any]]:
    """Ready sequences, as `masks.tokenised` makes them, with the weight of every token."""
    by_message = _weights(record) or [1.0] * len(record["messages"])
    rows = []
    for segment in segments(tokenizer, record["messages"], record["tools"], record["trained"], recorded_in(record)):
        ids, places = spliced(tokenizer, segment)
        labels, weights = [IGNORED] * len(ids), [0.0] * len(ids)
        for (start, end), message in zip(places, segment.messages, strict=True):
            labels[start:end], weights[start:end] = ids[start:end], [by_message[message]] * (end - start)
        rows.append({"input_ids": ids, "labels": labels, "weights": weights})
    return rows


def _size(row: Mapping[str, Any]) -> Sizes:
    return Sizes(len(row["input_ids"]), sum(label != IGNORED for label in row["labels"]))


def _trainer(job: Job) -> Any:
    from trl import SFTConfig, SFTTrainer

    base = by_length(SFTTrainer, [len(row["input_ids"]) for row in job.rows], job.recipe.batch_size, ready=False, columns=["weights"])

    class Weighted(base):  # type: ignore[misc, valid-type]
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            weights = inputs.pop("weights", None)
            return super().compute_loss(model if weights is None else _weighing(model, weights), inputs, *rest, **named)

    model = load_model(job.run.model_dir, "CAUSAL_LM")
    check_vocabulary(model, largest_id([row["input_ids"] for row in job.rows]), job.run.model_dir)
    trainer = Weighted(
        model=model,
        args=SFTConfig(**trl_options(job)),
        train_dataset=job.dataset(),
        data_collator=_collator(job.tokenizer),
        processing_class=job.tokenizer,
        peft_config=adapters("CAUSAL_LM") if job.recipe.lora else None,
        callbacks=list(job.callbacks),
    )
    trainer.narrow_head()
    return trainer


def _weighing(model: Any, weights: Any) -> Any:
    """The model with the log-probability of every token times its weight: TRL's loss is minus their sum over the number of tokens."""

    def forward(**inputs: Any) -> Any:
        output = model(**inputs)
        output.log_probs = output.log_probs * weights[:, 1:]
        return output

    return forward


def _collator(tokenizer: Any) -> Any:
    """Batches whose attention mask is all ones, which lets attention take its faster causal path.

    The result is the same: padding stands on the right, where no token of a causal model sees it, and carries no loss.
    """
    pad = pad_of(tokenizer)

    def collate(rows: Any) -> dict[str, Any]:
        import torch

        ids = padded([row["input_ids"] for row in rows], pad)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": padded([row["labels"] for row in rows], IGNORED)}
        if "weights" in rows[0]:
            batch["weights"] = padded([row["weights"] for row in rows], 0.0)
        return batch

    return collate
