"""Before and after: several policies play the same held-out tasks, and are compared task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import PolicyError, UserError
from counterplay.core.loading import resolve
from counterplay.evaluation_shown import tables
from counterplay.parts import closing, world_factory
from counterplay.plan import Pace
from counterplay.played import Played, Run, play_tasks, with_ends

__all__ = ["Evaluation", "Played", "Run", "evaluate", "named_policies", "play_tasks", "tables", "tasks_from_spec"]

if TYPE_CHECKING:
    from counterplay.finetune.evaluate import EvaluationReport, Results
    from counterplay.finetune.failures import Classify


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
    """Tasks from a file with one a line, or from `module:attr[:SPLIT:N]`, a list or a function of split and number; each once.

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
    return list(dict.fromkeys(found))


def _number(text: str) -> str | int:
    return int(text) if text.isdigit() else text


@dataclass(frozen=True)
class Evaluation:
    """How the policies compare on the tasks that all of them played. `unplayed` are the others: the first error by task.

    `runs` are all that was played, by policy; `settings` what was asked for.
    """

    report: EvaluationReport
    unplayed: Mapping[str, str]
    runs: Mapping[str, tuple[Run, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


async def evaluate(
    policies: Mapping[str, str],
    environment: str,
    tasks: Sequence[str],
    *,
    attempts: int = 1,
    base_url: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    max_steps: int = 100,
    concurrency: int = 512,
    against: Sequence[str] | None = None,
    pace: Pace | None = None,
    timeout_s: float | None = None,
    price: tuple[float, float] | None = None,
    classify: Classify | None = None,
    on_task: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Play `tasks` with every policy (specs by name) and compare each with the earlier ones named in `against`.

    Each task is played `attempts` times, also where it is named twice; `temperature` None is greedy for one attempt and 1 for several.
    `against` None compares with the first and with the one before it. `pace` limits what the server of each policy is asked,
    `timeout_s` is how long it may take for an answer before it is asked again (None: the policy's default), `price` is US dollars per
    million input and output tokens. `classify` names classes of failure (`finetune.failures`); None is what runs show of themselves.
    Tasks on which a policy or a world failed are left out for all, because a failure of the machinery says nothing about an agent.
    Raises PolicyError where that is more than one task in twenty.
    """
    from counterplay.finetune.evaluate import evaluate as compare_all
    from counterplay.replay.openai_answers import Price
    from counterplay.replay.policies import policy_from_spec

    heat, tasks = _temperature(temperature, attempts), list(dict.fromkeys(tasks))
    factory, done, unplayed, pace = world_factory(environment), dict[str, Played](), dict[str, str](), pace or Pace()
    for name, spec in policies.items():
        made = policy_from_spec(
            spec,
            base_url=base_url,
            temperature=heat,
            seed=seed,
            max_tokens=max_tokens,
            concurrency=pace.requests,
            timeout_s=timeout_s,
            price=None if price is None else Price(*price),
        )
        async with closing(made) as policy:
            with pace.kept(local=spec.startswith("transformers:")):
                played = await play_tasks(
                    policy, factory, tasks, attempts=attempts, max_steps=max_steps, concurrency=concurrency, on_task=on_task
                )
        unplayed = {**played.errors(tasks), **unplayed}
        done[name] = await with_ends(played, classify)
    if len(unplayed) > len(tasks) / 20:
        task, reason = next(iter(unplayed.items()))
        raise PolicyError(
            f"{len(unplayed)} of {len(tasks)} tasks could not be played; {task}: {reason}", "a policy and a world that answer"
        )
    kept = [task for task in tasks if task not in unplayed]
    report = compare_all([_results(name, played, kept) for name, played in done.items()], against=against)
    settings = {
        "policies": dict(policies),
        "environment": environment,
        "attempts": attempts,
        "temperature": heat,
        "max_tokens": max_tokens,
        "max_steps": max_steps,
        "seed": seed,
    }
    return Evaluation(report, unplayed, {name: played.runs for name, played in done.items()}, settings)


def _temperature(asked: float | None, attempts: int) -> float:
    if attempts < 1:
        raise UserError(f"got attempts {attempts}", "at least 1")
    if asked == 0 and attempts > 1:
        raise UserError(f"got {attempts} attempts at temperature 0, which are all alike", "a temperature above 0, or one attempt")
    return (1.0 if attempts > 1 else 0.0) if asked is None else asked


def _results(name: str, played: Played, tasks: Sequence[str]) -> Results:
    from counterplay.finetune.evaluate import Results

    runs = played.by_task
    return Results(
        name,
        {task: tuple(run.outcome for run in runs[task]) for task in tasks},
        {task: sum(len(run.trajectory) for run in runs[task]) / len(runs[task]) for task in tasks},
        played.cost_usd(tasks),
        {task: tuple(run.end for run in runs[task]) for task in tasks},
    )
