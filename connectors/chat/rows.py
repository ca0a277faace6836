"""One logged model call from one log row (or two that belong together), in the shapes that proxies and SDK wrappers write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.chat.apis import REDACTED, SHORTENED, Answer, Prompt, answer_of, is_response, prompt_of
from counterplay.connectors.chat.opinions import scores_of
from counterplay.connectors.chat.streams import object_of
from counterplay.connectors.lines import Entry
from counterplay.connectors.quick import changed
from counterplay.core.nouns import Call, Coverage, LoggedScore, Message, Outcome, ToolSpec, Usage
from counterplay.core.records import Rejected
from counterplay.core.token_ids import choice_token_ids

REQUEST_KEYS = ("request", "request_params", "request_body", "requestBody", "body", "params", "kwargs", "proxy_server_request")
RESPONSE_KEYS = ("response", "response_body", "responseBody", "completion", "output")
_TRACE_KEYS = ("trace_id", "x_trace_id", "x_trace", "run_id", "rollout_id")
_SESSION_KEYS = ("session_id", "conversation_id", "thread_id", "x_session_id", "helicone_session_id", "session")
_NOT_PARAMS = {
    "messages", "input", "system", "instructions", "tools", "functions", "model", "metadata", "previous_response_id", "conversation",
    "extra_headers", "headers", "url", "method", "body", "stream", "stream_options", *RESPONSE_KEYS,
}  # fmt: skip
_PARAMS = {
    "temperature", "top_p", "top_k", "n", "seed", "stop", "stop_sequences", "max_tokens", "max_completion_tokens", "max_output_tokens",
    "tool_choice", "parallel_tool_calls", "response_format", "text", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
    "reasoning_effort", "reasoning", "thinking", "service_tier", "verbosity", "store", "truncation",
}  # fmt: skip
_RESPONSES_KEYS = {"instructions", "previous_response_id", "conversation", "max_output_tokens", "reasoning", "include"}
_STARTS = ("startTime", "start_time", "started_at", "request_created_at", "timestamp", "created_at", "time")
_ENDS = ("endTime", "end_time", "ended_at", "response_created_at")
_COSTS = ("response_cost", "cost_usd", "costUSD", "cost", "spend")
_UNPLACED = Call(step=-1)
_SESSION_IN_USER = re.compile(r"_session_([0-9a-f-]{36})$")


@dataclass
class LoggedCall:
    """One model call as logged. `outputs` are the answer's choices: none where it failed (`error` says why) or is not logged.

    `messages` are what was sent, behind what `previous` (the id of an earlier answer) or `conversation` stand for: `inputs` says how
    much of it all is there. `shortened` says that the proxy cut long texts of it, `whole` that the answer came to its end. `loose` says
    that calls of other traces may belong to the same run: the id may be one for each request. Treat as read-only: it is not frozen
    only because one is made for every row, and a frozen one takes thrice the time to make.
    """

    entry: Entry
    messages: Sequence[Message]
    tools: tuple[ToolSpec, ...]
    outputs: tuple[Message, ...]
    call: Call
    error: str = ""
    trace: str | None = None
    session: str | None = None
    task: str | None = None
    agent: str | None = None
    outcome: Outcome | None = None
    redacted: bool = False
    ended_at_us: int | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rejected: Rejected | None = None
    scores: tuple[LoggedScore, ...] = ()
    finish_reasons: tuple[str | None, ...] = ()
    inputs: Coverage = "full"
    whole: bool = True
    shortened: bool = False
    loose: bool = False
    cached: bool = False
    instructions: tuple[Message, ...] = ()
    previous: str | None = None
    conversation: str | None = None


def request_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request object of a row that logs a call: nested, or the row itself; None where it holds none."""
    for key in REQUEST_KEYS:
        nested = object_of(row.get(key))
        for inner in ("", "body", "json") if nested else ():
            fields = object_of(nested.get(inner)) if inner else nested
            if isinstance(fields.get("messages"), list) or (fields and _is_responses_request(fields, row)):
                return fields
    if "call_type" in row and "messages" in row:
        return _litellm_request(row)
    if not any(key in row for key in RESPONSE_KEYS):
        return None
    return dict(row) if isinstance(row.get("messages"), list) or ("input" in row and is_response(response_of(row))) else None


