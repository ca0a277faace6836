"""The ways of making rows that `export --rows` names, each from the trees and traces of one task, its library imported where it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from counterplay.core.nouns import Grade, Trace

if TYPE_CHECKING:
    from counterplay.finetune.rows import DPORow, Harvest, SFTRow, SourcedTree


def _whole(found: Sequence[SourcedTree], traces: Sequence[Trace], min_score: float, _: float, grade: Grade) -> Harvest[SFTRow]:
    from counterplay.finetune.trajectories import logged_rows, sft_rows

    return logged_rows(traces, min_reward=min_score, min_grade=grade) + sft_rows(found, min_score=min_score, min_grade=grade)


def _per_call(found: Sequence[SourcedTree], traces: Sequence[Trace], min_score: float, _: float, grade: Grade) -> Harvest[SFTRow]:
    from counterplay.finetune.variants import per_call_rows

    return per_call_rows(found, traces, min_score=min_score, min_grade=grade)


def _improved(found: Sequence[SourcedTree], _: Sequence[Trace], min_score: float, tau: float, grade: Grade) -> Harvest[SFTRow]:
    from counterplay.finetune.improved import improved_rows

    return improved_rows(found, tau=tau, min_score=min_score, min_grade=grade)


def _recovery(found: Sequence[SourcedTree], traces: Sequence[Trace], min_score: float, tau: float, grade: Grade) -> Harvest[SFTRow]:
    from counterplay.finetune.recovery import recovery_rows

    return recovery_rows(found, traces, tau=tau, min_score=min_score, min_grade=grade)


def _shortest(found: Sequence[SourcedTree], traces: Sequence[Trace], min_score: float, _: float, grade: Grade) -> Harvest[SFTRow]:
    from counterplay.finetune.variants import shortest_rows

    return shortest_rows(found, traces, min_score=min_score, min_grade=grade)


def _distill(found: Sequence[SourcedTree], traces: Sequence[Trace], min_score: float, _: float, grade: Grade) -> Harvest[SFTRow]:
    from counterplay.finetune.variants import distill_rows

    return distill_rows(found, traces, min_score=min_score, min_grade=grade)


SFT_ROWS: Mapping[str, Callable[..., Harvest[SFTRow]]] = {
    "whole": _whole,
    "per-call": _per_call,
    "improved": _improved,
    "recovery": _recovery,
    "shortest": _shortest,
    "distill": _distill,
}
"""The ways of cutting successes into rows, by the name that `--rows` gives them."""


def _by_advantage(made: Harvest[SFTRow], found: Sequence[SourcedTree], traces: Sequence[Trace]) -> Harvest[SFTRow]:
    from counterplay.finetune.weights import advantages_of

    return advantages_of(made, found, traces)


def _as_oreal(made: Harvest[SFTRow], found: Sequence[SourcedTree], traces: Sequence[Trace]) -> Harvest[SFTRow]:
    from counterplay.finetune.weights import oreal_of

    return oreal_of(made, found, traces)


WEIGHTS: Mapping[str, Callable[..., Harvest[SFTRow]]] = {"advantage": _by_advantage, "oreal": _as_oreal}
"""How much each success weighs in the loss, by the name that `--weights` gives it; `weights.scaled` is still to come."""


def _step_pairs(found: Sequence[SourcedTree], tau: float, _: float, grade: Grade) -> Harvest[DPORow]:
    from counterplay.finetune.pairs import dpo_candidates

    return dpo_candidates(found, tau=tau, min_grade=grade)


def _furthest_pairs(found: Sequence[SourcedTree], _: float, min_score: float, grade: Grade) -> Harvest[DPORow]:
    from counterplay.finetune.trajectory_pairs import trajectory_rows

    return trajectory_rows(found, min_score=min_score, min_grade=grade)


def _nearest_pairs(found: Sequence[SourcedTree], _: float, min_score: float, grade: Grade) -> Harvest[DPORow]:
    from counterplay.finetune.trajectory_pairs import trajectory_rows

    return trajectory_rows(found, pairing="nearest", min_score=min_score, min_grade=grade)


def _shorter_pairs(found: Sequence[SourcedTree], tau: float, min_score: float, grade: Grade) -> Harvest[DPORow]:
    from counterplay.finetune.trajectory_pairs import shorter_rows

    return shorter_rows(found, tau=tau, min_score=min_score, min_grade=grade)


def _needless_pairs(found: Sequence[SourcedTree], tau: float, min_score: float, grade: Grade) -> Harvest[DPORow]:
    """Calls that one of two successful branches happened to do without."""
    from counterplay.finetune.trajectory_pairs import shorter_rows

    return shorter_rows(found, tau=tau, min_score=min_score, left_out=True, min_grade=grade)


PAIRS: Mapping[str, Callable[..., Harvest[DPORow]]] = {
    "step": _step_pairs,
    "trajectory": _furthest_pairs,
    "nearest": _nearest_pairs,
    "shorter": _shorter_pairs,
    "ablation": _needless_pairs,
}
"""What a preference pair is made of, by the name that `--rows` gives it.

To those of `step`, `pairs.settle` is still to come; to those of `ablation`, what was left out on purpose (`ablation.ablation_rows`).
"""
