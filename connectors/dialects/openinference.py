"""OpenInference (Arize Phoenix): `llm.input_messages.N.message.*`, one attribute a field, and `openinference.span.kind`.

Spans that counterplay exported say more under `counterplay.`: exact messages, the trajectory of a call, and how that ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterplay.connectors.dialects.indexed import answers, fill, indexed, nested
from counterplay.connectors.dialects.payloads import fields_of, take_answer, take_request
from counterplay.connectors.facts import number, parsed_or, word
from counterplay.connectors.messages.openai import REDACTED, known_text, openai_message, tool_call, tool_spec, usage_of
from counterplay.connectors.spans.readings import Kind, Reading, Slot, ToolRun, finish_reason
from counterplay.connectors.spans.span import Loss, Span
from counterplay.core.nouns import Message

_KINDS: Mapping[str, Kind] = {"LLM": "llm", "TOOL": "tool", "AGENT": "agent", "EVALUATOR": "judge", "GUARDRAIL": "judge"}
_LLM_PREFIXES = ("llm.input_messages.", "llm.output_messages.", "llm.tools.", "llm.token_count.")
_OWN = ("openinference.span.kind", "llm.invocation_parameters", "llm.model_name")
_MOST = 1 << 31
_STREAM_BEGAN = "First Token Stream Event"
_USAGE = {
    "input_tokens": "llm.token_count.prompt",
    "output_tokens": "llm.token_count.completion",
    "cached_tokens": "llm.token_count.prompt_details.cache_read",
    "reasoning_tokens": "llm.token_count.completion_details.reasoning",
    "written_tokens": "llm.token_count.prompt_details.cache_write",
}


def claims(attributes: Mapping[str, Any]) -> bool:
    return any(key in attributes for key in _OWN) or any(key.startswith(_LLM_PREFIXES) for key in attributes)


def read(span: Span) -> Reading:
    """One OpenInference span. Messages that were hidden as attributes are taken from the SDK's own request where that is there."""
    attributes = span.attributes
    declared = attributes.get("openinference.span.kind")
    kind: Kind = "llm" if declared is None else _KINDS.get(str(declared).upper(), "other")
    reading = Reading(kind, "openinference", str(attributes.get("tool.name") or attributes.get("agent.name") or span.name))
    reading.redacted = REDACTED in (attributes.get("input.value"), attributes.get("output.value"))
    if kind == "tool":
        reading.tool = _tool_run(reading.name, attributes)
    elif kind == "llm":
        _facts(attributes, reading, fields_of(attributes.get("output.value")))
        fill(reading, indexed(attributes, "llm.input_messages", loss=span.loss), message_of_fields)
        answers(reading, indexed(attributes, "llm.output_messages", loss=span.loss), message_of_fields)
        _read_tools(attributes, reading, span.loss)
        _stream(span, reading)
        _from_sdk(reading, attributes)
        _own(reading, attributes)
    return reading


def _facts(attributes: Mapping[str, Any], reading: Reading, response: Mapping[str, Any]) -> None:
    params = parsed_or(attributes.get("llm.invocation_parameters"))
    asked = attributes.get("llm.model_name")
    reading.params = params if isinstance(params, dict) else {}
    answered = response.get("model") or asked or reading.params.get("model")
    reading.model = str(answered) if answered else None
    if asked:
        reading.params = {"model": asked, **reading.params}
    cost = number(attributes.get("llm.cost.total"))
    if cost is None:
        parts = [found for key in ("llm.cost.prompt", "llm.cost.completion") if (found := number(attributes.get(key))) is not None]
        cost = sum(parts) if parts else None
    reading.usage = usage_of({name: attributes.get(key) for name, key in _USAGE.items()}, cost)
    reading.provider = word(attributes.get("llm.provider")) or word(attributes.get("llm.system"))
    reading.finish_reason = finish_reason(attributes.get("llm.finish_reason"))
    reading.response_id = response["id"] if isinstance(response.get("id"), str) else None
    stream = reading.params.get("stream")
    reading.streamed = stream if isinstance(stream, bool) else None


def _stream(span: Span, reading: Reading) -> None:
    """The event is written for streamed answers only."""
    if any(event.name == _STREAM_BEGAN for event in span.events):
        reading.streamed, reading.first_token_ns = True, span.first_event_ns(_STREAM_BEGAN)


