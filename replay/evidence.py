"""What logs tell about tools: which answers changed after which calls, and which stayed.

An answer is compared with the answer to an equal call before it: earlier in the same run, or in another run of the same task,
which began in the same world. What lies between the two are suspects where the answers differ, and witnessed harmless where
they do not. Nothing is concluded here; `suggest` does that.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Trajectory, parse_json_object
from counterplay.replay.recorded import call_answers
from counterplay.replay.signatures import call_forms, said

USER = "(user)"
"""A user's or a sub-agent's turn among the suspects: in some worlds users do more than talk."""

_ID_NAME = re.compile(r"(?:^|[_.])(?:id|ids|uuid|key|code|number|no|ref)$|Ids?$")
_ID_VALUE = re.compile(r"(?=.*\d)(?=.*[A-Za-z])(?!\d{4}-\d\d-\d\d|\d\d?:\d\d)[\w.#@:-]{3,64}")
_FARTHEST = 400
_ALIKE = 0.5


@dataclass(frozen=True, eq=False)
class Event:
    """One call with its answer, or a user's turn. `ids` are its id-like arguments by path; `record` its answer as a JSON object."""

    tool: str
    signature: str = ""
    answer: str | None = None
    ids: Mapping[str, frozenset[str]] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    where: str = ""

    @cached_property
    def values(self) -> frozenset[str]:
        return frozenset[str]().union(*self.ids.values())

    def shares_id(self, other: Event) -> bool:
        return not self.values.isdisjoint(other.values)


@dataclass
class Between:
    """How often one tool's answers stayed as they were over calls of another; `other_id` of these over calls that share no id with them."""

    unchanged: int = 0
    other_id: int = 0


@dataclass(frozen=True, eq=False)
class Change:
    """An answer that differed from the one before it: who saw it, and what lay between."""

    seen: Event
    suspects: tuple[Event, ...]


@dataclass
class Repeats:
    """Equal calls of one tool, pair by pair. `runs` are pairs of two runs; `alone` are those without a call between, different
    ones without a user's turn either.
    """

    equal: int = 0
    equal_alone: int = 0
    equal_runs: int = 0
    different: int = 0
    different_alone: int = 0
    different_runs: int = 0
    tasks: set[str] = field(default_factory=set)


@dataclass
class Evidence:
    """All that was gathered. `answers` counts the different answers of each tool; `arguments` its different calls."""

    calls: Counter[str] = field(default_factory=Counter)
    repeats: dict[str, Repeats] = field(default_factory=lambda: defaultdict(Repeats))
    between: dict[tuple[str, str], Between] = field(default_factory=lambda: defaultdict(Between))
    changes: list[Change] = field(default_factory=list)
    ids: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    answers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    arguments: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    runs: int = 0

    def restless(self, tool: str) -> bool:
        """Whether equal calls of one run answered differently more often than not: the tool itself may change what it shows."""
        repeats = self.repeats.get(tool, Repeats())
        return repeats.different - repeats.different_runs > repeats.equal - repeats.equal_runs

    def witnessed(self, tool: str) -> int:
        """Answers of any tool that were the same before and after a call of this one."""
        return sum(found.unchanged for (cause, _), found in self.between.items() if cause == tool)

    def unmoved(self, tool: str) -> int:
        """Answers that a call of this tool left as they were, its own to an equal call in the same run included."""
        repeats = self.repeats.get(tool, Repeats())
        return self.witnessed(tool) + repeats.equal - repeats.equal_runs


@dataclass(frozen=True)
class Run:
    """One logged run: its trajectory, and a task that runs which began in the same world share; None where there is none.

    `turns_of_others` are the steps after which somebody else acted in this world, a sub-agent for one.
    """

    trajectory: Trajectory
    task: str | None = None
    name: str = ""
    turns_of_others: frozenset[int] = frozenset()


def gather(runs: Iterable[Run]) -> Evidence:
    """The evidence of all runs. Holds what was called and digests of the answers, never the runs themselves."""
    evidence = Evidence()
    by_task: dict[str, list[list[Event]]] = defaultdict(list)
    for run in runs:
        events = list(_events(run))
        evidence.runs += 1
        _count(evidence, events)
        _within(evidence, events)
        if run.task is not None:
            by_task[run.task].append(events)
    for task, attempts in by_task.items():
        _across(evidence, task, attempts)
    return evidence


