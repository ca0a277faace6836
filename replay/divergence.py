"""Where a step that was executed again differs from its recording: the comparison, and the name of each difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from counterplay.core.canonical import canonical, content_key
from counterplay.core.errors import DivergenceError
from counterplay.core.nouns import Message, State, Step
from counterplay.replay.world import World

Comparable: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first way in which a step that was executed again differs from its recording.

    `kind` is one of `prompt_drift`, `result_drift`, `role_drift`, `missing_observation`, `extra_observation`, `ended_early`
    and `world_error`. `observation` is the index within the step; None where the difference is not in one.
    """

    kind: str
    tool: str = ""
    got: str = ""
    wanted: str = ""
    observation: int | None = None


def compare(recorded: Step, got: Step, *, comparable: Comparable | None = None) -> Divergence | None:
    """The first difference between a recorded step and the same action executed again; None where they agree.

    Observations are compared by place, role and content: tool-call ids are names, and redacted logs
    lack them. Where they are there, results that came in another order than their calls are compared with the same calls'.
    Parts that are not text, such as images, are compared too.
    """
    recorded, got = in_call_order(recorded), in_call_order(got)
    same_text = comparable or _as_it_is
    names = [call.name for call in recorded.action.tool_calls]
    for i, (was, now) in enumerate(zip(recorded.observations, got.observations, strict=False)):
        tool = names[i] if i < len(names) else ""
        if was.role != now.role:
            return Divergence("role_drift", tool, now.role, was.role, i)
        if content_key(same_text(was.content_text)) != content_key(same_text(now.content_text)):
            return Divergence("result_drift", tool, now.content_text, was.content_text, i)
        if _beside_text(was) != _beside_text(now):
            return Divergence("result_drift", tool, _beside_text(now), _beside_text(was), i)
    if got.error is not None:
        place = len(got.observations)
        return Divergence("world_error", names[place] if place < len(names) else "", got.error, "an observation", place)
    return _count_difference(recorded, got, names)


def in_call_order(step: Step) -> Step:
    """The step with its tool results in the order of its calls, where their ids say whose they are: parallel calls end in any order."""
    places = {call.id: i for i, call in enumerate(step.action.tool_calls)}
    at = [i for i, message in enumerate(step.observations) if message.role == "tool"]
    ids = [step.observations[i].tool_call_id for i in at]
    if len(places) < len(step.action.tool_calls) or len(set(ids)) < len(ids) or not set(ids) <= set(places):
        return step
    moved = dict(zip(at, sorted(at, key=lambda i: places[step.observations[i].tool_call_id or ""]), strict=True))
    order = [moved.get(i, i) for i in range(len(step.observations))]
    if order == [*range(len(order))]:
        return step
    grades = tuple(step.grades[i] for i in order) if len(step.grades) == len(order) else step.grades
    return replace(step, observations=tuple(step.observations[i] for i in order), grades=grades)


def prompt_drift(state: State, world: World) -> Divergence | None:
    """A user message of the world that the state never had: most likely the world of another task."""
    said = {message.content_text for message in state.prompt}
    for message in world.prompt:
        if message.role == "user" and message.content_text not in said:
            user = next((m.content_text for m in state.prompt if m.role == "user"), "no user message")
            return Divergence("prompt_drift", got=message.content_text, wanted=user)
    return None


def divergence_error(difference: Divergence, step: int) -> DivergenceError:
    """The error that stops a fork whose prefix differs at `step`; -1 is the prompt."""
    where = "in the prompt" if step < 0 else f"at step {step}"
    tool = f" of {difference.tool}" if difference.tool else ""
    return DivergenceError(
        f"the prefix went another way {where}{tool} ({difference.kind}): {short(difference.got)}",
        short(difference.wanted),
        "Look with: counterplay replay --check.",
        step=step,
        kind=difference.kind,
    )


def short(text: str, limit: int = 200) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)")


def _beside_text(message: Message) -> str:
    content = message.content
    if not isinstance(content, list):
        return ""
    others = [part for part in content if not (isinstance(part, dict) and isinstance(part.get("text"), str))]
    return canonical(others) if others else ""


def _count_difference(recorded: Step, got: Step, names: list[str]) -> Divergence | None:
    had, have = len(recorded.observations), len(got.observations)
    if have < had:
        return Divergence("missing_observation", names[have] if have < len(names) else "", "nothing", _first(recorded, have), have)
    # A log may leave out what answered the calls that ended the episode: nobody read it.
    if have > had and not (recorded.finished and names and not had):
        return Divergence("extra_observation", names[had] if had < len(names) else "", _first(got, had), "nothing", had)
    return None


def _first(step: Step, index: int) -> str:
    return step.observations[index].content_text


def _as_it_is(text: str) -> str:
    return text
