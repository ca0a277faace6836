"""transformers' Trainer with the losses of reward models. Padding stands on the right, where no token of a causal model sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterplay.finetune.batches import LengthBatches
from counterplay.finetune.shared_prompt import bias, can_share
from counterplay.finetune.trainers import Task, adapters, check_vocabulary, largest_id, load_model
from counterplay.finetune.training.fitting import Job, Sizes
from counterplay.finetune.training.recipe import Recipe
from counterplay.finetune.training.siblings import rows_of
from counterplay.finetune.training.sides import pad_of, padded
from counterplay.verifiers.learned.prm import SETTINGS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """What a loss is about: one sequence, or the siblings of one pairwise comparison.

    `points` are (sequence, position, target): the value at a step's last token (prm, orm), 1.0 or 0.0 for a sibling that is better or worse
    (ppm), the outcome at every token the model wrote (implicit). `reference` is the reference's summed log-probability (implicit).
    """

    sequences: tuple[tuple[int, ...], ...]
    points: tuple[tuple[int, int, float], ...]
    reference: float = 0.0

    @property
    def length(self) -> int:
        return sum(map(len, self.sequences))


def collate(examples: Sequence[Mapping[str, Example]], pad: int) -> dict[str, Any]:
    """`input_ids` (sequences, longest), and for every point its row, position, target and example."""
    import torch

    given = [example["example"] for example in examples]
    rows = [sequence for example in given for sequence in example.sequences]
    points: list[tuple[int, int, int]] = []
    targets: list[float] = []
    first = 0
    for number, example in enumerate(given):
        points += [(first + row, at, number) for row, at, _ in example.points]
        targets += [target for _, _, target in example.points]
        first += len(example.sequences)
    row, position, group = torch.tensor(points).T.contiguous()
    return {
        "input_ids": padded(rows, pad),
        "row": row,
        "position": position,
        "group": group,
        "target": torch.tensor(targets),
        "reference": torch.tensor([example.reference for example in given]),
    }


def collate_siblings(examples: Sequence[Mapping[str, Example]], pad: int) -> dict[str, Any]:
    """As `collate`, with the sequences of each example in one row, in which what they share is there once."""
    import torch

    batch = collate(examples, pad)
    made, places = rows_of([example["example"].sequences for example in examples], pad)
    where = [
        (number, places[number][sequence][position])
        for number, example in enumerate(examples)
        for sequence, position, _ in example["example"].points
    ]
    row, position = torch.tensor(where).T.contiguous()
    return {**batch, **made, "row": row, "position": position}


def value_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy with soft targets, the mean over labelled steps: -v log s(r) - (1 - v) log(1 - s(r))."""
    from torch.nn import functional

    scores = logits[batch["row"], batch["position"], 0].float()
    return functional.binary_cross_entropy_with_logits(scores, batch["target"])


def pairwise_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """rStar-Math's: -sum log s(r+ - r-) / (n+ n-) over the pairs of each node, the mean over nodes."""
    import torch
    from torch.nn import functional

    scores = logits[batch["row"], batch["position"], 0].float()
    losses = []
    for group in range(len(batch["reference"])):
        mine, better = scores[batch["group"] == group], batch["target"][batch["group"] == group] > 0.5
        margins = mine[better][:, None] - mine[~better][None]
        losses.append(-functional.logsigmoid(margins).mean())
    return torch.stack(losses).mean()


def written_logprobs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The summed log-probability of the tokens at the points of each example, (examples,). The head is applied there alone."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = getattr(inner, inner.base_model_prefix)(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
    logits = inner.get_output_embeddings()(hidden[batch["row"], batch["position"] - 1]).float()
    wanted = batch["input_ids"][batch["row"], batch["position"]]
    found: Tensor = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    return found.new_zeros(len(batch["reference"])).index_add(0, batch["group"], found)


def implicit_loss(model: Any, batch: Mapping[str, Tensor], beta: float) -> Tensor:
    """Cross-entropy of the outcome l with s(beta S), S the log-ratio of model and reference summed over what the model wrote."""
    from torch.nn import functional

    margin = beta * (written_logprobs(model, batch) - batch["reference"])
    outcome = batch["target"].new_zeros(len(margin)).index_copy(0, batch["group"], batch["target"])
    return functional.binary_cross_entropy_with_logits(margin, outcome)


def build(job: Job) -> Any:
    """The trainer of a job whose rows are examples."""
    from transformers import Trainer, TrainingArguments, set_seed

    recipe, pad = job.recipe, pad_of(job.tokenizer)
    set_seed(recipe.seed)  # before a head is made
    task: Task = "CAUSAL_LM" if recipe.kind == "implicit" else "TOKEN_CLS"
    model = load_model(job.run.model_dir, task)
    check_vocabulary(model, largest_id([ids for row in job.rows for ids in row["example"].sequences]), job.run.model_dir)
    rows = list(job.rows) if recipe.kind != "implicit" else [{"example": one} for one in _referenced(model, job, pad)]

    class Reward(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:  # noqa: ARG002
            mean = _mean_loss(recipe, model, inputs)
            return mean * _items(recipe.kind, inputs) / num_items_in_batch * self.accelerator.num_processes

        def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
            import torch

            mine = torch.tensor(sum(_items(recipe.kind, batch) for batch in batch_samples), device=device)
            return self.accelerator.gather(mine).sum()

        def _get_train_sampler(self, *_: Any) -> LengthBatches:
            return LengthBatches([row["example"].length for row in rows], recipe.batch_size, self.args.seed)

    gather = collate_siblings if recipe.kind == "ppm" and can_share(model) else collate
    if recipe.lora:
        from peft import get_peft_model

        model = get_peft_model(model, adapters(task))
    trainer = Reward(
        model=model,
        args=TrainingArguments(**job.options, remove_unused_columns=False),
        train_dataset=rows,
        data_collator=lambda rows: gather(rows, pad),
        callbacks=list(job.callbacks),
    )
    trainer.model_accepts_loss_kwargs = True  # the loss is a share of the whole step's, over passes and processes
    return trainer


def _items(kind: str, batch: Mapping[str, Tensor]) -> int:
    """What the loss is a mean over: labelled steps (prm, orm), or examples (ppm, implicit)."""
    return len(batch["target"] if kind in {"prm", "orm"} else batch["reference"])


def _mean_loss(recipe: Recipe, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    if recipe.kind == "implicit":
        return implicit_loss(model, batch, recipe.beta or 1.0)
    shared = {}
    if "visible" in batch:
        shared = {"position_ids": batch["position_ids"], "attention_mask": bias(batch["visible"], model.dtype)}
    logits = model(input_ids=batch["input_ids"], use_cache=False, **shared).logits
    return pairwise_loss(logits, batch) if recipe.kind == "ppm" else value_loss(logits, batch)


def _referenced(model: Any, job: Job, pad: int) -> Iterator[Example]:
    """The examples with the log-probability that the model gives them before it is trained."""
    import torch

    model.eval()
    for at in range(0, len(job.rows), job.recipe.batch_size):
        part = job.rows[at : at + job.recipe.batch_size]
        with torch.no_grad():
            found = written_logprobs(model, collate(part, pad)).tolist()
        yield from (Example(row["example"].sequences, row["example"].points, value) for row, value in zip(part, found, strict=True))


def size(row: Mapping[str, Example]) -> Sizes:
    return Sizes(row["example"].length, len(row["example"].points))


def finish(model: Any, kind: str) -> None:
    """Say in `config.json` what was trained, which is what `prm:` reads."""
    if kind != "implicit":
        setattr(model.config, SETTINGS, {"kind": kind})
