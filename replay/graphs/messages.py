"""LangChain's message objects as chat messages, and chat messages as LangChain's objects.

Ids, usage and response metadata are provenance and stay out of a chat message. `message_key` says when two messages say the same,
whoever wrote them down: a thread's messages are found again in a log that another tool made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from counterplay.core.canonical import canonical, chain_key, dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolCall, Usage, parse_json_object

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

_ROLES = {"ai": "assistant", "human": "user", "system": "system", "tool": "tool", "function": "tool"}
_CALL_BLOCKS = ("tool_use", "tool_call", "function_call", "invalid_tool_call", "tool_call_chunk", "input_json_delta")
_THINKING = ("thinking", "reasoning", "reasoning_content")
_OWN = {"role", "content", "tool_calls", "tool_call_id", "name", "function_call", "__openai_role__"}
_LEADING = ("system", "developer")


def message_of(found: BaseMessage) -> Message:
    """The chat message that an object of LangChain's says. Raises ValueError where it says none, as the removal of one does."""
    extra = found.additional_kwargs
    role = extra.get("__openai_role__") or (getattr(found, "role", "") if found.type.startswith("Chat") else _ROLES.get(_kind(found), ""))
    if not role:
        msg = f"got a message of type {found.type!r}, wanted one of {', '.join(_ROLES)}"
        raise ValueError(msg)
    calls = _calls(found)
    content, reasoning = _content(found.content)
    if role == "assistant" and not content and (calls or extra.get("function_call")):
        content = None
    fields: dict[str, Any] = {"role": role, "content": content}
    fields |= {key: value for key in ("name", "tool_call_id") if (value := getattr(found, key, None)) is not None}
    if getattr(found, "status", None) == "error":
        fields["status"] = "error"
    fields |= {key: value for key, value in extra.items() if key not in _OWN and value not in (None, "", [], {})}
    if reasoning and not fields.get("reasoning_content"):
        fields["reasoning_content"] = reasoning
    return Message.from_openai({**fields, "tool_calls": calls} if calls else fields)


def assistant_of(message: Message) -> AIMessage:
    """An assistant message as LangChain's models answer it, under an id of its own. Raises UserError where it is another's."""
    from langchain_core.messages import AIMessage

    if message.role != "assistant":
        raise UserError(f"got a message of the role {message.role!r}", "an assistant message, which stands in for the model's answer")
    kept = {key: value for key, value in message.fields.items() if key not in _OWN}
    parsed = [(call, parse_json_object(call.arguments or "{}")) for call in message.tool_calls]
    return AIMessage(
        content=message.to_openai().get("content") or "",
        id=f"counterplay-{uuid4()}",
        name=message.name,
        additional_kwargs=kept,
        tool_calls=[{"name": c.name, "args": args, "id": c.id, "type": "tool_call"} for c, args in parsed if args is not None],
        invalid_tool_calls=[
            {"name": c.name, "args": c.arguments, "id": c.id, "error": "not a JSON object", "type": "invalid_tool_call"}
            for c, args in parsed
            if args is None
        ],
    )


def given_of(messages: Iterable[Message]) -> list[BaseMessage]:
    """Messages as a graph takes them as input, without instructions at the beginning."""
    from langchain_core.messages import convert_to_messages

    said = list(messages)
    start = next((i for i, message in enumerate(said) if message.role not in _LEADING), len(said))
    return [assistant_of(each) if each.role == "assistant" else convert_to_messages([each.to_openai()])[0] for each in said[start:]]


def tool_message_of(message: Message, call: Mapping[str, Any], artifact: Any = None) -> ToolMessage:
    """A tool result as LangGraph's tool nodes give it, in answer to `call`."""
    from langchain_core.messages import ToolMessage

    return ToolMessage(
        content=message.to_openai().get("content") or "",
        name=message.name or call["name"],
        tool_call_id=call["id"],
        status="error" if message.fields.get("status") == "error" else "success",
        artifact=artifact,
    )


def openai_of(given: Message | Mapping[str, Any] | BaseMessage) -> Message:
    """What a user gives as a message. Raises UserError where it is none."""
    if isinstance(given, Message):
        return given
    try:
        return Message.from_openai(given) if isinstance(given, Mapping) else message_of(given)
    except (ValueError, AttributeError) as error:
        raise UserError(f"got {type(given).__name__} as a message: {error}", "a Message, a dict in OpenAI's form or an AIMessage") from None


def usage_of(found: BaseMessage) -> Usage:
    """What writing an assistant message took, as its `usage_metadata` says; zeros where it says nothing."""
    usage: Mapping[str, Any] = getattr(found, "usage_metadata", None) or {}
    read, written = usage.get("input_token_details") or {}, usage.get("output_token_details") or {}
    return Usage(
        int(usage.get("input_tokens") or 0),
        int(usage.get("output_tokens") or 0),
        int(read.get("cache_read") or 0),
        int(written.get("reasoning") or 0),
    )


def keys_of(messages: Iterable[Message]) -> Iterator[str]:
    """A key of every beginning of a list of messages, the empty one first, by what the messages say."""
    key = ""
    yield key
    for message in messages:
        part = message_key(message)
        key = chain_key(key, part) if part else key
        yield key


@lru_cache(maxsize=1 << 16)
def message_key(message: Message) -> str:
    """Equal for messages that say the same. Ids do not enter; instructions, which a graph adds to each request, say nothing here."""
    if message.role in _LEADING:
        return ""
    return canonical([message.role, message.content_text, [call.signature for call in message.tool_calls]])


def pending_calls(messages: Sequence[Message]) -> list[ToolCall]:
    """The calls of the last assistant message that nothing after it has answered."""
    last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "assistant"), None)
    if last is None:
        return []
    answered = {message.tool_call_id for message in messages[last + 1 :] if message.role == "tool"}
    return [call for call in messages[last].tool_calls if call.id not in answered]


def _kind(found: BaseMessage) -> str:
    return found.type.removesuffix("MessageChunk").lower()


def _calls(found: BaseMessage) -> list[dict[str, Any]]:
    """In the provider's own text where LangChain kept it, for it is what was sent."""
    parsed = [*(getattr(found, "tool_calls", None) or ()), *(getattr(found, "invalid_tool_calls", None) or ())]
    raw = found.additional_kwargs.get("tool_calls") or []
    if raw and (not parsed or {call["id"] for call in parsed} <= {call.get("id") for call in raw}):
        return [{key: value for key, value in call.items() if key != "index"} for call in raw]
    return [_call(call) for call in parsed]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    args = call["args"]
    text = "" if args is None else args if isinstance(args, str) else dumps(args)
    return {"id": call.get("id") or "", "type": "function", "function": {"name": call["name"] or "", "arguments": text}}


def _content(content: Any) -> tuple[Any, str]:
    """Content in OpenAI's form and the reasoning text in it. Blocks that repeat tool calls are left out."""
    if not isinstance(content, list):
        return content, ""
    kept, reasoning = [], []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in _THINKING:
            reasoning.append(str(block.get("thinking") or block.get("reasoning") or block.get("text") or ""))
        elif kind not in _CALL_BLOCKS:
            kept.append({"type": "text", "text": block} if isinstance(block, str) else block)
    if len(kept) == 1 and kept[0].get("type") == "text" and kept[0].keys() <= {"type", "text", "index", "annotations", "id", "extras"}:
        return kept[0].get("text", ""), "\n".join(filter(None, reasoning))
    return kept or "", "\n".join(filter(None, reasoning))
