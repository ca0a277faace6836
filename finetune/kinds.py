"""How each kind of row lies in a file: its columns, their types, and what a reader of the card must know about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from counterplay.finetune.rows import Kind


@dataclass(frozen=True)
class Layout:
    """`json` columns hold lists of JSON objects. `values` are the other columns, each with Arrow's name of its type, in a list for lists."""

    title: str
    reads: str
    json: tuple[str, ...]
    values: Mapping[str, str | list[str]]


LAYOUTS: Mapping[Kind, Layout] = MappingProxyType(
    {
        "sft": Layout(
            "Whole trajectories for supervised fine-tuning",
            "`messages` and `tools` are what TRL's SFTTrainer reads. `trained` says for every message whether a model sampled it: "
            "only those belong in the loss.",
            ("messages", "tools"),
            {"trained": ["bool"], "score": "float64"},
        ),
        "dpo": Layout(
            "Preference pairs",
            "`prompt`, `chosen`, `rejected` and `tools` are what TRL's DPOTrainer reads. `*_trained` says for every message whether a "
            "model sampled it: only those belong in the loss. `probability` is P(Q_chosen > Q_rejected) with Q ~ Beta(1 + W, 1 + N - W); "
            "N and W are in `*_visits` and `*_value_sum`.",
            ("prompt", "chosen", "rejected", "tools"),
            {
                "probability": "float64",
                "chosen_trained": ["bool"],
                "chosen_visits": "int64",
                "chosen_value_sum": "float64",
                "rejected_trained": ["bool"],
                "rejected_visits": "int64",
                "rejected_value_sum": "float64",
            },
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
    }
)
"""The columns that every row has, whatever its kind."""
