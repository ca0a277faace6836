"""What `counterplay evaluate` does: play and compare, draw success against budgets, or estimate from logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterplay import console
from counterplay.core.errors import CounterplayError, UserError
from counterplay.evaluation import evaluate, tasks_from_spec
from counterplay.evaluation_shown import tables
from counterplay.plan import Pace


@dataclass(frozen=True)
class Question:
    """What all three ways are asked: policies (specs by name), their world and tasks, what verifies, and how they are sampled."""

    policies: Mapping[str, str]
    environment: str
    tasks: str
    out: Path | None = None
    verifiers: tuple[str, ...] = ()
    base_url: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int = 0
    max_steps: int = 100
    concurrency: int = 512
    pace: Pace = field(default_factory=Pace)
    timeout_s: float | None = None
    quiet: bool = False

    @property
    def task_names(self) -> list[str]:
        """Raises UserError where tasks or a world are missing."""
        if not self.environment or not self.tasks:
            raise UserError("got no --environment or no --tasks", "both, to play", "Or --logged STORE, to estimate from logs alone.")
        return tasks_from_spec(self.tasks)

    @property
    def sampling(self) -> dict[str, Any]:
        names = ("base_url", "temperature", "max_tokens", "seed", "max_steps", "concurrency", "pace", "timeout_s")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Shown:
    """A result as JSON types, and for a person."""

    result: Any
    human: list[Any]


def refuse(way: str, given: Mapping[str, Any], wanted: str) -> None:
    """Raises UserError where one of the options was given: they mean nothing for this way of evaluating."""
    odd = next((name for name, value in given.items() if value), None)
    if odd is not None:
        raise UserError(f"got {odd} for {way}", f"it for {wanted} only")


def played(asked: Question, *, attempts: int, failures: str, price: tuple[float, float] | None) -> Shown:
    """Play every task with every policy and compare."""
    from counterplay import evaluation_kept
    from counterplay.verifiers.registry import load

    tasks = asked.task_names
    refuse("a plain evaluation", {"--verifier": asked.verifiers}, "--scaling and --logged")
    classify: Any = load(failures) if failures else None
    if asked.out is not None:
        evaluation_kept.prepare(asked.out)
    with console.ticking("playing", len(asked.policies) * len(tasks) * attempts, quiet=asked.quiet) as tick:
        done = asyncio.run(
            evaluate(
                asked.policies,
                asked.environment,
                tasks,
                attempts=attempts,
                price=price,
                classify=classify,
                on_task=tick.advance,
                **asked.sampling,
            )
        )
    result, human = evaluation_kept.as_json(done), tables(done)
    if asked.out is not None:
        evaluation_kept.keep(done, asked.out)
        human.append(f"everything is in {asked.out}")
    return Shown(result, human)


def scaled(asked: Question, budgets: str, search: str | None, options: Sequence[str]) -> Shown:
    """Success at growing budgets of model calls."""
    from counterplay import scaling
    from counterplay.finetune.scaling import plot

    tasks, course = asked.task_names, scaling.Course.parse(budgets, search, options, asked.verifiers)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
    with console.ticking("playing", quiet=asked.quiet):
        found = asyncio.run(scaling.scale(asked.policies, asked.environment, tasks, course, **asked.sampling))
    result, human = console.plain(found), scaling.table(found)
    if asked.out is not None:
        (asked.out / "scaling.json").write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
        (asked.out / "scaling.md").write_text(scaling.markdown(found), encoding="utf-8")
        try:
            plot(found, asked.out / "scaling.svg")
        except UserError as error:
            human.append(f"no plot: {error}")
        human.append(f"everything is in {asked.out}")
    return Shown(result, human)


def estimated(asked: Question, store: Path, agent: str | None) -> Shown:
    """What the logs of a store say of policies that did not make them."""
    from counterplay import estimating, loop
    from counterplay.parts import Asked

    with loop.opened(store, read_only=True) as opened:
        chosen = loop.select(opened, agent=agent)
    if not chosen:
        raise CounterplayError(
            f"got no run of that kind in {store}", "at least one", f"See what there is: counterplay stats --store {store}"
        )
    verifier = Asked(verifiers=asked.verifiers).make_verifier() if asked.verifiers else None
    done = asyncio.run(estimating.estimate(chosen, asked.policies, temperature=asked.temperature, verifier=verifier, seed=asked.seed))
    return Shown(console.plain(done), estimating.tables(done))
