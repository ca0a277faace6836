"""Chat logs: whole runs as `messages` records, and single Chat Completions calls that are put back together into runs.

A record is one run: what counterplay's own recorder writes, and the usual fine-tuning sets (`messages`, or `prompt` and `completion`
as message lists, with `tools`). Calls come as one row with request and response (SDK wrappers, proxies, LiteLLM), as alternating
`type: request` / `type: response` rows, or as the two files of an OpenAI batch, joined by `custom_id`; streams are reassembled.
Calls of one explicit trace or session id are one trace; calls without one are joined where one continues the other exactly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item, trace_id
from counterplay.connectors.call_tree import CallTree
from counterplay.connectors.chat_rows import call_of, request_of, response_of
from counterplay.connectors.lines import Entry, entries, entries_of, leading_objects
from counterplay.connectors.normalise import ROLES, has_system, messages_of, tools_of
from counterplay.connectors.steps import StepList, prompt_length, tools_known
from counterplay.core.canonical import canonical
from counterplay.core.effects import Effect
from counterplay.core.nouns import Call, Completeness, Message, Outcome, Source, Trace, Trajectory
from counterplay.core.records import Rejected

NAME = "chatlog"


@dataclass(frozen=True)
class ChatLog:
    """The `chatlog` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  the protocol's shape
        rows = leading_objects(sample)
        known = sum(1 for row in rows if _kind(row))
        return 0.9 * known / len(rows) if known else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every run of a file. Raises SourceError where the file can't be read at all."""
        for item in _items(entries(path)):
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """Every run of several files, where a run may begin in one and go on in another."""
        for item in _items(entries_of(paths)):
            yield item


def _items(rows: Iterable[Entry | Rejected]) -> Iterator[Item]:
    tree, halves = CallTree(NAME), _Halves()
    for entry in rows:
        if isinstance(entry, Rejected):
            yield entry
            continue
        try:
            kind = _kind(entry.value)
            if kind == "record":
                yield _record(entry)
            elif kind == "call":
                tree.add(call_of(entry, request_of(entry.value) or {}, response_of(entry.value), [entry.value]))
            elif kind:
                for request, response in halves.add(kind, entry):
                    _add_joined(tree, request, response)
            else:
                yield entry.reject(_unknown(entry.value))
        except (ValueError, RecursionError) as error:
            yield entry.reject(str(error))
    yield from _leftover(tree, halves)
    yield from tree.items()


def _kind(row: Mapping[str, Any]) -> str:
    """`record`, `call`, one half of a call (`request`, `response`, `batch_request`, `batch_response`), or empty: not a chat log's."""
    if "custom_id" in row and "response" in row:
        return "batch_response"
    if "custom_id" in row and isinstance(facts.record(row.get("body")).get("messages"), list):
        return "batch_request"
    if row.get("type") == "response" and response_of(row) is not None:
        return "response"
    if row.get("type") == "request" and (request_of(row) is not None or _is_conversation(row.get("messages"))):
        return "request"
    if request_of(row) is not None:
        return "call"
    return "record" if _is_record(row) else ""


def _is_record(row: Mapping[str, Any]) -> bool:
    if isinstance(row.get("messages"), list):
        return _is_conversation(row["messages"])
    return _is_conversation(row.get("prompt")) and isinstance(row.get("completion"), list)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in (*ROLES, "function")


def _unknown(row: Mapping[str, Any]) -> str:
    messages = row.get("messages")
    if isinstance(messages, list):
        roles = sorted({str(facts.record(message).get("role")) for message in messages})
        return f"messages with the roles {', '.join(roles)[:200] or '(none)'}, wanted {', '.join(ROLES)}"
    return f"neither a run (messages) nor a model call (request, response); its fields: {', '.join(list(row)[:10])[:200] or '(none)'}"


class _Halves:
    """Requests that wait for their responses, and batch responses that wait for their requests."""

    def __init__(self) -> None:
        self.requests: dict[str, Entry] = {}
        self.responses: dict[str, Entry] = {}
        self._last: str | None = None
        self._count = 0

    def add(self, kind: str, entry: Entry) -> Iterator[tuple[Entry, Entry | None]]:
        """The calls that this half completes: usually one or none. Without ids a response answers the latest request."""
        row = entry.value
        self._count += 1
        own = row.get("custom_id") if kind.startswith("batch") else row.get("request_id")
        key = f"{kind.startswith('batch')} {own}" if own is not None else f"# {self._count}"
        if kind.endswith("request"):
            if key in self.requests:
                yield self.requests.pop(key), None
            self.requests[key], self._last = entry, key
        else:
            key = key if own is not None else str(self._last)
            if key in self.responses:
                yield entry, None
                return
            self.responses[key] = entry
        if key in self.requests and key in self.responses:
            yield self.requests.pop(key), self.responses.pop(key)


def _add_joined(tree: CallTree, request: Entry, response: Entry | None) -> None:
    rows = [request.value, response.value] if response else [request.value]
    asked = request_of(request.value) or request.value
    tree.add(call_of(request, asked, response_of(response.value) if response else None, reversed(rows)))


