"""Steps of a context: the answer of each call, and what its successor was sent after it or the tools' own spans say came of it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence

from counterplay.connectors.normalise import role_of
from counterplay.connectors.spans.context import Context
from counterplay.connectors.spans.readings import LengthLimit, Slot, SpanTree, ToolRun, sizes_of
from counterplay.connectors.spans.stitch import LlmCall
from counterplay.core.nouns import Message, ToolCall


class _Waiting:
    """Tools that ran, of which each may be claimed once: the places of some in the order of all."""

    def __init__(self, runs: Sequence[ToolRun], places: Sequence[int]) -> None:
        self._runs, self._places = runs, places
        self._starts = [runs[place].start_ns or 0 for place in places]
        self._next = list(range(len(places) + 1))

    def first(self, start: int) -> tuple[bool, int] | None:
        """The first left from `start` on, else of all: whether it began so late, and its place (negative: earlier is more)."""
        for late in (True, False):
            i = self._unclaimed(bisect_left(self._starts, start) if late else 0)
            if i < len(self._places):
                return late, -self._places[i]
        return None

    def _unclaimed(self, i: int) -> int:
        """The first from `i` on that is not claimed. Those passed over are not looked at again."""
        passed = []
        while i < len(self._places) and (self._next[i] != i or self._runs[self._places[i]].claimed_by):
            passed.append(i)
            i = self._next[i] if self._next[i] != i else i + 1
        for each in passed:
            self._next[each] = i
        return i


class ToolRuns:
    """The tools of a trace that ran, in order of time, found by what a call asked for."""

    def __init__(self, runs: Sequence[ToolRun]) -> None:
        self._runs = sorted(runs, key=lambda run: run.start_ns or 0)
        self._starts = [run.start_ns or 0 for run in self._runs]
        places: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
        for place, run in enumerate(self._runs):
            signature = run.signature
            places[run.name, signature].append(place)
            if run.call_id is not None:
                places[run.name, signature, run.call_id].append(place)
        self._waiting = {key: _Waiting(self._runs, found) for key, found in places.items()}

    def between(self, start: int, until: int | None) -> Sequence[ToolRun]:
        """Those that began at `start` or later, and before `until` (None: whenever)."""
        return self._runs[bisect_left(self._starts, start) : None if until is None else bisect_left(self._starts, until)]

    def of(self, asked: ToolCall, start: int) -> ToolRun | None:
        """The first tool span not yet taken that fits best: ids are not unique in a trace, so name and arguments must not differ.

        The same id counts more than to have begun at `start` or later. Unknown arguments may be any.
        """
        for same in ((asked.id,), ()) if self._runs else ():
            waiting = (self._waiting.get((asked.name, signature, *same)) for signature in (asked.signature, None))
            found = [best for each in waiting if each is not None and (best := each.first(start)) is not None]
            if found:
                return self._runs[-max(found)[1]]
        return None


def tool_runs(tree: SpanTree, limit: LengthLimit) -> ToolRuns:
    """What the spans of tools say."""
    runs = []
    for node in tree.nodes.values():
        run = node.reading.tool
        if run is not None:
            run.span_id, run.scope, run.start_ns = node.span.span_id, node.scope, node.span.start_ns
            run.cut |= run.result is not None and limit.cut(sizes_of(run.result))
            runs.append(run)
    return ToolRuns(runs)


def assemble(context: Context, runs: ToolRuns, notes: Counter[str]) -> None:
    """Steps from calls: the answer of each, and what its successor was sent after it."""
    for i, call in enumerate(context.calls):
        following = context.calls[i + 1 : i + 2] or ([context.after.first] if context.after is not None else [])
        successor = following[0] if following else None
        later = [slot.message for slot in _between(context, call, successor)]
        action, sampled = _action(call, successor, runs, notes)
        context.places[id(call)] = context.steps.act(action, sampled=sampled)
        first = next((k for k, message in enumerate(later) if role_of(message) == "assistant"), len(later))
        proven = successor is not None and successor.coverage in ("full", "stitched") and call.count is not None
        proven |= successor is None and "end" in call.reading.context
        observations = _with_results(action, later[:first], call, runs, proven=proven)
        context.steps.extend([*observations, *later[first:]], sampled=False)


def _between(context: Context, call: LlmCall, successor: LlmCall | None) -> list[Slot]:
    """What came after an answer, as far as the next call's input tells."""
    if successor is None:
        return call.reading.after
    if call.count is not None and successor.count is not None:
        return [context.messages[i] for i in range(call.count + 1, successor.count) if i in context.messages]
    answers = [i for i, slot in successor.slots.items() if slot.role == "assistant"]
    return [slot for i, slot in sorted(successor.slots.items()) if answers and i > max(answers)]


def _action(call: LlmCall, successor: LlmCall | None, runs: ToolRuns, notes: Counter[str]) -> tuple[Message, bool]:
    """The answer and whether the model wrote it just so. An unknown one is rebuilt, as far as it goes, from the tools that ran."""
    if call.output is not None:
        if call.edited:
            notes["answers that the context goes on with in another form"] += 1
        return call.output.message, call.output.whole and not call.edited and call.reading.context.get("sampled") is not False
    if call.failed:
        return Message.assistant(), False
    until = successor.start if successor is not None else None
    ran = [run for run in runs.between(call.start, until) if run.start_ns is not None and not run.claimed_by and run.scope == call.scope]
    notes["answers that are not held"] += 1
    if ran:
        notes["answers whose tool calls are rebuilt from the tools that ran"] += 1
    asked = [ToolCall(run.call_id or run.span_id, run.name, run.arguments or "") for run in ran]
    return Message.assistant(None, asked), False


def _with_results(action: Message, known: Sequence[Message], call: LlmCall, runs: ToolRuns, *, proven: bool) -> list[Message]:
    """What followed an action. Results that the next prompt is not known to lack are taken from the tools' own spans."""
    results = [message for message in known if role_of(message) == "tool"]
    complete = proven or len(results) >= len(action.tool_calls)
    found: list[Message] = []
    for asked in action.tool_calls:
        mine = next((message for message in results if message.tool_call_id == asked.id), None)
        run = runs.of(asked, call.start)
        if run is not None:
            run.claimed_by = call.node.span.span_id
        if mine is not None:
            results.remove(mine)
            found.append(mine)
        elif not complete and run is not None and run.result is not None:
            call.reading.truncated |= run.cut
            found.append(Message.tool(run.result, asked.id, asked.name))
    if complete:
        return list(known)
    return [*found, *results, *(message for message in known if role_of(message) != "tool")]
