"""Server-sent events of model servers: enough to read what a streamed answer said and whether it came to its end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from counterplay.core.canonical import dumps
from counterplay.core.nouns import parse_json_object

EVENT_STREAM = "text/event-stream"
DONE = "[DONE]"
_LAST_TYPES = {"response.completed", "response.failed", "response.incomplete", "message_stop", "error"}
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def events(body: bytes) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a streamed answer, in order. What is no JSON object, such as `[DONE]` and a torn end, is left out."""
    for block in _BLANK_LINE.split(body):
        found = parse_json_object(_data(block))
        if found is not None:
            yield found


def is_complete(body: bytes) -> bool:
    """Whether the last event of a streamed answer is one that ends it, in any of the APIs."""
    blocks = [block for block in _BLANK_LINE.split(body) if b"data:" in block]
    if not blocks:
        return False
    data = _data(blocks[-1])
    return data.startswith(DONE) or (parse_json_object(data) or {}).get("type") in _LAST_TYPES


def event(data: Mapping[str, Any] | str) -> bytes:
    """One event as it is sent."""
    text = data if isinstance(data, str) else dumps(data)
    return f"data: {text}\n\n".encode()


def _data(block: bytes) -> str:
    lines = [line[5:].strip() for line in block.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).decode(errors="replace")
