"""What the tools of a recorded agent gave, to be given again: in the recorded prefix as it was, on a branch where it is still true.

A branch is judged by `RecordedEnvironment`, over the tools that ran in the order in which they ran, whichever context asked for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterplay.core.canonical import canonical, dumps, loads
from counterplay.core.effects import Effect
from counterplay.core.nouns import Grade, Message, Step, ToolCall, Trace, Trajectory
from counterplay.replay.agents.ambient import ToolAnswer, ToolRequest
from counterplay.replay.live import Comparable
from counterplay.replay.recorded import RecordedEnvironment, call_answers

Where = tuple[int, int]
"""A step of a trajectory: (trajectory, step)."""


@dataclass(frozen=True)
class ToolRun:
    """One run of a tool: what it was asked, what it gave, how truly, and in which step. `where` is None where the log can't say."""

    name: str
    arguments: str
    answer: ToolAnswer
    grade: Grade = Grade.EXACT
    where: Where | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.arguments

    @property
    def text(self) -> str:
        """What the tool gave, as agents tell it to models: a text as it is, data as JSON, an error by its message."""
        if self.answer.error is not None:
            return self.answer.error
        value = self.answer.value
        return value if isinstance(value, str) else dumps(value)


def key_of(request: ToolRequest) -> tuple[str, str]:
    return request.name, canonical(dict(request.arguments))


def recorded_runs(trace: Trace) -> tuple[ToolRun, ...]:
    """Every tool run of a trace in order: those the recorder saw, and for tools that it never saw, the observations of their calls."""
    logged = trace.metadata.get("tool_runs")
    seen = [_run(trace, fields) for fields in logged] if isinstance(logged, list | tuple) else []
    names = {run.name for run in seen}
    return (*seen, *(run for run in observed_runs(trace) if run.name not in names))


def observed_runs(trace: Trace) -> Iterator[ToolRun]:
    """The results that stand in the trajectories; a sub-agent's after the step that started it."""
    order = [(0, step) for step in range(len(trace.trajectory))]
    for index, sub in enumerate(trace.sub_trajectories, 1):
        order += [(index, step) for step in range(len(sub.trajectory))]
    parents = [0, *((-1 if sub.parent_step is None else sub.parent_step) for sub in trace.sub_trajectories)]
    order.sort(key=lambda place: (parents[place[0]] if place[0] else place[1], place[0] > 0, place))
    for index, step in order:
        yield from step_runs(trajectory_of(trace, index).steps[step], (index, step))


def step_runs(step: Step, where: Where) -> Iterator[ToolRun]:
    """The results of one step, by the texts of its observations."""
    for call, message in zip(step.action.tool_calls, call_answers(step), strict=True):
        if message is not None and call.args is not None:
            yield ToolRun(call.name, canonical(call.args), ToolAnswer(message.content_text), where=where)


def trajectory_of(trace: Trace, index: int) -> Trajectory:
    return trace.sub_trajectories[index - 1].trajectory if index else trace.trajectory


def declared_effects(trace: Trace) -> dict[str, Effect]:
    """The effects that the trace's tools declare; what is only external by default is not among them."""
    every = (tool for index in range(len(trace.sub_trajectories) + 1) for tool in trajectory_of(trace, index).tools)
    return {tool.name: tool.effect for tool in every if tool.effect.kind != "external"}


