"""Combinators: verifiers made of verifiers. Each part keeps its own error boundary; missing opinions never count as zero."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

from counterplay.core.journal import ask, verifier_identity
from counterplay.core.nouns import Score, Trajectory
from counterplay.core.protocols import Verifier, fingerprint_of


class Combined:
    """Several verifiers asked about one trajectory and combined by `rule`, which is given the opinions that exist.

    No opinion where no part has one, nor, with `complete`, on a finished trajectory that a part has none on. The reason joins the
    parts' reasons; identity names the parts and their versions.
    """

    def __init__(
        self, name: str, parts: Sequence[Verifier], rule: Callable[[Sequence[tuple[int, Score]]], float], *, complete: bool = False
    ) -> None:
        self.parts, self.rule, self.complete = tuple(parts), rule, complete
        identities = [verifier_identity(part) for part in self.parts]
        self.name = f"{name}({', '.join(part for part, _ in identities)})"
        self.version = "+".join(version or "0" for _, version in identities)
        self.fingerprint = f"{name}({', '.join(fingerprint_of(part) for part in self.parts)})"

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        answers = await asyncio.gather(*(ask(part, trajectory) for part in self.parts))
        opinions = [(index, score) for index, score in enumerate(answers) if score is not None]
        if not opinions or (self.complete and trajectory.finished and len(opinions) < len(self.parts)):
            return None
        reason = "; ".join(f"{score.verifier} {score.value:.2f} {score.reason}".strip() for _, score in opinions)
        return Score(min(1.0, max(0.0, self.rule(opinions))), reason, self.name, self.version)


def weighted(parts: Mapping[Verifier, float] | Sequence[tuple[Verifier, float]]) -> Combined:
    """The weighted mean of the opinions that exist; weights are positive and need not sum to 1."""
    pairs = list(parts.items()) if isinstance(parts, Mapping) else list(parts)
    weights = [weight for _, weight in pairs]
    if not pairs or min(weights) <= 0:
        msg = f"got weights {weights}, wanted at least one, all positive"
        raise ValueError(msg)

    def mean(opinions: Sequence[tuple[int, Score]]) -> float:
        return sum(weights[i] * score.value for i, score in opinions) / sum(weights[i] for i, _ in opinions)

    combined = Combined("weighted", [part for part, _ in pairs], mean)
    combined.fingerprint += f"*{weights}"
    return combined


def all_of(*parts: Verifier) -> Combined:
    """The worst opinion: every part must be content, and on a finished trajectory every part must have spoken."""
    return Combined("all_of", parts, lambda opinions: min(score.value for _, score in opinions), complete=True)


def any_of(*parts: Verifier) -> Combined:
    """The best opinion: one content part is enough."""
    return Combined("any_of", parts, lambda opinions: max(score.value for _, score in opinions))


def product(*parts: Verifier) -> Combined:
    """The product of the opinions: independent probabilities of being right. On a finished trajectory every part must have spoken."""
    return Combined("product", parts, lambda opinions: math.prod(score.value for _, score in opinions), complete=True)


def first_of(*parts: Verifier) -> Combined:
    """The first part that has an opinion decides: an outcome where there is one, else a process verifier's guess."""
    return Combined("first_of", parts, lambda opinions: opinions[0][1].value)


class Gated:
    """`verifier`, asked only about trajectories for which `applies` holds; no opinion on the others."""

    def __init__(self, label: str, verifier: Verifier, applies: Callable[[Trajectory], bool]) -> None:
        self.verifier, self.applies = verifier, applies
        name, self.version = verifier_identity(verifier)
        self.name = f"{label}({name})"
        self.fingerprint = f"{label}({fingerprint_of(verifier)})"

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        return await ask(self.verifier, trajectory) if self.applies(trajectory) else None


def on_finished(verifier: Verifier) -> Gated:
    """An outcome verifier made of any: no opinion on prefixes."""
    return Gated("on_finished", verifier, lambda trajectory: trajectory.finished)


def on_prefix(verifier: Verifier) -> Gated:
    """A process verifier made of any: no opinion on finished trajectories."""
    return Gated("on_prefix", verifier, lambda trajectory: not trajectory.finished)
