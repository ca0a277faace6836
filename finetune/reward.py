"""Pairs for a reward model: the same evidence as preference pairs, with the margin by which chosen is better."""

from __future__ import annotations

from dataclasses import fields

from counterplay.finetune.rows import DPORow, Harvest


class RewardRow(DPORow):
    """A preference pair whose `margin` enters the loss: -log sigmoid(r_chosen - r_rejected - margin).

    Touvron et al. 2023, Llama 2, arXiv:2307.09288, equation 2.
    """

    kind = "reward"


def reward_rows(pairs: Harvest[DPORow]) -> Harvest[RewardRow]:
    """Pairs as rows for a reward model. Their margins must be in the scale of scores: step-level pairs and those by outcome are."""
    made = tuple(RewardRow(**{field.name: getattr(row, field.name) for field in fields(row)}) for row in pairs.rows)
    return Harvest(made, pairs.drops)