def _leftover(tree: CallTree, halves: _Halves) -> Iterator[Rejected]:
    for request in halves.requests.values():
        try:
            _add_joined(tree, request, None)
        except (ValueError, RecursionError) as error:
            yield request.reject(str(error))
    for response in halves.responses.values():
        yield response.reject("a response without its request")


def _record(entry: Entry) -> Trace:
    """The run that one `messages` record is. Raises ValueError where it can't be read or holds no answer."""
    row = entry.value
    metadata = facts.record(row.get("metadata"))
    effects, notes = _effects(metadata)
    raw = row["messages"] if isinstance(row.get("messages"), list) else [*row["prompt"], *row["completion"]]
    messages = messages_of(raw)
    start = _start(row, messages)
    steps = StepList(messages[:start])
    unsampled = metadata.get("unsampled_steps")
    for message, fields in zip(messages[start:], raw[start:], strict=True):
        put_in = isinstance(unsampled, list) and len(steps) in unsampled
        steps.extend([message], sampled=fields.get("weight") != 0 and not put_in)
    outcome = facts.outcome_of(facts.record(row.get("outcome"))) or facts.outcome_of({**metadata, "source": "unknown"})
    tools = tools_of(row.get("tools") or row.get("functions"), effects)
    ended, cut = _ended(row, messages), row.get("truncated") is True
    trajectory = steps.trajectory(tools, outcome, terminated=ended, truncated=cut, error=facts.word(metadata.get("error")))
    if not trajectory.steps:
        msg = "a run without an assistant message after its prompt"
        raise ValueError(msg)
    own_id = facts.word(row.get("id"))
    task = facts.first_word(("task", "task_id"), (row, metadata))
    calls = _calls(row.get("calls"), trajectory)
    return Trace(
        id=trace_id(NAME, trajectory, own_id, task, canonical([outcome.reward, outcome.success]) if outcome else None),
        trajectory=trajectory,
        source=Source(NAME, str(entry.path), entry.line, "messages"),
        task=task,
        session=facts.first_word(("session", "session_id", "conversation_id", "thread_id"), (row, metadata)),
        agent=facts.first_word(("agent", "agent_name"), (row, metadata)),
        outcome=outcome or Outcome(),
        calls=calls,
        tags=tuple(filter(None, map(facts.word, row["tags"]))) if isinstance(row.get("tags"), list) else (),
        metadata={**metadata, **({"id": own_id} if own_id else {})},
        completeness=Completeness(tools=tools_known(trajectory), system_prompt=has_system(trajectory.prompt), notes=notes),
        started_at_us=min((call.started_at_us for call in calls if call.started_at_us is not None), default=None),
    )


def _start(row: Mapping[str, Any], messages: Sequence[Message]) -> int:
    """How many messages are the prompt: what the record says, else all before the first action."""
    said = row.get("prompt_messages")
    if isinstance(said, int) and not isinstance(said, bool) and 0 <= said <= len(messages):
        return said
    return prompt_length(messages) if isinstance(row.get("messages"), list) else len(row["prompt"])


def _ended(row: Mapping[str, Any], messages: Sequence[Message]) -> bool:
    """What the record says; a run that says nothing has ended where its last message is an answer that calls no tool."""
    if isinstance(row.get("terminated"), bool):
        return bool(row["terminated"])
    return row.get("truncated") is not True and bool(messages) and messages[-1].role == "assistant" and not messages[-1].tool_calls


def _effects(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Declared effects by tool, and a note for each that can't be read: such a tool stays external, the safe reading."""
    effects, notes = {}, []
    for tool, text in facts.record(metadata.get("effects")).items():
        try:
            Effect.parse(str(text))
            effects[tool] = text
        except ValueError as error:
            notes.append(f"tool {tool}: {error}")
    return effects, tuple(notes)


def _calls(values: Any, trajectory: Trajectory) -> tuple[Call, ...]:
    """What the record says about its calls: one a step, or one for each step that a model wrote. Calls beyond them are not kept."""
    rows = [facts.record(value) for value in values] if isinstance(values, list) else []
    sampled = [index for index, step in enumerate(trajectory.steps) if step.sampled]
    steps: Sequence[int] = range(len(trajectory)) if len(rows) == len(trajectory) else sampled
    return tuple(
        Call(
            step=step,
            model=facts.word(row.get("model")),
            params=facts.record(row.get("params")),
            usage=facts.usage_of(row.get("usage"), facts.record(row.get("usage")).get("cost_usd", row.get("cost_usd"))),
            latency_s=facts.number(row.get("latency_s")),
            started_at_us=facts.count(row.get("started_at_us")) or None,
            finish_reason=facts.word(row.get("finish_reason")),
            response_id=facts.word(row.get("response_id")),
        )
        for step, row in zip(steps, rows, strict=False)
        if trajectory.steps[step].sampled
    )


CONNECTOR = ChatLog()
