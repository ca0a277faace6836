"""From verdicts on steps to one on the trajectory: every prefix is asked about, and the scores are aggregated over the steps.

Questions are asked once and kept, so that a search that grows a trajectory step by step asks about each step once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from counterplay.core.aggregate import AGGREGATIONS, aggregate
from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask_all
from counterplay.core.nouns import Score, Step, Trajectory
from counterplay.core.protocols import Verifier
from counterplay.verifiers.cached import cached
from counterplay.verifiers.combine import Answer, Answers, Composite

How: TypeAlias = Literal["last", "min", "product", "mean", "max_drop", "irreversible"]


class OverSteps(Composite):
    """A verifier whose parts are asked about several questions a trajectory. A kind of its own says which, and what comes of them."""

    def questions(self, trajectory: Trajectory) -> list[Trajectory]:
        raise NotImplementedError

    def answer(self, trajectory: Trajectory, answers: Sequence[Score | None]) -> Score | None:
        raise NotImplementedError

    def __init__(self, label: str, verifier: Verifier, settings: str) -> None:
        super().__init__(label, [cached(verifier)], settings)

    async def answers(self, trajectories: Sequence[Trajectory]) -> Answers:
        asked = [self.questions(trajectory) for trajectory in trajectories]
        given = iter(await ask_all(self.parts[0], [question for questions in asked for question in questions]))
        return [self._answered(t, [next(given) for _ in questions]) for t, questions in zip(trajectories, asked, strict=True)]

    def _answered(self, trajectory: Trajectory, answers: Sequence[Answer]) -> Answer:
        opinions: list[Score | None] = []
        for answer in answers:
            if isinstance(answer, VerifierError):
                return answer
            opinions.append(answer)
        return self.answer(trajectory, opinions)

    def over(self, trajectory: Trajectory, scores: Sequence[Score | None], how: str) -> Score | None:
        """The scores of the trajectory's steps as one; the reason names the step that was thought worst of."""
        values = [None if score is None else score.value for score in scores]
        value = aggregated(trajectory, values, how)
        if value is None:
            return None
        at, worst = min(((i, score) for i, score in enumerate(scores) if score is not None), key=lambda pair: pair[1].value)
        return self.score(value, f"{how} over {len(scores)} steps; lowest is step {at}: {worst.value:.2f} {worst.reason}".strip())


class Stepwise(OverSteps):
    """See `stepwise`."""

    def __init__(self, verifier: Verifier, how: How) -> None:
        self.how = how
        super().__init__(f"stepwise_{how}", verifier, "")

    def questions(self, trajectory: Trajectory) -> list[Trajectory]:
        return prefixes(trajectory)

    def answer(self, trajectory: Trajectory, answers: Sequence[Score | None]) -> Score | None:
        return self.over(trajectory, answers, self.how)


def stepwise(verifier: Verifier, how: How = "mean") -> Stepwise:
    """`verifier`, asked about the prefix that ends at each step; its opinions are taken as those on the steps and aggregated.

    `last` is right for values, which look ahead already; `min` where one bad step spoils all; `product` for independent probabilities
    of being right (it falls with length); `mean` else; `max_drop` is 1 less the largest fall from one step to the next; `irreversible`
    is the least over the steps that call a tool which writes or is external (a tool of undeclared effect is), or the mean of all
    where there are none. Steps it has no opinion on are left out; no opinion where it has none on any. Raises UserError where `how`
    is none of these.
    """
    if how != "irreversible" and how not in AGGREGATIONS:
        raise UserError(f"got aggregation {how!r}", f"one of {', '.join((*AGGREGATIONS, 'irreversible'))}")
    return Stepwise(verifier, how)


def prefixes(trajectory: Trajectory) -> list[Trajectory]:
    """The state after each step, from the first to the whole; they share the keys of their common prefixes."""
    _ = trajectory.key  # what is known of the whole is known of its prefixes
    return [trajectory.prefix(length) for length in range(1, len(trajectory) + 1)]


def aggregated(trajectory: Trajectory, values: Sequence[float | None], how: str) -> float | None:
    """One value for those of the trajectory's steps, None of which are left out; None where there is none."""
    if how != "irreversible":
        return aggregate(values, how)
    spoiling = [value for step, value in zip(trajectory.steps, values, strict=True) if irreversible(trajectory, step)]
    least = aggregate(spoiling, "min")
    return aggregate(values, "mean") if least is None else least


def irreversible(trajectory: Trajectory, step: Step) -> bool:
    """Whether a step calls a tool that writes or is external, which it is where nothing is declared."""
    tools = (trajectory.tool(call.name) for call in step.action.tool_calls)
    return any(tool is None or tool.effect.kind in {"write", "external"} for tool in tools)
