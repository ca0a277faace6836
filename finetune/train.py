"""Training with TRL's own trainers on datasets of ours: a model folder in, a model folder out.

Rows are tokenised here (`masks`, `training.sides`), so that only sampled messages are trained on and nothing is ever truncated; TRL does
the rest. The defaults suit a CPU as well as a GPU, nothing is sent anywhere, a run that is killed resumes from its last checkpoint,
and `accelerate launch` starts any of them on several processes.
"""

from __future__ import annotations

from counterplay.finetune.training.dpo import train_dpo
from counterplay.finetune.training.fitting import OnStep, TrainReport, TrainStep
from counterplay.finetune.training.folder import METRICS, PLOT, STATE
from counterplay.finetune.training.grpo import train_grpo
from counterplay.finetune.training.kto import train_kto
from counterplay.finetune.training.recipe import Recipe
from counterplay.finetune.training.reward import train_reward
from counterplay.finetune.training.sft import train_sft

__all__ = [
    "METRICS",
    "PLOT",
    "STATE",
    "OnStep",
    "Recipe",
    "TrainReport",
    "TrainStep",
    "train_dpo",
    "train_grpo",
    "train_kto",
    "train_reward",
    "train_sft",
]
