"""Traces as LangSmith keeps them: one run a line, the root first, then its feedback. `ingest` reads them like LangSmith's own exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Call, LoggedScore, Trace, Trajectory
from counterplay.span_plan import Planned, planned

Row = dict[str, Any]
_KINDS = {"agent": "chain", "llm": "llm", "tool": "tool"}
_SOURCES = {"human": "app", "judge": "model"}


def langsmith_rows(trace: Trace, *, first: int = 0, about: Mapping[str, Any] | None = None) -> Iterator[Row]:
    """The runs of a trace, each behind its parent, then what was said of them. `about` goes into the root's metadata."""
    spans = planned(trace, first=first)
    orders: dict[str | None, str] = {None: ""}
    for span in spans:
        above = orders[span.parent]
        orders[span.id] = f"{above}.{_segment(span)}" if above else _segment(span)
        yield _run(trace, span, orders[span.id], spans[0].id, about or {})
    places = {(span.context, span.step): span for span in spans if span.kind == "llm"}
    outcome = trace.outcome
    if outcome.reward is not None or outcome.success is not None:
        label = {True: "success", False: "failed", None: None}[outcome.success]
        source = "app" if outcome.source == "human" else "api"
        yield _feedback(spans[0], spans[0], LoggedScore("reward", outcome.reward, None, "harness"), source, label)
    for score in trace.scores:
        span = places.get((score.trajectory, score.step)) or spans[0]
        yield _feedback(span, spans[0], score, _SOURCES.get(score.source, "api"), score.value if isinstance(score.value, str) else None)


def _run(trace: Trace, span: Planned, order: str, root: str, about: Mapping[str, Any]) -> Row:
    row: Row = {
        "id": _uuid(span.id),
        "trace_id": _uuid(root),
        "parent_run_id": None if span.parent is None else _uuid(span.parent),
        "dotted_order": order,
        "name": span.name or span.kind,
        "run_type": _KINDS[span.kind],
        "start_time": _time(span.start_ns),
        "end_time": _time(span.end_ns),
        "error": None,
        "session_name": "counterplay",
        "tags": list(trace.tags) if span.parent is None else [],
    }
    trajectory = trace.sub_trajectories[span.context - 1].trajectory if span.context else trace.trajectory
    if span.kind == "llm":
        return {**row, **_call(span, trajectory)}
    if span.kind == "tool" and span.tool is not None and span.result is not None:
        named = {"metadata": {"tool_call_id": span.tool.id}}
        return {**row, "inputs": {"input": span.tool.arguments}, "outputs": {"output": span.result.content_text}, "extra": named}
    asked = [message.to_openai() for message in trajectory.prompt]
    said = trajectory.steps[-1].action.to_openai() if trajectory.steps else None
    named = {"metadata": _metadata(trace, about) if span.parent is None else {}}
    return {**row, "inputs": {"messages": asked}, "outputs": {"output": said}, "extra": named}


def _metadata(trace: Trace, about: Mapping[str, Any]) -> Row:
    known = {"task_id": trace.task, "session_id": trace.session}
    return {**trace.metadata, **{name: value for name, value in known.items() if value is not None}, **about}


def _call(span: Planned, trajectory: Trajectory) -> Row:
    """A model call as the wrapped OpenAI client logs it."""
    action = trajectory.steps[span.step or 0].action
    call = span.call or Call(span.step or 0)
    params, usage = dict(call.params), call.usage
    asked = params.pop("model", None) or call.model
    counted = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    outputs: Row = {"choices": [{"index": 0, "message": action.to_openai(), "finish_reason": call.finish_reason}], "usage": counted}
    outputs |= {name: value for name, value in (("id", call.response_id), ("model", call.model)) if value is not None}
    tools = {"tools": [tool.to_openai() for tool in trajectory.tools]} if trajectory.tools else {}
    inputs = {"messages": [message.to_openai() for message in span.inputs], **({"model": asked} if asked else {}), **tools, **params}
    about = {"ls_model_type": "chat", "ls_model_name": asked, "ls_provider": call.provider}
    first = {} if call.first_token_s is None else {"first_token_time": _time(span.start_ns + round(call.first_token_s * 1e9))}
    told = {name: value for name, value in about.items() if value is not None}
    spent = {} if usage.cost_usd is None else {"total_cost": usage.cost_usd}
    return {"inputs": inputs, "outputs": outputs, "extra": {"metadata": told}, **first, **spent}


def _feedback(span: Planned, root: Planned, score: LoggedScore, source: str, value: str | None) -> Row:
    number = None if isinstance(score.value, str) else score.value
    return {
        "id": str(UUID(content_key("feedback", span.id, score.name, str(score.value), source, score.comment))),
        "run_id": _uuid(span.id),
        "trace_id": _uuid(root.id),
        "key": score.name,
        "score": number,
        "value": value,
        "comment": score.comment or None,
        "feedback_source": {"type": source},
    }


def _uuid(span_id: str) -> str:
    return str(UUID(span_id + content_key("run", span_id)[:16]))


def _segment(span: Planned) -> str:
    return f"{_moment(span.start_ns):%Y%m%dT%H%M%S%f}Z{_uuid(span.id)}"


def _time(at_ns: int) -> str:
    return _moment(at_ns).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _moment(at_ns: int) -> datetime:
    return datetime.fromtimestamp(at_ns // 10**9, UTC).replace(microsecond=at_ns // 1000 % 10**6)
