"""Group relative policy optimisation in an environment: the model plays, the environment's reward says how well (arXiv:2402.03300)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError
from counterplay.finetune.kinds import LAYOUTS, LINEAGE
from counterplay.finetune.masks import render
from counterplay.finetune.trainers import adapters, load_model, load_tokenizer
from counterplay.finetune.training import processes
from counterplay.finetune.training.calls import read_calls
from counterplay.finetune.training.data import check_length, check_rates, records_of
from counterplay.finetune.training.fitting import Job, OnStep, Run, Sizes, TrainReport, train
from counterplay.finetune.training.recipe import Recipe


def train_grpo(
    model_dir: str | Path,
    dataset: str | Path,
    out_dir: str | Path,
    *,
    environment: Callable[[], Any] | None = None,
    rewards: Sequence[Callable[..., Any]] = (),
    split: str = "train",
    epochs: float = 1.0,
    steps: int | None = None,
    learning_rate: float = 1e-6,
    batch_size: int = 8,
    micro_batch: int | None = None,
    generations: int = 8,
    max_completion: int = 2048,
    max_length: int = 8192,
    temperature: float = 1.0,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Reinforcement learning on prompts: of `generations` lines played from each, those above the group's mean reward become likelier.

    `environment` makes what TRL's `environment_factory` makes: an object with `reset(**row)`, public typed methods that are its tools, and
    `get_reward()`. `rewards` are TRL's `reward_funcs`, called with completions and the row's columns; what they and the environment say is
    added up. `batch_size` counts lines, over all processes. A line has at most `max_completion` tokens, tool results among them. There is
    no reference model (its weight beta is 0). Raises UserError also where nothing gives a reward. The rest is as in `train_sft`.
    """
    check_rates(epochs=epochs, steps=steps, learning_rate=learning_rate, batch_size=batch_size, temperature=temperature)
    if generations < 2 or batch_size % generations:
        raise UserError(f"got {generations} generations for batches of {batch_size} lines", "at least 2, that divide the batch")
    if environment is None and not rewards:
        raise UserError("got neither an environment nor rewards", "what says how well a line went")
    recipe = Recipe(
        "grpo", epochs, steps, learning_rate, batch_size, max_length, lora, seed, micro_batch,
        generations=generations, max_completion=max_completion, temperature=temperature,
    )  # fmt: skip
    records = records_of(dataset, split, "grpo", ("prompt", "tools", "name"))
    tokenizer = load_tokenizer(Path(model_dir))
    rows = []
    for record in records:
        (text,) = render(tokenizer, [record["prompt"]], record["tools"], ask=True)
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        check_length(record["name"], length + max_completion, max_length)
        rows.append({**record, "tokens": length})
    run = Run(Path(model_dir), Path(out_dir), checkpoint_steps, resume, on_step)
    return train(
        recipe, run, rows, count=len(records), tokenizer=tokenizer, build=lambda job: _trainer(job, environment, rewards), size=_size
    )


def _size(row: Mapping[str, Any]) -> Sizes:
    return Sizes(row["tokens"], 0)


def _trainer(job: Job, environment: Callable[[], Any] | None, rewards: Sequence[Callable[..., Any]]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    class Quiet(GRPOTrainer):  # type: ignore[misc]
        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Checkpoints are for resuming; they are not published."""

    recipe = job.recipe
    config = GRPOConfig(
        **job.options,
        activation_checkpointing=not job.options["use_cpu"],
        num_generations=recipe.generations,
        max_completion_length=recipe.max_completion,
        temperature=recipe.temperature,
        steps_per_generation=processes.rows_each(recipe.batch_size, recipe.micro_batch)[1],
    )
    if environment is not None and not read_calls(job.tokenizer):
        got = f"got a chat template in {job.run.model_dir} whose tool calls can't be read back"
        raise UserError(got, "one that TRL knows, or whose calls are written as in one of those", "Set the tokenizer's response_template.")
    model = load_model(job.run.model_dir, "CAUSAL_LM")
    try:
        return Quiet(
            model=model,
            reward_funcs=list(rewards),
            environment_factory=environment,
            args=config,
            train_dataset=job.dataset(features=_features(job.rows[0])),
            processing_class=job.tokenizer,
            peft_config=adapters("CAUSAL_LM") if recipe.lora else None,
            callbacks=list(job.callbacks),
        )
    except (ValueError, TypeError, ImportError) as error:
        do = "Give an environment with reset, typed tool methods and get_reward, and a tokenizer whose template TRL can parse calls of."
        raise UserError(f"TRL refuses this training: {error}", "an environment and a chat template that go together", do) from error


def _features(row: Mapping[str, Any]) -> Any:
    """The types that the dataset's files declare, so that messages keep their form on the way through Arrow."""
    from datasets import Features, Json, List, Value

    types = {**LAYOUTS["grpo"].values, **LINEAGE, "tokens": "int64"}
    features: dict[str, Any] = {}
    for column in row:
        kind = types.get(column)
        features[column] = List(Json()) if kind is None else List(Value(kind[0])) if isinstance(kind, list) else Value(kind)
    return Features(features)
