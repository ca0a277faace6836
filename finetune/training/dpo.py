"""Direct preference optimisation on pairs of single actions or of whole ways on, where tool results carry no loss.

TRL's DPOTrainer counts every token of a completion. Here the rows bring masks, and the collator puts them in the place where the
trainer looks for the completion, so that its log-probabilities, its reference's and its metrics are of sampled tokens alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from counterplay.core.errors import UserError
from counterplay.finetune.noise import noise_of
from counterplay.finetune.shared_prompt import share_prompts
from counterplay.finetune.trainers import adapters, check_vocabulary, largest_id, load_model, load_tokenizer
from counterplay.finetune.training.data import check_length, check_rates, records_of
from counterplay.finetune.training.fitting import Job, OnStep, Run, Sizes, TrainReport, by_length, train, trl_options
from counterplay.finetune.training.recipe import PreferenceLoss, Recipe
from counterplay.finetune.training.sides import joined, pad_of, pair_ids

_COLUMNS = ("prompt", "chosen", "rejected", "tools", "probability", "name")
_SMOOTHED = ("conservative", "robust")
_HALF = 0.5
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


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
    micro_batch: int | None = None,
    max_length: int = 8192,
    beta: float = 0.1,
    loss: PreferenceLoss = "robust",
    label_smoothing: float | None = None,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Direct preference optimisation (arXiv:2305.18290) against the model in `model_dir` as reference.

    `label_smoothing` in [0, 0.5) is the assumed share e of wrong labels; None takes the estimate of `finetune.noise`. Two losses use it,
    and are DPO's own at 0: `conservative` (cross-entropy against smoothed labels, bounded: it stops at a margin of log((1 - e) / e) / beta)
    and `robust` (unbiased, arXiv:2403.00409, and not bounded below). `sigmoid` (DPO's own), `hinge`, `ipo` (arXiv:2310.12036) and
    `sigmoid_norm` (by length) take none. The reference's log-probabilities are computed once, before training: there is no second
    model in memory.
    Of pairs of several messages a side, only what a model sampled counts, by the rows' masks; a template that rewrites earlier messages is
    refused there by name. The rest is as in `train_sft`.
    """
    check_rates(epochs=epochs, steps=steps, learning_rate=learning_rate, batch_size=batch_size, beta=beta)
    records = records_of(dataset, split, "dpo", _COLUMNS)
    smoothing = _smoothing(loss, label_smoothing, records, seed)
    recipe = Recipe("dpo", epochs, steps, learning_rate, batch_size, max_length, lora, seed, micro_batch, beta, smoothing, loss)
    tokenizer = load_tokenizer(Path(model_dir))
    rows = [pair_ids(tokenizer, record) for record in records]
    for record, row in zip(records, rows, strict=True):
        check_length(record["name"], _size(row).tokens, max_length)
    rows.sort(key=_length, reverse=True)
    run = Run(Path(model_dir), Path(out_dir), checkpoint_steps, resume, on_step)
    return train(recipe, run, rows, count=len(records), tokenizer=tokenizer, build=_trainer, size=_size)


def _smoothing(loss: str, given: float | None, records: Sequence[Mapping[str, Any]], seed: int) -> float:
    if loss not in get_args(PreferenceLoss):
        raise UserError(f"got loss {loss!r}", f"one of {', '.join(get_args(PreferenceLoss))}")
    if given is not None and not 0.0 <= given < _HALF:
        raise UserError(f"got label smoothing {given:g}", "a share of wrong pairs from 0 up to, not including, 0.5")
    if loss not in _SMOOTHED:
        if given:
            raise UserError(f"got label smoothing {given:g} with the loss {loss}, which has none", f"one of {', '.join(_SMOOTHED)}")
        return 0.0
    return min(0.49, noise_of(records, seed=seed).share) if given is None else given


def _loss_options(recipe: Recipe) -> dict[str, Any]:
    """TRL 1.16 has no conservative loss (its sigmoid ignores the smoothing), but its robust one is that at -e / (1 - 2 e)."""
    share = recipe.label_smoothing or 0.0
    if recipe.loss == "conservative":
        return {"loss_type": ["robust"], "label_smoothing": -share / (1 - 2 * share)}
    return {"loss_type": [recipe.loss], "label_smoothing": share}


def _length(row: Mapping[str, Any]) -> int:
    return sum(len(row[name]) for name in _IDS)


def _size(row: Mapping[str, Any]) -> Sizes:
    prompt, chosen, rejected = (len(row[name]) for name in _IDS)
    return Sizes(prompt + max(chosen, rejected), sum(row["chosen_mask"]) + sum(row["rejected_mask"]))


def _trainer(job: Job) -> Any:
    from trl import DPOConfig, DPOTrainer

    lengths, masks = [_length(row) for row in job.rows], ["chosen_mask", "rejected_mask"]
    masked = by_length(DPOTrainer, lengths, job.recipe.batch_size, ready=True, columns=masks)
    model = load_model(job.run.model_dir, "CAUSAL_LM")
    check_vocabulary(model, largest_id([row[name] for row in job.rows for name in _IDS]), job.run.model_dir)
    share_prompts(model)
    recipe = job.recipe
    return masked(
        model=model,
        args=DPOConfig(
            **trl_options(job),
            beta=recipe.beta,
            **_loss_options(recipe),
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

        sides = [(row, side) for side in ("chosen", "rejected") for row in rows]
        completions, masks = ([row[f"{side}_{part}"] for row, side in sides] for part in ("ids", "mask"))
        batch = joined([row["prompt_ids"] for row, _ in sides], completions, masks, pad)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch

    return collate
