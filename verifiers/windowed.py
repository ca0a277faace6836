"""Steps judged alone and together with the next: the hierarchical reward model's two granularities."""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.nouns import Message, Score, Step, Trajectory
from counterplay.core.protocols import Verifier
from counterplay.verifiers.stepwise import How, OverSteps, prefixes


class Windowed(OverSteps):
    """See `windowed`."""

    def __init__(self, verifier: Verifier, how: How) -> None:
        self.how = how
        super().__init__(f"windowed_{how}", verifier, "")

    def questions(self, trajectory: Trajectory) -> list[Trajectory]:
        return [*prefixes(trajectory), *pairs(trajectory)]

    def answer(self, trajectory: Trajectory, answers: Sequence[Score | None]) -> Score | None:
        alone, together = answers[: len(trajectory)], [*answers[len(trajectory) :], None]
        return self.over(trajectory, [_both(*two) for two in zip(alone, together, strict=True)], self.how) if len(trajectory) else None


def windowed(verifier: Verifier, how: How = "mean") -> Windowed:
    """`verifier`, asked about each step and about each pair of neighbours merged into one step; aggregated over the steps as in `stepwise`.

    The score of a step is the mean of the opinions on it alone and on it merged with the step that follows, of those that exist: a flaw
    that the next step mends weighs half, and one that is built upon weighs whole (Wang et al. 2025, Towards Hierarchical Multi-Step
    Reward Models, arXiv:2503.13551).
    """
    return Windowed(verifier, how)


def pairs(trajectory: Trajectory) -> list[Trajectory]:
    """For each step but the last, the state after it and the next, these two merged into one step."""
    states = [trajectory.prefix(0), *prefixes(trajectory)]
    return [_after(states[i], merged(*trajectory.steps[i : i + 2])) for i in range(len(trajectory) - 1)]


def _after(state: Trajectory, step: Step) -> Trajectory:
    """`state` with one more step, sharing its keys; also where a log goes on after an end."""
    return Trajectory(state.tools, state.prompt, (*state.steps, step)) if state.finished else state.extend(step)


def merged(first: Step, second: Step) -> Step:
    """Two steps as one: an action with the texts and calls of both, then the observations of both; it ends as the second does.

    The hierarchical node compression of the same paper, which makes training data of it.
    """
    one, two = first.action, second.action
    text = "\n".join(part for part in (one.content_text, two.content_text) if part)
    reasoning = "\n".join(part for part in (one.reasoning, two.reasoning) if part)
    return Step(
        Message.assistant(text or None, (*one.tool_calls, *two.tool_calls), reasoning or None),
        (*first.observations, *second.observations),
        sampled=first.sampled and second.sampled,
        terminated=second.terminated,
        truncated=second.truncated,
        error=second.error,
        reward=first.reward if second.reward is None else second.reward,
        grades=(*first.grades, *second.grades),
    )


def _both(alone: Score | None, together: Score | None) -> Score | None:
    if alone is None or together is None:
        return alone or together
    return Score((alone.value + together.value) / 2, alone.reason or together.reason)
