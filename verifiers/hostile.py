"""Trajectories that a verifier will meet one day: empty, huge, in every script, and with what models write when they slip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, Step, ToolCall, ToolSpec, Trajectory

ORDER = ToolSpec.function(
    "look_up", "The state of an order", {"type": "object", "properties": {"order_id": {"type": "string"}}}, Effect("read")
)
REFUND = ToolSpec.function("refund", "Pay an order back", {"type": "object", "properties": {"order_id": {"type": "string"}}})
TASK = Message.user("Refund order 17.")
_TEXTS = {
    "other scripts": "日本語 العربية עברית हिन्दी ไทย 🧑‍🚀🏳️‍🌈 e\u0301",
    "control characters": "\x00\x07\x1b[31m\u202e\ufeff\u2028\r\n",
    "lone surrogates": "\ud800 and \udfff",
    "a long line": "x" * 20_000,
}
_ARGUMENTS = {
    "not JSON": '{"order_id": "17"',
    "a list": '["17"]',
    "null": "null",
    "a list in place of a text": '{"order_id": ["17", {"a": null}]}',
    "an object in place of a text": '{"order_id": {"id": "17"}}',
    "a number in place of a text": '{"order_id": 17.0e300}',
    "null in place of a text": '{"order_id": null}',
    "deeply nested": '{"order_id": ' + "[" * 2_000 + "]" * 2_000 + "}",
    "a number that is none": '{"order_id": NaN}',
}


def hostile(*, huge: bool = True) -> dict[str, Trajectory]:
    """The trajectories by name. Without `huge` those of 2,000 steps and of messages of 1 MB are left out."""
    found = {
        "nothing at all": Trajectory(),
        "a bare prompt": Trajectory((ORDER, REFUND), (TASK,)),
        "an empty answer": _played(Step(Message.assistant(""))),
        "an action without content": _played(Step(Message.from_openai({"role": "assistant"}))),
        "content in parts": _played(Step(_parts()), Step(Message.assistant("done"), terminated=True)),
        "a call that was not answered": _played(Step(_call("look_up", '{"order_id": "17"}'))),
        "an answer to no call": _played(Step(Message.assistant("hm"), (Message.tool("sent", "other"),))),
        "two calls in one action": _played(_two(), Step(Message.assistant("done"), terminated=True, reward=1.0)),
        "an unknown tool": _played(_answered("no_such_tool", "{}")),
        "a tool without a name": _played(_answered("", "{}")),
        "no tool definitions": Trajectory((), (TASK,), (_answered("look_up", '{"order_id": "17"}'),)),
        "a tool error": _played(_answered("look_up", '{"order_id": "17"}', "Error: no such order")),
        "a failed branch": _played(Step(Message.assistant("done"), error="the environment broke")),
        "a step limit": _played(_answered("look_up", '{"order_id": "17"}', truncated=True)),
        "a paid end": _played(_answered("refund", '{"order_id": "17"}', terminated=True, reward=1.0)),
        "an unpaid end": _played(_answered("refund", '{"order_id": "18"}', terminated=True, reward=0.0)),
        **{f"arguments: {name}": _played(_answered("refund", text)) for name, text in _ARGUMENTS.items()},
        **{f"text: {name}": Trajectory((ORDER,), (Message.user(text),), _said(text)) for name, text in _TEXTS.items()},
    }
    return {**found, **dict(_huge())} if huge else found


def _huge() -> Iterator[tuple[str, Trajectory]]:
    steps = [_answered("look_up", json.dumps({"order_id": str(i)}), f"order {i} is sent", call_id=f"c{i}") for i in range(1_999)]
    yield "2,000 steps", _played(*steps, _answered("refund", '{"order_id": "17"}', terminated=True, reward=1.0))
    megabyte = "0123456789abcde\n" * 65_536
    yield "messages of 1 MB", Trajectory((ORDER,), (Message.user(megabyte),), _said(megabyte))


def _played(*steps: Step) -> Trajectory:
    return Trajectory((ORDER, REFUND), (TASK,), steps)


def _said(text: str) -> tuple[Step, ...]:
    arguments = json.dumps({"order_id": text})
    return (_answered("look_up", arguments, text), Step(Message.assistant(text), terminated=True, reward=0.5))


def _answered(name: str, arguments: str, answer: str = "done", *, call_id: str = "c", **flags: Any) -> Step:
    return Step(_call(name, arguments, call_id), (Message.tool(answer, call_id),), **flags)


def _call(name: str, arguments: str, call_id: str = "c") -> Message:
    return Message.assistant(None, [ToolCall(call_id, name, arguments)])


def _two() -> Step:
    calls = [ToolCall("a", "look_up", '{"order_id": "17"}'), ToolCall("b", "refund", '{"order_id": "17"}')]
    return Step(Message.assistant("both", calls), (Message.tool("sent", "a"), Message.tool("done", "b")))


def _parts() -> Message:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url"}, {"type": "text"}]
    return Message.from_openai({"role": "assistant", "content": parts})
