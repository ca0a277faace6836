"""What decides the result of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

TrainKind: TypeAlias = Literal["sft", "dpo", "kto", "reward", "grpo", "prm", "ppm", "orm", "implicit"]
"""What is trained: a policy, by the name of TRL's trainer, or a learned verifier (reward, prm, ppm, orm, implicit)."""
PreferenceLoss: TypeAlias = Literal["conservative", "robust", "sigmoid", "hinge", "ipo", "sigmoid_norm"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training besides model and data.

    `steps` overrides `epochs`; None leaves it to them. `batch_size` rows make a step, over all processes, `micro_batch` of them a forward
    pass of a process (None: all at once). What follows is None for kinds that have no such thing.
    """

    kind: TrainKind
    epochs: float
    steps: int | None
    learning_rate: float
    batch_size: int
    max_length: int
    lora: bool
    seed: int
    micro_batch: int | None = None
    beta: float | None = None
    label_smoothing: float | None = None
    loss: PreferenceLoss | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    generations: int | None = None
    max_completion: int | None = None
    temperature: float | None = None
