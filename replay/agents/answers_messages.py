"""Answers of Anthropic Messages: thinking, text and tool use as content blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from counterplay.core.canonical import content_key, dumps
from counterplay.core.nouns import Message
from counterplay.replay.agents.rendering import Said, pieces, sse

_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "content_filter": "refusal"}
_Event = tuple[str, dict[str, Any]]


def message_body(said: Said) -> dict[str, Any]:
    return {
        **_head(said),
        "content": list(_blocks(said.action)),
        "stop_reason": _stop_reason(said),
        "stop_sequence": None,
        "usage": _usage(said),
    }


def message_events(said: Said) -> Iterable[str]:
    for kind, data in _events(said):
        yield sse({"type": kind, **data}, kind)


def _events(said: Said) -> Iterator[_Event]:
    used = {**_usage(said), "output_tokens": 0}
    yield "message_start", {"message": {**_head(said), "content": [], "stop_reason": None, "stop_sequence": None, "usage": used}}
    for index, block in enumerate(_blocks(said.action)):
        where = {"index": index}
        start, deltas = _growing(block)
        yield "content_block_start", {**where, "content_block": start}
        yield from (("content_block_delta", {**where, "delta": delta}) for delta in deltas)
        yield "content_block_stop", where
    end = {"stop_reason": _stop_reason(said), "stop_sequence": None}
    yield "message_delta", {"delta": end, "usage": {"output_tokens": said.usage.output_tokens}}
    yield "message_stop", {}


def _growing(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block before anything of it has come, and the pieces that make it whole."""
    kind = block["type"]
    if kind == "tool_use":
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces(dumps(block["input"]))]
    if kind in ("text", "thinking"):
        deltas = [{"type": f"{kind}_delta", kind: piece} for piece in pieces(str(block.get(kind) or ""))]
        signed = [{"type": "signature_delta", "signature": block["signature"]}] if "signature" in block else []
        return {**block, kind: "", **({"signature": ""} if signed else {})}, [*deltas, *signed]
    return dict(block), []


def _head(said: Said) -> dict[str, Any]:
    return {"id": said.id, "type": "message", "role": "assistant", "model": said.model}


def _blocks(action: Message) -> Iterator[dict[str, Any]]:
    thinking = action.fields.get("thinking_blocks")
    if isinstance(thinking, list):
        yield from thinking
    elif action.reasoning:
        yield {"type": "thinking", "thinking": action.reasoning, "signature": ""}
    content = action.content
    if isinstance(content, list):
        yield from content
    elif content:
        yield {"type": "text", "text": content}
    for at, call in enumerate(action.tool_calls):
        call_id = call.id or f"toolu_{content_key(action.wire, str(at))[:24]}"
        yield {"type": "tool_use", "id": call_id, "name": call.name, "input": call.args if call.args is not None else {}}


def _stop_reason(said: Said) -> str:
    usual = "tool_calls" if said.action.tool_calls else "stop"
    return _STOP_REASONS.get(said.finish_reason or usual, said.finish_reason)


def _usage(said: Said) -> dict[str, Any]:
    usage = said.usage
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.output_tokens,
    }
