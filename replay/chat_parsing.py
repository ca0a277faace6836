"""From the text a model wrote to an action: tool calls written as text are read, what can't be read is kept as it was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterplay.core.canonical import content_key, dumps
from counterplay.core.nouns import Message, ToolCall, parse_json_object

MALFORMED = "malformed_tool_call"
"""The finish reason of an action whose tool call could not be read; its content is the raw text."""

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"\A\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parsed:
    """`malformed` says that a tool call was begun and could not be read."""

    content: str | None
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str | None = None
    malformed: bool = False

    def action(self, seed: str) -> Message:
        """The message, with tool-call ids that depend on `seed` and position alone."""
        calls = [ToolCall(f"call_{content_key(seed, str(at))[:16]}", *call) for at, call in enumerate(self.calls)]
        return Message.assistant(self.content, calls, self.reasoning)


def parse_tagged(text: str) -> Parsed:
    """Read `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` blocks, as Qwen and Hermes models write them, and `<think>`."""
    thought = _THOUGHT.match(text)
    reasoning = thought[1].strip() or None if thought else None
    said = text[thought.end() :] if thought else text
    if _OPEN not in said:
        return Parsed(said, (), reasoning, malformed=_CLOSE in said)
    calls = [_call(parse_json_object(block)) for block in _BLOCK.findall(said)]
    read = tuple(call for call in calls if call is not None)
    if len(read) < len(calls):
        return Parsed(text, malformed=True)
    return Parsed(_BLOCK.sub("", said).strip() or None, read, reasoning)


def parse_with_template(tokenizer: Any, text: str, opening: str) -> Parsed:
    """Read a response by the tokenizer's own response template (`tokenizer.parse_response`)."""
    try:
        fields = tokenizer.parse_response(text, prefix=opening)
    except ValueError:
        return Parsed(text, malformed=True)
    raw: Sequence[Any] = fields.get("tool_calls") or ()
    calls = [_call(call.get("function") or call) for call in raw if isinstance(call, dict)]
    read = tuple(call for call in calls if call is not None)
    if len(read) < len(raw):
        return Parsed(text, malformed=True)
    return Parsed(fields.get("content") or None, read, fields.get("reasoning_content") or fields.get("thinking"))


def _call(fields: dict[str, Any] | None) -> tuple[str, str] | None:
    """Name and argument text of one call; None where it has no name or its arguments are no JSON object."""
    if fields is None or not isinstance(fields.get("name"), str):
        return None
    arguments = fields.get("arguments", fields.get("parameters", {}))
    if isinstance(arguments, str):
        return None if parse_json_object(arguments) is None else (fields["name"], arguments)
    return (fields["name"], dumps(arguments)) if isinstance(arguments, dict) else None
