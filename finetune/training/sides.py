"""A prompt and the ways on from it as token ids, with a mask of what a model sampled: tool results in a completion carry no loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterplay.core.errors import UserError
from counterplay.finetune.masks import tokenised_pair


def pair_ids(tokenizer: Any, record: Mapping[str, Any]) -> dict[str, list[int]]:
    """`prompt_ids`, and for chosen and rejected `*_ids` and `*_mask`: 1 where a model sampled the token, its end token among it, else 0.

    Raises UserError, by the row's name, for masks that do not align, for a side of which nothing was sampled, and for one that the chat
    template makes several texts.
    """
    for side in ("chosen", "rejected"):
        flags = record.get(f"{side}_trained")
        if flags is not None and len(flags) != len(record[side]):
            raise UserError(
                f"row {record['name']} has {len(flags)} training flags for {len(record[side])} messages", "one for every message"
            )
        if not any(message["role"] == "assistant" for message in record[side]) or (flags is not None and not any(flags)):
            raise UserError(f"row {record['name']} has a side of which nothing was sampled: {side}", "at least one sampled message")
    try:
        pair: dict[str, list[int]] = tokenised_pair(tokenizer, record)
    except ValueError as error:
        do = "Export step-level rows, or use a template that only appends."
        raise UserError(f"row {record['name']} can't be trained on: {error}", "sides that are one text each", do) from error
    return {**{f"{side}_mask": [1] * len(pair[f"{side}_ids"]) for side in ("chosen", "rejected")}, **pair}


def padded(rows: Sequence[Sequence[float]], value: float) -> Any:
    """A tensor (rows, longest), filled up on the right."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def joined(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], masks: Sequence[Sequence[int]], pad: int
) -> dict[str, Any]:
    """What TRL's collators make of prompts and completions, with `completion_mask` as given in place of 1 for all of a completion."""
    ids = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    return {
        "input_ids": padded(ids, pad),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "completion_mask": padded([[*[0] * len(prompt), *mask] for prompt, mask in zip(prompts, masks, strict=True)], 0),
    }


def pad_of(tokenizer: Any) -> int:
    """The id that fills rows up; masked wherever it stands."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
