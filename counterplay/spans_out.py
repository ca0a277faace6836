"""Traces as OpenTelemetry spans with OpenInference's attributes, in OTLP/JSON: Phoenix and others open them, `ingest` reads them again.

Every model call carries its whole prompt, as tracing has it. What OpenInference has no words for is beside it under `counterplay.`:
the exact JSON of messages that its fields do not give back, which trajectory a call belongs to, and how that ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterplay.connectors.dialects.openinference import message_of_fields
from counterplay.core.canonical import dumps
from counterplay.core.nouns import Call, LoggedScore, Message, Outcome, Trace, Trajectory
from counterplay.core.tool_errors import is_error
from counterplay.span_plan import Planned, planned, trace_id
from counterplay.version import __version__

Attributes = dict[str, Any]
_ANNOTATORS = {"human": "HUMAN", "judge": "LLM", "harness": "CODE", "environment": "ENVIRONMENT", "feedback": "FEEDBACK"}
_KINDS = {"agent": "AGENT", "llm": "LLM", "tool": "TOOL"}
_OK, _ERROR = 1, 2


def otlp_document(trace: Trace, *, links: Sequence[Mapping[str, Any]] = (), first: int = 0) -> dict[str, Any]:
    """One trace as an OTLP/JSON export. `links` go on its root; steps before `first` are only in the prompts of those after it."""
    own = trace_id(trace)
    spans = planned(trace, first=first)
    written = [_span(trace, span, own, last=_last(spans, span)) for span in spans]
    written[0] |= {"links": list(links)} if links else {}
    resource = {"attributes": _encoded({"service.name": trace.agent or "counterplay", "openinference.project.name": "counterplay"})}
    scope = {"name": "counterplay", "version": __version__}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": written}]}]}


def _last(spans: Sequence[Planned], span: Planned) -> bool:
    return span is next((each for each in reversed(spans) if each.kind == "llm" and each.context == span.context), None)


def _span(trace: Trace, span: Planned, own: str, *, last: bool) -> dict[str, Any]:
    kind = "CHAIN" if span.kind == "agent" and trace.agent is None else _KINDS[span.kind]  # a reader would take its name for the agent's
    attributes: Attributes = {"openinference.span.kind": kind}
    if not span.timed:
        attributes["counterplay.times"] = "made"
    if span.kind == "llm":
        attributes |= _call(trace, span, last=last)
    elif span.kind == "tool":
        attributes |= _tool(span)
    else:
        attributes |= _root(trace) if span.context == 0 else {}
    trajectory = _trajectory(trace, span.context)
    failed = trajectory.steps[span.step].error if span.kind == "llm" and span.step is not None else None
    wrong = failed is not None or (span.result is not None and is_error(span.result))
    events = _first_token(span)
    return {
        "traceId": own,
        "spanId": span.id,
        **({} if span.parent is None else {"parentSpanId": span.parent}),
        "name": span.name or span.kind,
        "kind": 1,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _encoded(attributes),
        **({"events": events} if events else {}),
        "status": {"code": _ERROR, "message": failed or "tool error"} if wrong and span.kind == "tool" else {"code": _OK},
    }


def _root(trace: Trace) -> Attributes:
    known = {**trace.metadata, **({} if trace.task is None else {"task_id": trace.task})}
    asked = next((message for message in trace.trajectory.prompt if message.role == "user"), None)
    steps = trace.trajectory.steps
    told: Attributes = {
        "session.id": trace.session,
        "agent.name": trace.agent,
        "user.id": trace.metadata.get("user_id"),
        "metadata": dumps(known) if known else None,
        "tag.tags": list(trace.tags) or None,
        "input.value": asked.content_text if asked else None,
        "output.value": steps[-1].action.content_text if steps else None,
    }
    whole = [score for score in trace.scores if score.step is None]
    outcome = _outcome(trace.outcome)
    if outcome is not None and not any(_same(outcome, score) for score in whole):
        whole = [outcome, *whole]
    return {**{name: value for name, value in told.items() if value is not None}, **_annotations(whole)}


def _outcome(outcome: Outcome) -> LoggedScore | None:
    """The outcome as a score that is read as one again; None where nothing is known."""
    if outcome.reward is None and outcome.success is None:
        return None
    label = {True: "success", False: "failed", None: ""}[outcome.success]
    comment = str(outcome.details.get("explanation") or "")
    return LoggedScore("reward", outcome.reward if outcome.reward is not None else label, None, outcome.source, comment=comment)


def _same(outcome: LoggedScore, score: LoggedScore) -> bool:
    return (score.name, score.value, score.source) == (outcome.name, outcome.value, outcome.source)


def _annotations(scores: Sequence[LoggedScore]) -> Attributes:
    found: Attributes = {}
    for number, score in enumerate(score for score in scores if score.value is not None):
        place = f"annotations.{number}.annotation."
        found[place + "name"] = score.name
        found[place + ("label" if isinstance(score.value, str) else "score")] = score.value
        found[place + "scaled"] = "unknown" if score.scaled is None else score.scaled
        if score.comment:
            found[place + "explanation"] = score.comment
        if score.source in _ANNOTATORS:
            found[place + "annotator_kind"] = _ANNOTATORS[score.source]
    return found


def _call(trace: Trace, span: Planned, *, last: bool) -> Attributes:
    trajectory, number = _trajectory(trace, span.context), span.step or 0
    step = trajectory.steps[number]
    found: Attributes = {}
    for place, message in enumerate(span.inputs):
        found |= _message(f"llm.input_messages.{place}.message.", message)
    found |= _message("llm.output_messages.0.message.", step.action)
    for place, tool in enumerate(trajectory.tools):
        found[f"llm.tools.{place}.tool.json_schema"] = tool.wire
    for place, message in enumerate(span.after):
        found |= _message(f"counterplay.after.{place}.message.", message)
    found["counterplay.context"] = dumps(_context(trace, span, trajectory, last=last))
    found["input.value"] = span.inputs[-1].content_text if span.inputs else ""
    found |= _about(span.call) if span.call is not None else {}
    mine = [score for score in trace.scores if score.trajectory == span.context and score.step == number]
    return {**found, **_annotations(mine)}


def _context(trace: Trace, span: Planned, trajectory: Trajectory, *, last: bool) -> dict[str, Any]:
    """What is known of the trajectory that a call belongs to, and, at its last call, how it ended."""
    told: dict[str, Any] = {"trajectory": span.context, "step": span.step, "prompt": len(trajectory.prompt)}
    if not trajectory.steps[span.step or 0].sampled:
        told["sampled"] = False
    if span.context:
        sub = trace.sub_trajectories[span.context - 1]
        told |= {"agent": sub.agent, "parent_step": sub.parent_step, "continues": sub.continues}
    known = span.call.completeness if span.call is not None else trace.completeness
    told |= {"inputs": known.inputs, "outputs": known.outputs, "truncated": known.truncated, "redacted": known.redacted}
    if last and trajectory.steps:
        end = trajectory.steps[-1]
        told["end"] = {"terminated": end.terminated, "truncated": end.truncated, "error": end.error}
    return told


def _about(call: Call) -> Attributes:
    usage, params = call.usage, dict(call.params)
    asked = params.get("model") or call.model
    found: Attributes = {
        "llm.model_name": asked,
        "llm.provider": call.provider,
        "llm.invocation_parameters": dumps(params) if params else None,
        "llm.finish_reason": call.finish_reason,
        "llm.token_count.prompt": usage.input_tokens or None,
        "llm.token_count.completion": usage.output_tokens or None,
        "llm.token_count.total": usage.tokens or None,
        "llm.token_count.prompt_details.cache_read": usage.cached_tokens or None,
        "llm.token_count.completion_details.reasoning": usage.reasoning_tokens or None,
        "llm.cost.total": usage.cost_usd,
    }
    answered = {"id": call.response_id, "model": call.model if call.model != asked else None}
    if any(answered.values()):
        found["output.value"] = dumps({name: value for name, value in answered.items() if value})
        found["output.mime_type"] = "application/json"
    return {name: value for name, value in found.items() if value is not None}


def _message(prefix: str, message: Message) -> Attributes:
    """The message field by field, and its exact JSON where these do not give it back."""
    fields: Attributes = {"role": message.role}
    content = message.content
    if isinstance(content, list):
        for place, part in enumerate(content):
            fields |= _part(f"contents.{place}.message_content.", part)
    elif content is not None:
        fields["content"] = content if isinstance(content, str) else dumps(content)
    fields |= {name: message.fields[name] for name in ("name", "tool_call_id") if isinstance(message.fields.get(name), str)}
    for place, call in enumerate(message.tool_calls):
        about = f"tool_calls.{place}.tool_call."
        fields |= {about + "id": call.id, about + "function.name": call.name, about + "function.arguments": call.arguments}
    again = message_of_fields({f"message.{name}": value for name, value in fields.items()})
    if again is None or again.wire != message.wire:
        fields["counterplay.wire"] = message.wire
    return {prefix + name: value for name, value in fields.items()}


def _part(prefix: str, part: Any) -> Attributes:
    if not isinstance(part, Mapping):
        return {prefix + "type": "text", prefix + "text": str(part)}
    image = part.get("image_url")
    if isinstance(image, Mapping) and isinstance(image.get("url"), str):
        return {prefix + "type": "image", prefix + "image.image.url": image["url"]}
    return {prefix + "type": str(part.get("type") or "text"), prefix + "text": str(part.get("text") or "")}


def _tool(span: Planned) -> Attributes:
    called, result = span.tool, span.result
    if called is None or result is None:
        return {}
    named = {"tool.name": called.name, "tool_call.id": called.id, "tool.parameters": called.arguments, "input.value": called.arguments}
    return {**named, "output.value": result.content_text}


def _first_token(span: Planned) -> list[dict[str, Any]]:
    first = span.call.first_token_s if span.call is not None else None
    if first is None:
        return []
    return [{"name": "First Token Stream Event", "timeUnixNano": str(span.start_ns + round(first * 1e9)), "attributes": []}]


def _trajectory(trace: Trace, context: int) -> Trajectory:
    return trace.sub_trajectories[context - 1].trajectory if context else trace.trajectory


def _encoded(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int() if -(2**63) <= value < 2**63:
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list() | tuple():
            return {"arrayValue": {"values": [_value(item) for item in value]}}
        case _:
            return {"stringValue": value if isinstance(value, str) else str(value)}
