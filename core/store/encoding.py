"""Nouns as rows, or many of them as columns, and their digests. `decoding` is the inverse; `verify` compares the two.

Numbers are normalised to their column's type first, so that what is read back digests as what was written. A column that a
later schema added enters a digest only where it says something, so that what an earlier counterplay wrote keeps its digest.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from counterplay.core.canonical import canonical, chain_key, content_key, dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Completeness, Grade, LoggedScore, Step, SubTrajectory, ToolSpec, Trace, Trajectory
from counterplay.core.store.exact import listed, named
from counterplay.core.store.tables import Columns, Row


@dataclass(frozen=True)
class Draft:
    """A trajectory ready to be written: its messages' texts with the key after each, its steps as columns."""

    trajectory: Trajectory
    wires: list[str]
    keys: list[str]
    steps: Columns
    effects: str
    digest: str

    @classmethod
    def of(cls, trajectory: Trajectory, known: list[str] | None = None) -> Draft:
        """`known` are the keys after each message where they are known; None works them out."""
        wires = [message.wire for message in trajectory.prompt]
        for step in trajectory.steps:
            wires += [step.action.wire, *[message.wire for message in step.observations]]
        key = trajectory.root_key
        keys = [key := chain_key(key, wire) for wire in wires] if known is None else known
        key = keys[-1] if keys else key
        steps, effects = step_columns(trajectory.steps), effects_text(trajectory.tools)
        told = listed([[len(step.observations) for step in trajectory.steps], *steps.values()])
        return cls(trajectory, wires, keys, steps, effects, content_key(key, effects, str(len(trajectory.prompt)), told))

    @property
    def tip(self) -> str:
        return self.keys[-1] if self.keys else self.trajectory.root_key

    @property
    def grade(self) -> int:
        """The worst grade of the observations, as `Trajectory.grade`."""
        return min((grade for grades in self.steps["grades"] for grade in grades), default=int(Grade.EXACT))


@dataclass(frozen=True)
class TraceDraft:
    """A trace ready to be written: its trajectories (the main one first), its own fields, its calls, and the digest of all of it."""

    trace: Trace
    trajectories: tuple[Draft, ...]
    header: Row
    calls: Columns
    digest: str

    @classmethod
    def of(cls, trace: Trace) -> TraceDraft:
        """Raises UserError where the trace holds a value that is not JSON."""
        drafts = (Draft.of(trace.trajectory), *(Draft.of(sub.trajectory) for sub in trace.sub_trajectories))
        try:
            header, calls = header_row(trace), call_columns(trace.calls)
            return cls(trace, drafts, header, calls, _trace_digest(trace, header, calls, [draft.digest for draft in drafts]))
        except (TypeError, ValueError) as error:
            got = f"trace {trace.id!r} holds a value that is not JSON ({error})"
            raise UserError(got, "metadata, details and params of JSON values", "Convert it in the connector.") from error

    def digest_at(self, uri: str, line: int | None) -> str:
        """The digest that it would have, had it been read there."""
        header = {**self.header, "uri": uri, "line": line}
        return _trace_digest(self.trace, header, self.calls, [draft.digest for draft in self.trajectories])


def effects_text(tools: tuple[ToolSpec, ...]) -> str:
    return canonical([[tool.effect.kind, tool.effect.resource] for tool in tools])


def trace_digest(trace: Trace, trajectories: Sequence[str]) -> str:
    """Everything that makes two traces equal, given the digests of their trajectories."""
    return _trace_digest(trace, header_row(trace), call_columns(trace.calls), trajectories)


def _trace_digest(trace: Trace, header: Row, calls: Columns, trajectories: Sequence[str]) -> str:
    subs = [list(sub_row(sub).values()) for sub in trace.sub_trajectories]
    scores = [list(score_row(score).values()) for score in trace.scores]
    about = canonical(_telling(header, _LATER_TRACE))
    return content_key(about, canonical(subs), named(calls, _LATER_CALL), canonical(scores or {}), *trajectories)


_LATER_TRACE: Mapping[str, Any] = {"outputs": "full", "open_spans": 0}
_LATER_CALL: Mapping[str, Any] = {
    **_LATER_TRACE,
    "provider": None,
    "streamed": None,
    "first_token_s": None,
    "tools_known": True,
    "system_prompt": True,
    "dropped_attributes": 0,
    "truncated": False,
    "redacted": False,
    "notes": [],
    "token_ids": None,
}


