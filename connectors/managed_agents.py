"""Sessions of Claude Managed Agents: the events of the API, one a line or in a list, with the session object where it is logged.

A model call is what lies between two `span.model_request` events. The service adds instructions and tools of its own that no event
shows, so prompts are known in part only; after a compaction a new context goes on. The pairs `[method, payload]` that client
recorders write are read as well; what the client sent comes back as an event and counts once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item, source_trace_id, trace_id
from counterplay.connectors.lines import Line, entries, is_document, leading_objects, lines, parse_json, sample_of
from counterplay.connectors.messages import anthropic
from counterplay.connectors.steps import StepList, tools_known
from counterplay.core.canonical import dumps
from counterplay.core.nouns import Call, Completeness, LoggedScore, Message, Outcome, Source, SubTrajectory, ToolSpec, Trace
from counterplay.core.records import Rejected

NAME = "managed-agents"
_DOMAINS = ("user.", "agent.", "session.", "span.", "system.")
_USES = ("agent.tool_use", "agent.custom_tool_use", "agent.mcp_tool_use")
_RESULT_OF = {
    "agent.tool_result": "tool_use_id", "agent.mcp_tool_result": "mcp_tool_use_id",
    "user.tool_result": "tool_use_id", "user.custom_tool_result": "custom_tool_use_id",
}  # fmt: skip
_SENT = "client.beta.sessions.events.send"
_NOTES = (
    "the service's own instructions and tools are not in the events",
    "contexts that were compacted go on from a summary that is not in the events",
)


@dataclass(frozen=True)
class ManagedAgents:
    """The `managed-agents` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  the protocol's shape
        first = [_parsed(line) for line in sample.splitlines()[:20] if line.strip()]
        values = [value for value in first if value is not None] or leading_objects(sample)
        known = sum(1 for value in values if _payloads(value) or _is_sending(value))
        return 0.95 * known / len(values) if known else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every session of a file. Raises SourceError where it can't be read at all."""
        for item in _items(path):
            yield item


@dataclass
class _Context:
    """One thread's context under construction."""

    agent: str
    steps: StepList
    continues: int | None = None
    parent_step: int | None = None
    blocks: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    started_us: int | None = None
    in_request: bool = False

    def say(self, blocks: list[dict[str, Any]]) -> None:
        """Add to what the model has said. Raises ValueError where it can't be read."""
        anthropic.answer_of(blocks)
        self.blocks += blocks


def _items(path: Path) -> Iterator[Item]:
    session: _Session | None = None
    for value, line, reject in _values(path):
        try:
            payloads = _payloads(value)
            if not payloads and not _is_sending(value):
                yield reject("no event of a managed agent's session")
            for payload in payloads:
                if session is None or session.is_another(payload):
                    yield from session.items() if session else ()
                    session = _Session(path, line)
                session.take(payload)
        except (ValueError, RecursionError) as error:
            yield reject(str(error))
    if session:
        yield from session.items()


def _values(path: Path) -> Iterator[tuple[Any, int | None, Callable[[str], Rejected]]]:
    """The JSON values of a file, of any kind, with their lines and what rejects them; one that is no JSON comes as text."""
    if _parsed(sample_of(path).lstrip().partition(b"\n")[0]) is None and is_document(path):
        for entry in entries(path):
            if isinstance(entry, Rejected):
                yield entry.reason, None, partial(_again, entry)
            else:
                yield entry.value, None, entry.reject
        return
    for line in lines(path):
        if isinstance(line, Rejected):
            yield line.reason, line.line, partial(_again, line)
            continue
        reject = partial(_reject, path, line)
        try:
            yield parse_json(line.data), line.number, reject
        except ValueError as error:
            yield None, line.number, partial(_again, reject(str(error)))


