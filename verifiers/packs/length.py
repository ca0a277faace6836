"""The length pack: as short as is right, and no words said twice.

Length is what the agent wrote, never what it was answered. A longer trajectory is never worth more than a shorter one that is as
right, and no added text makes up for a repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from counterplay.core.errors import UserError
from counterplay.core.journal import ask, ask_all
from counterplay.core.nouns import Score, Step, Trajectory
from counterplay.core.protocols import Verifier
from counterplay.verifiers.packs.base import Fold, Index, Pack

Unit = Literal["characters", "words", "steps", "calls"]


@dataclass(frozen=True, eq=False)
class CosineLength(Pack):
    """The cosine length reward of Yeo et al. 2025, round a verifier that says what is right (from 0.5 on).

    Falls along half a cosine from `right[0]` at length 0 to `right[1]` at `longest` for what is right, and from `wrong[0]` to
    `wrong[1]` for what is wrong; `beyond` past `longest`. Values in [0, 1]. The paper pays more for a long wrong answer than for a short
    one, so that a model tries on (2 to 1 against -10 to 0, which is `right=(1, 0.92), wrong=(0, 0.83)`); that also pays for padding, so
    here both are 0 unless you say otherwise.

    On a prefix it is the value of ending there rightly, the best that can still be had. Without an opinion of `verifier` on the end
    there is none here.
    """

    name: ClassVar[str] = "cosine_length"
    verifier: Verifier
    longest: int
    unit: Unit = "words"
    right: tuple[float, float] = (1.0, 0.5)
    wrong: tuple[float, float] = (0.0, 0.0)
    beyond: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError where a value is not in [0, 1] or `longest` is not positive."""
        if self.longest < 1 or not all(0 <= each <= 1 for each in (*self.right, *self.wrong, self.beyond)):
            raise UserError(f"got longest={self.longest}, right={self.right}, wrong={self.wrong}", "a length from 1 and values in [0, 1]")

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        opinion = await ask(self.verifier, trajectory) if trajectory.finished else None
        return self._scored(trajectory, opinion)

    async def batch(self, trajectories: Sequence[Trajectory]) -> list[Score | Exception | None]:
        """Opinions in the order of the trajectories; the verifier is asked about all ends at once."""
        opinions = iter(await ask_all(self.verifier, [each for each in trajectories if each.finished]))
        scores: list[Score | Exception | None] = []
        for trajectory in trajectories:
            opinion = next(opinions) if trajectory.finished else None
            scores.append(opinion if isinstance(opinion, Exception) else self._scored(trajectory, opinion))
        return scores

    def _scored(self, trajectory: Trajectory, opinion: Score | None) -> Score | None:
        if not trajectory.steps:
            return None
        length = length_of(trajectory, self.unit)
        if not trajectory.finished:
            return self.score(self.value(length, right=True), f"{length} {self.unit} so far")
        if opinion is None:
            return None
        right = opinion.value >= 0.5
        told = f"{'right' if right else 'wrong'} in {length} {self.unit} of at most {self.longest}"
        return self.score(self.value(length, right=right), f"{told}; {opinion.reason}" if opinion.reason else told)

    def value(self, length: int, *, right: bool) -> float:
        """What a right or wrong end at this length is worth."""
        if length > self.longest:
            return self.beyond
        first, last = self.right if right else self.wrong
        return last + 0.5 * (first - last) * (1 + math.cos(length * math.pi / self.longest))


@dataclass(frozen=True, slots=True)
class _Said:
    """What was written so far: its n-grams, how many of them were written before, and where and what first."""

    known: Index[bool] = Index()  # noqa: RUF009  an Index never changes
    repeated: int = 0
    first: tuple[int, str] = (0, "")


@dataclass(frozen=True, eq=False)
class Repetition(Pack):
    """The n-gram repetition penalty: 1 less a share of 1 / `allowed` for every n-gram of words that the agent had written before.

    As in Yeo et al. 2025, every repeated n-gram costs the same, so nothing that is written elsewhere makes up for it (a share of the
    text would fall with padding). No opinion before the first step. `reasoning` counts the model's reasoning too. Tool arguments
    never count: calls that are alike are the business of the tools pack.
    """

    name: ClassVar[str] = "repetition"
    n: int = 8
    allowed: int = 200
    reasoning: bool = True

    def __post_init__(self) -> None:
        """Raises UserError where `n` or `allowed` is not positive."""
        if self.n < 1 or self.allowed < 1:
            raise UserError(f"got n={self.n}, allowed={self.allowed}", "whole numbers from 1")

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps:
            return None
        said = self._fold(trajectory)
        if not said.repeated:
            return self.score(1.0, "nothing is written twice")
        step, example = said.first
        told = f"step {step}: {example!r} was written before; {said.repeated} of {self.allowed} repeated {self.n}-grams"
        return self.score(1.0 - said.repeated / self.allowed, told)

    @cached_property
    def _fold(self) -> Fold[_Said]:
        return Fold(lambda _: _Said(), self._add)

    def _add(self, said: _Said, step: Step, index: int) -> _Said:
        texts = [step.action.content_text, (step.action.reasoning or "") if self.reasoning else ""]
        new: dict[tuple[str, ...], bool] = {}
        again: list[tuple[str, ...]] = []
        for gram in (gram for text in texts for gram in _grams(text, self.n)):
            if gram in new or gram in said.known:
                again.append(gram)
            else:
                new[gram] = True
        first = said.first if said.repeated or not again else (index, " ".join(again[0]))
        return _Said(said.known.put(new.items()), said.repeated + len(again), first)