def _telling(row: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """`row` without those of the `later` columns that hold their default."""
    return {name: value for name, value in row.items() if name not in later or value != later[name]}


def number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _only(columns: Columns) -> dict[str, Any]:
    """The one row of `columns`."""
    return {name: values[0] for name, values in columns.items()}


def step_columns(steps: Sequence[Step]) -> dict[str, list[Any]]:
    return {
        "sampled": [bool(step.sampled) for step in steps],
        "terminated": [bool(step.terminated) for step in steps],
        "truncated": [bool(step.truncated) for step in steps],
        "error": [step.error for step in steps],
        "reward": [number(step.reward) for step in steps],
        "grades": [[int(grade) for grade in step.grades] for step in steps],
    }


def step_row(step: Step) -> dict[str, Any]:
    return _only(step_columns([step]))


def sub_row(sub: SubTrajectory) -> dict[str, Any]:
    return {"agent": sub.agent, "parent_step": sub.parent_step, "continues": sub.continues}


def score_row(score: LoggedScore) -> dict[str, Any]:
    return {
        "trajectory": score.trajectory,
        "step": score.step,
        "name": score.name,
        "value": dumps(score.value),
        "scaled": number(score.scaled),
        "source": score.source,
        "comment": score.comment,
    }


def completeness_columns(known: Sequence[Completeness]) -> dict[str, list[Any]]:
    return {
        "inputs": [each.inputs for each in known],
        "outputs": [each.outputs for each in known],
        "tools_known": [bool(each.tools) for each in known],
        "system_prompt": [bool(each.system_prompt) for each in known],
        "dropped_attributes": [each.dropped_attributes for each in known],
        "truncated": [bool(each.truncated) for each in known],
        "redacted": [bool(each.redacted) for each in known],
        "open_spans": [each.open_spans for each in known],
        "notes": [list(each.notes) for each in known],
    }


def call_columns(calls: Sequence[Call]) -> dict[str, list[Any]]:
    params, used = [_params_text(call.params) for call in calls], [call.usage for call in calls]
    return {
        "trajectory": [call.trajectory for call in calls],
        "step": [call.step for call in calls],
        "model": [call.model for call in calls],
        "params": params,
        "attributes": params,
        "input_tokens": [usage.input_tokens for usage in used],
        "output_tokens": [usage.output_tokens for usage in used],
        "cached_tokens": [usage.cached_tokens for usage in used],
        "reasoning_tokens": [usage.reasoning_tokens for usage in used],
        "cost_usd": [number(usage.cost_usd) for usage in used],
        "latency_s": [number(call.latency_s) for call in calls],
        "started_at_us": [call.started_at_us for call in calls],
        "finish_reason": [call.finish_reason for call in calls],
        "response_id": [call.response_id for call in calls],
        "provider": [call.provider for call in calls],
        "streamed": [call.streamed for call in calls],
        "first_token_s": [number(call.first_token_s) for call in calls],
        "token_ids": [None if call.token_ids is None else list(call.token_ids) for call in calls],
        **completeness_columns([call.completeness for call in calls]),
    }


def call_row(call: Call) -> dict[str, Any]:
    return _only(call_columns([call]))


_TEXTS: dict[bytes, str] = {}
_TEXTS_HELD, _TEXT_BYTES = 256, 1 << 15


def _params_text(params: Mapping[str, Any]) -> str:
    """`dumps` of them; most calls are asked for with the same as others. Marshalled they are equal only if their text is."""
    if not params:
        return "{}"
    plain = dict(params)
    try:
        key = marshal.dumps(plain, 2)
    except ValueError:  # something that is not plain data
        return dumps(plain)
    text = _TEXTS.get(key)
    if text is None:
        text = dumps(plain)
        if len(key) <= _TEXT_BYTES:
            if len(_TEXTS) >= _TEXTS_HELD:
                _TEXTS.clear()
            _TEXTS[key] = text
    return text


def header_row(trace: Trace) -> dict[str, Any]:
    """The columns of `trace` that are its own fields."""
    source, outcome, whole = trace.source, trace.outcome, trace.completeness
    metadata = dumps(dict(trace.metadata))
    return {
        "id": trace.id,
        "task": trace.task,
        "session": trace.session,
        "agent": trace.agent,
        "format": source.format,
        "dialect": source.dialect,
        "uri": source.uri,
        "line": source.line,
        "reward": number(outcome.reward),
        "success": outcome.success,
        "outcome_source": outcome.source,
        "details": dumps(dict(outcome.details)),
        **_only(completeness_columns([whole])),
        "tags": list(trace.tags),
        "metadata": metadata,
        "attributes": metadata,
        "started_at_us": trace.started_at_us,
        "ended_at_us": trace.ended_at_us,
    }


def summary_row(trace: Trace) -> dict[str, Any]:
    """The columns of `trace` that are derived, for listing without reading content. Steps, messages and grade are the main trajectory's."""
    main, used = trace.trajectory, [call.usage for call in trace.calls]
    costs = [usage.cost_usd for usage in used if usage.cost_usd is not None]
    return {
        "trajectories": 1 + len(trace.sub_trajectories),
        "steps": len(main),
        "messages": len(main.messages),
        "calls": len(trace.calls),
        "input_tokens": sum(usage.input_tokens for usage in used),
        "output_tokens": sum(usage.output_tokens for usage in used),
        "cost_usd": float(reduce(add, costs)) if costs else None,  # one by one, as Usage adds: `sum` rounds otherwise from Python 3.12 on
        "grade": int(min((grade for step in main.steps for grade in step.grades), default=Grade.EXACT)),
    }


def place_columns(trajectory: Trajectory) -> dict[str, list[Any]]:
    """Step (None in the prompt) and role_in_step of each message in order."""
    steps: list[int | None] = [None] * len(trajectory.prompt)
    roles = ["prompt"] * len(trajectory.prompt)
    for index, step in enumerate(trajectory.steps):
        followed = len(step.observations)
        steps += [index] * (1 + followed)
        roles += ["action", *["observation"] * followed]
    return {"step": steps, "role_in_step": roles}
