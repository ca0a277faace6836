"""The state that a request shows, where it is not the recorded one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from counterplay.core.nouns import Grade, Message, State, Step, ToolSpec, Trajectory, steps_of
from counterplay.replay.agents.requests import Asked, Normal, Normaliser


def rebuilt(asked: Asked, recorded: State, normaliser: Normaliser) -> State:
    """The messages of a request as a state, cut into steps as `recorded` is where they are as many.

    Observations that are as recorded are graded exact, others executed: the agent's own code put them there.
    """
    tools = _with_effects(asked.tools, recorded)
    normals, known = normaliser.of(asked.messages), set(normaliser.of(recorded.messages))
    same = {id(message) for message, normal in zip(asked.messages, normals, strict=True) if normal in known}
    if [message.role for message in asked.messages] == [message.role for message in recorded.messages]:
        prompt, steps = _cut(asked.messages, recorded)
    else:
        prompt, steps = steps_of(asked.messages)
        actions = set(_action_normals(recorded, normaliser))
        sampled = {id(message) for message, normal in zip(asked.messages, normals, strict=True) if normal in actions}
        steps = tuple(replace(step, sampled=id(step.action) in sampled) for step in steps)
    return Trajectory(tools, prompt, tuple(_graded(step, same) for step in steps))


def _cut(messages: Sequence[Message], recorded: State) -> tuple[tuple[Message, ...], tuple[Step, ...]]:
    left = iter(messages)
    prompt = tuple(islice(left, len(recorded.prompt)))
    steps = []
    for step in recorded.steps:
        action, *observations = islice(left, len(step.messages))
        steps.append(replace(step, action=action, observations=tuple(observations)))
    return prompt, tuple(steps)


def _action_normals(recorded: State, normaliser: Normaliser) -> Iterator[Normal]:
    """The actions that a model wrote; an action in normal form does not depend on what stands before it."""
    for step in recorded.steps:
        if step.sampled:
            yield from normaliser.of([step.action])


def _graded(step: Step, same: set[int]) -> Step:
    grades = tuple(Grade.EXACT if id(message) in same else Grade.EXECUTED for message in step.observations)
    return replace(step, grades=grades)


def _with_effects(tools: tuple[ToolSpec, ...], recorded: State) -> tuple[ToolSpec, ...]:
    """The tools that were asked with; the recorded ones, which know their effects, where they are the same."""
    effects = {tool.name: tool.effect for tool in recorded.tools}
    return tuple(replace(tool, effect=effects.get(tool.name, tool.effect)) for tool in tools)
