"""Messages made of parts, as the OpenTelemetry GenAI conventions write them, as OpenAI chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import orjson

from counterplay.connectors.facts import parsed_or
from counterplay.connectors.messages.listed import Known
from counterplay.connectors.messages.openai import ROLE_WORDS, openai_message, tool_call
from counterplay.connectors.normalise import ROLES, wire_of
from counterplay.core.canonical import dumps
from counterplay.core.nouns import Message

_LARGE = 1 << 16


def messages_of(raw: Any) -> list[Message] | None:
    """The chat messages in one message of parts: tool results stand on their own. None where it can't be read."""
    if isinstance(raw, Known):  # of which somebody keeps what is made of it
        return _read(raw)
    try:
        data = orjson.dumps(raw)
    except TypeError:  # lone surrogates
        return _read(raw)
    known = _known(data) if len(data) < _LARGE else _read(raw)
    return None if known is None else [*known]


@lru_cache(maxsize=4096)
def _known(data: bytes) -> tuple[Message, ...] | None:
    """A message of parts that was seen before, as those of growing prompts are once a call."""
    found = _read(orjson.loads(data))
    return None if found is None else tuple(found)


def _read(raw: Any) -> list[Message] | None:
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        return None
    parts = parsed_or(raw.get("parts"))
    if not isinstance(parts, list):
        message = openai_message({key: value for key, value in raw.items() if key != "finish_reason"})
        return None if message is None else [message]
    role = str(ROLE_WORDS.get(raw["role"], raw["role"]))
    if role not in ROLES:
        return None
    results = [part for part in parts if type_of(part) == "tool_call_response"]
    name = raw["name"] if isinstance(raw.get("name"), str) else None
    found = [Message.tool(_result_text(part), str(part.get("id") or ""), name) for part in results]
    rest = [part for part in parts if type_of(part) != "tool_call_response"]
    if rest or not results:
        found.append(_from_parts("user" if results and role == "tool" else role, rest, name))
    return found


def _from_parts(role: str, parts: Iterable[Any], name: str | None) -> Message:
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for part in parts:
        match type_of(part):
            case "text":
                content.append({"type": "text", "text": text_of(part)})
            case "reasoning" | "thinking":
                reasoning.append(text_of(part))
            case "tool_call" if part.get("name"):
                calls.append(tool_call(part.get("id"), part["name"], part.get("arguments")))
            case _:
                content.append(_other_part(part))
    fields: dict[str, Any] = {"role": role, "content": content}
    if not content:
        fields["content"] = None if role == "assistant" else ""
    elif len(content) == 1 and content[0]["type"] == "text":
        fields["content"] = content[0]["text"]
    if name is not None:
        fields["name"] = name
    if reasoning:
        fields["reasoning_content"] = "\n".join(reasoning)
    if calls:
        fields["tool_calls"] = calls
    return Message(wire_of(fields))


def _other_part(part: Any) -> dict[str, Any]:
    """Images in OpenAI form; any other part as it is."""
    if not isinstance(part, dict):
        return {"type": "text", "text": part if isinstance(part, str) else dumps(part)}
    kind, mime = type_of(part), part.get("mime_type") or "image/png"
    is_image = part.get("modality") == "image" or str(mime).startswith("image/")
    if kind == "uri" and is_image and isinstance(part.get("uri"), str):
        return {"type": "image_url", "image_url": {"url": part["uri"]}}
    if kind == "blob" and is_image and isinstance(part.get("content"), str):
        return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{part['content']}"}}
    return {**part, "type": kind or "generic"}


def _result_text(part: Mapping[str, Any]) -> str:
    result = next((part[key] for key in ("response", "result", "content") if part.get(key) is not None), "")
    return result if isinstance(result, str) else dumps(result)


def text_of(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    found = part.get("content", part.get("text"))
    return found if isinstance(found, str) else "" if found is None else dumps(found)


def type_of(part: Any) -> str:
    found = part.get("type") if isinstance(part, dict) else None
    return found if isinstance(found, str) else ""
