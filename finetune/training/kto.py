"""Kahneman-Tversky optimisation: single answers that are desirable or not, no pairs needed (arXiv:2402.01306).

The loss compares every answer with how far the policy has moved on the whole (KL), which is estimated from answers to other prompts.
Whose answer each prompt is given for that is fixed before training, within its batch, so that the reference can be asked beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError
from counterplay.finetune.batches import FixedBatches, alike
from counterplay.finetune.kto import weights
from counterplay.finetune.trainers import adapters, check_vocabulary, largest_id, load_model, load_tokenizer
from counterplay.finetune.training import processes
from counterplay.finetune.training.data import check_length, check_rates, records_of
from counterplay.finetune.training.fitting import Job, OnStep, Run, Sizes, TrainReport, by_length, train, trl_options
from counterplay.finetune.training.recipe import Recipe
from counterplay.finetune.training.sides import joined, pad_of, pair_ids

_EXTRA = ("completion_mask", "KL_completion_mask")


def train_kto(
    model_dir: str | Path,
    dataset: str | Path,
    out_dir: str | Path,
    *,
    split: str = "train",
    epochs: float = 1.0,
    steps: int | None = None,
    learning_rate: float = 1e-6,
    batch_size: int = 8,
    micro_batch: int | None = None,
    max_length: int = 8192,
    beta: float = 0.1,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Kahneman-Tversky optimisation against the model in `model_dir` as reference, whose log-probabilities are computed once.

    Batches hold both labels in the proportion of the dataset, and rows of like length. The rarer label's loss is raised until both weigh
    alike (the paper's equation 8). Of completions of several messages only what a model sampled counts. The KL term is of a forward pass,
    so `micro_batch` and the number of processes change the result a little. Raises UserError also for rows of one label alone, and for
    fewer than two rows a forward pass, whose KL would be a single answer's. The rest is as in `train_sft`.
    """
    check_rates(epochs=epochs, steps=steps, learning_rate=learning_rate, batch_size=batch_size, beta=beta)
    records = records_of(dataset, split, "kto", ("prompt", "completion", "label", "tools", "name"))
    each, _ = processes.rows_each(batch_size, micro_batch)
    if each < 2:
        raise UserError(f"got {each} row a forward pass of a process", "at least 2, or the KL term is a single answer's")
    desirable = sum(record["label"] for record in records)
    if desirable in (0, len(records)):
        raise UserError(f"{dataset} has {desirable} desirable rows of {len(records)}", "rows of both labels")
    tokenizer = load_tokenizer(Path(model_dir))
    rows = []
    for record in records:
        rows.append(_row(tokenizer, record))
        check_length(record["name"], _size(rows[-1]).tokens, max_length)
    order = alike([_length(row) for row in rows], [row["label"] for row in rows])
    good, bad = weights(desirable, len(rows) - desirable)
    recipe = Recipe(
        "kto", epochs, steps, learning_rate, batch_size, max_length, lora, seed, micro_batch, beta,
        desirable_weight=good, undesirable_weight=bad,
    )  # fmt: skip
    run = Run(Path(model_dir), Path(out_dir), checkpoint_steps, resume, on_step)
    mismatched = _with_others([rows[i] for i in order])
    return train(recipe, run, mismatched, count=len(records), tokenizer=tokenizer, build=_trainer, size=_size)


def _row(tokenizer: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    sides: dict[str, Any] = dict.fromkeys(("chosen", "rejected"), record["completion"])
    flags = {f"{side}_trained": record.get("completion_trained") for side in sides}
    pair = pair_ids(tokenizer, {**record, **sides, **flags})
    return {
        "prompt_ids": pair["prompt_ids"],
        "completion_ids": pair["chosen_ids"],
        "completion_mask": pair["chosen_mask"],
        "label": bool(record["label"]),
    }


def _with_others(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with the nearest answer before it that is to another prompt, the first going on from the last; else with that before it."""
    count, others = len(rows), dict[int, int]()
    for place in range(2 * count):  # the second time around, what stands before the first row is known
        here, before = place % count, (place - 1) % count
        if rows[before]["prompt_ids"] != rows[here]["prompt_ids"]:
            others[here] = before
        elif before in others:
            others[here] = others[before]
    companions = [rows[others.get(index, index - 1)] for index in range(count)]
    return [
        {**row, "KL_completion_ids": other["completion_ids"], "KL_completion_mask": other["completion_mask"]}
        for row, other in zip(rows, companions, strict=True)
    ]


def _length(row: Mapping[str, Any]) -> int:
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def _size(row: Mapping[str, Any]) -> Sizes:
    return Sizes(_length(row), sum(row["completion_mask"]))


def _trainer(job: Job) -> Any:
    from trl import KTOConfig, KTOTrainer

    recipe = job.recipe
    base = by_length(KTOTrainer, [_length(row) for row in job.rows], recipe.batch_size, ready=True, columns=_EXTRA)
    each, _ = processes.rows_each(recipe.batch_size, recipe.micro_batch)

    class Masked(base):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *_: Any) -> FixedBatches:
            return FixedBatches(len(job.rows), each, self.args.seed)

    model = load_model(job.run.model_dir, "CAUSAL_LM")
    largest = largest_id([row[name] for row in job.rows for name in ("prompt_ids", "completion_ids")])
    check_vocabulary(model, largest, job.run.model_dir)
    return Masked(
        model=model,
        args=KTOConfig(
            **trl_options(job),
            beta=recipe.beta,
            desirable_weight=recipe.desirable_weight,
            undesirable_weight=recipe.undesirable_weight,
            precompute_ref_log_probs=True,
        ),
        train_dataset=job.dataset(on_disk=True),
        data_collator=_collator(job.tokenizer),
        processing_class=job.tokenizer,
        peft_config=adapters("CAUSAL_LM") if recipe.lora else None,
        callbacks=list(job.callbacks),
    )


def _collator(tokenizer: Any) -> Any:
    pad = pad_of(tokenizer)

    def collate(rows: Any) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = {"label": torch.tensor([row["label"] for row in rows])}
        prompts = [row["prompt_ids"] for row in rows]
        for prefix in ("", "KL_"):
            made = joined(prompts, [row[f"{prefix}completion_ids"] for row in rows], [row[f"{prefix}completion_mask"] for row in rows], pad)
            batch.update({f"{prefix}{name}": tensor for name, tensor in made.items()})
        for name in ("ref_logps", "ref_KL_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch

    return collate
