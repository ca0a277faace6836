"""What is known to be true of a trajectory, apart from any verifier: how it ended, and which of its steps were right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from counterplay.core.nouns import LoggedScore, Outcome, Trace, Trajectory

LABELS = ("label", "rating", "step_label", "mc_value")
"""Logged step scores that are read as labels where no name is given: the first of them that a trace holds."""

_HARD = "mc_value"
_PRM_DATA = "prm-data"


@dataclass(frozen=True)
class Labelled:
    """A trajectory with its truth. Rewards are taken out of it, so that no verifier reads the answer off.

    `group` names the task: trajectories of one group are siblings. `gold` is how well it ended, in [0, 1]; None where that is not known
    or the trajectory did not end. `labels` are +1 (right), 0 (neutral) or -1 (wrong) by step, None where a step was not judged; empty
    where none was. `first_error` is the first wrong step, -1 where there is none, None where that can't be said.
    """

    trajectory: Trajectory
    group: str
    gold: float | None = None
    labels: tuple[int | None, ...] = ()
    first_error: int | None = None
    id: str = ""

    @property
    def right(self) -> bool | None:
        """Whether it ended well: gold above one half."""
        return None if self.gold is None else self.gold > 0.5


def labelled(traces: Iterable[Trace], *, labels: str | None = None) -> list[Labelled]:
    """The truth in logged traces: outcomes of main trajectories, step labels of all; traces without either are left out.

    Step labels are the logged scores named `labels` (None: the first of `LABELS` that a trace holds), or a list `step_labels` in the
    trace's metadata. Values at the top of their scale are right, in its middle neutral, below wrong; an `mc_value` is wrong where it is 0,
    as Math-Shepherd's hard labels are. Rows of step-labelled data with one question are siblings, whatever their ids.
    """
    return [item for trace in traces for item in _of(trace, labels)]


def _of(trace: Trace, name: str | None) -> Iterator[Labelled]:
    contexts = [trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)]
    by_state = _by_state(trace, contexts, name)
    for number, trajectory in enumerate(contexts):
        marks = tuple(by_state.get(key) for key in trajectory.prefix_keys[1:])
        if number == 0 and not any(mark is not None for mark in marks):
            marks = _listed(trace.metadata, len(trajectory))
        gold = gold_of(trace.outcome) if number == 0 else None
        known = any(mark is not None for mark in marks)
        if gold is None and not known:
            continue
        question = trace.task is None or trace.source.format == _PRM_DATA
        group = trajectory.prefix_keys[0] if question else f"task {trace.task}"
        first = first_error(marks) if known else None
        yield Labelled(blind(trajectory), group, gold, marks if known else (), first, f"{trace.id}/{number}" if number else trace.id)


def _by_state(trace: Trace, contexts: Sequence[Trajectory], name: str | None) -> dict[str, int]:
    """Labels by the state that the labelled step led to: branches share those of their prefix."""
    held = {score.name for score in trace.scores if score.step is not None}
    wanted = name or next((label for label in LABELS if label in held), None)
    found: dict[str, int] = {}
    for score in trace.scores:
        mark = _mark(score) if score.name == wanted and score.step is not None else None
        if mark is not None and score.trajectory < len(contexts):
            keys = contexts[score.trajectory].prefix_keys
            step = score.step or 0
            if step + 1 < len(keys):
                found[keys[step + 1]] = mark
    return found


def _mark(score: LoggedScore) -> int | None:
    if score.scaled is None:
        return None
    if score.name == _HARD:
        return 1 if score.scaled > 0 else -1
    return (score.scaled > 0.5) - (score.scaled < 0.5)


def _listed(metadata: Mapping[str, Any], length: int) -> tuple[int | None, ...]:
    """`step_labels` of the metadata: numbers by sign, booleans as right and wrong."""
    found = metadata.get("step_labels")
    if not isinstance(found, list | tuple) or len(found) > length:
        return ()
    marks = [(1 if mark else -1) if isinstance(mark, bool) else _sign(mark) for mark in found]
    return (*marks, *(None,) * (length - len(marks)))


def _sign(value: Any) -> int | None:
    return (value > 0) - (value < 0) if isinstance(value, int | float) else None


def first_error(labels: Sequence[int | None]) -> int | None:
    """The first step labelled -1; -1 where all are labelled and none is. None where a step before it was not judged."""
    for step, mark in enumerate(labels):
        if mark is None:
            return None
        if mark < 0:
            return step
    return -1


def gold_of(outcome: Outcome) -> float | None:
    """The outcome in [0, 1]: the reward where it is on that scale, else whether it was a success; None where neither is known."""
    if outcome.reward is not None and 0.0 <= outcome.reward <= 1.0 and outcome.success in (None, outcome.reward > 0.5):
        return outcome.reward
    return None if outcome.success is None else float(outcome.success)


def blind(trajectory: Trajectory) -> Trajectory:
    """The trajectory without its rewards; the same states, with the same keys."""
    if all(step.reward is None for step in trajectory.steps):
        return trajectory
    return Trajectory(trajectory.tools, trajectory.prompt, tuple(replace(step, reward=None) for step in trajectory.steps))
