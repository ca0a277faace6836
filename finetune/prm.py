"""Training learned verifiers: process (value or pairwise), outcome and implicit reward models, from labelled steps to a model folder.

What is written is an ordinary transformers folder, which `prm:FOLDER` (or `implicit-prm:FOLDER,REFERENCE`) names as a verifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolSpec, Trajectory, steps_of
from counterplay.finetune.labels.pairwise import PairwiseNode
from counterplay.finetune.labels.rows import StepwiseRow, token_rows
from counterplay.finetune.labels.steps import StepLabel
from counterplay.finetune.prm_trainer import Example, build, finish, size
from counterplay.finetune.records import Record
from counterplay.finetune.trainers import load_tokenizer
from counterplay.finetune.training.data import check_rates, messages_of, records_of
from counterplay.finetune.training.fitting import Run, TrainStep
from counterplay.finetune.training.fitting import train as fit
from counterplay.finetune.training.recipe import Recipe
from counterplay.verifiers.learned.rendering import StepRenderer

Note: TypeAlias = Callable[[int, int, float], None]
"""Called after every optimiser step with its number, the number of all and the loss."""


@dataclass(frozen=True)
class RewardReport:
    """What was trained. `examples` are rows (prm), nodes (ppm) or finished lines (orm, implicit); `labels` the positions with a target.

    `loss` is the mean over the last tenth of the steps, `spec` what loads the result as a verifier, `plot` the metrics drawn (None where
    matplotlib is not installed).
    """

    out_dir: Path
    spec: str
    recipe: Recipe
    examples: int
    labels: int
    tokens: int
    steps: int
    loss: float
    seconds: float
    plot: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "out_dir": str(self.out_dir), "plot": None if self.plot is None else self.plot.name}


def train_prm(
    model_dir: str | Path,
    rows: Iterable[StepwiseRow],
    out_dir: str | Path,
    *,
    epochs: float = 2.0,
    learning_rate: float = 2e-5,
    batch_size: int = 8,
    max_length: int = 8192,
    micro_batch: int | None = None,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    note: Note | None = None,
) -> RewardReport:
    """A process reward model: one number at the last token of every labelled step, trained by cross-entropy with soft targets.

    `model_dir` holds a causal model, whose body is taken over, or a reward model to go on from. Values must lie in [0, 1]. Nothing is
    truncated: raises UserError for rows over `max_length` tokens, for values outside, without rows, and for an occupied `out_dir`.
    """
    recipe = Recipe("prm", epochs, None, learning_rate, batch_size, max_length, lora, seed, micro_batch)
    run = _run(model_dir, out_dir, checkpoint_steps, resume, note)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = [Example((row.input_ids,), tuple((0, at, value) for at, value in row.targets)) for row in token_rows(rows, renderer)]
    return _train(recipe, run, examples, renderer)


def train_ppm(
    model_dir: str | Path,
    nodes: Iterable[PairwiseNode],
    out_dir: str | Path,
    *,
    epochs: float = 2.0,
    learning_rate: float = 2e-5,
    batch_size: int = 4,
    max_length: int = 8192,
    micro_batch: int | None = None,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    note: Note | None = None,
) -> RewardReport:
    """A process preference model (rStar-Math): siblings are compared, -log s(r+ - r-) / (n+ n-). The rest is as in `train_prm`."""
    recipe = Recipe("ppm", epochs, None, learning_rate, batch_size, max_length, lora, seed, micro_batch)
    run = _run(model_dir, out_dir, checkpoint_steps, resume, note)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = []
    for node in nodes:
        sides = [(state, 1.0) for state in node.better] + [(state, 0.0) for state in node.worse]
        read = [(*_read(state, renderer), target) for state, target in sides]
        examples.append(Example(tuple(ids for ids, _, _ in read), tuple((at, end, target) for at, (_, end, target) in enumerate(read))))
    return _train(recipe, run, examples, renderer)


def train_orm(
    model_dir: str | Path,
    outcomes: Iterable[tuple[Trajectory, float]],
    out_dir: str | Path,
    *,
    epochs: float = 2.0,
    learning_rate: float = 2e-5,
    batch_size: int = 8,
    max_length: int = 8192,
    micro_batch: int | None = None,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    note: Note | None = None,
) -> RewardReport:
    """An outcome reward model: finished trajectories and how they ended, in [0, 1], read at the last token. Else as `train_prm`."""
    recipe = Recipe("orm", epochs, None, learning_rate, batch_size, max_length, lora, seed, micro_batch)
    run = _run(model_dir, out_dir, checkpoint_steps, resume, note)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = []
    for trajectory, value in outcomes:
        ids, end = _read(trajectory, renderer)
        examples.append(Example((ids,), ((0, end, value),)))
    return _train(recipe, run, examples, renderer)


def train_implicit(
    model_dir: str | Path,
    outcomes: Iterable[tuple[Trajectory, float]],
    out_dir: str | Path,
    *,
    beta: float = 0.05,
    epochs: float = 2.0,
    learning_rate: float = 1e-5,
    batch_size: int = 8,
    max_length: int = 8192,
    micro_batch: int | None = None,
    lora: bool = False,
    seed: int = 0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    note: Note | None = None,
) -> RewardReport:
    """The policy of an implicit PRM, from outcomes alone: -l log s(beta S) - (1 - l) log(1 - s(beta S)), S = sum log pi / pi_ref.

    S sums over what was sampled; `model_dir` holds the reference. Load the pair with the report's `spec`, and with this `beta` where it
    is not the default. The rest is as in `train_prm`.
    """
    recipe = Recipe("implicit", epochs, None, learning_rate, batch_size, max_length, lora, seed, micro_batch, beta)
    run = _run(model_dir, out_dir, checkpoint_steps, resume, note)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = [_written(trajectory, value, renderer) for trajectory, value in outcomes]
    return _train(recipe, run, [one for one in examples if one.points], renderer)


def train(
    kind: str,
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    rows: Callable[[], Iterable[StepwiseRow]],
    nodes: Callable[[], Iterable[PairwiseNode]],
    ends: Callable[[], Iterable[tuple[Trajectory, float]]],
    **options: Any,
) -> RewardReport:
    """Whichever of the four `kind` names, on what it is trained on. Raises UserError for another."""
    if kind == "prm":
        return train_prm(model_dir, rows(), out_dir, **options)
    if kind == "ppm":
        return train_ppm(model_dir, nodes(), out_dir, **options)
    if kind == "orm":
        return train_orm(model_dir, ends(), out_dir, **options)
    if kind == "implicit":
        return train_implicit(model_dir, ends(), out_dir, **options)
    raise UserError(f"got kind {kind!r}", "prm, ppm, orm or implicit")


def _read(state: Trajectory, renderer: StepRenderer) -> tuple[tuple[int, ...], int]:
    ids = renderer.whole(state)
    end = renderer.last(ids)
    return tuple(ids[: end + 1]), end


def _written(trajectory: Trajectory, value: float, renderer: StepRenderer) -> Example:
    """What the model wrote, and how it ended. Raises UserError where the template rewrites earlier messages."""
    ids = list(renderer.prompt(trajectory))
    points: list[tuple[int, int, float]] = []
    for step in trajectory.steps:
        tokens = renderer.step(step)
        if step.sampled:
            points += [(0, len(ids) + at, value) for at in range(*tokens.said)]
        ids += tokens.ids
    if not renderer.check(trajectory, ids, trajectory.steps):
        raise UserError("got a chat template that rewrites earlier messages", "one that only appends", "Train a prm in place of it.")
    return Example((tuple(ids[: points[-1][1] + 1] if points else ids),), tuple(points))


def _run(model_dir: str | Path, out: str | Path, checkpoint_steps: int | None, resume: bool, note: Note | None) -> Run:
    def on_step(step: TrainStep) -> None:
        if note is not None:
            note(step.step, step.total, step.loss)

    return Run(Path(model_dir), Path(out), checkpoint_steps, resume, on_step)


def _train(recipe: Recipe, run: Run, examples: Sequence[Example], renderer: StepRenderer) -> RewardReport:
    _check(recipe, examples)
    made = fit(
        recipe,
        run,
        [{"example": example} for example in examples],
        count=len(examples),
        tokenizer=renderer.tokenizer,
        build=build,
        size=size,
        finish=lambda model: finish(model, recipe.kind),
    )
    return RewardReport(
        out_dir=run.out,
        spec=f"implicit-prm:{run.out},{run.model_dir}" if recipe.kind == "implicit" else f"prm:{run.out}",
        recipe=recipe,
        examples=len(examples),
        labels=made.trained_tokens,
        tokens=made.tokens,
        steps=made.steps,
        loss=made.loss,
        seconds=made.seconds,
        plot=made.plot,
    )


def _check(recipe: Recipe, examples: Sequence[Example]) -> None:
    check_rates(epochs=recipe.epochs, learning_rate=recipe.learning_rate, batch_size=recipe.batch_size)
    if not examples:
        raise UserError(f"no {recipe.kind} example to train on", "at least one labelled step")
    longest = max(len(ids) for example in examples for ids in example.sequences)
    if longest > recipe.max_length:
        do = "Raise max_length, or leave it out."
        raise UserError(f"the longest row has {longest} tokens", f"at most {recipe.max_length}; nothing is truncated", do)
    outside = next((target for example in examples for _, _, target in example.points if not 0.0 <= target <= 1.0), None)
    if outside is not None:
        do = "Map advantages first, such as (1 + A) / 2."
        raise UserError(f"got a label of {outside:g}", "values in [0, 1]", do)


def dataset_rows(dataset: str | Path, *, split: str = "train") -> list[StepwiseRow]:
    """The labelled steps of a written dataset of kind prm, for `train_prm`. Raises UserError for rows of another kind, or none."""
    return [_stepwise(record) for record in records_of(dataset, split, "prm", ("prompt", "completions", "labels", "tools", "name"))]


def _stepwise(record: Record) -> StepwiseRow:
    """The row's line, and each label at the step that its completion ends with."""
    lengths = [len(completion) for completion in record["completions"]]
    if len(lengths) != len(record["labels"]):
        raise UserError(f"row {record['name']} has {len(record['labels'])} labels for {len(lengths)} steps", "one for every step")
    written = [*record["prompt"], *(message for completion in record["completions"] for message in completion)]
    prompt, steps = steps_of(messages_of(written))
    trajectory = Trajectory(tuple(ToolSpec.from_openai(tool) for tool in record["tools"] or ()), prompt, steps)
    ends = {count: step for step, count in enumerate(accumulate((len(step.messages) for step in steps), initial=len(prompt)), -1)}
    labels = []
    for count, value in zip(accumulate(lengths, initial=len(record["prompt"])), (None, *record["labels"]), strict=True):
        if value is not None and count not in ends:
            raise UserError(f"row {record['name']} has a labelled step that ends within one", "steps that begin with what the agent said")
        if value is not None:
            labels.append(StepLabel("", ends[count], value, value, value, 0, "mc_soft"))
    return StepwiseRow(trajectory, tuple(labels))
