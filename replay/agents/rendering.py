"""What the renderings of an answer have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from counterplay.core.canonical import dumps
from counterplay.core.nouns import Message, Usage

_PIECE_CHARS = 24


@dataclass(frozen=True)
class Said:
    """An answer to render. `created` is in seconds since 1970; `finish_reason` is in the words of Chat Completions, empty for the usual."""

    actions: tuple[Message, ...]
    id: str
    model: str
    usage: Usage
    finish_reason: str
    created: int
    request: Mapping[str, Any]

    @property
    def action(self) -> Message:
        return self.actions[0]


def sse(data: Mapping[str, Any], event: str = "") -> str:
    """One server-sent event."""
    return f"event: {event}\ndata: {dumps(data)}\n\n" if event else f"data: {dumps(data)}\n\n"


def pieces(text: str) -> Iterator[str]:
    """A text as a stream gives it."""
    yield from (text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS))


def tool_kinds(request: Mapping[str, Any]) -> dict[str, str]:
    """The type of each tool that a request offers and that is not a function, by the name its calls have."""
    tools = (tool for tool in request.get("tools") or () if isinstance(tool, Mapping))
    return {str(tool.get("name") or tool.get("type")): str(tool["type"]) for tool in tools if tool.get("type") not in (None, "function")}
