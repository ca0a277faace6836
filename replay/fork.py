"""Forks: going back to a state of a logged trace, refused where the log can't say what the state was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Coverage, Message, State, Trace, Trajectory

_REASONING = ("reasoning_content", "reasoning")
_TRUSTED: tuple[Coverage, ...] = ("full", "stitched")


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """A step that can be forked: the state before it is known, and a model chose the action there. `key` is that state's."""

    step: int
    key: str
    action: str


def fork(source: Trace | Trajectory, step: int, *, trajectory: int = 0) -> State:
    """The state before `step`, counted from 0; negative steps count from the end. Step len is the end of the log.

    `trajectory` is 0 for the main trajectory of a trace and i for its i-th sub-trajectory. Raises UserError where the
    step does not exist, where the episode is over before it, and where the model's input there was not logged in full.
    """
    path = _path(source, trajectory)
    place = step + len(path) if step < 0 else step
    if not 0 <= place <= len(path):
        raise UserError(f"got fork step {step} of a trajectory of {len(path)} steps", f"{-len(path)}..{len(path)}")
    problem = _problem(source, path, place, trajectory)
    if problem:
        raise UserError(f"step {place} can't be forked: {problem}", "a step whose whole input is in the log", "fork_points lists those.")
    return path.prefix(place)


def fork_points(source: Trace | Trajectory, *, trajectory: int = 0) -> tuple[ForkPoint, ...]:
    """Every step that can be forked and was sampled by a model, in order."""
    path = _path(source, trajectory)
    usable = [i for i, step in enumerate(path.steps) if step.sampled and not _problem(source, path, i, trajectory)]
    return tuple(ForkPoint(i, path.prefix(i).key, path.steps[i].action.signature) for i in usable)


def request_messages(state: State, *, reasoning: bool = True) -> bytes:
    """The `messages` array of the next model call as the exact bytes of the log, joined: equal prefixes give equal bytes.

    `reasoning=False` leaves out what the model thought in earlier steps, as clients do that do not send it back.
    """
    return _array(message.wire if reasoning else _without_reasoning(message) for message in state.messages)


def request_tools(state: State) -> bytes:
    """The `tools` array of the next model call, likewise."""
    return _array(tool.wire for tool in state.tools)


def _without_reasoning(message: Message) -> str:
    if message.role != "assistant" or message.reasoning is None:
        return message.wire
    return dumps({name: value for name, value in message.fields.items() if name not in _REASONING})


def _array(wires: Iterable[str]) -> bytes:
    return b"[" + b",".join(wire.encode() for wire in wires) + b"]"


def _path(source: Trace | Trajectory, index: int) -> Trajectory:
    if isinstance(source, Trajectory):
        return source
    every = (source.trajectory, *(sub.trajectory for sub in source.sub_trajectories))
    if not 0 <= index < len(every):
        raise UserError(f"got trajectory {index} of trace {source.id}", f"0..{len(every) - 1}")
    return every[index]


def _problem(source: Trace | Trajectory, path: Trajectory, place: int, trajectory: int) -> str:
    if path.prefix(place).finished:
        return "the episode is over before it"
    if isinstance(source, Trajectory):
        return ""
    inputs = _inputs(source, place, trajectory)
    return "" if inputs in _TRUSTED else f"its input was logged as '{inputs}'"


def _inputs(trace: Trace, place: int, trajectory: int) -> Coverage:
    """How much of the model's input at this step was logged: the call's own word, else the trace's."""
    calls = (call for call in trace.calls if call.trajectory == trajectory and call.step == place)
    return next((call.inputs for call in calls), trace.completeness.inputs)
