"""Transforms that take the profit out of hacking a verifier: by length, by repetition, by doing nothing, by fooling one model.

Step rewards are never summed as they are: `summed` clips them, or takes their differences, and gives idle steps nothing. `unpadded`
does for a verifier of whole trajectories what can be done there, `robust` weighs an ensemble's worst opinion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask_all
from counterplay.core.nouns import Message, Score, Step, Trajectory
from counterplay.core.protocols import Verifier
from counterplay.verifiers.combine import Answer, Answers, Composite
from counterplay.verifiers.stepwise import OverSteps, prefixes

Transform: TypeAlias = Literal["clip", "delta"]
Rewards: TypeAlias = "list[float | None]"


def clip(rewards: Sequence[float | None], eta: float = 0.5) -> Rewards:
    """r'_k = min(r_k, eta) - eta, in [-eta, 0]: no step adds to the sum, so more steps never do. None stays None.

    Gao et al. 2024, On Designing Effective RL Reward at Training Time for LLM Reasoning, arXiv:2410.15115.
    """
    return [None if reward is None else min(reward, eta) - eta for reward in rewards]


def delta(rewards: Sequence[float | None]) -> Rewards:
    """r'_k = r_k - r_{k+1}, the last its own: the return from step k on is r_k, however many steps follow. None stays None.

    Of the same paper. The sum over a whole trajectory is the reward of its first step.
    """
    following: float | None = None
    found: Rewards = []
    for reward in reversed(rewards):
        found.append(None if reward is None else reward - (following or 0.0))
        following = following if reward is None else reward
    return found[::-1]


def returns(rewards: Sequence[float | None], gamma: float = 1.0) -> list[float]:
    """G_k = sum_{j >= k} gamma^(j-k) r_j for every step; a missing reward adds nothing."""
    held = ([0.0 if reward is None else reward for reward in rewards])[::-1]
    return list(accumulate(held, lambda after, reward: reward + gamma * after))[::-1]


def idle(trajectory: Trajectory) -> list[bool]:
    """For each step, whether it did nothing new.

    It said and called nothing (no-op); it called only tools that neither write nor are external, and they answered nothing (no-op);
    or an earlier step acted equally and was answered equally (duplicate). A step that ends the trajectory or is paid for is never idle.
    """
    seen: set[tuple[str, ...]] = set()
    found = []
    for step in trajectory.steps:
        done = (step.action.signature, *(message.content_text for message in step.observations))
        found.append(not step.finished and step.reward is None and (done in seen or _no_op(trajectory, step)))
        seen.add(done)
    return found


def without_idle(trajectory: Trajectory) -> Trajectory:
    """The trajectory without its idle steps; the same object where there are none."""
    marks = idle(trajectory)
    if not any(marks):
        return trajectory
    kept = tuple(step for step, skip in zip(trajectory.steps, marks, strict=True) if not skip)
    return Trajectory(trajectory.tools, trajectory.prompt, kept)


def _no_op(trajectory: Trajectory, step: Step) -> bool:
    calls = step.action.tool_calls
    if not calls:
        return _says_nothing(step.action)
    tools = [trajectory.tool(call.name) for call in calls]
    looks = all(tool is not None and tool.effect.kind in {"pure", "read"} for tool in tools)
    return looks and not any(message.content_text.strip() for message in step.observations)


def _says_nothing(action: Message) -> bool:
    """No text, and nothing that stands in its place."""
    content, fields = action.content, action.fields
    other = isinstance(content, list) and any(part.get("type") != "text" for part in content if isinstance(part, dict))
    return not (action.content_text.strip() or other or any(fields.get(name) for name in ("refusal", "audio", "function_call")))


class Summed(OverSteps):
    """See `summed`."""

    def __init__(self, verifier: Verifier, transform: Transform, eta: float) -> None:
        self.transform, self.eta = transform, eta
        super().__init__(f"summed_{transform}", verifier, f"*{eta:g}" if transform == "clip" else "")

    def questions(self, trajectory: Trajectory) -> list[Trajectory]:
        return prefixes(without_idle(trajectory))

    def answer(self, trajectory: Trajectory, answers: Sequence[Score | None]) -> Score | None:
        rewards = self._rewards(trajectory, answers)
        known = [reward for reward in rewards if reward is not None]
        if not known or (answers and all(answer is None for answer in answers)):
            return None
        total = math.fsum(known)
        skipped = sum(idle(trajectory))
        reason = f"{self.transform} of {len(known)} step rewards: {total:.3f}" + (f", {skipped} idle steps" if skipped else "")
        return self.score(math.exp(total / self.eta) if self.transform == "clip" else total, reason)

    async def rewards(self, trajectory: Trajectory) -> Rewards:
        """The transformed reward of each step, for training; None where the verifier has no opinion. Raises VerifierError."""
        answers = []
        for answer in await ask_all(self.parts[0], self.questions(trajectory)):
            if isinstance(answer, VerifierError):
                raise answer
            answers.append(answer)
        return self._rewards(trajectory, answers)

    def _rewards(self, trajectory: Trajectory, answers: Sequence[Score | None]) -> Rewards:
        given = iter(None if answer is None else answer.value for answer in answers)
        raw: Rewards = [0.0 if skip else next(given) for skip in idle(trajectory)]
        return clip(raw, self.eta) if self.transform == "clip" else delta(raw)


def summed(verifier: Verifier, transform: Transform = "clip", *, eta: float = 0.5) -> Summed:
    """The sum of the rewards that `verifier` gives the steps, made safe to sum: idle steps are rewarded 0 and are not shown to it.

    With `clip` the score is exp(sum / eta): 1 where every step is worth eta or more, a factor of 1/e for each that is worth nothing,
    and no step can raise it. With `delta` it is the sum, which is the first step's reward; its use is `rewards`, for training.
    No opinion where the verifier has none on any step. Raises UserError for another transform, or `eta` outside (0, 1].
    """
    if transform not in {"clip", "delta"} or not 0.0 < eta <= 1.0:
        raise UserError(f"got transform {transform!r} with eta {eta}", "clip or delta, and eta above 0 and at most 1")
    return Summed(verifier, transform, eta)


class Unpadded(OverSteps):
    """See `unpadded`."""

    def __init__(self, verifier: Verifier, penalty: float) -> None:
        self.penalty = penalty
        super().__init__("unpadded", verifier, f"*{penalty:g}")

    def questions(self, trajectory: Trajectory) -> list[Trajectory]:
        bare = without_idle(trajectory)
        return [trajectory] if bare is trajectory else [trajectory, bare]

    def answer(self, trajectory: Trajectory, answers: Sequence[Score | None]) -> Score | None:
        known = [score for score in answers if score is not None]
        if len(known) < len(answers):
            return None
        worst, skipped = min(known, key=lambda score: score.value), sum(idle(trajectory))
        if not skipped:
            return self.score(worst.value, worst.reason)
        return self.score(worst.value * (1.0 - self.penalty) ** skipped, f"{skipped} idle steps; {worst.reason}")


def unpadded(verifier: Verifier, *, penalty: float = 0.05) -> Unpadded:
    """The lower of `verifier`'s scores for the trajectory and for it without its idle steps, less the share `penalty` for each of them.

    So no idle step that is put into a trajectory without any raises its score, whatever the verifier. No opinion where the verifier has
    none on either. Raises UserError where `penalty` is outside [0, 1].
    """
    if not 0.0 <= penalty <= 1.0:
        raise UserError(f"got penalty {penalty}", "a share from 0 to 1")
    return Unpadded(verifier, penalty)


@dataclass(frozen=True, slots=True)
class Spread:
    """The opinions of an ensemble: of its first part, the least, and their standard deviation (0 for one opinion), each in [0, 1]."""

    nominal: float
    minimum: float
    uncertainty: float


class Robust(Composite):
    """See `robust`."""

    def __init__(self, parts: Sequence[Verifier], trust: float) -> None:
        super().__init__("robust", parts, f"*{trust:g}")
        self.trust = trust

    async def answers(self, trajectories: Sequence[Trajectory]) -> Answers:
        asked = await self.asked(trajectories)
        return [self._weighed([given[i] for given in asked]) for i in range(len(trajectories))]

    async def spread(self, trajectory: Trajectory) -> Spread | None:
        """What the parts think, and how far they are apart; None where none has an opinion. Raises VerifierError."""
        found = _spread([answers[0] for answers in await self.asked([trajectory])])
        if isinstance(found, VerifierError):
            raise found
        return found

    def _weighed(self, answers: Sequence[Answer]) -> Answer:
        found = _spread(answers)
        if found is None or isinstance(found, VerifierError):
            return found
        value = self.trust * found.nominal + (1.0 - self.trust) * found.minimum
        return self.score(value, f"nominal {found.nominal:.2f}, minimum {found.minimum:.2f}, uncertainty {found.uncertainty:.3f}")


def robust(*verifiers: Verifier, trust: float = 0.5) -> Robust:
    """An ensemble that is hard to fool: trust * nominal + (1 - trust) * minimum, where nominal is the first verifier's opinion.

    What fools one part does not fool the least of them. Where the first has no opinion the mean of the others is nominal; no opinion
    where none has one. The reason tells the uncertainty (standard deviation of the opinions), and `spread` gives it as a number.
    Yan et al. 2024, Reward-Robust RLHF in LLMs, arXiv:2409.15360, whose nominal head is the one it is surest of. Raises UserError
    where `trust` is outside [0, 1].
    """
    if not 0.0 <= trust <= 1.0:
        raise UserError(f"got trust {trust}", "a share from 0 to 1")
    return Robust(verifiers, trust)


def _spread(answers: Sequence[Answer]) -> Spread | VerifierError | None:
    values: list[float] = []
    for answer in answers:
        if isinstance(answer, VerifierError):
            return answer
        if answer is not None:
            values.append(answer.value)
    if not values:
        return None
    average = math.fsum(values) / len(values)
    uncertainty = math.sqrt(math.fsum((value - average) ** 2 for value in values) / len(values))
    first = answers[0]
    return Spread(first.value if isinstance(first, Score) else average, min(values), uncertainty)
