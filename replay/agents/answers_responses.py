"""Answers of the OpenAI Responses API: reasoning, text and calls as output items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Message, ToolCall
from counterplay.replay.agents.rendering import Said, pieces, sse, tool_kinds

_OWN = {"role", "content", "tool_calls", "reasoning_content", "reasoning", "reasoning_items", "thinking_blocks", "refusal", "annotations"}
_TEXTS = ("text", "output_text")
_Event = tuple[str, dict[str, Any]]


def response_body(said: Said) -> dict[str, Any]:
    return {**_head(said), **_end(said), "output": list(_items(said)), "usage": _usage(said)}


def response_events(said: Said) -> Iterable[str]:
    """The events in order, numbered from 0."""
    for number, (kind, data) in enumerate(_events(said)):
        yield sse({"type": kind, "sequence_number": number, **data}, kind)


def _events(said: Said) -> Iterator[_Event]:
    opened = {**_head(said), "status": "in_progress", "output": [], "usage": None}
    yield "response.created", {"response": opened}
    yield "response.in_progress", {"response": opened}
    for index, item in enumerate(_items(said)):
        where = {"output_index": index, "item_id": item.get("id") or ""}
        yield "response.output_item.added", {"output_index": index, "item": _empty(item)}
        yield from _growing(item, where)
        yield "response.output_item.done", {"output_index": index, "item": item}
    body = response_body(said)
    yield f"response.{body['status']}", {"response": body}


def _empty(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item before anything of it has come."""
    grows = {"message": "content", "reasoning": "summary", "function_call": "arguments", "custom_tool_call": "input"}.get(item["type"])
    opened = {**item, **({"status": "in_progress"} if "status" in item else {})}
    return opened if grows is None else {**opened, grows: type(item[grows])()}


def _growing(item: Mapping[str, Any], where: Mapping[str, Any]) -> Iterator[_Event]:
    match item["type"]:
        case "message":
            for at, part in enumerate(item["content"]):
                yield from _part(part, {**where, "content_index": at})
        case "reasoning":
            for at, part in enumerate(item.get("summary") or ()):
                yield from _summary(part, {**where, "summary_index": at})
        case "function_call":
            kind = "response.function_call_arguments"
            yield from ((f"{kind}.delta", {**where, "delta": piece}) for piece in pieces(item["arguments"]))
            yield f"{kind}.done", {**where, "name": item["name"], "arguments": item["arguments"]}
        case "custom_tool_call":
            kind = "response.custom_tool_call_input"
            yield from ((f"{kind}.delta", {**where, "delta": piece}) for piece in pieces(item["input"]))
            yield f"{kind}.done", {**where, "input": item["input"]}


def _part(part: Mapping[str, Any], where: Mapping[str, Any]) -> Iterator[_Event]:
    key = "refusal" if part["type"] == "refusal" else "text"
    kind, text = f"response.{'refusal' if key == 'refusal' else 'output_text'}", str(part.get(key) or "")
    more: dict[str, Any] = {"logprobs": []} if key == "text" else {}
    yield "response.content_part.added", {**where, "part": {**part, key: ""}}
    yield from ((f"{kind}.delta", {**where, "delta": piece, **more}) for piece in pieces(text))
    yield f"{kind}.done", {**where, key: text, **more}
    yield "response.content_part.done", {**where, "part": part}


def _summary(part: Mapping[str, Any], where: Mapping[str, Any]) -> Iterator[_Event]:
    kind, text = "response.reasoning_summary_text", str(part.get("text") or "")
    yield "response.reasoning_summary_part.added", {**where, "part": {**part, "text": ""}}
    yield from ((f"{kind}.delta", {**where, "delta": piece}) for piece in pieces(text))
    yield f"{kind}.done", {**where, "text": text}
    yield "response.reasoning_summary_part.done", {**where, "part": part}


def _head(said: Said) -> dict[str, Any]:
    echoed = {name: said.request.get(name) for name in ("instructions", "temperature", "top_p", "previous_response_id")}
    return {
        "id": said.id,
        "object": "response",
        "created_at": said.created,
        "model": said.model,
        "error": None,
        "incomplete_details": None,
        "metadata": said.request.get("metadata") or {},
        "parallel_tool_calls": said.request.get("parallel_tool_calls", True),
        "tool_choice": said.request.get("tool_choice", "auto"),
        "tools": said.request.get("tools") or [],
        **echoed,
    }


def _end(said: Said) -> dict[str, Any]:
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(said.finish_reason)
    return {"status": "completed"} if cut is None else {"status": "incomplete", "incomplete_details": {"reason": cut}}


def _items(said: Said) -> Iterator[dict[str, Any]]:
    """The output items of the action: what it thought, what it said and what it called."""
    action, kinds = said.action, tool_kinds(said.request)
    yield from _reasoning(action)
    yield from _spoken(action)
    for at, call in enumerate(action.tool_calls):
        yield _call(call, kinds.get(call.name, "function"), _name("fc", action, at))


def _reasoning(action: Message) -> Iterator[dict[str, Any]]:
    logged = action.fields.get("reasoning_items")
    if isinstance(logged, list):
        for at, item in enumerate(logged):
            yield {**item, "id": item.get("id") or _name("rs", action, at), "summary": item.get("summary") or []}
    elif action.reasoning:
        yield {"type": "reasoning", "id": _name("rs", action, 0), "summary": [{"type": "summary_text", "text": action.reasoning}]}


def _spoken(action: Message) -> Iterator[dict[str, Any]]:
    """The message item, if anything was said, and the items that the server ran itself, which are kept as content parts."""
    content = action.content
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    said = [part for part in parts if part.get("type") in _TEXTS]
    hosted = [part for part in parts if part.get("type") not in _TEXTS]
    texts: list[dict[str, Any]] = [{**part, "type": "output_text", "annotations": [], "logprobs": []} for part in said]
    if texts and action.fields.get("annotations"):
        texts[-1]["annotations"] = action.fields["annotations"]
    if action.fields.get("refusal"):
        texts.append({"type": "refusal", "refusal": action.fields["refusal"]})
    yield from ({"id": _name("item", action, at), **part} for at, part in enumerate(hosted))
    if texts:
        more = {name: value for name, value in action.fields.items() if name not in _OWN}
        head = {"type": "message", "id": _name("msg", action, 0), "role": "assistant", "status": "completed"}
        yield {**head, "content": texts, **more}


def _call(call: ToolCall, kind: str, item_id: str) -> dict[str, Any]:
    head = {"id": item_id, "call_id": call.id or item_id.replace("fc_", "call_"), "status": "completed"}
    if kind == "function":
        return {"type": "function_call", **head, "name": call.name, "arguments": call.arguments}
    if kind == "custom":
        return {"type": "custom_tool_call", **head, "name": call.name, "input": call.arguments}
    return {"type": f"{call.name}_call", **head, **(call.args or {})}


def _name(head: str, action: Message, at: int) -> str:
    """An item's id: the log leaves them out, and clients want one."""
    return f"{head}_{content_key(head, action.wire, str(at))}"


def _usage(said: Said) -> dict[str, Any]:
    usage = said.usage
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.tokens,
    }
