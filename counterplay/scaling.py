"""Test-time scaling: several policies play the same tasks at growing budgets of model calls, and the verifier chooses what counts."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.budget import Budget
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.journal import JournaledEnvironment, JournaledPolicy, MemoryJournal, ask_all, verifier_identity
from counterplay.core.nouns import Proposal, State
from counterplay.core.protocols import Policy, Verifier, fingerprint_of, first_draw
from counterplay.evaluation_shown import grid, interval
from counterplay.parts import Asked, WorldOf, closing, make_world, world_factory
from counterplay.plan import Pace
from counterplay.played import play_tasks

if TYPE_CHECKING:
    from counterplay.finetune.evaluate import Results
    from counterplay.finetune.scaling import Line, Scaling

LINES = "best_of_n"
_OF_BUDGET = re.compile(r"B(?:/(\d+))?\Z")
_MOST_ROUNDS = 64


@dataclass(frozen=True)
class Course:
    """What is spent on a task: `budgets` in model calls, by whole lines from the beginning (`best_of_n`) or by a search of
    `search.registry`, whose options are text; `B` and `B/15` in them stand for the budget and a part of it. `verifiers` choose.
    """

    budgets: tuple[int, ...]
    search: str = LINES
    options: Mapping[str, str] = field(default_factory=dict)
    verifiers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, budgets: str, search: str | None, options: Sequence[str], verifiers: Sequence[str]) -> Course:
        """Read what a user writes: `8,16,32` and `key=value`. Raises UserError where it can't be read or played."""
        try:
            numbers = tuple(sorted({int(part) for part in budgets.split(",") if part.strip()}))
        except ValueError:
            numbers = ()
        if not numbers or numbers[0] < 1:
            raise UserError(f"got --scaling {budgets!r}", "numbers of model calls, e.g. 16,32,64,128")
        malformed = next((text for text in options if "=" not in text), None)
        if malformed is not None:
            raise UserError(f"got option {malformed!r}", "key=value")
        given = {key.strip(): value.strip() for key, value in (text.split("=", 1) for text in options)}
        course = cls(numbers, search or LINES, given, tuple(verifiers))
        course.check()
        return course

    def check(self) -> None:
        """Raises UserError where there is no such search, or it needs a logged run."""
        from counterplay.search.registry import LOGGED, find

        find(self.search)
        if self.search in LOGGED:
            raise UserError(f"got --search {self.search}, which forks a logged run", f"a search from the beginning, such as {LINES}")
        if self.search == LINES and self.options:
            raise UserError(f"got option {next(iter(self.options))!r}", f"none: {LINES} plays as many lines as the budget holds")
        self.options_at(self.budgets[0])

    def options_at(self, budget: int) -> dict[str, Any]:
        """The search's options at this budget."""
        from counterplay.search.registry import find, parse_options

        texts = {}
        for key, text in self.options.items():
            part = _OF_BUDGET.match(text)
            texts[key] = str(max(1, budget // int(part[1] or 1))) if part else text
        return parse_options(find(self.search), texts)


class _Further:
    """A policy that draws on from where earlier lines stopped, so that no line is played twice."""

    takes_turns = True

    def __init__(self, policy: Policy, drawn: int) -> None:
        self.policy, self.drawn = policy, drawn
        self.fingerprint = fingerprint_of(policy)

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        from counterplay.core.turns import propose_in_turn

        token = first_draw.set(first_draw.get() + self.drawn)
        try:
            return await propose_in_turn(self.policy, state, n)
        finally:
            first_draw.reset(token)


async def scale(
    policies: Mapping[str, str],
    environment: str,
    tasks: Sequence[str],
    course: Course,
    *,
    base_url: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    max_steps: int = 100,
    concurrency: int = 512,
    pace: Pace | None = None,
    timeout_s: float | None = None,
) -> Scaling:
    """Success of every policy (specs by name) at every budget of `course`. `temperature` None is 1.

    Raises UserError at temperature 0, where all lines are alike, and PolicyError where the machinery failed on more than one task in
    twenty; fewer are left out for all.
    """
    from counterplay.finetune.scaling import scaling

    if temperature == 0:
        raise UserError("got temperature 0 for --scaling, where all lines are alike", "a temperature above 0")
    factory, pace, failed = world_factory(environment), pace or Pace(), dict[str, str]()
    results: list[dict[int, Results]] = []
    tasks = list(dict.fromkeys(tasks))
    verifier = Asked(verifiers=course.verifiers).make_verifier()
    for name, spec in policies.items():
        heat = 1.0 if temperature is None else temperature
        asked = Asked(spec, environment, (), base_url, heat, max_tokens, seed, max_steps, timeout_s=timeout_s)
        async with closing(asked.make_policy(concurrency=pace.requests)) as policy:
            with pace.kept(local=asked.local):
                play = _Play(name, policy, factory, verifier, max_steps, concurrency)
                results.append(await (play.lines(tasks, course) if course.search == LINES else play.searches(tasks, course)))
        failed |= play.failed
    if len(failed) > len(tasks) / 20:
        task, reason = next(iter(failed.items()))
        raise PolicyError(f"{len(failed)} of {len(tasks)} tasks could not be played; {task}: {reason}", "a policy and a world that answer")
    kept = [{budget: _without(one, failed) for budget, one in each.items()} for each in results]
    return scaling(kept, method=course.search, verifier=verifier_identity(verifier)[0])


def _without(results: Results, failed: Mapping[str, str]) -> Results:
    from dataclasses import replace

    return replace(
        results,
        outcomes={task: outcome for task, outcome in results.outcomes.items() if task not in failed},
        steps={task: steps for task, steps in results.steps.items() if task not in failed},
    )


@dataclass
class _Play:
    """One policy at play. `failed` are tasks on which the machinery failed, with the first error."""

    name: str
    policy: Policy
    factory: WorldOf
    verifier: Verifier
    max_steps: int
    concurrency: int
    failed: dict[str, str] = field(default_factory=dict)

    async def lines(self, tasks: Sequence[str], course: Course) -> dict[int, Results]:
        """Whole lines of every task, until the largest budget is spent."""
        from counterplay.finetune.scaling import best_of_lines

        found: defaultdict[str, list[Line]] = defaultdict(list)
        todo, most, drawn = list(tasks), course.budgets[-1], 0
        for _ in range(_MOST_ROUNDS):
            if not todo:
                break
            each = self._how_many(found, todo, most)
            for task, lines in (await self._drawn(todo, each, drawn)).items():
                found[task] += lines
            drawn += each
            todo = [task for task in todo if sum(line.calls for line in found[task]) < most and task not in self.failed]
        return best_of_lines(self.name, {task: found[task] for task in tasks}, course.budgets)

    @staticmethod
    def _how_many(found: Mapping[str, Sequence[Line]], todo: Sequence[str], most: int) -> int:
        """Lines a task in the next round: as many as the task with the most of its budget left may need."""
        known = [line.calls for task in todo for line in found.get(task, ())]
        if not known:
            return 1
        left = max(most - sum(line.calls for line in found[task]) for task in todo)
        return max(1, math.ceil(left * len(known) / max(1, sum(known))))

    async def _drawn(self, tasks: Sequence[str], each: int, drawn: int) -> dict[str, list[Line]]:
        from counterplay.finetune.scaling import Line

        played = await play_tasks(
            _Further(self.policy, drawn), self.factory, tasks, attempts=each, max_steps=self.max_steps, concurrency=self.concurrency
        )
        self.failed |= {task: error for task, error in played.errors(tasks).items() if task not in self.failed}
        scores = await ask_all(self.verifier, played.trajectories)
        lines: defaultdict[str, list[Line]] = defaultdict(list)
        for run, score in zip(played.runs, scores, strict=True):
            if isinstance(score, Exception):
                raise score
            lines[run.task].append(Line(max(1, len(run.trajectory)), None if score is None else score.value, run.outcome))
        return lines

    async def searches(self, tasks: Sequence[str], course: Course) -> dict[int, Results]:
        """A search of every task at every budget; what a smaller budget drew and executed is not asked for again by a larger one."""
        from counterplay.finetune.evaluate import Results

        gate, ends = asyncio.Semaphore(self.concurrency), dict[tuple[str, int], tuple[float, float]]()

        async def one(task: str) -> None:
            async with gate:
                try:
                    found = await self._searched(task, course)
                except PolicyError as error:
                    self.failed[task] = str(error)
                    found = [(budget, 0.0, 0.0) for budget in course.budgets]
                ends.update({(task, budget): (outcome, spent) for budget, outcome, spent in found})

        await asyncio.gather(*(one(task) for task in tasks))
        return {
            budget: Results(self.name, {t: ends[t, budget][0] for t in tasks}, {t: ends[t, budget][1] for t in tasks})
            for budget in course.budgets
        }

    async def _searched(self, task: str, course: Course) -> list[tuple[int, float, float]]:
        from counterplay.replay.live import LiveEnvironment
        from counterplay.search.registry import find

        search, journal, found = find(course.search), MemoryJournal(), []
        environment = LiveEnvironment(lambda: make_world(self.factory, task), task=task, max_steps=self.max_steps)
        try:
            state = await environment.initial()
            for budget in course.budgets:
                tree = await search(
                    state,
                    JournaledPolicy(self.policy, journal),
                    JournaledEnvironment(environment, journal),
                    self.verifier,
                    Budget.of(model_calls=budget),
                    **course.options_at(budget),
                )
                best = tree.best()
                last = best.step if best is not None else None
                found.append((budget, (last.reward or 0.0) if last is not None else 0.0, tree.used.model_calls or 0.0))
        finally:
            await environment.aclose()
        return found


def table(found: Scaling) -> list[Any]:
    """Success at every budget with 95 % intervals, the gaps to the first policy, and what to take from it."""
    columns, rows = _cells(found)
    title = f"success at equal model calls, {found.tasks} tasks, {found.method}, chosen by {found.verifier}, 95 % intervals"
    return [console.table(title, columns, rows), *found.sentences()]


def markdown(found: Scaling) -> str:
    """The same for a file."""
    lines = [f"* {sentence.strip()}" for sentence in found.sentences()]
    head = f"{found.tasks} tasks, {found.method}, the verifier {found.verifier} chooses; 95 % intervals."
    return "\n".join(["## Success against model calls", "", head, "", *grid(*_cells(found)), "", *lines, ""])


def _cells(found: Scaling) -> tuple[list[str], list[list[str]]]:
    gaps = {(gap.b, gap.budget): f"{100 * gap.difference:+.1f}\n{interval(gap.interval, signed=True)}" for gap in found.gaps}
    first, *others = found.curves
    rows = []
    for at, point in enumerate(first.points):
        here = [curve.points[at] for curve in found.curves]
        rates = [f"{100 * one.rate:.1f} %\n{interval(one.interval)}" for one in here]
        rows.append([str(point.budget), *rates, *(gaps[curve.name, point.budget] for curve in others)])
    return ["model calls", *(curve.name for curve in found.curves), *(f"{curve.name} over {first.name}" for curve in others)], rows
