"""Where the results of tools that were seen to run stand in a trace: which call of which step each of them answers."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.canonical import canonical, dumps
from counterplay.core.nouns import Message, Step, ToolCall, Trace

_NEARBY = 64


@dataclass(frozen=True)
class ToolRun:
    """One execution of a tool's function. `at` is when it began, in microseconds since 1970.

    `value` is what it gave, as plain JSON data, `error` what it raised. Not `replayable` is a value of which only the text is known.
    """

    name: str
    arguments: Mapping[str, Any]
    value: Any = None
    error: str | None = None
    replayable: bool = True
    at: int = 0


@dataclass
class _Place:
    """A call in a step, and what answered it: the place among the step's observations and its text; None where nothing did."""

    trajectory: int
    step: int
    call: ToolCall
    started_at_us: int
    observation: int | None
    text: str | None
    taken: bool = False


@dataclass
class _Line:
    """Places in the order of their times."""

    starts: list[int] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)

    def before(self, at: int) -> Iterable[_Place]:
        """The free places of calls that were made by then, the latest first."""
        index = bisect_right(self.starts, at) - 1
        while index >= 0:
            place = self.places[index]
            if place.taken:
                del self.starts[index], self.places[index]
            else:
                yield place
            index -= 1


def placed(trace: Trace, runs: Sequence[ToolRun]) -> list[dict[str, Any]]:
    """Each run with the `trajectory`, `step` and `observation` (its index in the step) in which its result stands, None where unknown.

    A run belongs to the latest call before it of its name and arguments that no other run has; where there is none, to one of its name
    whose arguments agree as far as they go; or to one of another name that was given the very same and answered the very same.
    `value` is left out where the observation's text is the value.
    """
    exact: dict[tuple[str, str], _Line] = {}
    named: dict[str, _Line] = {}
    alike: dict[str, _Line] = {}
    for place in _places(trace):
        arguments = _key(place.call.args, place.call.arguments)
        for line in (
            exact.setdefault((place.call.name, arguments), _Line()),
            named.setdefault(place.call.name, _Line()),
            alike.setdefault(arguments, _Line()),
        ):
            line.starts.append(place.started_at_us)
            line.places.append(place)
    found = []
    for run in runs:
        arguments = canonical(run.arguments)
        found_place = (
            _first(exact.get((run.name, arguments)), run, lambda *_: True)
            or _first(named.get(run.name), run, _agrees)
            or _first(alike.get(arguments), run, _says)
        )
        if found_place is not None:
            found_place.taken = True
        found.append(_fields(run, found_place))
    return found


def _places(trace: Trace) -> list[_Place]:
    contexts = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
    found = []
    for call in trace.calls:
        step = contexts[call.trajectory].steps[call.step]
        results = [(index, message) for index, message in enumerate(step.observations) if message.role == "tool"]
        started = call.started_at_us if call.started_at_us is not None else 0
        for number, asked in enumerate(step.action.tool_calls):
            answer = _answer(results, step, asked, number)
            index, text = (None, None) if answer is None else (answer[0], answer[1].content_text)
            found.append((started, -number, _Place(call.trajectory, call.step, asked, started, index, text)))
    found.sort(key=lambda each: each[:2])
    return [place for _, _, place in found]


def _answer(results: Sequence[tuple[int, Message]], step: Step, asked: ToolCall, number: int) -> tuple[int, Message] | None:
    """By the call's id, where no other call has it; else in the order of the calls."""
    if asked.id and sum(call.id == asked.id for call in step.action.tool_calls) == 1:
        return next((each for each in results if each[1].tool_call_id == asked.id), None)
    return results[number] if number < len(results) else None


def _first(line: _Line | None, run: ToolRun, wanted: Callable[[_Place, ToolRun], bool]) -> _Place | None:
    if line is None:
        return None
    for count, place in enumerate(line.before(run.at)):
        if wanted(place, run):
            return place
        if count > _NEARBY:
            break
    return None


def _agrees(place: _Place, run: ToolRun) -> bool:
    """Whether a call asked for what the function was given: defaults may have come in, unknown arguments gone, numbers been read."""
    if _says(place, run):
        return True
    asked = place.call.args
    if asked is None:
        return False
    shared = asked.keys() & run.arguments.keys()
    return len(shared) == min(len(asked), len(run.arguments)) and all(str(asked[key]) == str(run.arguments[key]) for key in shared)


def _says(place: _Place, run: ToolRun) -> bool:
    """Whether the observation is what the function gave, in one of the usual ways of writing it."""
    if place.text is None or run.error is not None:
        return False
    value = run.value
    if isinstance(value, str):
        return place.text == value
    return place.text in (dumps(value), json.dumps(value), json.dumps(value, ensure_ascii=False), str(value))


def _fields(run: ToolRun, place: _Place | None) -> dict[str, Any]:
    fields = {"name": run.name, "arguments": dict(run.arguments), "value": run.value, "error": run.error, "replayable": run.replayable}
    if place is None:
        return {**fields, "trajectory": None, "step": None, "observation": None}
    if isinstance(run.value, str) and run.value == place.text:
        del fields["value"]
    return {**fields, "trajectory": place.trajectory, "step": place.step, "observation": place.observation}


def _key(arguments: Mapping[str, Any] | None, text: str) -> str:
    return text if arguments is None else canonical(arguments)