class _Session:
    def __init__(self, path: Path, line: int | None) -> None:
        self._path, self._line = path, line
        self._about: dict[str, Any] = {}
        self._seen: dict[str, None] = {}
        self._threads: dict[str | None, list[int]] = {}
        self._contexts: list[_Context] = []
        self._scores: list[LoggedScore] = []
        self._outcome: Outcome | None = None
        self._ended, self._error, self._compacted = False, "", False

    def is_another(self, payload: Mapping[str, Any]) -> bool:
        """Whether a payload is the object of another session."""
        return _is_session(payload) and bool(self._about) and payload.get("id") != self._about.get("id")

    def take(self, event: Mapping[str, Any]) -> None:
        """Raises ValueError where an event can't be read."""
        if _is_session(event):
            self._about = dict(event)
            return
        own = facts.word(event.get("id"))
        if own in self._seen:
            return
        kind = str(event["type"])
        if kind.startswith(("session.", "span.outcome")):
            self._state(kind, event)
        else:
            self._event(kind, event)
        if own:
            self._seen[own] = None

    def items(self) -> Iterator[Item]:
        """The session's trace; a Rejected where no model answered in it."""
        for context in self._contexts:
            self._close(context, {}, None)
        order = [i for i, context in enumerate(self._contexts) if len(context.steps)]
        if not order:
            yield Rejected(str(self._path), "a session in which no model answered", self._line)
            return
        tools, complete = _tools(facts.record(self._about.get("agent")))
        contexts = [self._contexts[i] for i in order]
        last = _main_end(contexts, order)
        trajectories = [
            context.steps.trajectory(
                tools,
                self._outcome if i == last else None,
                terminated=i == last and self._ended and not self._error,
                error=self._error or None if i == last else None,
            )
            for i, context in enumerate(contexts)
        ]
        source_id = facts.word(self._about.get("id")) or next(iter(self._seen), None)
        known = Completeness(inputs="partial", tools=complete and all(map(tools_known, trajectories)), system_prompt=False)
        calls = [(index, call) for index, context in enumerate(contexts) for call in context.calls]
        starts = [call.started_at_us for _, call in calls if call.started_at_us is not None]
        yield Trace(
            source_trace_id(NAME, source_id) if source_id else trace_id(NAME, trajectories[0]),
            trajectories[0],
            Source(NAME, str(self._path), self._line),
            tuple(
                SubTrajectory(trajectory, context.agent, context.parent_step, _place(context.continues, order))
                for trajectory, context in zip(trajectories[1:], contexts[1:], strict=True)
            ),
            session=facts.word(self._about.get("id")),
            agent=contexts[0].agent or None,
            outcome=self._outcome or Outcome(),
            calls=tuple(_placed(call, index, known) for index, call in calls),
            scores=tuple(self._scores),
            metadata=facts.record(self._about.get("metadata")),
            completeness=Completeness("partial", known.tools, False, notes=_NOTES[: 1 + self._compacted]),
            started_at_us=min(starts, default=None),
        )

    def _event(self, kind: str, event: Mapping[str, Any]) -> None:
        context = self._context(event)
        if kind == "span.model_request_start":
            self._close(context, {}, None)
            context.in_request, context.started_us = True, facts.time_us(event.get("processed_at"))
        elif kind == "span.model_request_end":
            self._close(context, facts.record(event.get("model_usage")), event)
        elif kind == "agent.thread_context_compacted":
            self._compact(event)
        elif kind == "agent.thinking":
            context.blocks.append({"type": "thinking", "thinking": _text(event.get("content"))})
        elif kind == "agent.message":
            context.say(_said(event.get("content")))
        elif kind in _USES:
            context.say([{"type": "tool_use", "id": event.get("id"), "name": event.get("name"), "input": event.get("input")}])
        elif kind in _RESULT_OF:
            result = {"type": "tool_result", "tool_use_id": event.get(_RESULT_OF[kind]), "content": event.get("content")}
            self._given(context, {**result, "is_error": event.get("is_error")})
        elif kind in ("user.message", "agent.thread_message_received", "user.define_outcome"):
            content = event.get("content") if event.get("content") is not None else event.get("description")
            self._given(context, *_blocks(content))
        elif kind == "system.message":
            context.steps.extend(anthropic.messages_of(event.get("content"), []), sampled=False)
        elif event.get("content"):
            msg = f"an event of the unknown type {kind!r} that has content"
            raise ValueError(msg)

    def _state(self, kind: str, event: Mapping[str, Any]) -> None:
        reason = facts.record(event.get("stop_reason")).get("type")
        if kind == "session.status_idle":
            self._ended = reason == "end_turn"
        elif kind == "session.status_running":
            self._ended, self._error = False, ""
        elif kind in ("session.error", "session.status_terminated"):
            error = facts.record(event.get("error"))
            self._error = str(error.get("message") or error.get("type") or self._error or "the session was terminated")[:1000]
        elif kind == "span.outcome_evaluation_end":
            result = facts.word(event.get("result")) or "unknown"
            self._scores.append(LoggedScore("outcome", result, source="judge", comment=str(event.get("explanation") or "")))
            self._outcome = Outcome(None, result == "satisfied", "judge", {"result": result})

    def _given(self, context: _Context, *blocks: Any) -> None:
        if not context.in_request:
            self._close(context, {}, None)
        context.steps.extend(anthropic.messages_of(None, [{"role": "user", "content": list(blocks)}]), sampled=False)

    def _close(self, context: _Context, usage: Mapping[str, Any], end: Mapping[str, Any] | None) -> None:
        """Make a step of what the model has said since the last one."""
        blocks, started = context.blocks, context.started_us
        context.blocks, context.started_us, context.in_request = [], None, False
        if not blocks:
            return
        step = context.steps.act(anthropic.answer_of(blocks))
        over = facts.time_us(end.get("processed_at")) if end else None
        uses = any(block["type"] == "tool_use" for block in blocks if "type" in block)
        agent = facts.record(self._about.get("agent"))
        context.calls.append(
            Call(
                step,
                model=facts.word(facts.record(agent.get("model")).get("id") or agent.get("model")),
                usage=anthropic.usage_of(usage),
                latency_s=(over - started) / 1e6 if over is not None and started is not None and over >= started else None,
                started_at_us=started,
                finish_reason=None if end is None else "tool_calls" if uses else "stop",
                provider="anthropic",
            )
        )

    def _context(self, event: Mapping[str, Any]) -> _Context:
        thread = facts.word(event.get("session_thread_id"))
        if thread not in self._threads:
            self._open(thread, facts.word(event.get("agent_name")) or facts.word(facts.record(self._about.get("agent")).get("name")) or "")
        return self._contexts[self._threads[thread][-1]]

    def _open(self, thread: str | None, agent: str, continues: int | None = None) -> None:
        system = facts.record(self._about.get("agent")).get("system")
        prompt = [Message.system(system)] if isinstance(system, str) and system and thread is None else []
        main = self._contexts[0].steps if self._contexts else ()
        parent = len(main) - 1 if len(main) and continues is None else None
        self._threads.setdefault(thread, []).append(len(self._contexts))
        self._contexts.append(_Context(agent, StepList(prompt), continues, parent))

    def _compact(self, event: Mapping[str, Any]) -> None:
        thread, before = facts.word(event.get("session_thread_id")), self._context(event)
        self._close(before, {}, None)
        self._compacted = True
        self._open(thread, before.agent, self._threads[thread][-1])


