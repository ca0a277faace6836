"""The first place in which two JSON values, or two messages, differ: its path, and an excerpt of either side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Self

from counterplay.core.canonical import canonical, dumps
from counterplay.core.nouns import Message

_NOTHING = object()
_SHOWN = 160
_BEFORE = 40


@dataclass(frozen=True, slots=True)
class Difference:
    """`path` says where, e.g. `messages[3].tool_calls[0].function.arguments.order_id`; empty where all is different.

    `message` is the index of the message that it is in, None where it is in none. `got` and `wanted` are excerpts, at most
    160 characters round the first difference; empty where that side has nothing there.
    """

    path: str
    message: int | None
    got: str
    wanted: str

    def __post_init__(self) -> None:
        got, wanted = excerpts(self.got, self.wanted)
        object.__setattr__(self, "got", got)
        object.__setattr__(self, "wanted", wanted)

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}got {self.got or 'nothing'!s}, wanted {self.wanted or 'nothing'!s}"

    @classmethod
    def of_messages(cls, place: int, got: Message | None, wanted: Message | None, text: Callable[[str], str]) -> Self:
        """The first difference of two messages at one place; None is a message that is not there. `text` maps texts first."""
        path = f"messages[{place}]"
        if got is None or wanted is None:
            return cls(path, place, _said(got), _said(wanted))
        found = first_difference(_view(got, text), _view(wanted, text), path)
        if found is None:  # they differ in which call they answer
            return cls(f"{path}.tool_call_id", place, str(got.tool_call_id), str(wanted.tool_call_id))
        return cls(found.path, place, found.got, found.wanted)


def first_difference(got: Any, wanted: Any, path: str) -> Difference | None:
    """Depth first, in the order of `wanted`; None where the values are equal. A bool is no number here, 1 and 1.0 are one."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        parts = [(f"{path}.{name}" if path else str(name), name) for name in dict.fromkeys([*wanted, *got])]
        return _first((got.get(name, _NOTHING), wanted.get(name, _NOTHING), where) for where, name in parts)
    if isinstance(got, list) and isinstance(wanted, list):
        pairs = zip_longest(got, wanted, fillvalue=_NOTHING)
        return _first((ours, theirs, f"{path}[{place}]") for place, (ours, theirs) in enumerate(pairs))
    if got == wanted and isinstance(got, bool) == isinstance(wanted, bool):
        return None
    return Difference(path, None, _text(got), _text(wanted))


def _first(parts: Iterable[tuple[Any, Any, str]]) -> Difference | None:
    found = (first_difference(got, wanted, path) for got, wanted, path in parts)
    return next((difference for difference in found if difference is not None), None)


def excerpts(got: str, wanted: str) -> tuple[str, str]:
    """Both texts cut to the same window round their first difference."""
    if len(got) <= _SHOWN and len(wanted) <= _SHOWN:
        return got, wanted
    start = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    start = max(0, start - _BEFORE)
    return _cut(got, start), _cut(wanted, start)


def _cut(text: str, start: int) -> str:
    room = _SHOWN - 6
    return ("..." if start else "") + text[start : start + room] + ("..." if len(text) > start + room else "")


def _view(message: Message, text: Callable[[str], str]) -> dict[str, Any]:
    """The parts of a message that are compared."""
    content = message.content
    shown: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if isinstance(content, list) and any(part.get("type", "text") != "text" for part in content if isinstance(part, dict)):
        shown["content"] = content
    else:
        shown["content"] = text(message.content_text)
    calls = [{"function": {"name": call.name, "arguments": _arguments(call.args, call.arguments, text)}} for call in message.tool_calls]
    return {**shown, "tool_calls": calls} if calls else shown


def _arguments(parsed: dict[str, Any] | None, written: str, text: Callable[[str], str]) -> Any:
    if parsed is None:
        return text(written)
    return parsed if text(canonical(parsed)) == canonical(parsed) else text(canonical(parsed))


def _said(message: Message | None) -> str:
    if message is None:
        return ""
    calls = f" {message.signature}" if message.tool_calls else ""
    return f"{message.role}: {message.content_text}{calls}"


def _text(value: Any) -> str:
    return "" if value is _NOTHING else value if isinstance(value, str) else dumps(value)
