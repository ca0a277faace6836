"""How good a round's model is: held-out tasks played greedily, compared task by task with the rounds before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import evaluation
from counterplay.improve.settings import MAX_STEPS, Improvement
from counterplay.improve.working import check_played
from counterplay.parts import Asked, closing, world_factory

if TYPE_CHECKING:
    from counterplay.finetune.evaluate import Comparison, Summary


def examine(given: Improvement, model: Path, on_task: Callable[[], None]) -> dict[str, Any]:
    """Outcomes and steps by held-out task, and the key of each task's prompt.

    Tasks on which the machinery failed are left out; raises PolicyError where that is more than one in twenty.
    """
    tasks, asked = list(dict.fromkeys(given.held_out)), given.asked_by(model, temperature=0.0)
    played = asyncio.run(_played(given, asked, tasks, on_task))
    unplayed = played.errors(tasks)
    check_played(unplayed, len(tasks))
    by_task = dict(zip(tasks, played.trajectories, strict=True))
    return {
        "outcomes": {task: reward for task, reward in played.outcomes(tasks).items() if task not in unplayed},
        "steps": {task: len(trajectory) for task, trajectory in by_task.items() if task not in unplayed},
        "prompts": {task: trajectory.prefix(0).key for task, trajectory in by_task.items()},
        "unplayed": unplayed,
    }


async def _played(given: Improvement, asked: Asked, tasks: Sequence[str], on_task: Callable[[], None]) -> evaluation.Played:
    async with closing(asked.make_policy(concurrency=given.plan.pace.requests)) as policy:
        limit = asked.max_steps or MAX_STEPS
        return await evaluation.play_tasks(policy, world_factory(asked.environment), tasks, max_steps=limit, on_task=on_task)


def telling(prompts: Mapping[str, str]) -> dict[str, str]:
    """The tasks by the key of their prompt; empty where several share a prompt, which then tells nothing."""
    by_key = {key: task for task, key in prompts.items()}
    return by_key if len(by_key) == len(prompts) else {}


def success(examined: Mapping[str, Any]) -> Summary:
    """The share of held-out tasks that succeeded, with its interval."""
    from counterplay.finetune.evaluate import Results, summarise

    return summarise(Results("", examined["outcomes"], examined["steps"]))


def gain(before: Mapping[str, Any], after: Mapping[str, Any], names: tuple[str, str] = ("before", "after")) -> Comparison:
    """The paired difference on the tasks that both played."""
    from counterplay.finetune.evaluate import Results, compare

    both = [task for task in before["outcomes"] if task in after["outcomes"]]
    sides = [Results(name, {task: one["outcomes"][task] for task in both}) for name, one in zip(names, (before, after), strict=True)]
    return compare(*sides)
