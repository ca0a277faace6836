"""What several samples of one state say about each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp


def sibling_priors(signatures: Sequence[str], logprobs: Sequence[float | None], lengths: Sequence[int]) -> list[float | None]:
    """The share of each action among its distinct siblings: exp(logprob / tokens), normalised to a sum of 1.

    Equal actions share one prior, that of their likeliest wording. None for all where there is one sample or a log-probability is missing.
    """
    if len(signatures) < 2 or any(logprob is None for logprob in logprobs):
        return [None] * len(signatures)
    weights: dict[str, float] = {}
    for signature, logprob, length in zip(signatures, logprobs, lengths, strict=True):
        weights[signature] = max(weights.get(signature, 0.0), exp((logprob or 0.0) / max(length, 1)))
    total = sum(weights.values())
    return [weights[signature] / total if total else None for signature in signatures]