def id_like(path: str, value: Any) -> bool:
    """Whether an argument looks like the name of a thing: an id by its own name, or a word with digits that is no number or date."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    if _ID_NAME.search(path):
        return bool(str(value).strip())
    return isinstance(value, str) and bool(_ID_VALUE.fullmatch(value))


def _events(run: Run) -> Iterator[Event]:
    for number, step in enumerate(run.trajectory.steps):
        where = f"{run.name} step {number}"
        for form, answer in zip(call_forms(step.action), call_answers(step), strict=True):
            text = None if answer is None else said(answer)
            ids = {path: frozenset(found) for path, found in _ids(form.arguments or {}).items()}
            record = None if answer is None else parse_json_object(answer.content_text)
            yield Event(form.name, form.signature, None if text is None else content_key(text), ids, record, where)
        if number in run.turns_of_others or any(message.role == "user" for message in step.observations):
            yield Event(USER, where=where)


def _ids(arguments: Mapping[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path, value in _leaves(arguments, ""):
        if id_like(path, value):
            found[path].add(str(value))
    return found


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, path)
    else:
        yield path, value


def _count(evidence: Evidence, events: Sequence[Event]) -> None:
    for event in events:
        if event.tool == USER:
            continue
        evidence.calls[event.tool] += 1
        evidence.arguments[event.tool].add(event.signature)
        if event.answer is not None:
            evidence.answers[event.tool].add(event.answer)
        for path, values in event.ids.items():
            evidence.ids[event.tool][path] |= values


def _within(evidence: Evidence, events: Sequence[Event]) -> None:
    """Equal calls of one run, each with the one before it; and records that another tool's answer shows changed."""
    last: dict[str, int] = {}
    for index, event in enumerate(events):
        if event.answer is None:
            continue
        before = last.get(event.signature)
        if before is not None and index - before <= _FARTHEST:
            between = events[before + 1 : index]
            _compare(evidence, events[before], event, between)
        elif event.record is not None:
            _records(evidence, events, index, last.values())
        last[event.signature] = index


def _compare(evidence: Evidence, before: Event, event: Event, between: Sequence[Event], *, across: str | None = None) -> None:
    repeats, tools = evidence.repeats[event.tool], [other for other in between if other.tool != USER]
    same = before.answer == event.answer
    if same:
        repeats.equal += 1
        repeats.equal_alone += not tools
        repeats.equal_runs += across is not None
        _witness(evidence, event, tools)
    else:
        repeats.different += 1
        repeats.different_alone += not between
        repeats.different_runs += across is not None
        evidence.changes.append(Change(event, tuple(between)))
    if across is not None:
        repeats.tasks.add(across)


def _witness(evidence: Evidence, event: Event, tools: Sequence[Event]) -> None:
    """Every call in between left this answer as it was."""
    for other in {other.signature: other for other in tools}.values():
        found = evidence.between[other.tool, event.tool]
        found.unchanged += 1
        found.other_id += not other.shares_id(event)


def _records(evidence: Evidence, events: Sequence[Event], index: int, earlier: Iterable[int]) -> None:
    """An answer that shows a record which another tool showed before, with other values: something in between, or this call, changed it."""
    event = events[index]
    for place in sorted(earlier, reverse=True):
        before = events[place]
        if before.tool == event.tool or before.record is None or index - place > _FARTHEST:
            continue
        if _one_record(before, event) and _differ(before.record, event.record or {}):
            evidence.changes.append(Change(before, (*events[place + 1 : index], event)))
            return


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return any(one[key] != other[key] for key in one.keys() & other.keys())


def _one_record(before: Event, after: Event) -> bool:
    """Whether two answers are views of one record: alike in their fields, and with one id of the calls at one place."""
    one, other = before.record or {}, after.record or {}
    shared = one.keys() & other.keys()
    if len(shared) < _ALIKE * len(one.keys() | other.keys()):
        return False
    ids = before.values & after.values
    return any(isinstance(one[key], str | int) and str(one[key]) in ids and one[key] == other[key] for key in shared)


def _across(evidence: Evidence, task: str, attempts: Sequence[Sequence[Event]]) -> None:
    """Equal calls in different runs of one task, each with the one that had the fewest calls before it."""
    first: dict[str, tuple[int, int]] = {}
    for number, events in enumerate(attempts):
        for index, event in enumerate(events):
            known = first.get(event.signature)
            if event.answer is not None and event.signature and (known is None or index < known[1]):
                first[event.signature] = number, index
    for number, events in enumerate(attempts):
        met: set[str] = set()
        for index, event in enumerate(events):
            base = first.get(event.signature)
            if event.answer is None or base is None or base[0] == number or event.signature in met or index > _FARTHEST:
                continue
            met.add(event.signature)
            between = _apart(attempts[base[0]][: base[1]], events[:index])
            _compare(evidence, attempts[base[0]][base[1]], event, between, across=task)


def _apart(one: Sequence[Event], other: Sequence[Event]) -> list[Event]:
    """The calls that one of two pasts has more often than the other, and a user's turn where there was any: no two are the same."""
    counts = Counter(event.signature for event in one if event.signature)
    counts.subtract(Counter(event.signature for event in other if event.signature))
    uneven = {signature for signature, count in counts.items() if count}
    turns = [event for event in (*one, *other) if event.tool == USER][:1]
    return [*{event.signature: event for event in (*one, *other) if event.signature in uneven}.values(), *turns]
