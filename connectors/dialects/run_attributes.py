"""What spans say about the run as a whole, whatever their dialect: session, user, tags, metadata, agent, evaluations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from counterplay.connectors.dialects.agent_lightning import ATTEMPT, ROLLOUT, rewards_of
from counterplay.connectors.dialects.indexed import nested
from counterplay.connectors.facts import parsed_or
from counterplay.connectors.messages.openai import REDACTED
from counterplay.connectors.spans.readings import Reading
from counterplay.connectors.spans.run_facts import RunFacts, SpanScore, outcome_among, roots_of
from counterplay.connectors.spans.span import Event, Span
from counterplay.core.nouns import LoggedScore, OutcomeSource

EVALUATION = "gen_ai.evaluation.result"
SCORE = "langfuse.score"
"""The name under which a score is kept that came apart from the spans, as the attribute `score`."""

_PROPERTIES = "traceloop.association.properties."
_LANGFUSE = "langfuse.trace.metadata."
_VERCEL = "ai.telemetry.metadata."
_SESSION = (
    "session.id",
    "langfuse.session.id",
    "gen_ai.conversation.id",
    "gcp.vertex.agent.session_id",
    *(_PROPERTIES + key for key in ("session_id", "thread_id", "conversation_id")),
)
_METADATA = (_PROPERTIES, _LANGFUSE, _VERCEL)
_SESSION_METADATA = tuple(prefix + key for prefix in (_LANGFUSE, _VERCEL) for key in ("sessionId", "session_id", "langfuseSessionId"))
_USER = ("user.id", "enduser.id", "langfuse.user.id", *(prefix + key for prefix in _METADATA for key in ("user_id", "userId")))
_TASK = tuple(prefix + key for prefix in _METADATA for key in ("task_id", "task", "taskId"))
_AGENT = ("gen_ai.agent.name", "agent.name", "agent_name", "traceloop.workflow.name", "ai.telemetry.functionId", "langfuse.trace.name")
_TAGS = ("tag.tags", "langfuse.trace.tags", "logfire.tags")
_RENAMED = {
    "langfuse.environment": "environment",
    "langfuse.release": "release",
    "langfuse.version": "version",
    "langfuse.trace.name": "trace_name",
    "gcp.vertex.agent.invocation_id": "invocation_id",
}
_RESOURCE = {
    "service.name": "service",
    "service.version": "service_version",
    "deployment.environment": "environment",
    "deployment.environment.name": "environment",
    ROLLOUT: "rollout_id",
    ATTEMPT: "attempt_id",
}
_SOURCES: Mapping[str, OutcomeSource] = {
    "HUMAN": "human",
    "LLM": "judge",
    "CODE": "harness",
    "ENVIRONMENT": "environment",  # these two are our own words
    "FEEDBACK": "feedback",
}
_INDEXED_SCORE = re.compile(r"(?:trace\.|span\.|session\.)?(annotations|evaluations)\.\d+\.")

_RUN_KEYS = {*_SESSION, *_USER, *_TASK, *_AGENT, *_TAGS, *_RENAMED, "metadata", "reward"}
_RUN_PREFIXES = (*_METADATA, "annotation.", "evaluation.", "gen_ai.evaluation.", "agentlightning.")


def is_fact(key: str) -> bool:
    """Whether an attribute can say something about the run."""
    return key in _RUN_KEYS or key.startswith(_RUN_PREFIXES) or _INDEXED_SCORE.match(key) is not None


def is_resource_fact(key: str) -> bool:
    """Whether an attribute of a resource can say something about the run or its producer."""
    return key in _RESOURCE or key == "telemetry.sdk.language"


def facts_of(members: Iterable[tuple[Span, Reading]], records: Iterable[Event] = (), said: Iterable[SpanScore] = ()) -> RunFacts:
    """Collect facts; where spans differ, roots are believed before others, and the earlier before the later.

    `records` and `said` are opinions that came in another way than with the spans.
    """
    unordered = list(members)
    known = {span.span_id for span, _ in unordered}
    spans = sorted(unordered, key=lambda member: (member[0].parent_id in known, member[0].parent_id is not None, member[0].start_ns or 0))
    metadata: dict[str, Any] = {}
    tags: dict[str, None] = {}
    for span, _ in spans:
        for key, value in _metadata(span):
            metadata.setdefault(key, value)
        for key in _TAGS:
            found = parsed_or(span.attributes.get(key), span.attributes.get(key))
            tags.update(dict.fromkeys(str(tag) for tag in found) if isinstance(found, list) else {})
    user = _first(spans, _USER)
    metadata |= {"user_id": user} if user else {}
    rollout = next((str(span.resource[ROLLOUT]) for span, _ in spans if span.resource.get(ROLLOUT)), None)
    named = (str(metadata[key]) for key in ("task_id", "task") if metadata.get(key) is not None)
    task = rollout or _first(spans, _TASK) or next(named, None)
    agent = _first(spans, _AGENT) or next((reading.name for _, reading in spans if reading.kind == "agent" and reading.name), None)
    session = _first(spans, (*_SESSION, *_SESSION_METADATA))
    scores = [score for span, _ in spans for score in _evaluations(span)]
    scores += [score for record in records for score in _beside(record, record.span_id or None)]
    rewards, outcome = rewards_of(spans)
    scores += [*rewards, *said]
    outcome = outcome_among(scores, roots_of(spans)) if outcome.reward is None else outcome
    return RunFacts(session, task, agent, tuple(tags), metadata, outcome, tuple(scores))


def _first(spans: Iterable[tuple[Span, Reading]], keys: Sequence[str]) -> str | None:
    found = (span.attributes.get(key) for key in keys for span, _ in spans)
    return next((str(value) for value in found if value not in (None, "", REDACTED)), None)


def _metadata(span: Span) -> Iterator[tuple[str, Any]]:
    declared = parsed_or(span.attributes.get("metadata"))
    if isinstance(declared, str):  # encoded twice by some exporters
        declared = parsed_or(declared)
    yield from declared.items() if isinstance(declared, dict) else ()
    for key, value in span.attributes.items():
        prefix = next((prefix for prefix in _METADATA if key.startswith(prefix)), None)
        if prefix is not None and key not in _SESSION:
            yield key.removeprefix(prefix), _decoded(value) if prefix == _LANGFUSE else value
    for names, place in ((_RENAMED, span.attributes), (_RESOURCE, span.resource)):
        yield from ((name, place[key]) for key, name in names.items() if key in place)


def _decoded(value: Any) -> Any:
    return parsed_or(value, value) if isinstance(value, str) and value[:1] in ('"', "{", "[") else value


def _evaluations(span: Span) -> Iterator[SpanScore]:
    for event in span.events:
        if event.name == EVALUATION:
            yield from _evaluation(span.span_id, event.attributes, "gen_ai.evaluation.")
    for prefix in ("annotation.", "evaluation.", "gen_ai.evaluation."):
        yield from _evaluation(span.span_id, span.attributes, prefix)
    for prefix in dict.fromkeys(found[0].rsplit(".", 2)[0] for key in span.attributes if (found := _INDEXED_SCORE.match(key))):
        for fields in nested(span.attributes, prefix):
            about = None if prefix.startswith(("trace.", "session.")) else span.span_id
            yield from _evaluation(about, {key.split(".", 1)[-1]: value for key, value in fields.items()}, "")


def _beside(record: Event, span_id: str | None) -> Iterator[SpanScore]:
    if record.name != SCORE:
        yield from _evaluation(span_id, record.attributes, "gen_ai.evaluation.")
        return
    score: LoggedScore = record.attributes["score"]
    yield SpanScore(score, span_id, score.value if isinstance(score.value, str) else "")


def _evaluation(span_id: str | None, fields: Mapping[str, Any], prefix: str) -> Iterator[SpanScore]:
    def get(*names: str) -> Any:
        return next((fields[prefix + name] for name in names if fields.get(prefix + name) is not None), None)

    name, value, label = get("name"), get("score.value", "score"), get("score.label", "label")
    if not isinstance(name, str) or (value is None and label is None):
        return
    try:
        found = None if value is None else float(value)
    except (ValueError, TypeError, OverflowError):
        found = None
    source = _SOURCES.get(str(get("annotator_kind", "annotator.kind") or "").upper(), "unknown")
    word = "" if label is None else str(label)
    said = found if found is not None and isfinite(found) else word or None
    score = LoggedScore.of(name, said, source=source, comment=str(get("explanation") or ""))
    scaled = get("scaled")  # on a scale of its own that the exporter knew
    if scaled == "unknown":
        score = replace(score, scaled=None)
    elif isinstance(scaled, int | float) and 0.0 <= scaled <= 1.0:
        score = replace(score, scaled=float(scaled))
    yield SpanScore(score, span_id, word)