def message_of_fields(fields: Mapping[str, Any]) -> Message | None:
    """A message from its attributes, exactly where they hold its JSON; None where the role or the name of a call is lost."""
    fields = {key.removeprefix("message."): value for key, value in fields.items()}
    exact = fields.get("counterplay.wire")
    if isinstance(exact, str) and isinstance(parsed_or(exact), dict) and parsed_or(exact).get("role") == fields.get("role"):
        return Message(exact)
    if not isinstance(fields.get("role"), str):
        return None
    found: dict[str, Any] = {"role": fields["role"], "content": fields.get("content")}
    parts = nested(fields, "contents")
    if parts:
        found["content"] = [_part(part) for part in parts]
    calls = nested(fields, "tool_calls")
    if found["content"] is None and fields["role"] == "tool":
        found["content"] = ""  # empty texts are not exported
    if found["content"] is None and not calls:
        return None
    found.update({key: fields[key] for key in ("name", "tool_call_id") if isinstance(fields.get(key), str)})
    names = [call.get("tool_call.function.name") for call in calls]
    if not all(isinstance(name, str) for name in names):
        return None
    if calls:
        found["tool_calls"] = [
            tool_call(call.get("tool_call.id"), name, call.get("tool_call.function.arguments"))
            for call, name in zip(calls, names, strict=True)
        ]
    return openai_message(found)


def _part(fields: Mapping[str, Any]) -> dict[str, Any]:
    fields = {key.removeprefix("message_content."): value for key, value in fields.items()}
    url = fields.get("image.image.url")
    if isinstance(url, str):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "text", **fields}


def _read_tools(attributes: Mapping[str, Any], reading: Reading, loss: Loss) -> None:
    found = indexed(attributes, "llm.tools", loss=loss)
    if not found.items:
        return
    raw = [found.items[index].get("tool.json_schema") for index in sorted(found.items)]
    reading.redacted |= REDACTED in raw
    tools = [tool_spec(item) for item in raw]
    reading.tools = tuple(tool for tool in tools if tool is not None)
    reading.tools_whole = found.whole and None not in tools
    reading.truncated |= any(isinstance(item, str) and item != REDACTED and parsed_or(item) is None for item in raw)


def _from_sdk(reading: Reading, attributes: Mapping[str, Any]) -> None:
    """Fall back on the request and the answer that the client library was given and gave, whichever it is."""
    found = Reading()
    if (not reading.slots or reading.tools is None) and _is_json(attributes.get("input.value")):
        take_request(found, attributes["input.value"])
    if not reading.slots and found.slots:
        reading.slots, reading.count, reading.proven = found.slots, found.count, found.proven
        reading.redacted |= found.redacted
    if reading.tools is None and found.tools is not None:
        reading.tools, reading.tools_whole = found.tools, found.tools_whole
    if not reading.outputs and _is_json(attributes.get("output.value")):
        take_answer(reading, attributes["output.value"])


def _own(reading: Reading, attributes: Mapping[str, Any]) -> None:
    """What an export of counterplay says beside the convention. A call that was not known whole is not so by having been exported."""
    context = parsed_or(attributes.get("counterplay.context"))
    if not isinstance(context, dict) or not _is_context(context):
        return
    reading.context = context
    reading.truncated |= bool(context.get("truncated"))
    reading.redacted |= bool(context.get("redacted"))
    after = indexed(attributes, "counterplay.after")
    made = (message_of_fields(after.items[index]) for index in sorted(after.items))
    reading.after = [Slot(message) for message in made if message is not None]


def _is_context(context: Mapping[str, Any]) -> bool:
    """Whether what a span says of its trajectory has the types that counterplay writes: it may be anybody's."""
    places = [context.get("trajectory"), *(context[name] for name in ("step", "prompt") if name in context)]
    places += [context[name] for name in ("parent_step", "continues") if context.get(name) is not None]
    end = context.get("end", {})
    said = isinstance(end, dict) and isinstance(end.get("error"), str | None)
    said = said and all(context.get(name, "full") in ("full", "stitched", "partial", "none") for name in ("inputs", "outputs"))
    return said and all(type(place) is int and 0 <= place < _MOST for place in places)


def _is_json(raw: Any) -> bool:
    return isinstance(raw, str) and raw.lstrip()[:1] in ("{", "[")


def _tool_run(name: str, attributes: Mapping[str, Any]) -> ToolRun:
    call_id = attributes.get("tool_call.id") or attributes.get("tool.id")
    arguments = known_text(attributes.get("tool.parameters")) or known_text(attributes.get("input.value"))
    return ToolRun(name, call_id if isinstance(call_id, str) else None, arguments, known_text(attributes.get("output.value")))
