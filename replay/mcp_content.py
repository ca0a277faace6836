"""What an MCP tool answered, as the content of a tool message: text stays text, images and sounds stay parts, nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import dumps, loads
from counterplay.replay.world import Content

if TYPE_CHECKING:
    from mcp_types import CallToolResult


def content_of(result: CallToolResult) -> Content:
    """One block of text is a text; several blocks, or others than text, are content parts in order.

    Structured content that the text does not say already is added as JSON. An error is marked `Error: ` where it does not
    say so itself.
    """
    parts = [_part(block) for block in result.content]
    if result.structured_content is not None and not _says(parts, result.structured_content):
        parts.append(_text(dumps(result.structured_content)))
    if result.is_error and not any("error" in part.get("text", "").lower() for part in parts):
        if parts and parts[0]["type"] == "text":
            parts[0] = _text(f"Error: {parts[0]['text']}")
        else:
            parts.insert(0, _text("Error:"))
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(block: Any) -> dict[str, Any]:
    """One block by its kind; of a kind that is not known, as JSON text."""
    if block.type == "text":
        return _text(block.text)
    if block.type == "image":
        return {"type": "image_url", "image_url": {"url": f"data:{block.mime_type};base64,{block.data}"}}
    if block.type == "audio":
        return {"type": "input_audio", "input_audio": {"data": block.data, "format": block.mime_type.rpartition("/")[2]}}
    if block.type == "resource":
        held = block.resource
        if hasattr(held, "text"):
            return _text(held.text)
        mime = held.mime_type or "application/octet-stream"
        return {"type": "file", "file": {"filename": str(held.uri), "file_data": f"data:{mime};base64,{held.blob}"}}
    return _text(dumps(block.model_dump(mode="json", by_alias=True, exclude_none=True)))


def _says(parts: list[dict[str, Any]], structured: Any) -> bool:
    """Whether the text blocks hold the same value, bare or, as servers do with plain results, inside `result`."""
    texts = [part["text"] for part in parts if part["type"] == "text"]
    values = [_value(text) for text in texts]
    told = [texts, values, *texts[:1], *values[:1]] if len(texts) == 1 else [texts, values]
    bare = structured["result"] if isinstance(structured, dict) and set(structured) == {"result"} else structured
    return structured in told or bare in told


def _value(text: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return text


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
