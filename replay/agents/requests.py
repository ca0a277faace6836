"""A model request in the form in which it is compared, whichever API it was made through.

What the model is shown is what counts: roles, texts, tool calls by name and canonical arguments, and which call a result answers.
Key order, white space, tool-call ids, empty fields, reasoning and cache marks do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from counterplay.core.canonical import canonical
from counterplay.core.nouns import Message, ToolCall, ToolSpec, Usage
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest
from counterplay.replay.live import Comparable

_STRUCTURE = {"messages", "input", "system", "instructions", "tools", "functions", "previous_response_id", "conversation"}
_NOT_SHOWN = {  # where and how an answer is delivered, kept or billed: the model never sees it
    "stream", "stream_options", "metadata", "user", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "extra_headers", "background", "include",
}  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {
    "n": 1, "temperature": 1, "top_p": 1, "tool_choice": "auto", "parallel_tool_calls": True, "frequency_penalty": 0,
    "presence_penalty": 0, "logprobs": False, "response_format": {"type": "text"}, "text": {"format": {"type": "text"}},
    "truncation": "disabled",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a request asks. Where the server keeps the conversation, `previous` is the id of the answer that `messages` go on from,
    and `instructions` stand before all of it; elsewhere they are among the messages.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    instructions: tuple[Message, ...] = ()
    previous: str | None = None


@dataclass(frozen=True)
class Answered:
    """What a model answered. `action` is None where it gave no message; `error` then says why."""

    action: Message | None
    model: str | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    response_id: str | None = None
    error: str | None = None


class Reader(Protocol):
    """Reads requests and answers of model APIs as the recording's own connector reads them, so that equal content is equal.

    Raises ValueError on what it can't read.
    """

    def asked(self, request: ModelRequest) -> Asked: ...
    def answered(self, request: ModelRequest, answer: ModelAnswer) -> Answered: ...


Normal: TypeAlias = str
"""The text that equal messages have in common, beside the messages before them."""


class Normaliser:
    """Turns messages into normal form; `comparable` maps every text first. Remembers what it has seen."""

    def __init__(self, comparable: Comparable | None = None) -> None:
        self.comparable = comparable
        self._shapes: dict[str, tuple[str, str, tuple[str, ...]]] = {}

    def of(self, messages: Sequence[Message]) -> list[Normal]:
        callers: list[tuple[int, Message]] = []
        normals = []
        results = 0
        for place, message in enumerate(messages):
            reference = _reference(message, place, callers, results) if message.role == "tool" else ""
            results = results + 1 if message.role == "tool" else 0
            if message.tool_calls:
                callers.append((place, message))
            role, content, calls = self._shape(message)
            normals.append(canonical([role, content, calls, reference]))
        return normals

    def text(self, text: str) -> str:
        return text if self.comparable is None else self.comparable(text)

    def _shape(self, message: Message) -> tuple[str, str, tuple[str, ...]]:
        known = self._shapes.get(message.wire)
        if known is None:
            role = "system" if message.role == "developer" else message.role
            known = role, self.text(content_of(message)), tuple(self.text(call.signature) for call in message.tool_calls)
            self._shapes[message.wire] = known
        return known


def content_of(message: Message) -> str:
    """The content as one text: parts that are not text as canonical JSON."""
    content = message.content
    if not isinstance(content, list) or all(part.get("type", "text") == "text" for part in content if isinstance(part, dict)):
        return message.content_text
    return canonical(content)


def params_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request that decide its answer, without those that are at their default."""
    kept = {name: value for name, value in fields.items() if name not in _STRUCTURE and name not in _NOT_SHOWN and value is not None}
    return {name: value for name, value in kept.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


def _reference(message: Message, place: int, callers: Sequence[tuple[int, Message]], results: int) -> str:
    """Which call a tool result answers: how far back its action is and which of its calls it is; the bare id where none is known."""
    for at, caller in reversed(callers):
        ids = [call.id for call in caller.tool_calls]
        if _tell_apart(caller.tool_calls):
            if message.tool_call_id in ids:
                return f"{place - at}.{ids.index(message.tool_call_id)}"
        elif message.tool_call_id in ids:  # ids that were lost or used twice: results stand in the order of the calls
            return f"{place - at}.{results}"
    return f"id {message.tool_call_id}"


def _tell_apart(calls: Sequence[ToolCall]) -> bool:
    ids = {call.id for call in calls}
    return len(ids) == len(calls) and "" not in ids


class Conversations:
    """The conversations that a server keeps, by the id of their last answer, so that a request which names one is read in full."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Message, ...]] = {}

    def answered(self, response_id: str | None, asked: Asked, action: Message) -> None:
        """`action` was the answer with this id to `asked`, which is in full."""
        if response_id:
            self._kept[response_id] = (*asked.messages, action)

    def in_full(self, asked: Asked) -> Asked:
        """The request with all that went before it. Instructions are not kept by the server: each request has its own."""
        before = list(self._kept.get(asked.previous or "", ()))
        while asked.instructions and before and before[0].role == "system":
            before.pop(0)
        return replace(asked, messages=(*asked.instructions, *before, *asked.messages), instructions=(), previous=None)