def response_of(row: Mapping[str, Any]) -> Any:
    """The answer of a row as it was logged, of whatever shape; None where it holds none."""
    return _first(row, RESPONSE_KEYS)


def call_of(entry: Entry, request: Mapping[str, Any], response: Any, rows: Iterable[Mapping[str, Any]]) -> LoggedCall:
    """The call that `request` and `response` log; `rows` are the rows they stood in. Raises ValueError where it can't be read."""
    around = list(rows)
    flat = around[0] if len(around) == 1 else {key: value for row in reversed(around) for key, value in row.items()}
    answer = Answer() if flat.get("status") == "failure" else answer_of(response)
    prompt = prompt_of(request, answer)
    if not (prompt.known or prompt.messages or prompt.instructions or prompt.previous or prompt.conversation):
        msg = "a call without messages"
        raise ValueError(msg)
    metadata = object_of(flat.get("metadata"))
    said_in = (*prompt.messages, *prompt.instructions, *answer.outputs)
    beside = (flat.get("headers"), request.get("extra_headers"), flat.get("request_properties"))
    named = _Names(flat, [*around, *_metadata(around), *_metadata([request]), *beside])
    said = facts.record(flat.get("outcome")) or facts.record(metadata.get("outcome")) or {**metadata, "source": "unknown"}
    session = named.first(_SESSION_KEYS) or _session_in_user(request)
    return LoggedCall(
        entry,
        prompt.known or prompt.messages,
        prompt.tools,
        answer.outputs,
        _call(flat, request, prompt, answer, named),
        error="" if answer.outputs else _error(flat, answer),
        trace=named.first(_TRACE_KEYS),
        session=session,
        task=named.first(("task", "task_id")),
        agent=named.first(("agent", "agent_name")),
        outcome=facts.outcome_of(said),
        redacted=any(REDACTED in message.wire and message.content == REDACTED for message in said_in),
        ended_at_us=facts.time_us(_first(flat, _ENDS)),
        tags=_tags(flat.get("request_tags") or flat.get("tags")),
        metadata=_kept(metadata, named),
        scores=scores_of(flat),
        finish_reasons=answer.finish_reasons,
        inputs="full" if prompt.whole else "partial",
        whole=answer.whole,
        shortened="call_type" in flat and any(SHORTENED in message.wire for message in said_in),
        loose="call_type" in flat and session is None,
        cached=flat.get("cache_hit") in (True, "True", "true"),
        instructions=prompt.instructions,
        previous=prompt.previous,
        conversation=prompt.conversation,
    )


class _Names:
    """The ids and names that are found in a row and around it."""

    def __init__(self, row: Mapping[str, Any], places: list[Any]) -> None:
        self._places = facts.spelled(filter(None, places))
        self._row = self._places[:1] if row and places[0] is row else facts.spelled([row])
        self._keys = set[str]().union(*self._places)

    def first(self, keys: Sequence[str]) -> str | None:
        """As `facts.first_word`."""
        return None if self._keys.isdisjoint(keys) else facts.first_spelled(keys, self._places)

    def own(self, keys: Sequence[str]) -> str | None:
        """The first in the row itself."""
        return facts.first_spelled(keys, self._row)