async def kimi_scores(
    trajectories: Sequence[Trajectory], verifier: Verifier, *, unit: Unit = "words", weight: float = 0.5
) -> list[Score | None]:
    """The length reward of Kimi k1.5 (2025) over the samples of one task: relative to one another, so it is no verifier of one trajectory.

    With l = 0.5 - (length - shortest) / (longest - shortest), a right one gets `weight` * l, a wrong one `weight` * min(0, l), beside the
    verifier's value; scaled to [0, 1] from the range [-weight / 2, 1 + weight / 2]. None where the verifier has no opinion.
    Raises VerifierError where it fails on one of them.
    """
    return await _relative(
        trajectories, verifier, unit=unit, name="kimi_length", shaped=lambda lengths: _kimi(lengths, weight), weight=weight
    )


async def efficient_scores(
    trajectories: Sequence[Trajectory], verifier: Verifier, *, unit: Unit = "words", alpha: float = 0.4
) -> list[Score | None]:
    """The reward of Arora and Zanette 2025 over the samples of one task: a right one gets 1 - alpha * sigmoid((length - mean) / deviation).

    Mean and deviation are those of the right samples; a wrong one gets 0. None where the verifier has no opinion.
    """

    def shaped(lengths: Sequence[tuple[int, float]]) -> list[float]:
        right = [length for length, value in lengths if value >= 0.5]
        mean = sum(right) / max(1, len(right))
        deviation = math.sqrt(sum((length - mean) ** 2 for length in right) / max(1, len(right))) or 1.0
        return [value * (1 - alpha / (1 + math.exp(-(length - mean) / deviation))) if value >= 0.5 else 0.0 for length, value in lengths]

    return await _relative(trajectories, verifier, unit=unit, name="efficient_length", shaped=shaped)


def length_of(trajectory: Trajectory, unit: Unit = "words") -> int:
    """How much the agent wrote: text, reasoning and tool arguments in characters or words, or its steps or tool calls."""
    if unit == "steps":
        return len(trajectory.steps)
    if unit == "calls":
        return sum(len(step.action.tool_calls) for step in trajectory.steps)
    return sum(_written(step, unit) for step in trajectory.steps)


def _written(step: Step, unit: Unit) -> int:
    action = step.action
    texts = [action.content_text, action.reasoning or "", *(call.arguments for call in action.tool_calls)]
    return sum(len(text) if unit == "characters" else len(text.split()) for text in texts)


def _kimi(lengths: Sequence[tuple[int, float]], weight: float) -> list[float]:
    shortest, longest = min(length for length, _ in lengths), max(length for length, _ in lengths)
    spread = longest - shortest
    rewards = [0.5 - (length - shortest) / spread if spread else 0.0 for length, _ in lengths]
    return [value + weight * (reward if value >= 0.5 else min(0.0, reward)) for (_, value), reward in zip(lengths, rewards, strict=True)]


async def _relative(
    trajectories: Sequence[Trajectory],
    verifier: Verifier,
    *,
    unit: Unit,
    name: str,
    shaped: Callable[[Sequence[tuple[int, float]]], list[float]],
    weight: float = 0.0,
) -> list[Score | None]:
    opinions: list[Score | None] = []
    for opinion in await ask_all(verifier, trajectories):
        if isinstance(opinion, Exception):
            raise opinion
        opinions.append(opinion)
    known = [(length_of(t, unit), score.value) for t, score in zip(trajectories, opinions, strict=True) if score is not None]
    values = iter(shaped(known) if known else [])
    lengths = iter(known)
    scores: list[Score | None] = []
    for opinion in opinions:
        if opinion is None:
            scores.append(None)
            continue
        value = (next(values) + weight / 2) / (1 + weight)
        scores.append(Score(min(1.0, max(0.0, value)), f"{next(lengths)[0]} {unit}", name, "1"))
    return scores


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
