"""Equal proposals merged: an action that was drawn twice is one child with two draws, and is executed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from counterplay.core.nouns import Message, Proposal


@dataclass(frozen=True, slots=True)
class FailedProposal(Proposal):
    """Stands for a proposal that could not be had, so that the failed branch is seen in the tree: its step has this `error`."""

    error: str = ""

    @classmethod
    def of(cls, error: str) -> FailedProposal:
        return cls(Message.assistant(f"[no proposal: {error}]"), error=error)


@dataclass(slots=True)
class Draw:
    """One distinct action among proposals for a state: drawn `count` times, `prior` is its share among them (priors sum to 1)."""

    proposal: Proposal
    prior: float
    count: int = 1

    @property
    def signature(self) -> str:
        return self.proposal.action.signature


D = TypeVar("D", bound=Draw)


def merge_as(kind: type[D], proposals: Sequence[Proposal]) -> list[D]:
    """Merge proposals into draws of a kind, by `action.signature`, in the order of first appearance.

    The prior is the sum of the given priors, normalised to 1 over all (equal shares where all are zero); where one of them is
    None it is the frequency among the draws.
    """
    frequency = False
    for proposal in proposals:
        if proposal.prior is None:
            frequency = True
            break
    merged: dict[str, D] = {}
    total = 0.0
    for proposal in proposals:
        prior = 1.0 if frequency else proposal.prior or 0.0
        total += prior
        signature = proposal.action.signature
        known = merged.get(signature)
        if known is None:
            merged[signature] = kind(proposal, prior)
        else:
            known.count += 1
            known.prior += prior
    for draw in merged.values():
        draw.prior = draw.prior / total if total > 0 else 1 / len(merged)
    return list(merged.values())


def merge(proposals: Sequence[Proposal]) -> list[Draw]:
    """`merge_as` plain draws."""
    return merge_as(Draw, proposals)
