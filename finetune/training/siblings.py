"""Sequences that begin alike as one row of tokens: what they share is computed once, and each token sees its own sequence alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterplay.finetune.training.sides import padded


def merged(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """The ids of the row, the position of each in its sequence, and for every sequence where in the row its tokens are."""
    ids: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = []
    for sequence in sequences:
        shared, owner = max(((_common(sequence, other), k) for k, other in enumerate(sequences[: len(places)])), default=(0, 0))
        fresh = range(len(ids), len(ids) + len(sequence) - shared)
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
        places.append([*(places[owner][:shared] if places else ()), *fresh])
    return ids, positions, places


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def rows_of(groups: Sequence[Sequence[Sequence[int]]], pad: int) -> tuple[dict[str, Any], list[list[list[int]]]]:
    """`input_ids`, `position_ids` (groups, longest), who sees whom as `visible` (groups, longest, longest); and each group's places."""
    import torch

    made = [merged(group) for group in groups]
    width = max(len(ids) for ids, _, _ in made)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(made), 1, 1)  # padding sees itself, for a row of nothing is no number
    for row, (_, _, places) in zip(visible, made, strict=True):
        for place in places:
            at = torch.tensor(place)
            row[at[:, None], at] |= torch.ones(len(at), len(at), dtype=torch.bool).tril()
    batch = {
        "input_ids": padded([ids for ids, _, _ in made], pad),
        "position_ids": padded([positions for _, positions, _ in made], 0),
        "visible": visible,
    }
    return batch, [places for _, _, places in made]
