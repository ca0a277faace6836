"""Which proxy rewards to believe: often a reward model is right where it is sure, and guesses in between.

Zhang et al. 2024, "Policy Filtration for RLHF to Mitigate Noise in Reward Models" (PF-PPO, arXiv:2409.06957): of several ways to filter
samples by their reward the best is the one after which the coefficient of determination R^2 between rewards and actual scores is highest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Literal, TypeAlias

from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace
from counterplay.finetune.rows import Drop, Lineage, Row

Filter: TypeAlias = Literal["all", "best", "best_random", "best_worst"]
"""The paper's filters of the N samples of a prompt: all; the best; the best and one of the others; the best and the worst."""

Sample: TypeAlias = tuple[float, float]
"""A proxy reward and the truth, each on its own scale."""


def r_squared(samples: Iterable[Sample]) -> float | None:
    """R^2 of the least-squares line of truth on reward, cov^2 / (var var), in [0, 1]; None where one of them does not vary."""
    found = list(samples)
    if not found:
        return None
    rewards, truths = zip(*found, strict=True)
    mean_reward, mean_truth = sum(rewards) / len(found), sum(truths) / len(found)
    covariance = sum((reward - mean_reward) * (truth - mean_truth) for reward, truth in found)
    spread = sum((reward - mean_reward) ** 2 for reward in rewards) * sum((truth - mean_truth) ** 2 for truth in truths)
    return covariance**2 / spread if spread > 1e-24 else None


def filtered(rewards: Sequence[float], kind: Filter, *, seed: int = 0) -> list[int]:
    """Which samples of one prompt a filter keeps, by index, in rising order. Of equal rewards the earlier counts as better."""
    ranked = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    if kind == "all" or len(ranked) < 2:
        return sorted(ranked)
    other = {"best": [], "best_random": [Random(f"{seed}/{list(rewards)}").choice(ranked[1:])], "best_worst": [ranked[-1]]}
    return sorted([ranked[0], *other[kind]])


def reliabilities(groups: Iterable[Sequence[Sample]], *, seed: int = 0) -> Mapping[Filter, float | None]:
    """R^2 after each filter, for samples grouped by prompt: the paper's way to choose one before anything is trained."""
    prompts = [list(group) for group in groups]
    kinds: tuple[Filter, ...] = ("all", "best", "best_random", "best_worst")
    kept = {kind: [group[i] for group in prompts for i in filtered([reward for reward, _ in group], kind, seed=seed)] for kind in kinds}
    return MappingProxyType({kind: r_squared(samples) for kind, samples in kept.items()})


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose rewards lie in `low`..`high`: how many, their mean reward and their mean truth."""

    low: float
    high: float
    n: int
    reward: float
    truth: float


def reward_bins(samples: Iterable[Sample], *, count: int = 10) -> list[Bin]:
    """Samples by rising reward in `count` parts as equal in number as they can be; equal rewards are never parted."""
    ordered = sorted(samples)
    parts: list[list[Sample]] = []
    for index, sample in enumerate(ordered):
        if parts and (sample[0] == parts[-1][-1][0] or index * count // len(ordered) == (index - 1) * count // len(ordered)):
            parts[-1].append(sample)
        else:
            parts.append([sample])
    return [
        Bin(
            part[0][0],
            part[-1][0],
            len(part),
            sum(reward for reward, _ in part) / len(part),
            sum(truth for _, truth in part) / len(part),
        )
        for part in parts
    ]


@dataclass(frozen=True)
class Reliable:
    """Rewards of at most `low` or at least `high` are believed (None: no such side). `r2` is R^2 of what is kept, `r2_all` of everything.

    `share` of the samples it was fitted on were kept.
    """

    low: float | None
    high: float
    r2: float | None
    r2_all: float | None
    share: float
    bins: tuple[Bin, ...] = ()

    def believes(self, reward: float) -> bool:
        return reward >= self.high or (self.low is not None and reward <= self.low)

    def gate(self, rows: Sequence[Row]) -> tuple[list[Row], list[Drop]]:
        """The rows whose score is believed, as a `Gate`; a row without a score is not."""
        kept, drops = [], []
        for row in rows:
            score = row.values.get("score")
            if score is not None and self.believes(score):
                kept.append(row)
            else:
                drops.append(Drop("no score to believe" if score is None else "its score is not reliable", row.name))
        return kept, drops


def reliable(samples: Iterable[Sample], *, bins: int = 10, min_share: float = 0.4) -> Reliable:
    """The rewards to believe: of all ways to keep the topmost and the lowest bins, the one with the highest R^2.

    At least the topmost bin and `min_share` of the samples are kept, and of equals the most. What is kept at the ends was seen to
    be right there, which no threshold can promise beforehand. Raises UserError for fewer than 3 samples a bin.
    """
    known = sorted(samples)
    if bins < 2 or len(known) < 3 * bins:
        raise UserError(f"got {len(known)} samples for {bins} bins", "at least 2 bins and 3 samples a bin", "Give more, or fewer bins.")
    made = reward_bins(known, count=bins)
    best: tuple[float, int, int, int] | None = None
    for top in range(1, len(made) + 1):
        for bottom in range(len(made) - top + 1):
            kept = _kept(known, made, bottom, top)
            found = r_squared(kept)
            rank = (-1.0 if found is None else round(found, 9), len(kept), bottom, top)
            if len(kept) >= min_share * len(known) and (best is None or rank > best):
                best = rank
    _, size, bottom, top = best or (0.0, len(known), 0, len(made))
    low = made[bottom - 1].high if bottom else None
    return Reliable(low, made[-top].low, r_squared(_kept(known, made, bottom, top)), r_squared(known), size / len(known), tuple(made))


def _kept(known: Sequence[Sample], made: Sequence[Bin], bottom: int, top: int) -> list[Sample]:
    """The samples of the `bottom` lowest and the `top` highest bins."""
    low, high = sum(part.n for part in made[:bottom]), sum(part.n for part in made[len(made) - top :])
    return [*known[:low], *known[len(known) - high :]]


def logged_samples(traces: Iterable[Trace], name: str) -> dict[str, list[Sample]]:
    """What somebody (`name`) said of whole logged runs against their outcomes, by `Lineage.unit`. Runs without either are left out."""
    found: dict[str, list[Sample]] = {}
    for trace in traces:
        outcome = trace.outcome
        truth = outcome.reward if outcome.reward is not None else (None if outcome.success is None else float(outcome.success))
        reward = next((one.scaled for one in trace.scores if one.name == name and one.step is None and one.scaled is not None), None)
        if truth is not None and reward is not None:
            found.setdefault(Lineage(trace.task, (trace.id,)).unit, []).append((reward, truth))
    return found
