"""How each kind of row lies in a file: its columns, their types, and what a reader of the card must know about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from counterplay.finetune.rows import Kind


@dataclass(frozen=True)
class Layout:
    """`json` columns hold lists of JSON values. `values` are the other columns, each with Arrow's name of its type, in a list for lists."""

    title: str
    reads: str
    json: tuple[str, ...]
    values: Mapping[str, str | list[str]]


_PAIR: Mapping[str, str | list[str]] = MappingProxyType(
    {
        "probability": "float64",
        "margin": "float64",
        "chosen_trained": ["bool"],
        "chosen_visits": "int64",
        "chosen_value_sum": "float64",
        "rejected_trained": ["bool"],
        "rejected_visits": "int64",
        "rejected_value_sum": "float64",
    }
)

LAYOUTS: Mapping[Kind, Layout] = MappingProxyType(
    {
        "sft": Layout(
            "Whole trajectories for supervised fine-tuning",
            "`messages` and `tools` are what TRL's SFTTrainer reads. `trained` says for every message whether a model sampled it: "
            "only those belong in the loss. `weight` multiplies the row's loss (mean 1), `step_weights` that of every message, empty "
            "where all are alike. `token_ids`, where it is there, is JSON: for every message the ids that the policy sampled, null where "
            "they are not known.",
            ("messages", "tools"),
            {"trained": ["bool"], "score": "float64", "weight": "float64", "step_weights": ["float64"], "token_ids": "string"},
        ),
        "dpo": Layout(
            "Preference pairs",
            "`prompt`, `chosen`, `rejected` and `tools` are what TRL's DPOTrainer reads. `*_trained` says for every message whether a "
            "model sampled it: only those belong in the loss. `probability` is P(Q_chosen > Q_rejected) with Q ~ Beta(1 + W, 1 + N - W), "
            "and 1 where two verified ends are compared; "
            "N and W are in `*_visits` and `*_value_sum`.",
            ("prompt", "chosen", "rejected", "tools"),
            _PAIR,
        ),
        "reward": Layout(
            "Pairs for a reward model",
            "`prompt`, `chosen`, `rejected`, `tools` and `margin` are what TRL's RewardTrainer reads: the margin, a difference of values "
            "in [0, 1], is what the rewards are to differ by. The other columns are as in preference pairs.",
            ("prompt", "chosen", "rejected", "tools"),
            _PAIR,
        ),
        "kto": Layout(
            "Answers that are desirable or not",
            "`prompt`, `completion`, `label` and `tools` are what TRL's KTOTrainer reads, which takes rows in their order: both labels "
            "are spread evenly, so that batches of two and more hold both as often as can be. `completion_trained` says for every "
            "message whether a model sampled it: only those belong in the loss. `probability` says how sure the label is; N and W of "
            "the answer are in `visits` and `value_sum`.",
            ("prompt", "completion", "tools"),
            {
                "label": "bool",
                "probability": "float64",
                "completion_trained": ["bool"],
                "visits": "int64",
                "value_sum": "float64",
            },
        ),
        "grpo": Layout(
            "Prompts for reinforcement learning",
            "`prompt` is what TRL's GRPOTrainer reads. The environment of `counterplay.grpo_environment` is reset with `task` and "
            "`state`, the exact JSON of the prompt's messages, of which it plays the last `played` again. `visits` counts the lines "
            "that were played from here, `value_sum` what they scored.",
            ("prompt", "tools"),
            {"state": ["string"], "played": "int64", "visits": "int64", "value_sum": "float64"},
        ),
        "prm": Layout(
            "Labelled steps",
            "`completions` are steps in their order, each a list of messages (an action and what was observed), and `labels` their "
            "values, with intervals from `low` to `high` over so many played `lines`; `steps` are the indices of the steps, `kind` says "
            "how they were labelled.",
            ("prompt", "completions", "tools"),
            {"labels": ["float64"], "low": ["float64"], "high": ["float64"], "lines": ["int64"], "steps": ["int64"], "kind": "string"},
        ),
    }
)

LINEAGE: Mapping[str, str | list[str]] = MappingProxyType(
    {
        "name": "string",
        "task": "string",
        "traces": ["string"],
        "sessions": ["string"],
        "search": "string",
        "algorithm": "string",
        "fork_step": "int64",
        "nodes": ["string"],
        "verifiers": ["string"],
        "grade": "string",
        "logged": "bool",
        "agent": "string",
        "users": ["string"],
    }
)
"""The columns that every row has, whatever its kind."""