def _litellm_request(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters stand beside the messages, which are the input items where the call was one of the Responses API."""
    request = {**facts.record(row.get("model_parameters")), **{key: value for key, value in row.items() if value is not None}}
    if isinstance(row["messages"], list) and "responses" not in str(row["call_type"]):
        return request
    if "responses" in str(row["call_type"]) and isinstance(row["messages"], list | str):
        return {**{key: value for key, value in request.items() if key != "messages"}, "input": row["messages"]}
    return None


def _is_responses_request(fields: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Not every `input` is a prompt: embeddings and moderations have one too."""
    items = fields.get("input")
    if isinstance(items, list):
        return bool(items) and all(isinstance(item, dict) and ("role" in item or "type" in item) for item in items)
    return isinstance(items, str) and (not _RESPONSES_KEYS.isdisjoint(fields) or is_response(response_of(row)))


def _call(row: Mapping[str, Any], request: Mapping[str, Any], prompt: Prompt, answer: Answer, named: _Names) -> Call:
    fields = answer.fields
    asked = facts.word(row.get("model_group")) or facts.word(request.get("model"))
    model = facts.word(fields.get("model")) or facts.word(request.get("model"))
    flat = "model" in row and request.get("model") is row["model"] and "messages" in row
    params = {key: value for key, value in request.items() if value is not None and (key in _PARAMS if flat else key not in _NOT_PARAMS)}
    start = _first(row, _STARTS)
    streamed = answer.streamed or _first_bool(row.get("stream"), request.get("stream"))
    anthropic = prompt.api == "anthropic" and (model or "").startswith("claude")
    return changed(
        _UNPLACED,
        model=model,
        params={**params, "model": asked} if asked and asked != model else params,
        usage=_usage(row, answer),
        latency_s=_latency(row),
        started_at_us=facts.time_us(start if start is not None else fields.get("created", fields.get("created_at"))),
        finish_reason=answer.finish_reasons[0] if answer.finish_reasons else None,
        response_id=facts.word(fields.get("id")),
        provider=named.own(("custom_llm_provider", "provider")) or answer.provider or ("anthropic" if anthropic else None),
        streamed=streamed,
        first_token_s=_first_token(row) if streamed else None,
        token_ids=_token_ids(fields.get("choices")),
    )


def _token_ids(choices: Any) -> tuple[int, ...] | None:
    """Of the only choice: which of several the agent went on with, only what follows tells."""
    return choice_token_ids(facts.record(choices[0])) if isinstance(choices, list) and len(choices) == 1 else None


def _usage(row: Mapping[str, Any], answer: Answer) -> Usage:
    counted = answer.usage or facts.usage_of({key: row.get(key) for key in ("prompt_tokens", "completion_tokens")})
    costs = [facts.number(row[key]) for key in _COSTS if key in row]
    cost = next((found for found in costs if found is not None), None) if costs else None
    return counted if cost is None else replace(counted, cost_usd=cost)


def _latency(row: Mapping[str, Any]) -> float | None:
    milliseconds = facts.number(_first(row, ("latency_ms", "duration_ms", "delay_ms")))
    return milliseconds / 1000 if milliseconds is not None else facts.number(_first(row, ("response_time", "latency_s", "latency")))


def _first_token(row: Mapping[str, Any]) -> float | None:
    milliseconds = facts.number(_first(row, ("time_to_first_token", "time_to_first_token_ms", "ttft_ms")))
    if milliseconds is not None:
        return milliseconds / 1000
    start, first = (facts.time_us(row.get(key)) for key in ("startTime", "completionStartTime"))
    if start is not None and first is not None and first >= start:
        return (first - start) / 1e6
    return facts.number(_first(row, ("first_token_s", "ttft_s")))


def _error(row: Mapping[str, Any], answer: Answer) -> str:
    said = answer.error or row.get("error_str") or row.get("error")
    return str(said)[:500] if said else "its answer has no message" if answer.fields else "no answer is logged"


def _metadata(rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The metadata of rows and what proxies keep in it of their callers'."""
    found: list[Any] = []
    for row in rows:
        if metadata := object_of(row.get("metadata")):
            found += (metadata, metadata.get("requester_metadata"), metadata.get("spend_logs_metadata"))
    return found


def _kept(metadata: Mapping[str, Any], named: _Names) -> dict[str, Any]:
    kept = {key: value for key, value in metadata.items() if value not in (None, "", [], {}) and key != "usage_object"}
    user = named.own(("end_user", "user_id", "user"))
    return {**kept, "user": user} if user else kept


def _session_in_user(request: Mapping[str, Any]) -> str | None:
    """Claude Code names its session at the end of the user id."""
    found = _SESSION_IN_USER.search(str(facts.record(request.get("metadata")).get("user_id") or ""))
    return found[1] if found else None


def _tags(raw: Any) -> tuple[str, ...]:
    return tuple(filter(None, map(facts.word, _list(facts.parsed_or(raw))))) if raw else ()


def _first_bool(*values: Any) -> bool | None:
    for value in values:
        if isinstance(value, bool):
            return value
    return None


def _first(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    for key in keys:
        found = row.get(key)
        if found is not None:
            return found
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
