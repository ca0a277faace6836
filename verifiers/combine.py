"""Combinators: verifiers made of verifiers. Each part keeps its own error boundary; missing opinions never count as zero.

A combinator can be asked about many trajectories at once where one of its parts can, and passes the batch on to every part.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask_all, batch_of, is_relative, verifier_identity
from counterplay.core.nouns import Score, Trajectory
from counterplay.core.protocols import Batch, Verifier, fingerprint_of

Answer = Score | VerifierError | None
Answers = list[Score | VerifierError | None]


class Composite:
    """What verifiers made of verifiers share: identity from the parts, and one way to answer for one trajectory and for many.

    A kind of its own defines `answers(trajectories)`: an answer for each, in order, an error of a part as data.
    """

    name: str
    version: str
    fingerprint: str

    def __init__(self, label: str, parts: Sequence[Verifier], settings: str = "") -> None:
        if not parts:
            msg = f"got no verifiers for {label}, wanted at least one"
            raise ValueError(msg)
        self.parts = tuple(parts)
        identities = [verifier_identity(part) for part in self.parts]
        self.name = f"{label}({', '.join(part for part, _ in identities)})"
        self.version = "+".join(version or "0" for _, version in identities)
        self.fingerprint = f"{label}({', '.join(fingerprint_of(part) for part in self.parts)}){settings}"

    async def answers(self, trajectories: Sequence[Trajectory]) -> Answers:
        raise NotImplementedError

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        (answer,) = await self.answers([trajectory])
        if isinstance(answer, VerifierError):
            raise answer
        return answer

    @property
    def batch(self) -> Batch | None:
        return self.answers if any(batch_of(part) is not None for part in self.parts) else None

    @property
    def relative(self) -> bool:
        return any(map(is_relative, self.parts))

    async def asked(self, trajectories: Sequence[Trajectory]) -> list[Answers]:
        """The answers of each part, asked at once."""
        if len(self.parts) == 1:
            return [await ask_all(self.parts[0], trajectories)]
        return list(await asyncio.gather(*(ask_all(part, trajectories) for part in self.parts)))

    def score(self, value: float, reason: str) -> Score:
        """A score of this verifier's own; rounding that leaves [0, 1] is taken back."""
        return Score(min(1.0, max(0.0, value)), reason, self.name, self.version)


class Combined(Composite):
    """Several verifiers asked about one trajectory and combined by `rule`, which is given the opinions that exist.

    No opinion where no part has one, nor, with `complete`, on a finished trajectory that a part has none on. The reason joins the
    parts' reasons; identity names the parts and their versions.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Verifier],
        rule: Callable[[Sequence[tuple[int, Score]]], float],
        *,
        complete: bool = False,
        settings: str = "",
    ) -> None:
        super().__init__(name, parts, settings)
        self.rule, self.complete = rule, complete

    async def answers(self, trajectories: Sequence[Trajectory]) -> Answers:
        asked = await self.asked(trajectories)
        return [self._combined(trajectory, [given[i] for given in asked]) for i, trajectory in enumerate(trajectories)]

    def _combined(self, trajectory: Trajectory, answers: Sequence[Answer]) -> Answer:
        opinions: list[tuple[int, Score]] = []
        for index, answer in enumerate(answers):
            if isinstance(answer, VerifierError):
                return answer
            if answer is not None:
                opinions.append((index, answer))
        if not opinions or (self.complete and trajectory.finished and len(opinions) < len(self.parts)):
            return None
        reason = "; ".join(f"{score.verifier} {score.value:.2f} {score.reason}".strip() for _, score in opinions)
        return self.score(self.rule(opinions), reason)


def weighted(parts: Mapping[Verifier, float] | Sequence[tuple[Verifier, float]]) -> Combined:
    """The weighted mean of the opinions that exist; weights are positive and need not sum to 1."""
    pairs = list(parts.items()) if isinstance(parts, Mapping) else list(parts)
    weights = [weight for _, weight in pairs]
    if not pairs or not all(0 < weight < math.inf for weight in weights):
        msg = f"got weights {weights}, wanted at least one, all positive"
        raise ValueError(msg)

    def rule(opinions: Sequence[tuple[int, Score]]) -> float:
        return sum(weights[i] * score.value for i, score in opinions) / sum(weights[i] for i, _ in opinions)

    return Combined("weighted", [part for part, _ in pairs], rule, settings=f"*{weights}")


def mean(*parts: Verifier) -> Combined:
    """The mean of the opinions that exist."""
    return Combined("mean", parts, lambda opinions: sum(score.value for _, score in opinions) / len(opinions))


def minimum(*parts: Verifier) -> Combined:
    """The worst of the opinions that exist; unlike `all_of` it needs no word of every part on a finished trajectory."""
    return Combined("minimum", parts, lambda opinions: min(score.value for _, score in opinions))


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


class Gated(Composite):
    """`verifier`, asked only about trajectories for which `applies` holds; no opinion on the others."""

    def __init__(self, label: str, verifier: Verifier, applies: Callable[[Trajectory], bool]) -> None:
        super().__init__(label, [verifier])
        self.version = verifier_identity(verifier)[1]
        self.applies = applies

    async def answers(self, trajectories: Sequence[Trajectory]) -> Answers:
        applies = [self.applies(trajectory) for trajectory in trajectories]
        let_in = [trajectory for trajectory, wanted in zip(trajectories, applies, strict=True) if wanted]
        given = iter(await ask_all(self.parts[0], let_in))
        return [next(given) if wanted else None for wanted in applies]


def on_finished(verifier: Verifier) -> Gated:
    """An outcome verifier made of any: no opinion on prefixes."""
    return Gated("on_finished", verifier, lambda trajectory: trajectory.finished)


def on_prefix(verifier: Verifier) -> Gated:
    """A process verifier made of any: no opinion on finished trajectories."""
    return Gated("on_prefix", verifier, lambda trajectory: not trajectory.finished)
