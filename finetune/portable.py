"""Messages as training data holds them: tool-call ids unique, arguments as objects, no chat-template control tokens in text.

Everything else is left as it was sent, so that a chat template renders the row as it rendered the request.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

from counterplay.core.nouns import Message, parse_json_object

_MARKERS = r"<\|[^|<>\s]{1,60}\|>|<｜[^｜<>]{1,60}｜>|<(?:start|end)_of_turn>"  # noqa: RUF001  DeepSeek's bars are full width
_INTEGERS = 2**63
_OURS = ("assistant", "system", "developer")


def portable(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as fresh dicts: null fields other than `content` left out, arguments as objects, ids unique.

    Content given as text parts alone is joined, as a policy renders it. Arguments that are not a JSON object stay text. An id
    that names a second call is issued anew for that call and its result, matched in order; ids that are unique stay. A
    prefix of `messages` gives a prefix of the result.
    """
    ids = _Ids()
    return [ids.reissue(_fields(message)) for message in messages]


def _fields(message: Message) -> dict[str, Any]:
    fields = {key: value for key, value in message.to_openai().items() if value is not None or key == "content"}
    content = fields.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        fields["content"] = message.content_text
    for call in fields.get("tool_calls") or ():
        function = call.get("function") or call
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            parsed = parse_json_object(arguments) if arguments.strip() else {}
            function["arguments"] = arguments if parsed is None else parsed
    return fields


class _Ids:
    """Re-issues ids along one conversation. `pending` holds the new ids of calls that still wait for a result, by logged id."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.pending: dict[str, deque[str]] = {}

    def reissue(self, fields: dict[str, Any]) -> dict[str, Any]:
        if fields.get("tool_calls"):
            self._calls(fields["tool_calls"])
        elif fields.get("role") == "tool":
            waiting = self.pending.get(str(fields.get("tool_call_id") or ""))
            if waiting:
                fields["tool_call_id"] = waiting.popleft()
        return fields

    def _calls(self, calls: Iterable[dict[str, Any]]) -> None:
        opened: dict[str, deque[str]] = {}
        for call in calls:
            logged = str(call.get("id") or "")
            if not logged or logged in self.seen:
                call["id"] = self._fresh(logged)
            self.seen.add(call["id"])
            opened.setdefault(logged, deque()).append(call["id"])
        self.pending.update(opened)  # a reused id belongs to its latest caller

    def _fresh(self, logged: str) -> str:
        """As long as the logged id and with its prefix, because some providers check the form."""
        head, line, tail = logged.rpartition("_")
        for attempt in range(len(self.seen) + 1):
            digest = blake2b(f"{logged}\n{len(self.seen)}\n{attempt}".encode()).hexdigest()
            fresh = head + line + digest[: max(len(tail), 9)]
            if fresh not in self.seen:
                return fresh
        msg = "got only taken ids out of more draws than ids, which no hash does"
        raise RuntimeError(msg)


def control_pattern(tokens: Iterable[str] = ()) -> re.Pattern[str]:
    """Matches the control tokens of the known chat-template families and `tokens`, those of one tokenizer."""
    known = sorted({token for token in tokens if len(token) > 1 and not token.isspace()}, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, known), _MARKERS]))


def neutralise(messages: Sequence[dict[str, Any]], outside: re.Pattern[str], ours: re.Pattern[str]) -> tuple[list[dict[str, Any]], int]:
    """The messages with every control token in their text broken by a space after its first character, and how many there were.

    `outside` is applied to what users and tools wrote, `ours` to what the model and its maker wrote: a system prompt may explain markup.
    """
    found = 0

    def broken(match: re.Match[str]) -> str:
        nonlocal found
        found += 1
        return f"{match[0][0]} {match[0][1:]}"

    def clean(value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, str):
            return pattern.sub(broken, value)
        if isinstance(value, list):
            return [clean(item, pattern) for item in value]
        if isinstance(value, dict):
            return {key: clean(item, pattern) for key, item in value.items()}
        return value

    return [clean(fields, ours if fields.get("role") in _OURS else outside) for fields in messages], found


def unfit(value: Any) -> str:
    """Why a value can't be kept in a JSON column that `datasets` reads; empty where it can."""
    if isinstance(value, str):
        return "text with a lone surrogate" if any("\ud800" <= char <= "\udfff" for char in value) else ""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    if isinstance(value, int) and abs(value) >= _INTEGERS:
        return "an integer of more than 64 bits"
    return next(filter(None, map(unfit, _parts(value))), "")


def has_fraction(value: Any) -> bool:
    """Whether a number with a fraction occurs: `datasets` 5.2 reads such numbers out of JSON columns with errors in the last digit."""
    return isinstance(value, float) or any(map(has_fraction, _parts(value)))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (part for item in value.items() for part in item)
    return value if isinstance(value, list) else ()
