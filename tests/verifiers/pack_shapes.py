"""Trajectories made by hand for the packs' tests, and the 100 real airline runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay.core.nouns import Message, Step, ToolCall, ToolSpec, Trajectory, steps_of

ROOT = Path(__file__).parents[2]
AIRLINE = ROOT / "../shared/data/tau-bench-airline-gpt4o/gpt-4o-airline.even_tasks.json"
NO_LOGS = "the real logs are not here: ../shared/data/tau-bench-airline-gpt4o"


def call(name, args=None, answer="ok", *, ref="1", user=None, **flags):
    """A step that calls one tool; `args` is an object or a text."""
    text = args if isinstance(args, str) else json.dumps(args or {})
    told = answer if isinstance(answer, str) else json.dumps(answer)
    observations = () if answer is None else (Message.tool(told, ref, name),)
    said = () if user is None else (Message.user(user),)
    return Step(Message.assistant(None, [ToolCall(ref, name, text)]), (*observations, *said), **flags)


def say(text, user=None, **flags):
    """A step that speaks, and what the user answers."""
    return Step(Message.assistant(text), () if user is None else (Message.user(user),), **flags)


def trajectory(*steps, tools=(), prompt="Hello, please help."):
    return Trajectory(tuple(tools), (Message.user(prompt),), tuple(steps))


def ended(state):
    return replace(state, steps=(*state.steps[:-1], replace(state.steps[-1], terminated=True)))


def tool(name, effect, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return ToolSpec.function(name, name, schema, effect)


def values(verifier, state):
    """The value after every step of a trajectory, the end included."""
    return [verifier(state.prefix(length)).value for length in range(1, len(state) + 1)]


def airline_runs():
    """(trajectory, success) of the 100 real runs; skips the test where they are not here."""
    if not AIRLINE.is_file():
        pytest.skip(NO_LOGS)
    runs = []
    for logged in json.loads(AIRLINE.read_text(encoding="utf-8")):
        prompt, steps = steps_of([Message.from_openai(fields) for fields in logged["traj"]])
        runs.append((ended(Trajectory((), prompt, steps)), logged["reward"] == 1.0))
    return runs


def auroc(scored):
    """The share of (success, failure) pairs that are ordered rightly; half for a tie."""
    good, bad = [value for value, right in scored if right], [value for value, right in scored if not right]
    return sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))
