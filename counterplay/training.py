"""From datasets to a tuned model, or to a learned verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from counterplay.core.nouns import Trajectory
    from counterplay.finetune.train import TrainReport, TrainStep

KINDS = ("sft", "dpo", "kto", "reward", "grpo")


def train(
    kind: str,
    model: str | Path,
    data: Path,
    out: Path,
    *,
    on_step: Callable[[float, float], None] | None = None,
    **settings: Any,
) -> TrainReport:
    """Fine-tune the model in folder `model` on a dataset folder of the same kind, one of `KINDS`. A setting of None is left to the recipe.

    `on_step` is called with the steps done and their total. `settings` are those of `counterplay.finetune.train`; GRPO's `environment` is
    `module:attr`, and its `verifiers` are specs as searches take them, see `grpo_parts`.
    """
    from counterplay.finetune import train as trainers

    def note(step: TrainStep) -> None:
        if on_step is not None:
            on_step(step.step, step.total)

    if kind not in KINDS:
        raise UserError(f"got training {kind!r}", f"one of {', '.join(KINDS)}")
    if kind == "grpo":
        settings |= grpo_parts(model, data, settings.pop("environment", None), settings.pop("verifiers", None) or ())
    recipe: Callable[..., TrainReport] = getattr(trainers, f"train_{kind}")
    return recipe(model, data, out, on_step=note, **{name: value for name, value in settings.items() if value is not None})


def grpo_parts(model: str | Path, data: Path, environment: str | None, verifiers: Sequence[str]) -> dict[str, Any]:
    """The `environment` and `rewards` of `train_grpo`.

    `environment` names a class of TRL's form (`reset` and `get_reward`), taken as it is, or a factory of worlds by task, which the rows are
    played in (`grpo_environment`). With `verifiers`, all of which must be content, their opinion of the whole line is the reward
    in place of what the world pays.
    """
    from counterplay.finetune.trainers import load_tokenizer
    from counterplay.finetune.write import read_dataset
    from counterplay.grpo_environment import ReplayEnvironments
    from counterplay.parts import Asked, world_factory
    from counterplay.verifiers.trl import as_trl_reward

    parts: dict[str, Any] = {"environment": None, "rewards": ()}
    if verifiers:
        verifier = Asked(verifiers=tuple(verifiers)).make_verifier()
        parts["rewards"] = [as_trl_reward(verifier, end_tokens=load_tokenizer(Path(model)).eos_token_id)]
    if environment is not None:
        made: Any = world_factory(environment)
        if not (hasattr(made, "reset") and hasattr(made, "get_reward")):
            made = ReplayEnvironments(made, read_dataset(data)[1], verifier=_no_opinion if verifiers else None)
        parts["environment"] = made
    return parts


def _no_opinion(_trajectory: Trajectory, /) -> None:
    return None
