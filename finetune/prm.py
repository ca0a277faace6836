"""Training learned verifiers: process (value or pairwise), outcome and implicit reward models, from labelled steps to a model folder.

What is written is an ordinary transformers folder, which `prm:FOLDER` (or `implicit-prm:FOLDER,REFERENCE`) names as a verifier.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from counterplay.core.errors import UserError
from counterplay.core.nouns import Trajectory
from counterplay.finetune.labels.pairwise import PairwiseNode
from counterplay.finetune.labels.rows import StepwiseRow, token_rows
from counterplay.finetune.prm_trainer import Example, Note, RewardKind, RewardRecipe, collate, fit, written_logprobs
from counterplay.finetune.trainers import load_tokenizer, quiet
from counterplay.verifiers.learned.prm import SETTINGS
from counterplay.verifiers.learned.rendering import StepRenderer


@dataclass(frozen=True)
class RewardReport:
    """What was trained. `examples` are rows (prm), nodes (ppm) or finished lines (orm, implicit); `labels` the positions with a target.

    `loss` is the mean over the last tenth of the steps, `spec` what loads the result as a verifier.
    """

    out_dir: Path
    spec: str
    recipe: RewardRecipe
    examples: int
    labels: int
    tokens: int
    steps: int
    loss: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "out_dir": str(self.out_dir)}


def train_prm(
    model_dir: str | Path,
    rows: Iterable[StepwiseRow],
    out_dir: str | Path,
    *,
    epochs: float = 2.0,
    learning_rate: float = 2e-5,
    batch_size: int = 8,
    max_length: int = 8192,
    lora: bool = False,
    seed: int = 0,
    note: Note | None = None,
) -> RewardReport:
    """A process reward model: one number at the last token of every labelled step, trained by cross-entropy with soft targets.

    `model_dir` holds a causal model, whose body is taken over, or a reward model to go on from. Values must lie in [0, 1]. Nothing is
    truncated: raises UserError for rows over `max_length` tokens, for values outside, without rows, and for an occupied `out_dir`.
    """
    recipe = RewardRecipe("prm", epochs, learning_rate, batch_size, lora, seed)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = [Example((row.input_ids,), tuple((0, at, value) for at, value in row.targets)) for row in token_rows(rows, renderer)]
    return _train(recipe, Path(model_dir), Path(out_dir), examples, renderer=renderer, max_length=max_length, note=note)


def train_ppm(
    model_dir: str | Path,
    nodes: Iterable[PairwiseNode],
    out_dir: str | Path,
    *,
    epochs: float = 2.0,
    learning_rate: float = 2e-5,
    batch_size: int = 4,
    max_length: int = 8192,
    lora: bool = False,
    seed: int = 0,
    note: Note | None = None,
) -> RewardReport:
    """A process preference model (rStar-Math): siblings are compared, -log s(r+ - r-) / (n+ n-). The rest is as in `train_prm`."""
    recipe = RewardRecipe("ppm", epochs, learning_rate, batch_size, lora, seed)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = []
    for node in nodes:
        sides = [(state, 1.0) for state in node.better] + [(state, 0.0) for state in node.worse]
        read = [(*_read(state, renderer), target) for state, target in sides]
        examples.append(Example(tuple(ids for ids, _, _ in read), tuple((at, end, target) for at, (_, end, target) in enumerate(read))))
    return _train(recipe, Path(model_dir), Path(out_dir), examples, renderer=renderer, max_length=max_length, note=note)


def train_orm(
    model_dir: str | Path,
    outcomes: Iterable[tuple[Trajectory, float]],
    out_dir: str | Path,
    *,
    epochs: float = 2.0,
    learning_rate: float = 2e-5,
    batch_size: int = 8,
    max_length: int = 8192,
    lora: bool = False,
    seed: int = 0,
    note: Note | None = None,
) -> RewardReport:
    """An outcome reward model: finished trajectories and how they ended, in [0, 1], read at the last token. Else as `train_prm`."""
    recipe = RewardRecipe("orm", epochs, learning_rate, batch_size, lora, seed)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = []
    for trajectory, value in outcomes:
        ids, end = _read(trajectory, renderer)
        examples.append(Example((ids,), ((0, end, value),)))
    return _train(recipe, Path(model_dir), Path(out_dir), examples, renderer=renderer, max_length=max_length, note=note)


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
    lora: bool = False,
    seed: int = 0,
    note: Note | None = None,
) -> RewardReport:
    """The policy of an implicit PRM, from outcomes alone: -l log s(beta S) - (1 - l) log(1 - s(beta S)), S = sum log pi / pi_ref.

    S sums over what was sampled; `model_dir` holds the reference. Load the pair with the report's `spec`, and with this `beta` where it
    is not the default. The rest is as in `train_prm`.
    """
    recipe = RewardRecipe("implicit", epochs, learning_rate, batch_size, lora, seed, beta)
    renderer = StepRenderer(load_tokenizer(Path(model_dir)))
    examples = [_written(trajectory, value, renderer) for trajectory, value in outcomes]
    return _train(
        recipe, Path(model_dir), Path(out_dir), [one for one in examples if one.points], renderer=renderer, max_length=max_length, note=note
    )


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


def _train(
    recipe: RewardRecipe,
    model_dir: Path,
    out: Path,
    examples: Sequence[Example],
    *,
    renderer: StepRenderer,
    max_length: int,
    note: Note | None,
) -> RewardReport:
    import torch

    _check(recipe, out, examples, max_length)

    began = time.monotonic()
    torch.manual_seed(recipe.seed)  # before the head is made
    with quiet():
        model = _model(model_dir, "causal" if recipe.kind == "implicit" else "reward")
        if recipe.kind == "implicit":
            examples = list(_referenced(model, examples, recipe.batch_size, renderer.tokenizer))
        trained, steps, loss = fit(recipe, model, examples, tokenizer=renderer.tokenizer, out=out, note=note)
        _save(trained, recipe.kind, model_dir, out, renderer.tokenizer)
    spec = f"implicit-prm:{out},{model_dir}" if recipe.kind == "implicit" else f"prm:{out}"
    return RewardReport(
        out_dir=out,
        spec=spec,
        recipe=recipe,
        examples=len(examples),
        labels=sum(len(example.points) for example in examples),
        tokens=sum(example.length for example in examples),
        steps=steps,
        loss=loss,
        seconds=time.monotonic() - began,
    )


def _check(recipe: RewardRecipe, out: Path, examples: Sequence[Example], max_length: int) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists", "a new or empty folder", "Give another folder.")
    if not examples:
        raise UserError(f"no {recipe.kind} example to train on", "at least one labelled step")
    longest = max(len(ids) for example in examples for ids in example.sequences)
    if longest > max_length:
        raise UserError(
            f"the longest row has {longest} tokens", f"at most {max_length}; nothing is truncated", "Raise max_length, or leave it out."
        )
    outside = next((target for example in examples for _, _, target in example.points if not 0.0 <= target <= 1.0), None)
    if outside is not None:
        do = "Map advantages first, such as (1 + A) / 2."
        raise UserError(f"got a label of {outside:g}", "values in [0, 1]", do)


def _model(model_dir: Path, kind: Literal["causal", "reward"]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is what is wanted
    try:
        if kind == "causal":
            return AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32)
        config = AutoConfig.from_pretrained(str(model_dir), num_labels=1)
        config.classifier_dropout = 0.0
        return AutoModelForTokenClassification.from_pretrained(str(model_dir), config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"{model_dir} holds no model that loads: {error}", "a transformers model folder") from error
    finally:
        logging.set_verbosity(level)


def _referenced(model: Any, examples: Sequence[Example], batch_size: int, tokenizer: Any) -> Iterator[Example]:
    """The examples with the log-probability that the model gives them before it is trained."""
    import torch

    model.eval()
    for at in range(0, len(examples), batch_size):
        part = examples[at : at + batch_size]
        with torch.no_grad():
            found = written_logprobs(model, collate([{"example": one} for one in part], tokenizer.pad_token_id or 0)).tolist()
        yield from (Example(one.sequences, one.points, value) for one, value in zip(part, found, strict=True))


def _save(model: Any, kind: RewardKind, model_dir: Path, out: Path, tokenizer: Any) -> None:
    model.config.use_cache = True
    if kind != "implicit":
        setattr(model.config, SETTINGS, {"kind": kind})
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    if kind == "implicit":
        for path in model_dir.glob("generation_config.json"):
            if not (out / path.name).exists():
                shutil.copyfile(path, out / path.name)
