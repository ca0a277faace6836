"""What is known of calls and of the whole trace beside their content: who answered, at what cost, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterplay.connectors.spans.context import Context
from counterplay.connectors.spans.readings import Node, SpanTree
from counterplay.connectors.spans.run_facts import SpanScore
from counterplay.connectors.spans.stitch import LlmCall
from counterplay.core.nouns import Call, Completeness, Coverage, LoggedScore, Trajectory

_WORST_FIRST: tuple[Coverage, ...] = ("none", "partial", "stitched", "full")


def calls_of(ordered: Sequence[Context], trajectories: Sequence[Trajectory]) -> Iterator[Call]:
    """Every model call that is a step, context by context."""
    for index, (context, trajectory) in enumerate(zip(ordered, trajectories, strict=True)):
        known = _tools_known(context, trajectory)
        for place, call in enumerate(context.calls):
            span, reading = call.node.span, call.reading
            start, end = span.start_ns, span.end_ns
            yield Call(
                step=context.places[id(call)],
                trajectory=index,
                model=reading.model,
                params=reading.params,
                usage=reading.usage,
                latency_s=_seconds(start, end),
                started_at_us=None if start is None else start // 1000,
                finish_reason=reading.finish_reason,
                response_id=reading.response_id,
                provider=reading.provider,
                streamed=reading.streamed,
                first_token_s=_seconds(start, reading.first_token_ns),
                completeness=_of_call(call, tools=known and _is_sure(context, place)),
            )


def _seconds(start: int | None, end: int | None) -> float | None:
    return (end - start) / 1e9 if start is not None and end is not None and end >= start else None


def _of_call(call: LlmCall, *, tools: bool) -> Completeness:
    span, reading, first = call.node.span, call.reading, call.slots.get(0)
    inputs: Coverage = reading.context.get("inputs", call.coverage)  # an exporter that says it knows
    outputs: Coverage = reading.context.get("outputs", _outputs(call))
    instructed = first is not None and first.whole and first.role in ("system", "developer")
    return Completeness(
        inputs=inputs,
        tools=tools,
        system_prompt=inputs in ("full", "stitched") or instructed,
        dropped_attributes=span.dropped + span.dropped_events,
        truncated=reading.truncated,
        redacted=reading.redacted,
        outputs=outputs,
        open_spans=int(span.end_ns is None),
    )


def _outputs(call: LlmCall) -> Coverage:
    if call.output is None:
        return "full" if call.failed else "none"
    return "partial" if not call.output.whole else "stitched" if call.recovered or call.edited else "full"


def scores_of(found: Sequence[SpanScore], ordered: Sequence[Context], tree: SpanTree) -> Iterator[LoggedScore]:
    """Each score on the step that its span became: a model call's own, or the one that asked for the tool; else on the whole trace."""
    places = {call.node.span.span_id: (i, context.places[id(call)]) for i, context in enumerate(ordered) for call in context.calls}
    for each in found:
        node = tree.nodes.get(each.span_id or "")
        run = node.reading.tool if node is not None else None
        place = places.get(run.claimed_by if run is not None else each.span_id or "")
        yield each.score if place is None else replace(each.score, trajectory=place[0], step=place[1])


def retry_of(call: LlmCall, ordered: Sequence[Context]) -> Mapping[str, Any]:
    """A failed call that was made again: the step that it became in the end, its span, and its error."""
    last = call
    while last.retried_by is not None:
        last = last.retried_by
    place = next(((i, context.places[id(last)]) for i, context in enumerate(ordered) if id(last) in context.places), (0, 0))
    return {"trajectory": place[0], "step": place[1], "span_id": call.node.span.span_id, "error": call.node.span.error}


def completeness_of(calls: Sequence[Call], ordered: Sequence[Context], tree: SpanTree, notes: Sequence[str]) -> Completeness:
    """That of the worst call, and what is known of the other spans."""
    each = [call.completeness for call in calls]
    first = next(call.completeness for call in calls if call.trajectory == 0)
    readings = [node.reading for node in tree.nodes.values()]
    return Completeness(
        inputs=min((one.inputs for one in each), key=_WORST_FIRST.index),
        tools=all(one.tools for one in each),
        system_prompt=first.system_prompt,
        dropped_attributes=sum(node.span.dropped + node.span.dropped_events for node in tree.nodes.values()),
        truncated=any(reading.truncated for reading in readings),
        redacted=any(reading.redacted for reading in readings),
        outputs=min((one.outputs for one in each), key=_WORST_FIRST.index),
        open_spans=sum(node.span.end_ns is None for node in tree.nodes.values()),
        notes=(*_counted(ordered, tree), *notes),
    )


def _tools_known(context: Context, trajectory: Trajectory) -> bool:
    if any(call.tools is not None for call in context.calls):
        return True
    uses_tools = any(message.tool_calls or message.role == "tool" for message in trajectory.messages)
    lossless = all(call.coverage == "full" and not call.node.span.dropped and not _names_some(call) for call in context.calls)
    return lossless and not uses_tools and not trajectory.tools


def _names_some(call: LlmCall) -> bool:
    """Whether a call names tools without saying that these are all."""
    return call.reading.tools is not None and not call.reading.tools_whole


def _is_sure(context: Context, place: int) -> bool:
    """Whether a call had the tools of its context: not where its own are unknown and the calls after it have others."""
    later = context.calls[place:]
    return context.after is None or any(call.tools is not None for call in later)


def _counted(ordered: Sequence[Context], tree: SpanTree) -> Iterator[str]:
    coverage = Counter(call.coverage for context in ordered for call in context.calls)
    if set(coverage) != {"full"}:
        yield "prompts: " + ", ".join(f"{coverage[name]} {name}" for name in reversed(_WORST_FIRST) if coverage[name])
    orphans = sum(span.parent_id is not None for span in tree.roots)
    if orphans:
        yield f"{orphans} spans name a parent that is not in the trace"
    skewed = sum(1 for node in tree.nodes.values() if _skewed(node))
    if skewed:
        yield f"{skewed} spans end before they start"


def _skewed(node: Node) -> bool:
    span = node.span
    return span.start_ns is not None and span.end_ns is not None and span.end_ns < span.start_ns


def times_of(tree: SpanTree) -> tuple[int | None, int | None]:
    """First start and last end in microseconds; None where no span says."""
    starts = [node.span.start_ns for node in tree.nodes.values() if node.span.start_ns is not None]
    ends = [node.span.end_ns for node in tree.nodes.values() if node.span.end_ns is not None]
    return min(starts) // 1000 if starts else None, max(ends) // 1000 if ends else None
