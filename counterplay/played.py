"""Policies at play on tasks: every run with what it took, how likely its actions were, and how it ended."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from counterplay.core.budget import Budget
from counterplay.core.nouns import Call, Message, Proposal, State, Step, Trajectory
from counterplay.core.protocols import Policy, fingerprint_of
from counterplay.parts import WorldOf, make_world

if TYPE_CHECKING:
    from counterplay.finetune.failures import Classify


@dataclass(frozen=True)
class Run:
    """One attempt at a task. `logprobs` are of its actions, at temperature 1 and None where the policy can't tell. `end` is
    `failures.SUCCESS` or a class of failure, empty before it was classified.
    """

    task: str
    attempt: int
    trajectory: Trajectory
    calls: tuple[Call, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    end: str = ""

    @property
    def error(self) -> str | None:
        """The failure of the machinery, not of the agent, that ended it: a policy without an answer, a world that raised."""
        return self.trajectory.steps[-1].error if self.trajectory.steps else None

    @property
    def outcome(self) -> float:
        """The reward at the end; a run that did not end with one earned nothing."""
        return (self.trajectory.steps[-1].reward or 0.0) if self.trajectory.steps else 0.0


@dataclass(frozen=True)
class Played:
    """What one policy did: the runs, attempts at one task together, tasks in order; and the wall time in seconds."""

    runs: tuple[Run, ...]
    seconds: float

    @cached_property
    def by_task(self) -> Mapping[str, tuple[Run, ...]]:
        found: defaultdict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            found[run.task].append(run)
        return {task: tuple(runs) for task, runs in found.items()}

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        return tuple(run.trajectory for run in self.runs)

    def errors(self, tasks: Sequence[str]) -> dict[str, str]:
        """Those of the tasks on some attempt at which the machinery failed."""
        found = {run.task: run.error for run in reversed(self.runs) if run.error}
        return {task: found[task] for task in tasks if task in found}

    def outcomes(self, tasks: Sequence[str]) -> dict[str, float]:
        """The mean outcome of each task's attempts."""
        return {task: sum(run.outcome for run in runs) / len(runs) for task in tasks if (runs := self.by_task[task])}

    def cost_usd(self, tasks: Sequence[str]) -> float | None:
        """What all attempts at these tasks cost; None where the price of some call is not known."""
        costs = [call.usage.cost_usd for task in tasks for run in self.by_task[task] for call in run.calls]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if costs and len(known) == len(costs) else None


class Noting:
    """A policy that keeps what its inner `policy` proposed, so that the calls of a finished trajectory can be told."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.fingerprint = policy, fingerprint_of(policy)
        self.takes_turns = bool(getattr(policy, "takes_turns", False))
        self._given: defaultdict[tuple[str, str], list[Proposal]] = defaultdict(list)

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        proposals = await self.policy.propose(state, n)
        for proposal in proposals:
            self._given[state.key, proposal.action.wire].append(proposal)
        return proposals

    def run(self, task: str, attempt: int, trajectory: Trajectory) -> Run:
        """A run with its calls. Of equal calls of several runs each gets one."""
        calls, logprobs = [], list[float | None]()
        for at, (key, step) in enumerate(zip(trajectory.prefix_keys, trajectory.steps, strict=False)):
            given = self._given.get((key, step.action.wire))
            made = (given.pop(0) if len(given) > 1 else given[0]) if given else None
            logprobs.append(None if made is None else made.logprob)
            if made is not None:
                calls.append(Call(at, model=made.model or None, usage=made.usage, finish_reason=made.finish_reason or None))
        return Run(task, attempt, trajectory, tuple(calls), tuple(logprobs))


async def play_tasks(
    policy: Policy,
    factory: WorldOf,
    tasks: Sequence[str],
    *,
    attempts: int = 1,
    max_steps: int = 100,
    concurrency: int = 512,
    on_task: Callable[[], None] = lambda: None,
) -> Played:
    """Play every task `attempts` times, from its world's beginning, all together so that a local model can batch.

    `on_task` is called as each attempt ends.
    """
    from counterplay.replay.live import LiveEnvironment
    from counterplay.search.rollout import play

    class Telling(LiveEnvironment):
        """Calls `on_task` with the step that ends its run."""

        told = False

        async def step(self, state: State, action: Message) -> Step:
            step = await super().step(state, action)
            if step.finished and not self.told:
                self.told = True
                on_task()
            return step

    places = [(task, attempt) for task in tasks for attempt in range(attempts)]
    environments = [Telling(lambda task=task: make_world(factory, task), task=task, max_steps=max_steps) for task, _ in places]  # type: ignore[misc]
    noting = Noting(policy)
    try:
        states = [await environment.initial() for environment in environments]
        started = time.monotonic()
        trajectories = await play(states, noting, environments, Budget(), max_steps=max_steps, concurrency=concurrency)
        seconds = time.monotonic() - started
    finally:
        for environment in environments:
            await environment.aclose()
    for environment in environments:
        if not environment.told:
            on_task()
    return Played(tuple(noting.run(task, attempt, end) for (task, attempt), end in zip(places, trajectories, strict=True)), seconds)


async def with_ends(played: Played, classify: Classify | None = None) -> Played:
    """The same with how every run ended. `classify` names classes of failure: see `finetune.failures`; None is what runs show."""
    from counterplay.finetune.failures import SUCCESS, classify_failures

    failed = [run for run in played.runs if run.outcome < 1.0]
    names = iter(await classify_failures([run.trajectory for run in failed], classify))
    return replace(played, runs=tuple(replace(run, end=SUCCESS if run.outcome >= 1.0 else next(names)) for run in played.runs))
