"""tau-bench result files: customer-service runs with the reward that the benchmark's environment paid.

A file is a list of runs {task_id, trial, reward, info, traj}. The messages are kept exactly as they are, reused tool call ids
included. The file holds neither tool definitions nor usage. The benchmark's few-shot files, transcripts without the tool calls, are
read as well; a step whose call is missing is marked as not sampled, so that nothing is trained on it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item, trace_id
from counterplay.connectors.lines import Entry, entries, leading_objects
from counterplay.connectors.normalise import has_system, messages_of
from counterplay.connectors.steps import StepList, prompt_length
from counterplay.core.canonical import canonical
from counterplay.core.nouns import Completeness, Message, Outcome, Source, Trace
from counterplay.core.records import Rejected

NAME = "tau-bench"
_FIELDS = {"task_id", "reward", "info", "traj"}
_TRANSCRIPT = "messages_display"
_SPEAKER = re.compile(r"^(system|user|assistant|tool): ", re.MULTILINE)
_STOP = "###STOP###"
_TRANSFER = "transfer_to_human_agents"
_OPENINGS = {"airline agent": "airline", "retail agent": "retail", "telecom": "telecom", "telehealth": "telehealth"}
_DOMAINS = {"reservation": "airline", "flight": "airline", "order": "retail", "product": "retail"}


@dataclass(frozen=True)
class TauBench:
    """The `tau-bench` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  the protocol's shape
        row = next(iter(leading_objects(sample, 1)), {})
        if row.keys() >= _FIELDS:
            return 1.0
        if isinstance(row.get(_TRANSCRIPT), str) and _SPEAKER.match(row[_TRANSCRIPT]):
            return 0.9
        # A long first run can fill the sample: its trajectory is then cut off behind its task.
        return 0.9 if row.keys() >= {"task_id", "reward", "info"} and "task" in facts.record(row["info"]) else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every run of a file. A run that failed before its first answer is a Rejected with the error that it logged."""
        for entry in entries(path):
            yield entry if isinstance(entry, Rejected) else _item(entry)


def _item(entry: Entry) -> Item:
    row = entry.value
    if isinstance(row.get(_TRANSCRIPT), str):
        return _transcript(entry, row[_TRANSCRIPT])
    if not row.keys() >= _FIELDS:
        return entry.reject(f"a run without {', '.join(sorted(_FIELDS - row.keys()))}")
    info = facts.record(row["info"])
    if not row["traj"] and info.get("error"):
        return entry.reject(f"the run failed before its first message: {str(info['error'])[:300]}")
    try:
        messages = messages_of(row["traj"])
        return _trace(entry, info, messages)
    except (ValueError, RecursionError) as error:
        return entry.reject(str(error))


def _trace(entry: Entry, info: Mapping[str, Any], messages: tuple[Message, ...]) -> Trace:
    row = entry.value
    start = prompt_length(messages)
    steps = StepList(messages[:start])
    steps.extend(messages[start:], sampled=True)
    if not len(steps):
        msg = "a run without an assistant message"
        raise ValueError(msg)
    reward = facts.number(row["reward"])
    error = str(info["error"])[:1000] if info.get("error") else None
    cut = error is None and not info.get("reward_info") and not _has_ended(messages)
    outcome = Outcome(reward, None if reward is None else reward >= 1.0, "environment", facts.record(info.get("reward_info")))
    trajectory = steps.trajectory((), outcome, terminated=error is None and not cut, truncated=cut, error=error)
    number = facts.word(row["task_id"])
    domain = domain_of(messages, info)
    return Trace(
        id=trace_id(NAME, trajectory, domain, number, facts.word(row.get("trial")), canonical(reward)),
        trajectory=trajectory,
        source=Source(NAME, str(entry.path), entry.line),
        task=f"{domain}/{number}" if number is not None else None,
        outcome=outcome,
        metadata={
            "trial": row.get("trial"),
            "task": facts.record(info.get("task")),
            "user_cost": info.get("user_cost"),
            **{key: value for key, value in row.items() if key not in (*_FIELDS, "trial")},
        },
        completeness=Completeness(
            tools=False,
            system_prompt=has_system(trajectory.prompt),
            notes=("tau-bench files hold no tool definitions, parameters or usage",),
        ),
    )


def _transcript(entry: Entry, text: str) -> Item:
    parts = _SPEAKER.split(text)
    messages = [
        Message.from_openai({"role": role, "content": said.rstrip("\n")}) for role, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    start = prompt_length(messages)
    steps = StepList(messages[:start])
    for message, after in zip_longest(messages[start:], messages[start + 1 :]):
        steps.extend([message], sampled=after is None or after.role != "tool")
    if parts[0].strip() or not len(steps):
        return entry.reject("a transcript that does not begin with a speaker, or has no assistant in it")
    ended = _has_ended(tuple(messages))
    trajectory = steps.trajectory((), terminated=ended)
    notes = ("a transcript: tool calls, tool definitions and the system prompt are not in the file",)
    return Trace(
        id=trace_id(NAME, trajectory),
        trajectory=trajectory,
        source=Source(NAME, str(entry.path), entry.line, "transcript"),
        completeness=Completeness(inputs="partial", tools=False, system_prompt=has_system(messages), notes=notes),
    )


def domain_of(messages: tuple[Message, ...], info: Mapping[str, Any]) -> str:
    """`airline`, `retail` and so on, by the policy's opening words, else by the names of the tools; else `tau-bench`."""
    opening = next((message.content_text for message in messages if message.role == "system"), "")[:200].lower()
    found = next((domain for words, domain in _OPENINGS.items() if words in opening), None)
    if found:
        return found
    wanted = facts.record(info.get("task")).get("actions")
    names = [str(facts.record(action).get("name")) for action in wanted] if isinstance(wanted, list) else []
    names += [call.name for message in messages for call in message.tool_calls]
    return next((domain for name in names for word, domain in _DOMAINS.items() if word in name), NAME)


def _has_ended(messages: tuple[Message, ...]) -> bool:
    """Whether the user stopped or the agent handed over: what ends a run before its limit of steps."""
    last = messages[-1]
    return _STOP in last.content_text or (last.role == "tool" and last.name == _TRANSFER)


CONNECTOR = TauBench()
