"""The OpenTelemetry GenAI semantic conventions, from log events (1.28) to `gen_ai.input.messages` (1.37 and later).

Messages made of parts become OpenAI chat messages here, for every dialect. Content may be absent (it is off by default), in the
log signal in place of the span, or cut in mid-JSON by a length limit; then what is whole before the cut is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from counterplay.connectors.dialects.payloads import is_cut, put, take_answer
from counterplay.connectors.facts import number, parse, parsed_or, seconds
from counterplay.connectors.lines import MAX_PARTS
from counterplay.connectors.messages.listed import Known, Lists
from counterplay.connectors.messages.openai import REDACTED, is_redacted, known_text, openai_message, tool_spec, usage_of
from counterplay.connectors.messages.parts import messages_of, text_of
from counterplay.connectors.messages.sniff import prompt_of
from counterplay.connectors.spans.readings import Kind, Reading, Slot, ToolRun, finish_reason
from counterplay.connectors.spans.span import Event, Span
from counterplay.core.nouns import ToolSpec

_KINDS: Mapping[str, Kind] = {
    "chat": "llm",
    "generate_content": "llm",
    "text_completion": "llm",
    "completion": "llm",
    "responses": "llm",
    "execute_tool": "tool",
    "invoke_agent": "agent",
    "create_agent": "other",
    "invoke_workflow": "agent",
    "embeddings": "other",
    "retrieval": "other",
}
_PARAMS = {
    "gen_ai.request.model": "model",
    "gen_ai.request.temperature": "temperature",
    "gen_ai.request.top_p": "top_p",
    "gen_ai.request.top_k": "top_k",
    "gen_ai.request.max_tokens": "max_tokens",
    "gen_ai.request.seed": "seed",
    "gen_ai.request.stop_sequences": "stop",
    "gen_ai.request.frequency_penalty": "frequency_penalty",
    "gen_ai.request.presence_penalty": "presence_penalty",
    "gen_ai.request.choice.count": "n",
    "gen_ai.request.stream": "stream",
    "gen_ai.is_streaming": "stream",
    "llm.is_streaming": "stream",
    "gen_ai.output.type": "response_format",
}
_USAGE = {
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens"),
    "cached_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.cached_tokens",
        "gen_ai.usage.details.cache_read_tokens",
        "gen_ai.usage.details.cached_tokens",
    ),
    "reasoning_tokens": (
        "gen_ai.usage.reasoning.output_tokens",
        "gen_ai.usage.reasoning_tokens",
        "gen_ai.usage.details.reasoning_tokens",
        "llm.usage.reasoning_tokens",
    ),
    "written_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "gen_ai.usage.details.cache_creation_input_tokens",
    ),
}
_COSTS = ("gen_ai.usage.cost", "gen_ai.usage.total_cost", "operation.cost", "llm.usage.total_cost")
_CHUNKS = ("llm.content.completion.chunk", "gen_ai.content.completion.chunk")
_FIRST_CHUNK_S = ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token")
_ROLES = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
_DETAILS = "gen_ai.client.inference.operation.details"
_PROMPTS, _TOOLSETS = Lists(), Lists()
_PROMPT, _COMPLETION = "gen_ai.content.prompt", "gen_ai.content.completion"


def claims(attributes: Mapping[str, Any]) -> bool:
    return any(key.startswith("gen_ai.") for key in attributes)


def kind_of(attributes: Mapping[str, Any]) -> Kind:
    """The operation's kind; without an operation, a model call where a model is named."""
    operation = attributes.get("gen_ai.operation.name")
    if isinstance(operation, str):
        return _KINDS.get(operation, "other")
    if "gen_ai.tool.name" in attributes:
        return "tool"
    named = ("gen_ai.request.model", "gen_ai.response.model", "gen_ai.input.messages", "gen_ai.output.messages")
    return "llm" if any(key in attributes for key in named) else "other"


def read(span: Span) -> Reading:
    """One span of this convention. Content in events of the span is taken from there."""
    attributes = span.attributes
    reading = Reading(kind_of(attributes), "gen_ai")
    reading.name = str(attributes.get("gen_ai.agent.name") or attributes.get("gen_ai.tool.name") or span.name)
    if reading.kind == "tool":
        reading.tool = _tool_run(span)
    elif reading.kind == "llm":
        facts(attributes, reading)
        details = next((event.attributes for event in span.events if event.name == _DETAILS), {})
        read_messages({**details, **attributes}, reading, dropped=span.dropped)
        if reading.count is None and not reading.outputs:
            read_events(span.events, reading, dropped=span.dropped_events)
        if not reading.slots and not reading.outputs:
            _read_content([attributes.get("gen_ai.prompt")], [attributes.get("gen_ai.completion")], reading)
        stream(span, reading)
    return reading


def stream(span: Span, reading: Reading) -> None:
    """Whether the answer came in pieces, which are events of the span, and when the first of them came."""
    wait_s = next((found for key in _FIRST_CHUNK_S if (found := seconds(span.attributes.get(key))) is not None), None)
    if wait_s is not None and span.start_ns is not None:
        reading.streamed, reading.first_token_ns = True, span.start_ns + int(wait_s * 1e9)
    elif any(event.name in _CHUNKS for event in span.events):
        reading.streamed, reading.first_token_ns = True, span.first_event_ns(*_CHUNKS)


