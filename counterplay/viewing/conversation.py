"""Trajectories as a conversation: each step with its calls beside their results, what was said of it, and what it took.

Everything here is plain JSON values whose types stand in `viewer/src/types.ts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterplay import console
from counterplay.core.nouns import Call, Grade, LoggedScore, Message, Step, ToolCall, ToolSpec, Trajectory
from counterplay.core.store import ScoreRow
from counterplay.core.tool_errors import is_error

LOW = 0.5
View = dict[str, Any]


def message_view(message: Message) -> View:
    return {
        "role": message.role,
        "text": shown_text(message),
        "reasoning": _text(message.reasoning),
        "name": _text(message.name),
        "tool_call_id": _text(message.tool_call_id),
        "wire": message.wire,
    }


def shown_text(message: Message) -> str:
    """The text of a message; parts that are not text stand by their type in brackets."""
    content = message.content
    if not isinstance(content, list):
        return content if isinstance(content, str) else "" if content is None else str(content)
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "part") if isinstance(part, dict) else "part"
        parts.append(text if isinstance(text, str) else f"[{kind}]")
    return "\n".join(parts)


def tool_view(tool: ToolSpec) -> View:
    definition = tool.fields.get("function")
    described = definition if isinstance(definition, Mapping) else tool.fields
    return {
        "name": tool.name,
        "description": str(described.get("description") or ""),
        "parameters": console.plain(dict(tool.parameters)),
        "effect": f"{tool.effect.kind} {tool.effect.resource}".strip(),
    }


def step_view(step: Step, index: int, *, call: Call | None = None, scores: Sequence[View] = ()) -> View:
    """One step. `scores` are `score_view`s and `opinion_view`s of it."""
    results, followed = matched(step)
    calls = [
        {"id": made.id, "name": made.name, "arguments": made.arguments, "result": result}
        for made, result in zip(step.action.tool_calls, results, strict=True)
    ]
    scaled = [score["scaled"] for score in scores if score["scaled"] is not None]
    return {
        "index": index,
        "text": shown_text(step.action),
        "reasoning": _text(step.action.reasoning),
        "calls": calls,
        "followed": followed,
        "sampled": step.sampled,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "error": step.error,
        "reward": console.plain(step.reward),
        "grade": step.grade.name.lower(),
        "scores": list(scores),
        "value": sum(scaled) / len(scaled) if scaled else None,
        "failing": failing(step, scores),
        "call": None if call is None else call_view(call),
        "wire": step.action.wire,
    }


def matched(step: Step) -> tuple[list[View | None], list[View]]:
    """For each tool call its result, by id and, where ids repeat, by order; and what answers no call."""
    grades = step.grades or (Grade.EXACT,) * len(step.observations)
    results: list[View | None] = [None] * len(step.action.tool_calls)
    followed = []
    for message, grade in zip(step.observations, grades, strict=True):
        view = {**message_view(message), "grade": grade.name.lower(), "is_error": message.role == "tool" and is_error(message)}
        place = _answered(step.action.tool_calls, results, message)
        if place is None:
            followed.append(view)
        else:
            results[place] = view
    return results, followed


def _answered(calls: Sequence[ToolCall], results: Sequence[View | None], message: Message) -> int | None:
    if message.role != "tool":
        return None
    open_calls = [place for place, result in enumerate(results) if result is None]
    if not message.tool_call_id:
        return next(iter(open_calls), None)
    return next((place for place in open_calls if calls[place].id == message.tool_call_id), None)


def failing(step: Step, scores: Iterable[View] = ()) -> str:
    """Why a step counts as failed: an error, or a low logged score; empty where it does not."""
    if step.error is not None:
        return f"error: {step.error}"
    wrong = next((message for message in step.observations if message.role == "tool" and is_error(message)), None)
    if wrong is not None:
        name = next((call.name for call in step.action.tool_calls if call.id == wrong.tool_call_id), wrong.name or "")
        return f"tool error{f' of {name}' if name else ''}"
    logged = (score for score in scores if score["source"] != "verifier" and score["scaled"] is not None)
    low = next((score for score in logged if score["scaled"] < LOW), None)
    return f"{low['name']} is {low['scaled']:.2f}" if low else ""


def call_view(call: Call) -> View:
    return {
        "model": call.model,
        "input_tokens": call.usage.input_tokens,
        "output_tokens": call.usage.output_tokens,
        "cached_tokens": call.usage.cached_tokens,
        "reasoning_tokens": call.usage.reasoning_tokens,
        "cost_usd": call.usage.cost_usd,
        "latency_s": call.latency_s,
        "first_token_s": call.first_token_s,
        "started_at_us": call.started_at_us,
        "finish_reason": call.finish_reason,
        "inputs": call.inputs,
        "params": console.plain(dict(call.params)),
    }


def score_view(score: LoggedScore) -> View:
    """A logged score."""
    told = {"name": score.name, "version": "", "source": score.source, "comment": score.comment}
    return {**told, "value": console.plain(score.value), "scaled": score.scaled}


def opinion_view(opinion: ScoreRow) -> View:
    """A verifier's opinion of a state."""
    told = {"name": opinion.verifier or "verifier", "version": opinion.version, "source": "verifier"}
    return {**told, "value": opinion.value, "scaled": opinion.value, "comment": opinion.error or opinion.reason}


def trajectory_view(
    trajectory: Trajectory,
    *,
    index: int = 0,
    agent: str = "",
    parent_step: int | None = None,
    continues: int | None = None,
    calls: Iterable[Call] = (),
    scores: Iterable[LoggedScore] = (),
    opinions: Mapping[str, Sequence[ScoreRow]] | None = None,
) -> View:
    """A trajectory of a trace. `calls` and `scores` are those of the trace, `opinions` what verifiers said by state key."""
    by_step = {call.step: call for call in calls if call.trajectory == index}
    mine = [score for score in scores if score.trajectory == index and score.step is not None]
    said = opinions or {}
    steps = []
    for number, step in enumerate(trajectory.steps):
        views = [score_view(score) for score in mine if score.step == number]
        views += [opinion_view(opinion) for opinion in said.get(trajectory.prefix_keys[number + 1], ())]
        steps.append(step_view(step, number, call=by_step.get(number), scores=views))
    return {
        "index": index,
        "agent": agent,
        "parent_step": parent_step,
        "continues": continues,
        "tools": [tool_view(tool) for tool in trajectory.tools],
        "prompt": [message_view(message) for message in trajectory.prompt],
        "steps": steps,
    }


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)