def _blocks(content: Any) -> list[Any]:
    """Blocks of a content that may be bare text or missing."""
    return content if isinstance(content, list) else [] if content is None else [content]


def _said(content: Any) -> list[dict[str, Any]]:
    """The blocks of a message. Raises ValueError where it has no content."""
    if not content:
        msg = "an agent.message without content"
        raise ValueError(msg)
    return [
        dict(block) if isinstance(block, dict) else {"type": "text", "text": block if isinstance(block, str) else dumps(block)}
        for block in _blocks(content)
    ]


def _main_end(contexts: list[_Context], order: list[int]) -> int:
    """The context in which the main line ends: the last that continues it."""
    line = [0]
    for index, context in enumerate(contexts):
        if _place(context.continues, order) in line:
            line.append(index)
    return line[-1]


def _place(context: int | None, order: list[int]) -> int | None:
    return order.index(context) if context in order else None


def _placed(call: Call, index: int, known: Completeness) -> Call:
    return Call(
        call.step, index, call.model, call.params, call.usage, call.latency_s, call.started_at_us, call.finish_reason,
        provider=call.provider, completeness=known,
    )  # fmt: skip


def _tools(agent: Mapping[str, Any]) -> tuple[tuple[ToolSpec, ...], bool]:
    """The tools whose definitions the agent holds, and whether those are all: of built-in tool sets only the name is known."""
    tools = [facts.record(tool) for tool in _list(agent.get("tools"))]
    own = [tool for tool in tools if tool.get("type") == "custom" and isinstance(tool.get("input_schema"), dict)]
    bare = [{key: tool.get(key) for key in ("name", "description", "input_schema")} for tool in own]
    return anthropic.tools_of(bare), len(own) == len(tools) and bool(agent)


def _payloads(value: Any) -> list[dict[str, Any]]:
    """The events in a line: itself, those of a list, or the payload of a recorded client call."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return _payloads(value[1]) if value[0].startswith("client.beta.sessions.") else []
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    found = value if isinstance(value, list) else [value]
    return found if all(_is_event(one) or _is_session(one) for one in found) else []


def _is_sending(value: Any) -> bool:
    """A recorded call that sends events, which come back with ids."""
    return isinstance(value, list) and value[:1] == [_SENT]


def _is_event(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"].startswith(_DOMAINS) and "id" in value


def _is_session(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "session" and isinstance(value.get("agent"), dict)


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(str(facts.record(part).get("text") or "") for part in _list(content))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _again(rejected: Rejected, reason: str) -> Rejected:  # noqa: ARG001  a caller's general reason; the row has its own
    return rejected


def _reject(path: Path, line: Line, reason: str) -> Rejected:
    return Rejected(str(path), reason, line.number, line.offset, line.data[:400].decode(errors="replace"))


CONNECTOR = ManagedAgents()
