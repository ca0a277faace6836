"""A recorded action as the bytes that a model server would have answered with, whole or as a stream, in the API it was asked in.

What a client library makes of them is a message equal to the recorded one: ids, argument texts, and fields of the provider
that no API documents stay as they are. A counterfactual action is rendered likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from counterplay.core.canonical import content_key, dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Message, Usage
from counterplay.replay.agents.ambient import Api, ModelAnswer, ModelRequest
from counterplay.replay.agents.answers_messages import message_body, message_events
from counterplay.replay.agents.answers_responses import response_body, response_events
from counterplay.replay.agents.rendering import Said, pieces, sse

_STATUS_DIGITS = 3
_OF_OTHER_APIS = ("reasoning_items", "thinking_blocks")


def answer(request: ModelRequest, actions: Sequence[Message], call: Call, *, response_id: str | None = None) -> ModelAnswer:
    """The answer to `request` that says `actions`, of which there are several only where several choices were asked for.

    `call` gives model, usage, finish reason and time; `response_id` replaces its id. What was not logged is filled in: an id
    that the actions decide, the model that was asked for, the usual finish reason. Raises UserError for an API without actions.
    """
    render = _RENDERERS.get(request.api)
    if render is None:
        raise UserError(f"got a request of the API {request.api!r} ({request.url or 'no URL'})", f"one of: {', '.join(_RENDERERS)}")
    said = Said(
        actions=tuple(actions),
        id=response_id or call.response_id or f"{_ID_HEADS[request.api]}{content_key(*(action.wire for action in actions))}",
        model=str(call.model or request.fields.get("model") or ""),
        usage=call.usage,
        finish_reason=call.finish_reason or "",
        created=(call.started_at_us or 0) // 1_000_000,
        request=request.fields,
    )
    body, events = render
    if request.stream:
        return ModelAnswer("".join(events(said)).encode(), content_type="text/event-stream")
    return ModelAnswer(dumps(body(said)).encode())


def failed_answer(error: str) -> ModelAnswer:
    """A failure as it was logged: `503: overloaded` is what a server answered, anything else, such as `ReadTimeout: `, no answer."""
    status, _, message = error.partition(": ")
    if not (status.isdecimal() and len(status) == _STATUS_DIGITS):
        return ModelAnswer(status=0, error=error)
    return ModelAnswer(dumps({"error": {"message": message, "type": "recorded", "code": None, "param": None}}).encode(), int(status))


def _completion_body(said: Said) -> dict[str, Any]:
    choices = [
        {"index": i, "message": _message(action), "finish_reason": _finish_reason(said, action), "logprobs": None}
        for i, action in enumerate(said.actions)
    ]
    return {**_completion_head(said, "chat.completion"), "choices": choices, "usage": _completion_usage(said.usage)}


def _completion_events(said: Said) -> Iterable[str]:
    head = _completion_head(said, "chat.completion.chunk")
    for i, action in enumerate(said.actions):
        for delta in _deltas(_message(action)):
            yield sse({**head, "choices": [{"index": i, "delta": delta, "finish_reason": None}]})
        yield sse({**head, "choices": [{"index": i, "delta": {}, "finish_reason": _finish_reason(said, action)}]})
    if (said.request.get("stream_options") or {}).get("include_usage"):
        yield sse({**head, "choices": [], "usage": _completion_usage(said.usage)})
    yield "data: [DONE]\n\n"


def _deltas(message: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The message in pieces: every text that models stream grows, all else comes whole with the first piece."""
    grown = {name: text for name, text in message.items() if name in _STREAMED and isinstance(text, str)}
    whole = {name: value for name, value in message.items() if name not in grown and name != "tool_calls"}
    yield {**whole, **dict.fromkeys(grown, "")}
    for name, text in grown.items():
        yield from ({name: piece} for piece in pieces(text))
    for at, call in enumerate(message.get("tool_calls") or ()):
        yield from ({"tool_calls": [{"index": at, **part}]} for part in _call_parts(call))


def _call_parts(call: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    kind, written = ("custom", "input") if "custom" in call else ("function", "arguments")
    inner = call.get(kind) or {}
    yield {**call, kind: {**inner, written: ""}}
    yield from ({kind: {written: piece}} for piece in pieces(str(inner.get(written) or "")))


def _completion_head(said: Said, kind: str) -> dict[str, Any]:
    return {"id": said.id, "object": kind, "created": said.created, "model": said.model}


def _message(action: Message) -> dict[str, Any]:
    """The message as an answer: arguments as text, and a call's id where the log lost it."""
    fields = {name: value for name, value in action.to_openai().items() if name not in _OF_OTHER_APIS}
    calls = [_call(raw, at, action) for at, raw in enumerate(fields.get("tool_calls") or ())]
    fields = {"role": "assistant", "content": None, "refusal": None, **fields}
    return {**fields, "tool_calls": calls} if calls else {name: value for name, value in fields.items() if name != "tool_calls"}


def _call(raw: Mapping[str, Any], at: int, action: Message) -> dict[str, Any]:
    call = action.tool_calls[at]
    head = {**raw, "id": call.id or f"call_{content_key(action.wire, str(at))[:24]}"}
    if raw.get("type") == "custom" and "custom" in raw:
        return {name: value for name, value in head.items() if name != "function"}
    function = {**(raw.get("function") or {}), "name": call.name, "arguments": call.arguments}
    return {**head, "type": "function", "function": function}


def _finish_reason(said: Said, action: Message) -> str:
    return said.finish_reason or ("tool_calls" if action.tool_calls else "stop")


def _completion_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


_STREAMED = ("content", "reasoning_content", "reasoning", "refusal")
_RENDERERS: Mapping[Api, tuple[Callable[[Said], dict[str, Any]], Callable[[Said], Iterable[str]]]] = {
    "chat": (_completion_body, _completion_events),
    "responses": (response_body, response_events),
    "messages": (message_body, message_events),
}
_ID_HEADS: Mapping[Api, str] = {"chat": "chatcmpl-", "responses": "resp_", "messages": "msg_"}
