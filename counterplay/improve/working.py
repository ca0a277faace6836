"""The agent at work on training tasks, recorded, under the ceiling of its round; and the check that nothing held out is among them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.budget import KINDS, Budget
from counterplay.core.canonical import loads
from counterplay.core.errors import BudgetExceeded, PolicyError, UserError
from counterplay.core.nouns import Proposal, State, Trace, Usage
from counterplay.core.protocols import Policy, fingerprint_of
from counterplay.improve.settings import MAX_STEPS, Improvement, agent_of
from counterplay.parts import Asked, closing, world_factory

if TYPE_CHECKING:
    from counterplay.replay.recorder import Recorder, Recording

CALLS = "calls.jsonl"
_SPENT = "the budget of the round is spent"


class Metered:
    """A policy under a ceiling: a call that does not fit has no answer, and the run it was for is not recorded.

    What each call took is noted in the file `calls`, also of runs that are then cut off. A call sets aside the tokens that the policy
    estimates, or as many as the largest call so far took; of those without an estimate the first goes alone, and so calls in flight may
    exceed a limit of tokens by what they grew beyond the largest.
    """

    def __init__(self, policy: Policy, budget: Budget, calls: Path) -> None:
        self.policy, self.budget, self.calls = policy, budget, calls
        self.fingerprint = fingerprint_of(policy)
        self._largest = max((tokens for _, tokens in _noted(calls)), default=None)
        self._first = asyncio.Lock()

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        estimate = getattr(self.policy, "estimate", None)
        usage: Usage | None = None if estimate is None else estimate(state, n)
        if usage is None and self._largest is None and self.budget.limits.tokens is not None:
            async with self._first:
                if self._largest is None:
                    return await self._asked(state, n, 1)
        return await self._asked(state, n, n * (self._largest or 0) if usage is None else usage.tokens)

    async def _asked(self, state: State, n: int, tokens: int) -> Sequence[Proposal]:
        try:
            reservation = self.budget.reserve(model_calls=n, tokens=tokens)
        except BudgetExceeded as error:
            raise PolicyError(_SPENT) from error
        proposals = await self.policy.propose(state, n)
        used = sum(proposal.usage.tokens for proposal in proposals)
        self._largest = max(self._largest or 0, -(-used // max(1, n)))
        reservation.settle(model_calls=n, tokens=used)
        with self.calls.open("a", encoding="utf-8") as file:
            file.write(f"[{n}, {used}]\n")
        return proposals


def work(given: Improvement, number: int, model: Path, logs: Path, on_task: Callable[[], None]) -> dict[str, Any]:
    """Let the agent work on the round's tasks, and record it. Tasks that are in the recording already are not played again.

    Raises PolicyError where the machinery failed on more than one task in twenty.
    """
    from counterplay.replay.recorder import Recorder

    tasks, calls = given.tasks_of(number), logs.with_name(CALLS)
    budget = left_of(given.plan.budget, used_in(logs.with_name(CALLS)))
    asked = given.asked_by(model)
    if given.temperature is not None:
        asked = replace(asked, temperature=given.temperature)
    with Recorder(logs, agent=agent_of(number)) as recorder:
        done = asyncio.run(_recorded(given, asked, tasks, recorder, calls, budget=budget, on_task=on_task))
    in_order(logs, tasks)
    check_played({task: reason for task, reason in done.failed.items() if reason != _SPENT}, len(tasks))
    return {"tasks": len(set(tasks)), "unplayed": dict(done.failed)}


async def _recorded(
    given: Improvement, asked: Asked, tasks: Sequence[str], recorder: Recorder, calls: Path, *, budget: Budget, on_task: Callable[[], None]
) -> Recording:
    from counterplay.replay.recorder import record

    async with closing(asked.make_policy(concurrency=given.plan.pace.requests)) as policy:
        return await record(
            tasks,
            world_factory(asked.environment),
            Metered(policy, budget, calls),
            recorder,
            max_steps=asked.max_steps or MAX_STEPS,
            concurrency=given.plan.concurrency,
            allow_external=asked.allow_external,
            progress=lambda _: on_task(),
        )


def in_order(logs: Path, tasks: Sequence[str]) -> None:
    """The lines of a recording in the order of the tasks, so that what is made of it does not depend on which run ended first."""
    place = {task: number for number, task in enumerate(tasks)}
    lines = logs.read_bytes().splitlines(keepends=True) if logs.is_file() else []
    ordered = sorted(lines, key=lambda line: place.get(loads(line.decode())["task"], len(place)))
    if ordered != lines:
        fresh = logs.with_name(f".{logs.name}")
        fresh.write_bytes(b"".join(ordered))
        fresh.replace(logs)


def check_played(unplayed: Mapping[str, str], tasks: int) -> None:
    """Raises PolicyError where the machinery failed on more than one task in twenty."""
    if len(unplayed) > tasks / 20:
        task, reason = next(iter(unplayed.items()))
        raise PolicyError(f"{len(unplayed)} of {tasks} tasks could not be played; {task}: {reason}", "a model and a world that answer")


def left_of(limits: str, used: Mapping[str, float]) -> Budget:
    """What is left of limits in words, as a budget of its own."""
    whole = Budget.parse(limits).limits
    kinds = {kind: limit for kind in KINDS if (limit := getattr(whole, kind)) is not None}
    return Budget.of(**{kind: max(0.0, limit - used.get(kind, 0.0)) for kind, limit in kinds.items()})


def used_in(calls: Path) -> dict[str, float]:
    """What all calls of a round's work took, also for runs that are not recorded; the file may be missing, or end in a torn line."""
    noted = _noted(calls)
    return {"model_calls": float(sum(n for n, _ in noted)), "tokens": float(sum(tokens for _, tokens in noted))}


def _noted(calls: Path) -> list[tuple[int, int]]:
    """The number of draws and the tokens of every call."""
    lines = calls.read_bytes().splitlines(keepends=True) if calls.is_file() else []
    return [(n, tokens) for n, tokens in (loads(line.decode()) for line in lines if line.endswith(b"\n"))]


def used_by(traces: Iterable[Trace]) -> dict[str, float]:
    """The model calls of logged runs, and their tokens as far as they are known."""
    used = {"model_calls": 0.0, "tokens": 0.0}
    for trace in traces:
        used["model_calls"] += len(trace.trajectory) + sum(len(part.trajectory) for part in trace.sub_trajectories)
        used["tokens"] += sum(call.usage.tokens for call in trace.calls)
    return used


def check_leak(traces: Sequence[Trace], held_out: Iterable[str], prompts: Mapping[str, str]) -> None:
    """Refuse training runs of held-out tasks: of the same name, or with the very prompt of one.

    `prompts` maps the keys of held-out prompts to their tasks; empty where prompts don't tell tasks apart. Raises UserError with names.
    """
    names, leaked = set(held_out), dict[str, str]()
    for trace in traces:
        same = trace.task if trace.task in names else prompts.get(trace.trajectory.prefix(0).key)
        if same is not None:
            leaked[trace.task or trace.id] = same
    if leaked:
        shown = ", ".join(task if task == same else f"{task} (the prompt of {same})" for task, same in sorted(leaked.items())[:5])
        got = f"got training runs of {len(leaked)} held-out tasks: {shown}"
        raise UserError(got, "held-out tasks that nothing is trained on", "Give other --held-out tasks, or leave these out of training.")