class ToolLog:
    """The tool runs of one re-enactment. `prefix` are those that its recorded part repeats, `recorded` all that are known of the world.

    Answers in the prefix are found by name, canonical arguments and number of occurrence, first in the very step. `comparable` maps
    the arguments of both sides first.
    """

    def __init__(
        self,
        prefix: Sequence[ToolRun],
        recorded: Sequence[ToolRun],
        effects: Mapping[str, Effect],
        comparable: Comparable | None = None,
    ) -> None:
        self._recorded, self._effects = tuple(recorded), dict(effects)
        self._prefix, self._comparable = tuple(prefix), comparable
        self._waiting: dict[tuple[str, str], list[int]] = defaultdict(list)
        for at, run in enumerate(self._prefix):
            self._waiting[self._compared(run.key)].append(at)
        self._repeated: list[int] = []
        self._environment: RecordedEnvironment | None = None
        self.branch: list[ToolRun] = []
        """What ran after the prefix, in order."""

    def declare(self, request: ToolRequest) -> None:
        """Note the effect that a tool's function declares, where nothing else says what it does."""
        if request.effect.kind != "external" and request.name not in self._effects:
            self._effects[request.name] = request.effect
            self._environment = None

    def repeat(self, request: ToolRequest, where: Where | None, *, strictly: bool = False) -> ToolRun | None:
        """The recorded run of this call in that step, else, unless `strictly`, the next one; None where there is none, or no more."""
        waiting = self._waiting.get(self._compared(key_of(request)), [])
        here = [at for at in waiting if where is not None and self._prefix[at].where == where]
        at = next(iter(here if strictly or here else waiting), None)
        if at is None:
            return None
        waiting.remove(at)
        if not strictly:
            self._repeated.append(at)
        return self._prefix[at]

    def waiting(self, name: str, where: Where | None) -> ToolRun | None:
        """A run of this tool, with whatever arguments, that has not been repeated yet: in this step, else the next."""
        open_runs = sorted(at for places in self._waiting.values() for at in places)
        runs = [self._prefix[at] for at in open_runs if self._prefix[at].name == name]
        return next((run for run in runs if run.where == where), runs[0] if runs else None)

    def reuse(self, request: ToolRequest) -> ToolRun | str:
        """The recorded run that answers this call on the branch, or why there is none."""
        name, arguments = key_of(request)
        step = self._ask(Message.assistant(tool_calls=[ToolCall("", name, arguments)]))
        if not step.observations:
            return (step.error or "it is not in the recording").removeprefix("not in the recording: ")
        return ToolRun(name, arguments, _decoded(step.observations[0].content_text), step.grade)

    def as_value(self, name: str, text: str) -> Any:
        """What a text says that stands for the result of a tool: JSON data where all that the tool was seen to give was such data."""
        values = [run.answer.value for run in (*self._recorded, *self.branch) if run.name == name and run.answer.error is None]
        if not values or any(isinstance(value, str) for value in values):
            return text
        try:
            return loads(text)
        except (ValueError, RecursionError):
            return text

    def add(self, run: ToolRun) -> None:
        """A run that happened on the branch."""
        self.branch.append(run)

    def _compared(self, key: tuple[str, str]) -> tuple[str, str]:
        return key if self._comparable is None else (key[0], self._comparable(key[1]))

    def _ask(self, action: Message) -> Step:
        if self._environment is None:
            self._environment = RecordedEnvironment([_program(self._recorded)], effects=self._effects, comparable=self._comparable)
        repeated = [self._prefix[at] for at in sorted(self._repeated)]
        asking = self._environment.step(_program([*repeated, *self.branch]), action)
        try:
            asking.send(None)
        except StopIteration as answered:
            return answered.value  # type: ignore[no-any-return]
        finally:
            asking.close()
        raise AssertionError("a recorded environment without a fallback waits for nothing")


def _program(runs: Iterable[ToolRun]) -> Trajectory:
    """Tool runs as a trajectory of their own, one a step, whose observations hold the whole answers."""
    steps = []
    for run in runs:
        action = Message.assistant(tool_calls=[ToolCall("", run.name, run.arguments)])
        steps.append(Step(action, (Message.tool(_encoded(run.answer), ""),)))
    return Trajectory(steps=tuple(steps))


def _encoded(answer: ToolAnswer) -> str:
    return dumps([answer.value, answer.error, answer.replayable])


def _decoded(text: str) -> ToolAnswer:
    value, error, replayable = loads(text)
    return ToolAnswer(value, error, replayable)


def _run(trace: Trace, fields: Mapping[str, Any]) -> ToolRun:
    where: Where | None = None
    if fields.get("trajectory") is not None and fields.get("step") is not None:
        where = fields["trajectory"], fields["step"]
    value = fields.get("value")
    if "value" not in fields and where is not None and fields.get("observation") is not None:
        value = trajectory_of(trace, where[0]).steps[where[1]].observations[fields["observation"]].content_text
    answer = ToolAnswer(value, fields.get("error"), fields.get("replayable") is not False)
    return ToolRun(str(fields["name"]), canonical(dict(fields.get("arguments") or {})), answer, where=where)
