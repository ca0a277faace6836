"""transformers' Trainer with the losses of reward models. Padding stands on the right, where no token of a causal model sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from counterplay.core.errors import UserError
from counterplay.finetune.batches import LengthBatches

if TYPE_CHECKING:
    from torch import Tensor

RewardKind: TypeAlias = Literal["prm", "ppm", "orm", "implicit"]
Note: TypeAlias = Callable[[int, int, float], None]
"""Called after every optimiser step with its number, the number of all and the loss."""


@dataclass(frozen=True)
class RewardRecipe:
    """Everything that decides the result of a training besides model and data. `beta` is of the implicit model alone."""

    kind: RewardKind
    epochs: float
    learning_rate: float
    batch_size: int
    lora: bool
    seed: int
    beta: float | None = None


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
    width = max(map(len, rows))
    points: list[tuple[int, int, int]] = []
    targets: list[float] = []
    first = 0
    for number, example in enumerate(given):
        points += [(first + row, at, number) for row, at, _ in example.points]
        targets += [target for _, _, target in example.points]
        first += len(example.sequences)
    row, position, group = torch.tensor(points).T.contiguous()
    return {
        "input_ids": torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in rows]),
        "row": row,
        "position": position,
        "group": group,
        "target": torch.tensor(targets),
        "reference": torch.tensor([example.reference for example in given]),
    }


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


def fit(
    recipe: RewardRecipe, model: Any, examples: Sequence[Example], *, tokenizer: Any, out: Path, note: Note | None
) -> tuple[Any, int, float]:
    """Train; the model (adapters merged), the number of steps and the mean loss over the last tenth of them."""
    from transformers import PrinterCallback, Trainer, TrainerCallback

    losses: list[float] = []

    class Reward(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # noqa: ARG002
            if recipe.kind == "implicit":
                return implicit_loss(model, inputs, recipe.beta or 1.0)
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
            return pairwise_loss(logits, inputs) if recipe.kind == "ppm" else value_loss(logits, inputs)

        def _get_train_sampler(self, *_: Any) -> LengthBatches:
            return LengthBatches([example.length for example in examples], self.args.train_batch_size, self.args.seed)

    class Notes(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))
                if note is not None:
                    note(state.global_step, state.max_steps, losses[-1])

    if recipe.lora:
        model = _adapted(model, recipe.kind)
    trainer = Reward(
        model=model,
        args=_arguments(recipe, out),
        train_dataset=[{"example": example} for example in examples],
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id or 0),
        callbacks=[Notes()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if not losses:
        raise UserError("got a training without a step", "more rows or epochs")
    tail = losses[-max(1, len(losses) // 10) :]
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained = trained.merge_and_unload() if recipe.lora else trained
    return trained, int(trainer.state.global_step), sum(tail) / len(tail)


def _arguments(recipe: RewardRecipe, out: Path) -> Any:
    import torch
    from transformers import TrainingArguments

    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(out),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # as a share of all steps
        per_device_train_batch_size=recipe.batch_size,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        save_strategy="no",
        logging_steps=1,
        seed=recipe.seed,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
    )


def _adapted(model: Any, kind: RewardKind) -> Any:
    """Low-rank adapters (rank 16) on all linear layers; a reward head is trained whole."""
    from peft import LoraConfig, get_peft_model

    if kind == "implicit":
        options: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    else:
        options = {"task_type": "TOKEN_CLS", "exclude_modules": ["score", "classifier"]}
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", **options))
