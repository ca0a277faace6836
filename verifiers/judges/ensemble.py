"""Ensembles of judges: several models or prompts asked about the same, their disagreement kept as uncertainty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Literal

from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask_all, verifier_identity
from counterplay.core.nouns import Score, Trajectory
from counterplay.core.protocols import Verifier, fingerprint_of

_RULES: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "min": min}


class Ensemble:
    """The mean or the minimum of all members' scores; the reason names spread and members, as `spread 0.30`: most minus least.

    Unlike a mean of the opinions there happen to be, it speaks only where every member does: a member's error is the ensemble's, and
    where a member has no opinion there is none. Scores of different sets of members can't be compared. Members that take batches
    are asked in batches.
    """

    def __init__(self, members: Sequence[Verifier], *, rule: Literal["mean", "min"] = "mean") -> None:
        if not members or rule not in _RULES:
            raise UserError(f"got {len(members)} members and rule {rule!r}", "at least one, and mean or min")
        self.members, self.rule = tuple(members), rule
        self.name = f"{rule}({', '.join(verifier_identity(member)[0] for member in self.members)})"
        self.fingerprint = f"ensemble:{content_key(rule, *(fingerprint_of(member) for member in self.members))}"
        self.version = content_key(*("@".join(verifier_identity(member)) for member in self.members))[:8]

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        (opinion,) = await self.batch([trajectory])
        if isinstance(opinion, Exception):
            raise opinion
        return opinion

    async def batch(self, trajectories: Sequence[Trajectory]) -> list[Score | VerifierError | None]:
        """Opinions in order; the first member's error stands for one that failed."""
        answers = await asyncio.gather(*(ask_all(member, trajectories) for member in self.members))
        return [self._joined(opinions) for opinions in zip(*answers, strict=True)]

    def _joined(self, opinions: Sequence[Score | VerifierError | None]) -> Score | VerifierError | None:
        failed = next((each for each in opinions if isinstance(each, VerifierError)), None)
        if failed is not None:
            return failed
        scores = [each for each in opinions if isinstance(each, Score)]
        if len(scores) < len(opinions):
            return None
        values = [score.value for score in scores]
        told = "; ".join(f"{score.verifier} {score.value:.2f} {score.reason}".strip() for score in scores)
        return Score(_RULES[self.rule](values), f"spread {max(values) - min(values):.2f}; {told}", self.name, self.version)


async def aclose(verifier: object) -> None:
    """Close what a judge, or an ensemble of judges, holds open."""
    members = getattr(verifier, "members", (verifier,))
    await asyncio.gather(*(member.aclose() for member in members if hasattr(member, "aclose")))
