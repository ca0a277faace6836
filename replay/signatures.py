"""What an action does, in one form for all its writings: how a live action is matched with a recorded one.

Arguments are compared as JSON: key order, white space, escapes and the writing of numbers (`1`, `1.0`, `1e0`, one number in RFC 8785)
do not count. A log that was redacted on its way in is matched through `comparable`, the same redaction: it maps both sides, and
nothing else is changed. What goes on to a model or a tool is what was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterplay.core.canonical import canonical
from counterplay.core.nouns import Message, ToolCall, parse_json_object
from counterplay.replay.divergence import Comparable

_OTHER_NUMBER = re.compile(r"\d[.eE]")


@dataclass(frozen=True, slots=True)
class CallForm:
    """One call: `signature` is equal for calls that ask the same; `arguments` say what it touches, None where they are no JSON object."""

    name: str
    signature: str
    arguments: Mapping[str, Any] | None


def call_form(call: ToolCall, comparable: Comparable | None = None) -> CallForm:
    """The form of one call, both its parts after `comparable`."""
    arguments: Mapping[str, Any] | None = call.args
    if arguments is not None and _OTHER_NUMBER.search(call.arguments):
        arguments = _with_plain_numbers(arguments)
    text = call.arguments if arguments is None else canonical(arguments)
    if comparable is not None:
        text = comparable(text)
        arguments = None if arguments is None else parse_json_object(text)
    return CallForm(call.name, f"{call.name}({text})", arguments)


def call_forms(action: Message, comparable: Comparable | None = None) -> tuple[CallForm, ...]:
    return tuple(call_form(call, comparable) for call in action.tool_calls)


def action_signature(action: Message, forms: tuple[CallForm, ...], comparable: Comparable | None = None) -> str:
    """What an action does: its calls (`forms`) where it has any, else its text whatever the white space."""
    if forms:
        return "; ".join(form.signature for form in forms)
    text = " ".join(action.content_text.split())
    return f"say({text if comparable is None else comparable(text)})"


def said(message: Message, comparable: Comparable | None = None) -> str:
    """Role and content of an observation as one text: ids are names, and redacted logs lack them."""
    text = canonical([message.role, message.content])
    return text if comparable is None else comparable(text)


def _with_plain_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _with_plain_numbers(each) for key, each in value.items()}
    return [_with_plain_numbers(each) for each in value] if isinstance(value, list) else value
