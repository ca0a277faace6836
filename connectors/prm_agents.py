"""AgentProcessBench rows: whole tool-using trajectories whose every assistant message people marked +1, 0 or -1 (arXiv:2603.14465).

A row is {messages, tools, step_labels: {message index: mark}, final_label, data_source, query_index, sample_index, ...}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import trace_id
from counterplay.connectors.lines import Entry
from counterplay.connectors.normalise import has_system, messages_of, tools_of
from counterplay.connectors.prm_trees import NAME, NOTES
from counterplay.connectors.steps import StepList, prompt_length, tools_known
from counterplay.core.nouns import Completeness, LoggedScore, Outcome, Source, Trace

DIALECT = "agentprocessbench"
_READ = {"messages", "tools", "step_labels", "final_label"}


def is_agent_row(row: Mapping[str, Any]) -> bool:
    """Whether a row has the fields of this format."""
    return isinstance(row.get("messages"), list) and isinstance(row.get("step_labels"), dict) and "final_label" in row


def agent_row(entry: Entry) -> Trace:
    """The trace of one row. Raises ValueError where a mark is none, or stands at a message that is no step."""
    row = entry.value
    messages = messages_of(row["messages"])
    start = prompt_length(messages)
    taken = StepList(messages[:start])
    taken.extend(messages[start:], sampled=True)
    outcome = _outcome(row["final_label"])
    trajectory = taken.trajectory(tools_of(row.get("tools") or []), outcome, terminated=True)
    steps = [start + place for place, message in enumerate(messages[start:]) if message.role == "assistant"]
    query = [str(row[key]) for key in ("data_source", "query_index") if row.get(key) is not None]
    return Trace(
        id=trace_id(NAME, trajectory, DIALECT, facts.first_word(("record_id", "total_index"), (row,))),
        trajectory=trajectory,
        source=Source(NAME, str(entry.path), entry.line, DIALECT),
        task=":".join(query) or None,
        outcome=outcome,
        scores=tuple(_score(place, mark, steps) for place, mark in row["step_labels"].items() if not _opens(place, start)),
        metadata={key: value for key, value in row.items() if key not in _READ},
        completeness=Completeness(inputs="stitched", system_prompt=has_system(messages), tools=tools_known(trajectory), notes=NOTES),
    )


def _outcome(mark: Any) -> Outcome:
    """+1 and -1; anything else says nothing of the end."""
    found = facts.whole_number(mark)
    return Outcome(None, found > 0, "human", {"final_label": mark}) if found in (-1, 1) else Outcome()


def _opens(place: str, start: int) -> bool:
    """A mark at a greeting, which stands before the first user message and so in the prompt, belongs to no step."""
    return place.isdigit() and int(place) < start


def _score(place: str, mark: Any, steps: list[int]) -> LoggedScore:
    if not place.isdigit() or int(place) not in steps:
        msg = f"a mark at message {place!r}, wanted one of the assistant's: {', '.join(map(str, steps)) or 'there is none'}"
        raise ValueError(msg)
    if isinstance(mark, bool) or mark not in (-1, 0, 1):
        msg = f"the mark {mark!r} at message {place}, wanted 1, 0 or -1"
        raise ValueError(msg)
    return LoggedScore.of("label", float(mark), source="human", low=-1, step=steps.index(int(place)))
