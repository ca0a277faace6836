"""Reasoning-pruning perplexity consistency (RPC): which answer holds the most of the policy's own probability.

Zhou et al. 2025, "A Theoretical Study on Bridging Internal Probability and Self-Consistency for LLM Reasoning". A vote needs many
lines to tell how likely an answer is; where log-probabilities are known each distinct line says it at once. Lines that are
improbable beside the others are pruned first. A choice over a finished tree; it needs no verifier and no call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from counterplay.search.best_of_n import answer
from counterplay.search.tree import Node, SearchTree

_SHAPES = (0.01, 100.0)
_SHARES = (0.2, 0.8)
_ROUNDS = 50


def rpc_best(tree: SearchTree) -> Node | None:
    """The likeliest line of argmax_a sum_i 1[answer_i = a] p_i over the distinct finished lines that are not pruned.

    p_i = exp(sum of the log-probabilities of its actions). Answers are those of `weighted_best`. Lines that failed, or any action of
    which has no log-probability, are left out; None where none is left.
    """
    logs = {node: log for node in tree.finished() if (log := log_probability(node)) is not None}
    if not logs:
        return None
    top = max(logs.values())
    kept = dict(zip(logs, pruned([log - top for log in logs.values()]), strict=True))
    mass: dict[str, float] = {}
    for node, log in logs.items():
        mass[answer(node)] = mass.get(answer(node), 0.0) + (math.exp(log - top) if kept[node] else 0.0)
    elected = max(mass, key=lambda a: mass[a])
    return max((node for node in logs if answer(node) == elected), key=lambda node: (logs[node], -node.index))


def log_probability(node: Node) -> float | None:
    """The log-probability of the line from the root to `node`; None where one of its actions has none, or it failed."""
    path = node.path()[1:]
    if not path or any(step.logprob is None or (step.step is not None and step.step.error is not None) for step in path):
        return None
    return sum(step.logprob for step in path if step.logprob is not None)


def pruned(logs: Sequence[float]) -> list[bool]:
    """Whether each line is kept: it is where P(high | p) >= 1/2 in a mixture of two Weibull distributions, or p is the mean at least."""
    mean = sum(map(math.exp, logs)) / len(logs)
    return [share >= 0.5 or math.exp(log) >= mean for share, log in zip(memberships(logs), logs, strict=True)]


def memberships(logs: Sequence[float]) -> list[float]:
    """P(high | p) for each p = exp(log): the mixture's component with the higher mean. Fitted by expectation maximisation."""
    middle = sorted(logs)[len(logs) // 2]
    shares, high, low = [float(log >= middle) for log in logs], Weibull(1.0, 0.0), Weibull(1.0, 0.0)
    for _ in range(_ROUNDS):
        weight = min(max(sum(shares) / len(logs), _SHARES[0]), _SHARES[1])
        high = Weibull.fitted(logs, shares) or high
        low = Weibull.fitted(logs, [1 - share for share in shares]) or low
        shares = [_share(weight, high.log_density(log), low.log_density(log)) for log in logs]
    return shares if high.log_mean >= low.log_mean else [1 - share for share in shares]


@dataclass(frozen=True, slots=True)
class Weibull:
    """f(x) = (k / s) (x / s)^(k - 1) exp(-(x / s)^k), with the shape k and the logarithm of the scale s; all x are given as logarithms."""

    shape: float
    log_scale: float

    @classmethod
    def fitted(cls, logs: Sequence[float], weights: Sequence[float]) -> Weibull | None:
        """The one of the highest weighted likelihood, its shape in [0.01, 100]; None where all weights vanish."""
        total = sum(weights)
        if total < 1e-9:
            return None
        mean = sum(w * log for w, log in zip(weights, logs, strict=True)) / total
        low, high = _SHAPES
        while high / low > 1 + 1e-6:
            shape = math.sqrt(low * high)
            powers = [w * math.exp(shape * log) for w, log in zip(weights, logs, strict=True)]
            moment = sum(power * log for power, log in zip(powers, logs, strict=True)) / (sum(powers) or 1.0)
            low, high = (shape, high) if moment - mean < 1 / shape else (low, shape)
        mass = sum(w * math.exp(low * log) for w, log in zip(weights, logs, strict=True)) / total
        return cls(low, math.log(mass) / low) if mass else cls(low, max(logs))

    @property
    def log_mean(self) -> float:
        return self.log_scale + math.lgamma(1 + 1 / self.shape)

    def log_density(self, log: float) -> float:
        distance = self.shape * (log - self.log_scale)
        return math.log(self.shape) + distance - log - math.exp(min(distance, 700.0))


def _share(weight: float, high: float, low: float) -> float:
    """The posterior share weight e^high / (weight e^high + (1 - weight) e^low)."""
    odds = math.log(weight / (1 - weight)) + high - low
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