def facts(attributes: Mapping[str, Any], reading: Reading) -> None:
    """Model, parameters, usage and ids of a call, under the names of all versions."""
    params = {name: attributes[key] for key, name in _PARAMS.items() if attributes.get(key) not in (None, [])}
    reading.params = params
    asked, answered = params.get("model"), attributes.get("gen_ai.response.model")
    reading.model = str(answered or asked) if answered or asked else None
    counts = {name: _first(attributes, keys) for name, keys in _USAGE.items()}
    cost = next((found for key in _COSTS if (found := number(attributes.get(key))) is not None), None)
    reading.usage = usage_of(counts, cost)
    reading.provider = _text(attributes.get("gen_ai.provider.name")) or _text(attributes.get("gen_ai.system"))
    reading.streamed = params["stream"] if isinstance(params.get("stream"), bool) else None
    reading.response_id = _text(attributes.get("gen_ai.response.id"))
    reasons = parsed_or(attributes.get("gen_ai.response.finish_reasons"), attributes.get("gen_ai.response.finish_reasons"))
    reading.finish_reason = finish_reason(reasons[0] if isinstance(reasons, list) and reasons else reasons)


def _first(attributes: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        if key in attributes:
            return attributes[key]
    return None


def read_messages(attributes: Mapping[str, Any], reading: Reading, *, dropped: int = 0) -> None:
    """`gen_ai.input.messages` and its kin, as JSON text or structured."""
    raw_inputs, whole = _items(attributes.get("gen_ai.input.messages"), reading, _PROMPTS)
    system = _system(attributes.get("gen_ai.system_instructions"), reading, raw_inputs or ())
    if raw_inputs is not None:
        # Without its instructions the whole prompt may be shifted, if an attribute limit took something.
        proven = not dropped or system is not None or (bool(raw_inputs) and _role(raw_inputs[0]) == "system")
        _fill(reading, [*([system] if system else []), *raw_inputs], whole=whole, proven=proven)
    elif system is not None:
        _fill(reading, [system], whole=False)
    raw_outputs, _ = _items(attributes.get("gen_ai.output.messages"), reading)
    for raw in raw_outputs or ():
        reading.outputs.extend(slot for slot in _slots(raw)[0] if slot is not None and not is_redacted(slot.message))
        reason = finish_reason(raw.get("finish_reason")) if isinstance(raw, dict) else None
        reading.finish_reason = reading.finish_reason or reason
    raw_tools, tools_whole = _items(attributes.get("gen_ai.tool.definitions"), reading, _TOOLSETS)
    if raw_tools is not None:
        tools = list(map(_tool, raw_tools))
        reading.tools = tuple(tool for tool in tools if tool is not None)
        reading.tools_whole = tools_whole and None not in tools


def read_events(events: Sequence[Event], reading: Reading, *, dropped: int = 0) -> None:
    """Messages given one by one as events, in their order. The first answer ends the prompt: what follows was sent twice.

    Where a limit on their number `dropped` some, what is left is not known to be the prompt, nor to stand at its place.
    """
    slots: list[Slot | None] = []
    answers: dict[str, Slot | None] = {}
    for event in events:
        told = parsed_or(event.attributes.get("gen_ai.event.content"))
        body = event.body if isinstance(event.body, dict) else told if isinstance(told, dict) else {**event.attributes}
        if event.name == _DETAILS:
            read_messages({**event.attributes, **body}, reading)
        elif event.name == "gen_ai.choice":
            answer = parsed_or(body.get("message"))
            reading.finish_reason = reading.finish_reason or finish_reason(body.get("finish_reason"))
            answers.setdefault(str(body.get("index")), _event_slot({"role": "assistant", **(answer if isinstance(answer, dict) else {})}))
        elif event.name in _ROLES and not answers:
            slots.append(_event_slot({"role": _ROLES[event.name], **body}))
    if slots or answers:
        reading.outputs.extend(slot for slot in answers.values() if slot is not None)
        if slots:
            reading.count = len(slots)
            reading.slots = {i: slot for i, slot in enumerate(slots) if slot is not None}
            _unprove(reading, dropped)
    elif not reading.slots and not reading.outputs:
        prompts = [event.attributes.get("gen_ai.prompt") for event in events if event.name == _PROMPT]
        _read_content(prompts, [event.attributes.get("gen_ai.completion") for event in events if event.name == _COMPLETION], reading)
        _unprove(reading, dropped)


def _unprove(reading: Reading, dropped: int) -> None:
    if dropped and reading.slots:
        reading.count, reading.proven = None, False
        reading.slots = {i: replace(slot, whole=False) for i, slot in reading.slots.items()}


def _read_content(prompts: Sequence[Any], completions: Sequence[Any], reading: Reading) -> None:
    """What 1.26 and 1.27 call prompt and completion: the messages, or plain text, in one event for all or one for each."""
    for raw in completions:
        answer = Reading()
        take_answer(answer, raw)
        reading.outputs += answer.outputs
        reading.truncated |= answer.truncated
        reading.redacted |= answer.redacted
    asked = [raw for raw in prompts if raw is not None]
    found = [prompt_of(raw) for raw in asked if raw != REDACTED and not is_cut(raw)]
    reading.truncated |= any(map(is_cut, asked))
    reading.redacted |= REDACTED in asked
    if found and len(found) == len(asked) and None not in found:
        messages = [message for prompt in found if prompt is not None for message in prompt.messages]
        put(reading, messages, proven=all(prompt is not None and prompt.proven for prompt in found))


def _event_slot(fields: dict[str, Any]) -> Slot | None:
    """None for a message whose content was not logged."""
    if fields["role"] == "tool" and "id" in fields:
        fields = {**fields, "tool_call_id": fields["id"]}
        del fields["id"]
    calls = parsed_or(fields.get("tool_calls"))
    if fields.get("content") is None and (fields["role"] != "assistant" or not calls):
        return None
    if any("arguments" not in _function(call) for call in (calls if isinstance(calls, list) else ())):
        return None
    message = openai_message(fields)
    return None if message is None else Slot(message)


def _fill(reading: Reading, raw: Sequence[Any], *, whole: bool, proven: bool = True) -> None:
    slots: list[Slot | None] = []
    redacted = False
    for item in raw:
        found, hidden = item.made or _slots(item) if type(item) is Known else _slots(item)
        slots += found
        redacted |= hidden
    if not proven:
        slots = [None if slot is None else Slot(slot.message, whole=False) for slot in slots]
    reading.redacted |= redacted
    reading.slots = {i: slot for i, slot in enumerate(slots) if slot is not None and not (redacted and is_redacted(slot.message))}
    reading.count = len(slots) if whole and proven and slots else None


def _slots(raw: Any) -> tuple[tuple[Slot | None, ...], bool]:
    """The messages in a message of parts, and whether one of them is redacted. Those of a known one are the same objects each time."""
    if isinstance(raw, Known) and raw.made is not None:
        return raw.made  # type: ignore[no-any-return]  # of this very function
    messages = messages_of(raw)
    slots = (None,) if messages is None else tuple(map(Slot, messages))
    found = (slots, any(map(is_redacted, messages or ())))
    if isinstance(raw, Known):
        raw.made = found
    return found


def _tool(raw: Any) -> ToolSpec | None:
    if not isinstance(raw, Known):
        return tool_spec(raw)
    if raw.made is None:
        raw.made = (tool_spec(raw),)
    return cast("ToolSpec | None", raw.made[0])


def _system(raw: Any, reading: Reading, inputs: Sequence[Any]) -> dict[str, Any] | None:
    """The instructions as a message, without those that stand among the inputs too (Pydantic AI repeats them)."""
    if raw is None:
        return None
    parts, whole = _items(raw, reading)
    if isinstance(raw, str) and parts is None and not raw.lstrip().startswith("["):
        parts, whole = [{"type": "text", "content": raw}], True
    repeated = [text_of(part) for message in inputs if _role(message) == "system" for part in _listed(message.get("parts"))]
    parts = [part for part in parts or () if text_of(part) not in repeated]
    return {"role": "system", "parts": parts} if parts and whole else None


def _listed(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _items(raw: Any, reading: Reading, lists: Lists | None = None) -> tuple[list[Any] | None, bool]:
    """The elements of a JSON array that may be cut, and whether it is whole. None where there is no array. `lists` knows its like."""
    if raw == REDACTED:
        reading.redacted = True
        return None, False
    if isinstance(raw, str):
        try:
            raw = parse(raw) if lists is None else lists.parse(raw)
        except ValueError:
            if not raw.lstrip().startswith("["):
                return None, False
            reading.truncated = True
            return _whole_elements(raw), False
        raw = parsed_or(raw)  # encoded twice by some exporters
    if isinstance(raw, dict):
        raw = raw.get("messages", [raw])
    return (raw, True) if isinstance(raw, list) else (None, False)


def _whole_elements(text: str) -> list[Any]:
    """What stands complete at the beginning of a JSON array that was cut."""
    decoder = json.JSONDecoder(parse_constant=str)
    found: list[Any] = []
    if len(text) > MAX_PARTS:
        return found
    position = text.index("[") + 1
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return found
        found.append(value)


def _tool_run(span: Span) -> ToolRun:
    attributes = span.attributes
    name = str(attributes.get("gen_ai.tool.name") or span.name.removeprefix("execute_tool "))
    return ToolRun(
        name,
        _text(attributes.get("gen_ai.tool.call.id")),
        known_text(attributes.get("gen_ai.tool.call.arguments")),
        known_text(attributes.get("gen_ai.tool.call.result")),
    )


def _role(raw: Any) -> str:
    return str(raw.get("role")) if isinstance(raw, dict) else ""


def _function(call: Any) -> Mapping[str, Any]:
    if not isinstance(call, dict):
        return {}
    function = call.get("function")
    return function if isinstance(function, dict) else call


def _text(raw: Any) -> str | None:
    return raw if isinstance(raw, str) and raw else None
