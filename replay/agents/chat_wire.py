"""LangChain's messages, results and chunks as Chat Completions JSON and server-sent events, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import dumps
from counterplay.core.nouns import parse_json_object
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest
from counterplay.replay.agents.calls import restored_error
from counterplay.replay.agents.sse import EVENT_STREAM, events
from counterplay.replay.agents.teeing import CLOSED_EARLY
from counterplay.replay.agents.values import plain

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

_NAMES = ("model_name", "model", "model_id", "deployment_name")


def request_of(
    model: Any, messages: Sequence[BaseMessage], stop: Sequence[str] | None, options: Mapping[str, Any], *, stream: bool
) -> ModelRequest:  # fmt: skip
    """A call of a chat model as the Chat Completions request that it amounts to."""
    fields: dict[str, Any] = {"model": model_name(model), "messages": [wire_message(message) for message in messages]}
    for name, value in {**options, "stop": stop, "stream": stream or None}.items():
        if value is not None:
            fields[name] = [wire_tool(each) for each in value] if name == "tools" else plain(value)
    return ModelRequest("chat", dumps(fields).encode())


def model_name(model: Any) -> str:
    names = (getattr(model, name, None) for name in _NAMES)
    return next((name for name in names if isinstance(name, str) and name), type(model).__name__)


def wire_message(message: BaseMessage) -> dict[str, Any]:
    from langchain_core.messages import convert_to_openai_messages

    fields: dict[str, Any] = {"role": _role(message)}
    try:
        fields |= convert_to_openai_messages(message)
    except (ValueError, TypeError, KeyError):  # content blocks of a provider that it does not know
        fields["content"] = str(message.text)
    odd = getattr(message, "invalid_tool_calls", None)
    if odd:
        calls = [_wire_call(call["id"], call["name"], call["args"]) for call in odd]
        fields["tool_calls"] = [*fields.get("tool_calls", ()), *calls]
    reasoning = message.additional_kwargs.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        fields["reasoning_content"] = reasoning
    return fields


def wire_tool(tool: Any) -> Any:
    from langchain_core.utils.function_calling import convert_to_openai_tool

    try:
        return plain(convert_to_openai_tool(tool))
    except (ValueError, TypeError, KeyError):  # a provider's own built-in tool
        return plain(tool)


def body_of(generations: Sequence[ChatGeneration], model: str) -> bytes:
    """A result as the body of an answer."""
    first = generations[0].message if generations else None
    fields: dict[str, Any] = {"object": "chat.completion", "model": model}
    if first is not None and first.id:
        fields["id"] = first.id
    fields["choices"] = [
        {"index": at, "message": wire_message(generation.message), "finish_reason": _finish_reason(generation)}
        for at, generation in enumerate(generations)
    ]
    usage = _wire_usage(getattr(first, "usage_metadata", None))
    return dumps({**fields, "usage": usage} if usage else fields).encode()


def event_of(chunk: ChatGenerationChunk, model: str) -> dict[str, Any]:
    """A chunk of a stream as the data of one event."""
    message: Any = chunk.message
    delta: dict[str, Any] = {"role": "assistant", "content": _text(message)}
    calls = [
        {"index": call["index"] or 0, **_wire_call(call["id"], call["name"], call["args"])} for call in message.tool_call_chunks
    ]  # fmt: skip
    if calls:
        delta["tool_calls"] = calls
    if isinstance(reasoning := message.additional_kwargs.get("reasoning_content"), str):
        delta["reasoning_content"] = reasoning
    finish = (chunk.generation_info or {}).get("finish_reason") or message.response_metadata.get("finish_reason")
    fields: dict[str, Any] = {"object": "chat.completion.chunk", "model": model}
    if message.id:
        fields["id"] = message.id
    fields["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
    usage = _wire_usage(message.usage_metadata)
    return {**fields, "usage": usage} if usage else fields


def result_of(answer: ModelAnswer) -> ChatResult:
    """An answer given in place, as a chat model would have given it. Raises the error that it tells of."""
    from langchain_core.language_models.chat_models import generate_from_stream
    from langchain_core.outputs import ChatGeneration, ChatResult

    _raise_error(answer)
    if answer.content_type == EVENT_STREAM:
        return generate_from_stream(chunks_of(answer))
    body = parse_json_object(answer.body.decode(errors="replace")) or {}
    generations = [
        ChatGeneration(message=_ai_message(choice["message"], body, choice), generation_info={"finish_reason": choice.get("finish_reason")})
        for choice in body.get("choices") or ()
    ]
    return ChatResult(generations=generations, llm_output={"model_name": body.get("model"), "token_usage": body.get("usage") or {}})


def chunks_of(answer: ModelAnswer) -> Iterator[ChatGenerationChunk]:
    """An answer given in place, as a chat model would have streamed it. Raises the error that it tells of where it came."""
    _raise_error(answer)
    if answer.content_type == EVENT_STREAM:
        yield from _chunks(events(answer.body))
        if answer.error not in {None, CLOSED_EARLY}:
            raise restored_error(answer.error or "", RuntimeError)
        return
    body = parse_json_object(answer.body.decode(errors="replace")) or {}
    for choice in (body.get("choices") or ())[:1]:
        message = choice["message"]
        calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls") or ())]
        delta = {**message, "tool_calls": calls}
        yield from _chunks([{**body, "choices": [{**choice, "delta": delta}]}])


def _raise_error(answer: ModelAnswer) -> None:
    if answer.status == 0:
        raise restored_error(answer.error or "", RuntimeError)
    if answer.status >= 400:
        raise RuntimeError(f"the model server answered {answer.status}: {answer.body[:500].decode(errors='replace')}")


def _ai_message(message: Mapping[str, Any], body: Mapping[str, Any], choice: Mapping[str, Any]) -> AIMessage:
    from langchain_core.messages import AIMessage

    good, odd = [], []
    for call in message.get("tool_calls") or ():
        name, text = call["function"]["name"], call["function"]["arguments"]
        arguments = parse_json_object(text)
        if arguments is None:
            odd.append({"type": "invalid_tool_call", "id": call.get("id"), "name": name, "args": text, "error": None})
        else:
            good.append({"type": "tool_call", "id": call.get("id"), "name": name, "args": arguments})
    fields: dict[str, Any] = {
        "content": message.get("content") or "",
        "tool_calls": good,
        "invalid_tool_calls": odd,
        "id": body.get("id"),
        "name": message.get("name"),
        "usage_metadata": _usage_metadata(body.get("usage")),
        "response_metadata": {"model_name": body.get("model"), "finish_reason": choice.get("finish_reason")},
        "additional_kwargs": _additional(message),
    }
    return AIMessage(**fields)


def _chunks(found: Iterable[Mapping[str, Any]]) -> Iterator[ChatGenerationChunk]:
    from langchain_core.messages import AIMessageChunk
    from langchain_core.outputs import ChatGenerationChunk

    for data in found:
        choices = data.get("choices") or [{}]
        delta, finish = choices[0].get("delta") or {}, choices[0].get("finish_reason")
        fields: dict[str, Any] = {
            "content": delta.get("content") or "",
            "tool_call_chunks": [_call_chunk(call) for call in delta.get("tool_calls") or ()],
            "id": data.get("id"),
            "usage_metadata": _usage_metadata(data.get("usage")),
            "additional_kwargs": _additional(delta),
            "response_metadata": {"model_name": data.get("model"), "finish_reason": finish} if finish else {},
        }
        yield ChatGenerationChunk(message=AIMessageChunk(**fields), generation_info={"finish_reason": finish} if finish else None)


def _call_chunk(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "type": "tool_call_chunk",
        "index": call.get("index", 0),
        "id": call.get("id"),
        "name": function.get("name"),
        "args": function.get("arguments"),
    }


def _wire_call(identifier: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) or arguments is None else json.dumps(arguments)
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": text}}


def _additional(fields: Mapping[str, Any]) -> dict[str, Any]:
    reasoning = fields.get("reasoning_content")
    return {"reasoning_content": reasoning} if isinstance(reasoning, str) and reasoning else {}


def _finish_reason(generation: ChatGeneration) -> str:
    message: Any = generation.message
    found = (generation.generation_info or {}).get("finish_reason") or message.response_metadata.get("finish_reason")
    return str(found) if found else "tool_calls" if getattr(message, "tool_calls", None) else "stop"


def _text(message: BaseMessage) -> str:
    return message.content if isinstance(message.content, str) else str(message.text)


def _role(message: BaseMessage) -> str:
    roles = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "system": "system", "tool": "tool"}
    return roles.get(message.type, "user")


def _wire_usage(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    if not usage:
        return {}
    read, written = usage.get("input_token_details") or {}, usage.get("output_token_details") or {}
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": read.get("cache_read") or 0},
        "completion_tokens_details": {"reasoning_tokens": written.get("reasoning") or 0},
    }


def _usage_metadata(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not usage:
        return None
    read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoned = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    fields: dict[str, Any] = {"input_tokens": read, "output_tokens": written, "total_tokens": usage.get("total_tokens") or read + written}
    if cached:
        fields["input_token_details"] = {"cache_read": cached}
    if reasoned:
        fields["output_token_details"] = {"reasoning": reasoned}
    return fields
