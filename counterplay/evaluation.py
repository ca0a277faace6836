"""Before and after: several policies play the same held-out tasks, and are compared task by task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.budget import Budget
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.loading import resolve
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Policy
from counterplay.parts import WorldOf, closing, make_world, world_factory
from counterplay.plan import Pace

if TYPE_CHECKING:
    from counterplay.finetune.evaluate import EvaluationReport


def named_policies(specs: Sequence[str]) -> dict[str, str]:
    """`NAME=SPEC` or `SPEC` to specs by name. Raises UserError on a name given twice."""
    named: dict[str, str] = {}
    for text in specs:
        name, equals, spec = text.partition("=")
        plain_spec = not equals or ":" in name
        name, spec = (text, text) if plain_spec else (name, spec)
        if name in named:
            raise UserError(f"got policy {name!r} twice", "each once", "Name them: --policy before=SPEC --policy after=SPEC")
        named[name] = spec
    return named


def tasks_from_spec(spec: str) -> list[str]:
    """Tasks from a file with one a line, or from `module:attr[:SPLIT:N]`, a list or a function of split and number.

    Raises UserError where there is none.
    """
    if Path(spec).is_file():
        found = [line.strip() for line in Path(spec).read_text(encoding="utf-8").splitlines() if line.strip()]
    elif ":" in spec:
        module, attr, *arguments = spec.split(":")
        held = resolve(f"{module}:{attr}", "tasks")
        try:
            found = [str(task) for task in (held(*(_number(a) for a in arguments)) if callable(held) else held)]
        except (TypeError, ValueError) as error:
            raise UserError(f"got tasks {spec!r}: {error}", "a list of tasks, or a function called as module:attr:SPLIT:N") from error
    else:
        raise UserError(f"got tasks {spec!r}", "a file with one task a line, or module:attr[:SPLIT:N]")
    if not found:
        raise UserError(f"got no tasks from {spec!r}", "at least one")
    return found


def _number(text: str) -> str | int:
    return int(text) if text.isdigit() else text


@dataclass(frozen=True)
class Evaluation:
    """How the policies compare on the tasks that all of them played. `unplayed` are the others: the first error by task."""

    report: EvaluationReport
    unplayed: Mapping[str, str]


@dataclass(frozen=True)
class Played:
    """What one policy did on the tasks: the trajectories in task order and the wall time in seconds."""

    trajectories: tuple[Trajectory, ...]
    seconds: float

    def errors(self, tasks: Sequence[str]) -> dict[str, str]:
        """Tasks on which the machinery failed, not the agent: a policy without an answer, a world that raised."""
        ends = ((task, trajectory.steps[-1].error) for task, trajectory in zip(tasks, self.trajectories, strict=True) if trajectory.steps)
        return {task: error for task, error in ends if error}

    def outcomes(self, tasks: Sequence[str]) -> dict[str, float]:
        """Reward by task; a trajectory that did not end with a reward earned nothing."""
        return {task: (t.steps[-1].reward or 0.0) if t.steps else 0.0 for task, t in zip(tasks, self.trajectories, strict=True)}


async def play_tasks(
    policy: Policy,
    factory: WorldOf,
    tasks: Sequence[str],
    *,
    max_steps: int = 100,
    concurrency: int = 512,
    on_task: Callable[[], None] = lambda: None,
) -> Played:
    """Play every task once, from its world's beginning, all together so that a local model can batch."""
    from counterplay.replay.live import LiveEnvironment
    from counterplay.search.rollout import play

    environments = [LiveEnvironment(lambda task=task: make_world(factory, task), task=task, max_steps=max_steps) for task in tasks]  # type: ignore[misc]
    try:
        states = [await environment.initial() for environment in environments]
        started = time.monotonic()
        trajectories = await play(states, policy, environments, Budget(), max_steps=max_steps, concurrency=concurrency)
        seconds = time.monotonic() - started
    finally:
        for environment in environments:
            await environment.aclose()
    for _ in tasks:
        on_task()
    return Played(tuple(trajectories), seconds)


async def evaluate(
    policies: Mapping[str, str],
    environment: str,
    tasks: Sequence[str],
    *,
    base_url: str | None = None,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    seed: int = 0,
    max_steps: int = 100,
    concurrency: int = 512,
    against: Sequence[str] | None = None,
    pace: Pace | None = None,
    on_task: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Play `tasks` with every policy (specs by name) and compare each with the earlier ones named in `against`.

    None compares with the first and with the one before it. `pace` limits what the server of each policy is asked. Tasks on which a
    policy or a world failed are left out for all, because a failure of the machinery says nothing about an agent. Raises PolicyError
    where that is more than one task in twenty.
    """
    from counterplay.finetune.evaluate import Results
    from counterplay.finetune.evaluate import evaluate as compare_all
    from counterplay.replay.policies import policy_from_spec

    factory, results, unplayed, pace = world_factory(environment), [], dict[str, str](), pace or Pace()
    for name, spec in policies.items():
        made = policy_from_spec(
            spec, base_url=base_url, temperature=temperature, seed=seed, max_tokens=max_tokens, concurrency=pace.requests
        )
        async with closing(made) as policy:
            with pace.kept(local=spec.startswith("transformers:")):
                played = await play_tasks(policy, factory, tasks, max_steps=max_steps, concurrency=concurrency, on_task=on_task)
        unplayed |= {task: error for task, error in played.errors(tasks).items() if task not in unplayed}
        steps = {task: float(len(trajectory)) for task, trajectory in zip(tasks, played.trajectories, strict=True)}
        results.append(Results(name, played.outcomes(tasks), steps))
    if len(unplayed) > len(tasks) / 20:
        task, reason = next(iter(unplayed.items()))
        raise PolicyError(
            f"{len(unplayed)} of {len(tasks)} tasks could not be played; {task}: {reason}", "a policy and a world that answer"
        )
    results = [replace(r, outcomes={t: o for t, o in r.outcomes.items() if t not in unplayed}) for r in results]
    return Evaluation(compare_all(results, against=against), unplayed)


def tables(evaluation: Evaluation) -> list[Any]:
    """Success by policy, every paired difference in points, each above its 95 % interval; then the verdicts in words."""
    report = evaluation.report
    baselines = list(dict.fromkeys(comparison.a for comparison in report.comparisons))
    cells = {(c.b, c.a): f"{100 * c.difference:+.1f}\n{_interval(c.interval, signed=True)}" for c in report.comparisons}
    rows = [
        [policy.name, f"{100 * policy.rate:.1f} %\n{_interval(policy.interval)}", *(cells.get((policy.name, b), "") for b in baselines)]
        for policy in report.policies
    ]
    title = f"{report.policies[0].tasks} held-out tasks: success, paired differences, 95 % intervals"
    shown = console.table(title, ["agent", "success", *(f"over {baseline}" for baseline in baselines)], rows)
    unplayed = [f"not played, and left out: {task}: {error}" for task, error in evaluation.unplayed.items()]
    return [shown, *(comparison.sentence() for comparison in report.comparisons), *unplayed]


def _interval(interval: tuple[float, float], *, signed: bool = False) -> str:
    low, high = (100 * bound for bound in interval)
    return f"{low:+.1f}..{high:+.1f}" if signed else f"{low:.1f} to {high:.1f}"
