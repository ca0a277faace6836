"""How true a simulation is, measured on the log: it is asked for recorded results that it was not shown.

Whole runs are held out, with every run of the same task or session and every run that did the same: a simulator must not be
asked about what it has seen under another id. Each held-out call is asked for in its true prefix.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterplay.core.canonical import canonical, content_key, loads
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, State, ToolCall, Trace, Trajectory
from counterplay.replay.recorded import call_answers
from counterplay.replay.simulated import Simulation, partly

Make = Callable[[Sequence[Trajectory]], Simulation]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two results agree. `exact`: equal, as JSON where both are. `fields`: the F1 of their JSON leaves, or of their words.

    `errors`: both are errors, or both are none.
    """

    exact: bool
    fields: float
    errors: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """One held-out call. `got` None: the simulator had no answer, for `reason`. `baseline`: the tool's most frequent other result.

    `group` holds the runs that were held out together.
    """

    trace: str
    group: int
    tool: str
    step: int
    got: Agreement | None
    baseline: Agreement | None
    reason: str = ""
    likeness: float | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    trace: str
    group: int
    step: int
    state: State
    call: ToolCall
    wanted: Message


async def holdout(
    traces: Sequence[Trace],
    make: Make,
    *,
    folds: int = 5,
    seed: int = 0,
    within_task: bool = False,
    max_calls: int | None = None,
    concurrency: int = 16,
    on_call: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Ask the simulation that `make` builds of all other runs for every held-out call that it may simulate, in the order of the log.

    `within_task` leaves the other attempts at a task to the simulator, which is what a branch of one of several attempts can
    have; by default it sees none. `max_calls` draws that many calls of all. What `make` built is closed.

    Raises UserError where there are not two groups of runs to tell apart.
    """
    groups = groups_of(traces, within_task=within_task)
    parts = _folds(groups, folds, seed)
    if len(parts) < 2:
        raise UserError(f"got {len(traces)} traces, all of one task or session", "runs of at least two", "Nothing could be held out.")
    found: list[Trial] = []
    for part in parts:
        shown = [each for trace, group in zip(traces, groups, strict=True) if group not in part for each in contexts(trace)]
        simulation, common = make(shown), _most_frequent(shown)
        held = [question for question in _questions(traces, groups, part) if simulation.refusal(question.call.name) is None]
        try:
            found += await _ask(_drawn(held, max_calls, len(parts), seed), simulation, common, concurrency, on_call)
        finally:
            await simulation.aclose()
    order = {trace.id: place for place, trace in enumerate(traces)}
    return sorted(found, key=lambda trial: (order[trial.trace], trial.step))


def contexts(trace: Trace) -> list[Trajectory]:
    """The main trajectory of a trace and those of its sub-agents."""
    return [trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)]


def groups_of(traces: Sequence[Trace], *, within_task: bool = False) -> list[int]:
    """A group number for each trace: equal where runs share a task, a session, or every action, directly or through others.

    `within_task` tells the runs of one task apart.
    """
    groups = list(range(len(traces)))

    def root(place: int) -> int:
        while groups[place] != place:
            groups[place] = groups[groups[place]]
            place = groups[place]
        return place

    first: dict[tuple[str, str], int] = {}
    for place, trace in enumerate(traces):
        acted = content_key(*(step.action.signature for each in contexts(trace) for step in each.steps))
        for mark in (("task", None if within_task else trace.task), ("session", trace.session), ("actions", acted)):
            if mark[1] is not None:
                groups[root(place)] = root(first.setdefault((mark[0], mark[1]), place))
    return [root(place) for place in range(len(traces))]


def _folds(groups: Sequence[int], folds: int, seed: int) -> list[set[int]]:
    """The groups in `folds` parts of nearly as many runs each."""
    sizes = Counter(groups)
    parts: list[tuple[int, set[int]]] = [(0, set()) for _ in range(min(folds, len(sizes)))]
    for group in sorted(sizes, key=lambda group: content_key(str(seed), str(group))):
        size, part = min(parts, key=lambda each: each[0])
        parts[parts.index((size, part))] = (size + sizes[group], part | {group})
    return [part for _, part in parts]


def _questions(traces: Sequence[Trace], groups: Sequence[int], held: set[int]) -> Iterator[_Question]:
    for trace, group in zip(traces, groups, strict=True):
        for path in contexts(trace) if group in held else ():
            for number, step in enumerate(path.steps):
                answers = call_answers(step)
                for place, (call, answer) in enumerate(zip(step.action.tool_calls, answers, strict=True)):
                    if answer is not None and None not in answers[:place]:
                        before = [each for each in answers[:place] if each is not None]
                        yield _Question(trace.id, group, number, partly(path.prefix(number), step.action, place, before), call, answer)


def _drawn(questions: Sequence[_Question], max_calls: int | None, folds: int, seed: int) -> list[_Question]:
    if max_calls is None or len(questions) * folds <= max_calls:
        return list(questions)
    lots = [content_key(str(seed), one.trace, str(one.step), one.call.signature) for one in questions]
    chosen = sorted(range(len(questions)), key=lots.__getitem__)[: -(-max_calls // folds)]
    return [questions[place] for place in sorted(chosen)]


async def _ask(
    questions: Iterable[_Question], simulation: Simulation, common: Mapping[str, Message], concurrency: int, on_call: Callable[[], None]
) -> list[Trial]:
    gate = asyncio.Semaphore(concurrency)

    async def one(question: _Question) -> Trial:
        async with gate:
            imagined = await simulation.simulator.imagine(question.state, question.call)
        on_call()
        tool, usual = question.call.name, common.get(question.call.name)
        got = None if imagined.result is None else agreement(question.wanted, imagined.result)
        baseline = None if usual is None else agreement(question.wanted, usual)
        return Trial(question.trace, question.group, tool, question.step, got, baseline, imagined.reason, imagined.likeness)

    return list(await asyncio.gather(*(one(question) for question in questions)))


def _most_frequent(trajectories: Iterable[Trajectory]) -> dict[str, Message]:
    """The most frequent result of each tool, the first of several."""
    counts: dict[str, Counter[str]] = {}
    first: dict[tuple[str, str], Message] = {}
    for trajectory in trajectories:
        for step in trajectory.steps:
            for call, answer in zip(step.action.tool_calls, call_answers(step), strict=True):
                if answer is not None:
                    counts.setdefault(call.name, Counter())[answer.content_text] += 1
                    first.setdefault((call.name, answer.content_text), answer)
    return {tool: first[tool, counted.most_common(1)[0][0]] for tool, counted in counts.items()}


def agreement(wanted: Message, got: Message) -> Agreement:
    """How far an imagined result agrees with the recorded one."""
    one, other = _value(wanted.content_text), _value(got.content_text)
    leaves, others = Counter(_leaves(one)), Counter(_leaves(other))
    total = leaves.total() + others.total()
    fields = 2 * (leaves & others).total() / total if total else 1.0
    same = wanted.content_text == got.content_text or (one is not None and canonical(one) == canonical(other))
    return Agreement(same, fields, is_error(wanted) == is_error(got))


def is_error(result: Message) -> bool:
    """Whether a tool's result says that the call failed: by its flag, its first word, or its field `error`."""
    value = _value(result.content_text)
    named = isinstance(value, dict) and bool(value.get("error"))
    return bool(result.fields.get("error")) or named or result.content_text.lstrip().casefold().startswith("error")


def _value(text: str) -> Any:
    """JSON data, or the text itself."""
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return text


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf with its path, elements of an array without their place; the words of a text."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for each in value:
            yield from _leaves(each, f"{path}[]")
    elif isinstance(value, str) and not path:
        yield from (("", word) for word in value.split())
    else:
        yield path, canonical(value)
