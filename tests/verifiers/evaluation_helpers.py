"""Small trajectories and verifiers for the tests of the evaluation of verifiers."""

import re

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, Step, ToolCall, ToolSpec, Trajectory

LOOK = ToolSpec.function("look", "Look at an order", {"type": "object"}, Effect.parse("read(order:{id})"))
SEND = ToolSpec.function("send", "Send an order", {"type": "object"}, Effect.parse("write(order:{id})"))


def look(order=1, said=None, **flags):
    return Step(Message.assistant(said, [ToolCall("c1", "look", f'{{"id":{order}}}')]), (Message.tool("open", "c1"),), **flags)


def send(order=1, said=None, **flags):
    return Step(Message.assistant(said, [ToolCall("c2", "send", f'{{"id":{order}}}')]), (Message.tool("sent", "c2"),), **flags)


def says(text, **flags):
    return Step(Message.assistant(text), **flags)


def trajectory(*steps, task="orders"):
    return Trajectory((LOOK, SEND), (Message.user(task),), steps)


def written(trajectory):
    """A verifier that says what stands in brackets in the last action; nothing where nothing does."""
    found = re.search(r"\[([\d.]+)\]", trajectory.steps[-1].action.content_text) if trajectory.steps else None
    return None if found is None else float(found[1])
