"""From the spans of one trace id to one `Trace`: contexts become trajectories, and what is not known is said.

Every model call of the trace is a step, a retry named in `metadata["retries"]`, or the double of a call named in the notes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from counterplay.connectors.base import source_trace_id
from counterplay.connectors.spans.assemble import assemble, tool_runs
from counterplay.connectors.spans.context import Context, learn
from counterplay.connectors.spans.lineage import Lineage, not_started
from counterplay.connectors.spans.provenance import calls_of, completeness_of, retry_of, scores_of, times_of
from counterplay.connectors.spans.readings import LengthLimit, Reading, Slot, SpanTree
from counterplay.connectors.spans.run_facts import RunFacts
from counterplay.connectors.spans.span import Span
from counterplay.connectors.spans.stitch import LlmCall, contexts, link, stitch
from counterplay.core.nouns import Outcome, Source, SubTrajectory, ToolSpec, Trace, Trajectory


def build(
    source_id: str,
    members: Sequence[tuple[Span, Reading]],
    source: Source,
    facts: RunFacts,
    limit: LengthLimit | None = None,
) -> Trace | str:
    """The trace of these spans; where it holds no model call that can be read, the reason.

    Its id follows from the format and `source_id` alone, so that a trace may grow from one export to the next. `limit` is what the
    producer's length limit was found to be, None where the source knows none.
    """
    limit = limit or LengthLimit()
    tree = SpanTree(members)
    notes: Counter[str] = Counter()
    calls = _calls(tree, limit, notes)
    if not calls:
        names = ", ".join(sorted({span.name for span, _ in members})[:5])
        return f"trace {source_id} holds no model call in a known dialect ({len(members)} spans: {names})"
    _know_tools(calls)
    ordered = _declared(calls) or _ordered(_found(calls), tree)
    main = ordered[0]
    runs = tool_runs(tree, limit)
    for context in ordered:
        assemble(context, runs, notes)
    last, lineage = main.line[-1], Lineage(ordered)
    trajectories = [_trajectory(context, tree, facts.outcome, main=context is last) for context in ordered]
    retries = [retry_of(call, ordered) for call in calls if call.retried_by is not None]
    provenance = tuple(calls_of(ordered, trajectories))
    counted = [f"{count} {text}" if count else text for text, count in notes.items()]
    metadata = {**facts.metadata, "trace_id": source_id, **({"retries": retries} if retries else {})}
    return Trace(
        source_trace_id(source.format, source_id),
        trajectories[0],
        source,
        tuple(_sub(context, main, lineage, trajectories[i], tree) for i, context in enumerate(ordered) if i),
        facts.task,
        facts.session,
        facts.agent,
        facts.outcome,
        provenance,
        tuple(scores_of(facts.scores, ordered, tree)),
        facts.tags,
        metadata,
        completeness_of(provenance, ordered, tree, (*counted, *facts.notes)),
        *times_of(tree),
    )


def _found(calls: Sequence[LlmCall]) -> list[Context]:
    """The contexts that the calls are of, as their content tells."""
    stitch(calls)
    link(calls)
    return [Context.of(branch) for branch in contexts(calls)]


def _declared(calls: Sequence[LlmCall]) -> list[Context]:
    """The contexts in their order where every call names its trajectory, as those do that counterplay exported; else none."""
    by_trajectory: dict[int, list[LlmCall]] = defaultdict(list)
    for call in calls:
        named = call.reading.context.get("trajectory")
        if not isinstance(named, int):
            return []
        by_trajectory[named].append(call)
    return [context for number in sorted(by_trajectory) for context in sorted(_found(by_trajectory[number]), key=lambda one: one.start)]


def _calls(tree: SpanTree, limit: LengthLimit, notes: Counter[str]) -> list[LlmCall]:
    """The model calls in order of time, each once."""
    skipped = _doubles(tree, notes)
    nodes = [node for node in tree.nodes.values() if node.reading.kind == "llm" and node.span.span_id not in skipped]
    nodes.sort(key=lambda node: (node.span.start_ns or 0, node.reading.count or 0))
    calls = []
    for node in nodes:
        reading = node.reading
        slots = {i: _checked(slot, limit, reading) for i, slot in reading.slots.items()} if limit.found else dict(reading.slots)
        outputs = [_checked(slot, limit, reading) for slot in reading.outputs if slot.role == "assistant"]
        if len(outputs) > 1:
            notes["calls with several answers, of which the first is taken"] += 1
        calls.append(LlmCall(node, slots, reading.count, outputs[0] if outputs else None))
    return calls


def _know_tools(calls: Sequence[LlmCall]) -> None:
    """A span that lost nothing and names no tools was sent none, if its dialect names the tools of other calls."""
    telling = {call.reading.dialect for call in calls if call.reading.tools is not None and call.reading.tools_whole}
    for call in calls:
        reading = call.reading
        if reading.tools is not None and reading.tools_whole:
            call.tools = reading.tools
        elif reading.tools is None and reading.dialect in telling and _says_all(call):
            call.tools = ()


def _says_all(call: LlmCall) -> bool:
    return call.whole and bool(call.count) and not call.node.span.dropped and not call.reading.redacted and not call.reading.truncated


def _ordered(built: Sequence[Context], tree: SpanTree) -> list[Context]:
    """The main context first, the others by time, each followed by those that go on from it."""
    ends = {id(context.calls[-1]): context for context in built}
    heads = []
    for context in sorted(built, key=lambda context: context.start):
        before = ends.get(id(context.first.parent)) if context.first.changed else None
        if before is None:
            heads.append(context)
            continue
        before.after = context
        learn(before.messages, context.first)
    main = _main(heads, tree)
    return [each for head in [main, *(head for head in heads if head is not main)] for each in head.line]


def _checked(slot: Slot, limit: LengthLimit, reading: Reading) -> Slot:
    if not slot.whole or not limit.cut(slot.sizes):
        return slot
    reading.truncated = True
    return replace(slot, whole=False)


def _doubles(tree: SpanTree, notes: Counter[str]) -> set[str]:
    """Of a call that was logged by two instrumentations, the span that says less."""
    skipped: set[str] = set()
    for outer, inner in tree.wrapped().items():
        said = [bool(tree.nodes[span_id].reading.slots) + bool(tree.nodes[span_id].reading.outputs) for span_id in (outer, inner)]
        less, more = (inner, outer) if said[0] > said[1] else (outer, inner)
        if more not in skipped and less not in skipped:
            skipped.add(less)
            notes[f"span {less} logs the model call of span {more} a second time"] = 0
    return skipped


def _main(built: Sequence[Context], tree: SpanTree) -> Context:
    """The longest context that no other one started."""
    free = not_started(built, tree)
    length = {id(one): sum(len(each.calls) for each in one.line) for one in built}
    return max(free or built, key=lambda context: (not _judged(context, tree), length[id(context)], -context.start))


def _judged(context: Context, tree: SpanTree) -> bool:
    return any(tree.nodes[span_id].reading.kind == "judge" for span_id in context.first.node.path)


def _ended(tree: SpanTree) -> tuple[bool, str | None]:
    """Whether the run is known to have ended, and the error it ended with."""
    roots = [span for span in tree.roots if span.parent_id is None]
    kinds = {tree.nodes[span.span_id].reading.kind for span in roots}
    if not roots or kinds == {"llm"}:
        return False, None
    return all(span.end_ns is not None for span in roots), next((span.error for span in roots if span.error), None)


def _trajectory(context: Context, tree: SpanTree, outcome: Outcome, *, main: bool) -> Trajectory:
    """A failed last call ends a context with its error; the end of the run ends the main one, that of its agent any other."""
    end = context.calls[-1].reading.context.get("end")
    if isinstance(end, dict):
        ended, cut, error = bool(end.get("terminated")), bool(end.get("truncated")), end.get("error")
        return context.steps.trajectory(_tools(context), outcome if main else None, terminated=ended, truncated=cut, error=error)
    if context.after is not None:
        return context.steps.trajectory(_tools(context), terminated=False)
    over, error = _ended(tree) if main else (_scope_ended(context, tree), None)
    last = context.calls[-1]
    error = last.node.span.error if last.failed else error
    return context.steps.trajectory(_tools(context), outcome if main else None, terminated=over and error is None, error=error)


def _scope_ended(context: Context, tree: SpanTree) -> bool:
    node = tree.nodes.get(context.first.scope)
    return context.first.parent is None and node is not None and node.span.end_ns is not None


def _tools(context: Context) -> tuple[ToolSpec, ...]:
    """The tool set of a context, else the largest known part of one."""
    whole = next((call.tools for call in context.calls if call.tools is not None), None)
    return whole if whole is not None else max((call.reading.tools or () for call in context.calls), key=len)


def _sub(context: Context, main: Context, lineage: Lineage, trajectory: Trajectory, tree: SpanTree) -> SubTrajectory:
    names = (tree.nodes[span_id].reading.name for span_id in context.first.node.path)
    before = [main.places[id(call)] for call in main.calls if call.start <= context.start]
    told = context.first.reading.context
    if "agent" in told:
        return SubTrajectory(trajectory, str(told["agent"]), told.get("parent_step"), told.get("continues"))
    return SubTrajectory(trajectory, next(names, ""), before[-1] if before else None, lineage.continues(context))
