"""Scores and feedback that stand in a log row, in the shapes in which people put them there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from counterplay.connectors import facts
from counterplay.core.nouns import LoggedScore, OutcomeSource

_VALUES = ("value", "score", "rating", "label")
_COMMENTS = ("comment", "explanation", "reason", "rationale")


def scores_of(row: Mapping[str, Any]) -> tuple[LoggedScore, ...]:
    """What `scores` (by name, or a list of named ones) and `feedback` say. Only of booleans is the scale known."""
    scores, feedback = row.get("scores"), row.get("feedback")
    return (*_named(scores, "unknown"), *_feedback(feedback)) if scores or feedback is not None else ()


def opinion(name: str, said: Any, source: OutcomeSource) -> LoggedScore | None:
    """One score from a value, or from an object that holds a value and a comment; None where it holds none."""
    fields = facts.record(said)
    value = next((fields[key] for key in _VALUES if fields.get(key) is not None), None) if fields else said
    if not isinstance(value, bool | int | float | str) or (facts.number(value) is None and not isinstance(value, bool | str)):
        return None
    comment = next((fields[key] for key in _COMMENTS if isinstance(fields.get(key), str)), "")
    if isinstance(value, bool):
        return LoggedScore.of(name, value, source=source, comment=comment)
    return LoggedScore(name, value, source=source, comment=comment)


def _named(said: Any, source: OutcomeSource) -> Iterator[LoggedScore]:
    pairs = said.items() if isinstance(said, dict) else []
    if isinstance(said, list):
        pairs = [(facts.word(facts.record(each).get("name")) or "score", each) for each in said if isinstance(each, dict)]
    yield from filter(None, (opinion(str(name), value, source) for name, value in pairs))


def _feedback(said: Any) -> Iterator[LoggedScore]:
    for each in said if isinstance(said, list) else [said]:
        name = facts.word(facts.record(each).get("name") or facts.record(each).get("key")) or "feedback"
        found = opinion(name, each, "feedback") if each is not None else None
        if found:
            yield found
