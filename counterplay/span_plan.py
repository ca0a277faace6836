"""A trace as the spans that tracing tools know: an agent with its model calls and tools below it, whichever format they are written in.

Ids follow from the trace alone, so that the same trace gives the same spans. Times are as logged; where none was, they only keep the order,
and `timed` is False.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Call, Message, ToolCall, Trace, Trajectory

_TICK_NS = 1000
_EPOCH_NS = 946_684_800 * 10**9  # 2000-01-01: no tool takes a span that began in 1970 for one that began


@dataclass(frozen=True)
class Planned:
    """One span. `context` is the trajectory (0 is the main one) and `step` the step it belongs to; an agent span has no step.

    A model call has its `inputs`, the whole prompt, and what came `after` it where no further call of the context was sent it; a tool has
    its `tool` call and `result`.
    """

    id: str
    parent: str | None
    kind: Literal["agent", "llm", "tool"]
    name: str
    start_ns: int
    end_ns: int
    timed: bool
    context: int
    step: int | None = None
    call: Call | None = None
    inputs: tuple[Message, ...] = ()
    after: tuple[Message, ...] = ()
    tool: ToolCall | None = None
    result: Message | None = None


def planned(trace: Trace, *, first: int = 0) -> list[Planned]:
    """The spans of a trace, each behind its parent, the root first. Steps of the main trajectory before `first` are only in the prompts."""
    return _Plan(trace, first).spans()


def span_id(trace: Trace, context: int, step: int | None = None, tool: int | None = None) -> str:
    """The id of an agent's span, of the span of a model call, or of one of its tools: 16 hex digits."""
    return content_key("span", trace.id, *map(str, (context, step, tool)))[:16]


def trace_id(trace: Trace) -> str:
    """32 hex digits: those of the source where it came by OTLP, else made of the trace's id."""
    known = trace.metadata.get("trace_id")
    taken = trace.source.format == "otlp" and isinstance(known, str) and len(known) == 32 and set(known) <= set("0123456789abcdef")
    return str(known) if taken and str(known).strip("0") else content_key("trace", trace.id)


class _Plan:
    def __init__(self, trace: Trace, first: int) -> None:
        self.trace, self.first = trace, first
        self.contexts = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
        self.calls: dict[tuple[int, int], Call] = {(call.trajectory, call.step): call for call in trace.calls}
        starts = [call.started_at_us for call in trace.calls if call.started_at_us is not None]
        began = trace.started_at_us if trace.started_at_us is not None else min(starts, default=None)
        self.began_ns = _EPOCH_NS if began is None else max(1, began * 1000)
        self.made: list[Planned] = []

    def spans(self) -> list[Planned]:
        root = self._agent(0, None, self.began_ns)
        self.made.append(root)
        self._context(0, root.id, self.began_ns)
        owners, below = {0: root.id}, self._waiting()
        for context in below:
            sub = self.trace.sub_trajectories[context - 1]
            parent, start = self._started_by(sub.parent_step)
            if sub.continues is not None and sub.continues in owners:
                owners[context] = owners[sub.continues]
                start = max(span.end_ns for span in self.made if span.context == sub.continues) + _TICK_NS
            else:
                agent = self._agent(context, parent, start)
                self.made.append(agent)
                owners[context] = agent.id
            self._context(context, owners[context], start)
        return self._closed()

    def _waiting(self) -> list[int]:
        """Sub-trajectories, those that go on from another behind it."""
        left, ordered = list(range(1, len(self.contexts))), [0]
        while left:
            ready = [i for i in left if self.trace.sub_trajectories[i - 1].continues in (None, *ordered)] or left[:1]
            ordered += ready
            left = [i for i in left if i not in ready]
        return ordered[1:]

    def _agent(self, context: int, parent: str | None, start: int) -> Planned:
        name = (self.trace.sub_trajectories[context - 1].agent if context else self.trace.agent) or ""
        return Planned(span_id(self.trace, context), parent, "agent", name, start, start, False, context)

    def _started_by(self, step: int | None) -> tuple[str, int]:
        """The span under which a sub-agent ran, and a time at which it can have begun: the first tool of its step, else the main agent."""
        root = self.made[0]
        mine = [span for span in self.made if span.context == 0 and span.step == step and step is not None]
        tool = next((span for span in mine if span.kind == "tool"), None)
        if tool is not None:
            return tool.id, tool.start_ns
        return root.id, mine[0].end_ns if mine else self.began_ns

    def _context(self, context: int, owner: str, now: int) -> None:
        trajectory = self.contexts[context]
        sent: list[Message] = list(trajectory.prompt)
        asked = [i for i, step in enumerate(trajectory.steps) if step.sampled or (context, i) in self.calls]
        for number, step in enumerate(trajectory.steps):
            if number in asked and (context or number >= self.first):
                call = self.calls.get((context, number))
                start, end, timed = self._times(call, now)
                after = (*step.observations, *_rest(trajectory, number)) if number == asked[-1] else ()
                name = (call.model if call else None) or "model call"
                own = span_id(self.trace, context, number)
                self.made.append(Planned(own, owner, "llm", name, start, end, timed, context, number, call, tuple(sent), after))
                now = end + _TICK_NS
                for span in self._tools(context, number, owner, now):
                    self.made.append(span)
                    now = span.end_ns + _TICK_NS
            sent += step.messages

    def _times(self, call: Call | None, now: int) -> tuple[int, int, bool]:
        known = call.started_at_us if call is not None else None
        start = now if known is None else max(1, known * 1000)
        took = call.latency_s if call is not None else None
        return start, start + (_TICK_NS if took is None or took < 0 else round(took * 1e9)), known is not None

    def _tools(self, context: int, number: int, owner: str, now: int) -> Iterator[Planned]:
        step = self.contexts[context].steps[number]
        results = [message for message in step.observations if message.role == "tool"]
        for place, asked in enumerate(step.action.tool_calls):
            result = next((message for message in results if message.tool_call_id == asked.id), None)
            if result is not None:
                results.remove(result)
                own = span_id(self.trace, context, number, place)
                yield Planned(own, owner, "tool", asked.name, now, now + _TICK_NS, False, context, number, tool=asked, result=result)
                now += 2 * _TICK_NS

    def _closed(self) -> list[Planned]:
        """Agents and tools end when all below them has."""
        from dataclasses import replace

        ends: dict[str | None, int] = {}
        for span in reversed(self.made):
            end = max(span.end_ns, ends.get(span.id, 0))
            ends[span.id] = end
            ends[span.parent] = max(end, ends.get(span.parent, 0))
        known: Mapping[str | None, int] = ends
        whole = self.trace.ended_at_us
        made = [replace(span, end_ns=known[span.id]) if span.kind != "llm" else span for span in self.made]
        if whole is not None:
            made[0] = replace(made[0], end_ns=max(made[0].end_ns, whole * 1000))
        return made


def _rest(trajectory: Trajectory, number: int) -> tuple[Message, ...]:
    return tuple(message for step in trajectory.steps[number + 1 :] for message in step.messages)
