"""What was asked and what was answered, whichever of three APIs it was: Chat Completions, Responses or Anthropic Messages.

Request and answer are told apart each for itself by what is in them, for proxies log the one in the caller's form and the other
in their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from counterplay.connectors import facts
from counterplay.connectors.chat.streams import unwrapped
from counterplay.connectors.messages import anthropic, responses
from counterplay.connectors.normalise import KnownMessages, KnownPrompt, messages_of, output_of, tools_of
from counterplay.connectors.spans.readings import finish_reason
from counterplay.core.nouns import Message, ToolSpec, Usage

Api: TypeAlias = Literal["chat", "anthropic", "responses"]

REDACTED = "redacted-by-litellm"
SHORTENED = "litellm_truncated"
_BLOCKS = {"tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use", "image", "document"}
_UNFINISHED = ("queued", "in_progress", "cancelled", "failed")


@dataclass(slots=True)
class Prompt:
    """What was asked. `messages` go behind the `instructions` and behind what the server kept of call `previous` or `conversation`.

    Those of a row read by its news are `known`, and not in `messages`.

    `whole` is False where the server put in something that the log does not hold: a stored prompt, an item by its id.
    """

    api: Api
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    instructions: tuple[Message, ...] = ()
    previous: str | None = None
    conversation: str | None = None
    whole: bool = True
    known: KnownPrompt | None = None


@dataclass(slots=True)
class Answer:
    """What was answered: one output a choice, none where the call failed (`error` says why) or no answer is logged.

    `whole` is False where a stream broke off. `streamed` is None where nothing says.
    """

    outputs: tuple[Message, ...] = ()
    finish_reasons: tuple[str | None, ...] = ()
    error: str = ""
    whole: bool = True
    streamed: bool | None = None
    provider: str | None = None
    usage: Usage | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def prompt_of(request: Mapping[str, Any], answer: Answer) -> Prompt:
    """Raises ValueError where the messages or the tools can't be read."""
    api = api_of(request)
    if api == "responses":
        return _responses_prompt(request, answer)
    if api == "anthropic":
        return Prompt(api, anthropic.messages_of(request.get("system"), request.get("messages")), anthropic.tools_of(request.get("tools")))
    tools = tools_of(request.get("tools") or [*_list(request.get("functions"))])
    messages = request.get("messages")
    if isinstance(messages, KnownMessages):
        return Prompt(api, (), tools, known=messages.prompt)
    return Prompt(api, messages_of(messages), tools)


def api_of(request: Mapping[str, Any]) -> Api:
    """By what only one API has: input items, a system prompt beside the messages, tools with an `input_schema`, typed blocks."""
    messages = request.get("messages")
    if isinstance(messages, KnownMessages):
        return "chat"
    if not isinstance(messages, list):
        return "responses"
    if "system" in request or "anthropic_version" in request:
        return "anthropic"
    if any("input_schema" in tool for tool in map(facts.record, _list(request.get("tools")))):
        return "anthropic"
    contents = (facts.record(message).get("content") for message in messages)
    blocks = (block for content in contents if isinstance(content, list) for block in content)
    return "anthropic" if any(map(is_block, blocks)) else "chat"


def is_block(value: Any) -> bool:
    """Whether a content part is one that only Anthropic Messages has."""
    kind = facts.record(value).get("type")
    return isinstance(kind, str) and kind in _BLOCKS


def answer_of(response: Any) -> Answer:
    """Raises ValueError where the answer is there and can't be read."""
    fields, streamed = unwrapped(response)
    came = True if streamed else None
    if fields.get("error"):
        error = facts.record(fields["error"])
        return Answer(error=str(error.get("message") or fields["error"])[:500], streamed=came, fields=fields)
    if isinstance(fields.get("choices"), list):
        return _completion(fields, came)
    if "stop_reason" in fields or (fields.get("type") == "message" and isinstance(fields.get("content"), list)):
        return _message(fields, came)
    if isinstance(fields.get("output"), list):
        return _response(fields, came)
    said = {"role": "assistant", "content": REDACTED} if fields.get("text") == REDACTED else fields
    outputs = (output_of(said),) if isinstance(said.get("role"), str) else ()
    return Answer(outputs, (None,) * len(outputs), streamed=came, fields=fields)


def is_response(response: Any) -> bool:
    """Whether an answer is one of the Responses API."""
    fields, _ = unwrapped(response)
    return fields.get("object") == "response" and isinstance(fields.get("output"), list)


def _completion(fields: Mapping[str, Any], came: bool | None) -> Answer:
    choices = [facts.record(choice) for choice in fields["choices"]]
    choices = [{"message": {"content": choice["text"]}, **choice} if isinstance(choice.get("text"), str) else choice for choice in choices]
    answered = [choice for choice in choices if choice.get("message") is not None]
    reasons = tuple(finish_reason(choice.get("finish_reason")) for choice in answered)
    usage = facts.record(fields.get("usage"))
    return Answer(
        tuple(output_of(choice["message"]) for choice in answered),
        reasons,
        whole=not came or all(reasons),
        streamed=came,
        provider=facts.word(fields.get("provider")),
        usage=facts.usage_of(usage, usage.get("cost")) if usage else None,
        fields=fields,
    )


def _message(fields: Mapping[str, Any], came: bool | None) -> Answer:
    reason = finish_reason(fields.get("stop_reason"))
    usage = anthropic.usage_of(fields["usage"]) if fields.get("usage") else None
    return Answer(
        (anthropic.answer_of(fields),), (reason,), whole=not came or reason is not None, streamed=came, usage=usage, fields=fields
    )


def _response(fields: Mapping[str, Any], came: bool | None) -> Answer:
    status = fields.get("status")
    if status in _UNFINISHED and not (came and fields["output"]):
        return Answer(error=f"the response is {status}", streamed=came, fields=fields)
    usage = facts.usage_of(fields["usage"]) if fields.get("usage") else None
    whole = status in (None, "completed", "incomplete") and not (came and status is None)
    reason = responses.finish_reason(fields)
    return Answer((responses.answer_of(fields["output"]),), (reason,), whole=whole, streamed=came, usage=usage, fields=fields)


def _responses_prompt(request: Mapping[str, Any], answer: Answer) -> Prompt:
    """Where the request names a stored prompt, the answer repeats the instructions and tools that were used."""
    echoed = answer.fields if answer.fields.get("object") == "response" else {}
    instructions = request.get("instructions")
    if instructions is None:
        instructions = echoed.get("instructions")
    tools = request["tools"] if request.get("tools") is not None else echoed.get("tools")
    conversation = request.get("conversation")
    return Prompt(
        "responses",
        responses.messages_of(None, request.get("input")),
        responses.tools_of(tools),
        responses.messages_of(instructions, None),
        facts.word(request.get("previous_response_id")),
        facts.word(facts.record(conversation).get("id") or conversation),
        whole=responses.is_whole(request, instructions),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
