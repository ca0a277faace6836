"""The paths of a call tree as trajectories, and how they hang together in one trace.

A trajectory has one tool set. Where a path goes on with another one, a further trajectory goes on from there; steps whose calls had
other tools stand in it as they were sent, not sampled. So every call is one step of a trajectory with the very tools it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import trace_id
from counterplay.connectors.chat.nodes import Group, Node
from counterplay.connectors.chat.rows import LoggedCall
from counterplay.connectors.normalise import has_system, role_of
from counterplay.connectors.quick import changed
from counterplay.connectors.steps import StepList, prompt_length, tools_known
from counterplay.core.nouns import (
    Call,
    Completeness,
    Coverage,
    LoggedScore,
    Message,
    Outcome,
    Source,
    SubTrajectory,
    ToolSpec,
    Trace,
    Trajectory,
    Usage,
)

_WORST_FIRST: tuple[Coverage, ...] = ("none", "partial", "stitched", "full")


class _Context:
    """The part of one path that the calls with one tool set need, and which step each of its calls is."""

    def __init__(self, path: Sequence[Node], tools: tuple[ToolSpec, ...]) -> None:
        self.path, self.tools = path, tools
        self.parent_step: int | None = None
        self.continues: int | None = None
        start = prompt_length(path[0].delta)
        self.steps = StepList(path[0].delta[:start])
        self.steps.extend(path[0].delta[start:], sampled=False)
        self.step_of: dict[Node, int] = {}
        last = max(place for place, node in enumerate(path) if self.owns(node))
        for place, node in enumerate(path[: last + 2]):
            self.steps.extend(node.delta if node.parent else (), sampled=False)
            if node.output and place <= last:
                logged = node.logged
                sampled = self.owns(node) and logged.whole and not logged.redacted and not logged.shortened
                self.step_of[node] = self.steps.act(node.output, sampled=sampled)
        self.own = [node for node in self.step_of if self.owns(node)]

    def owns(self, node: Node) -> bool:
        return node.output is not None and node.logged.tools is self.tools

    @property
    def first(self) -> tuple[Message, ...]:
        return self.path[0].delta


def trace_of(format: str, group: Group) -> Trace | None:  # noqa: A002  the word users type
    """The trace of a group of calls; None where no call of it was answered."""
    paths = group.paths()
    if not paths:
        return None
    built: list[_Context] = []
    known: set[Node] = set()
    for path in paths:
        _build(path, built, known)
    logged, head = group.logged(), built[0].path[0].logged
    outcome = next((call.outcome for call in reversed(logged) if call.outcome), None)
    last = _last(built)
    trajectories = [context.steps.trajectory(context.tools, outcome if i == last else None) for i, context in enumerate(built)]
    places = _places(built)
    tools = list(map(tools_known, trajectories))
    calls = tuple(_call(node, place, trajectories[place[0]], tools[place[0]]) for node, place in places.items())
    own_id = group.name or head.call.response_id
    starts = [call.call.started_at_us for call in logged if call.call.started_at_us is not None]
    return Trace(
        id=_id(format, own_id, trajectories),
        trajectory=trajectories[0],
        source=Source(format, str(head.entry.path), head.entry.line, "calls"),
        sub_trajectories=tuple(
            SubTrajectory(trajectory, context.path[0].logged.agent or "", context.parent_step, context.continues)
            for trajectory, context in zip(trajectories[1:], built[1:], strict=True)
        ),
        task=_first(call.task for call in logged),
        session=_first(call.session for call in logged),
        agent=head.agent,
        outcome=outcome or Outcome(),
        calls=calls,
        scores=tuple(_scores(places)),
        tags=tuple(dict.fromkeys(tag for call in logged for tag in call.tags)),
        metadata={**head.metadata, **_metadata(group, places)},
        completeness=_completeness(calls, built, all(tools)),
        started_at_us=min(starts, default=None),
        ended_at_us=max((end for call in logged if (end := _end(call)) is not None), default=None),
    )


def _id(format: str, own_id: str | None, trajectories: Sequence[Trajectory]) -> str:  # noqa: A002
    """From its own id (or that of its first answer) and its prompt, which stay as they are while a trace grows; else from all of it."""
    if own_id:
        return trace_id(format, trajectories[0].prefix(0), own_id)
    return trace_id(format, trajectories[0], None, *(trajectory.key for trajectory in trajectories[1:]))


def _build(path: list[Node], built: list[_Context], known: set[Node]) -> None:
    """Add the contexts of a path to those before: one for each tool set with which it holds a call that none of them holds."""
    # Equal tool sets are one object here, whose hash would be that of all its texts.
    toolsets = {id(node.logged.tools): node.logged.tools for node in path if node.output and node not in known}
    before: int | None = None
    for tools in toolsets.values():
        context = _Context(path, tools)
        if before is not None:
            context.continues = before
        elif built:
            _relate(context, built)
        before = len(built)
        built.append(context)
        known.update(context.own)


def _relate(context: _Context, built: list[_Context]) -> None:
    """How a further path hangs together with those before it."""
    main, path = built[0], context.path
    shared = [node for node in path if node in main.step_of]
    if shared:
        context.parent_step = main.step_of[shared[-1]]
    elif context.first != main.first:
        context.continues = next(
            (i for i in range(len(built) - 1, -1, -1) if _took_over(context, built[i], i == 0 or built[i].continues == 0)), None
        )
        earlier = [node for node in main.path if node.order < path[0].order and node in main.step_of]
        if context.continues is None and earlier:
            context.parent_step = main.step_of[earlier[-1]]


def _took_over(context: _Context, other: _Context, main_line: bool) -> bool:
    """Whether a context is `other` after a compaction: the same agent, system prompt and tools, and only after the other's last call.

    Off the main line, where one kind of sub-agent is often started again and again, the first user message has to be the same too.
    """
    new, old = context.first, other.first
    leads = [next((message for message in messages if role_of(message) != "system"), None) for messages in (new, old)]
    return (
        context.path[0].order > other.path[-1].order
        and new[0] == old[0]
        and role_of(new[0]) == "system"
        and context.tools == other.tools
        and context.path[0].logged.agent == other.path[0].logged.agent
        and (main_line or leads[0] == leads[1])
    )


def _last(built: list[_Context]) -> int:
    """The context in which the run ended: of those that continue the main one, the one with the latest call."""
    line = [0]
    for index, context in enumerate(built):
        if context.continues in line:
            line.append(index)
    return max(line, key=lambda index: built[index].own[-1].order)


def _places(built: list[_Context]) -> dict[Node, tuple[int, int]]:
    """The trajectory and step of each call: in the first context that holds it with its own tools."""
    places: dict[Node, tuple[int, int]] = {}
    for index, context in enumerate(built):
        for node in context.own:
            places.setdefault(node, (index, context.step_of[node]))
    return places


def _call(node: Node, place: tuple[int, int], trajectory: Trajectory, tools: bool) -> Call:
    """What is known of a call. `tools`: whether those of its trajectory are known. The further choices of one call cost nothing."""
    logged = node.logged
    inputs: Coverage = "none" if logged.redacted else "partial" if logged.shortened else logged.inputs
    whole = logged.whole and not logged.shortened
    reasons = logged.finish_reasons
    return changed(
        logged.call,
        trajectory=place[0],
        step=place[1],
        usage=Usage() if node.choice else logged.call.usage,
        finish_reason=reasons[node.choice] if node.choice < len(reasons) else logged.call.finish_reason,
        completeness=_known(
            inputs,
            tools,
            system_prompt=inputs in ("full", "stitched") or (inputs == "partial" and has_system(trajectory.prompt)),
            truncated=not whole,
            redacted=logged.redacted,
            outputs="none" if logged.redacted else "full" if whole else "partial",
        ),
    )


@lru_cache(maxsize=256)
def _known(inputs: Coverage, tools: bool, **rest: Any) -> Completeness:
    """The one kept copy of what calls have in common."""
    return Completeness(inputs, tools, **rest)


def _completeness(calls: Sequence[Call], built: list[_Context], tools: bool) -> Completeness:
    each = [call.completeness for call in calls]
    redacted, cut = any(one.redacted for one in each), any(one.truncated for one in each)
    shortened = any(node.logged.shortened for context in built for node in context.own)
    notes = {
        "the proxy cut long texts in the middle": shortened,
        "the messages were redacted by the proxy": redacted,
        "prompts that name an earlier answer by its id are put together from the log": any(one.inputs == "stitched" for one in each),
        "what the server put before some prompts is not all in the log": not shortened and any(one.inputs == "partial" for one in each),
        "streams that broke off: their answers are not whole": cut and not shortened,
        "the tools differ between calls: each tool set has a trajectory of its own": len({id(context.tools) for context in built}) > 1
        and any(context.continues is not None for context in built),
        "the last call has no answer": built[0].path[-1].output is None,
    }
    return Completeness(
        inputs=min((one.inputs for one in each), key=_WORST_FIRST.index),
        tools=tools,
        system_prompt=all(one.system_prompt for one in each),
        truncated=cut,
        redacted=redacted,
        outputs=min((one.outputs for one in each), key=_WORST_FIRST.index),
        notes=tuple(note for note, said in notes.items() if said),
    )


def _scores(places: dict[Node, tuple[int, int]]) -> Iterator[LoggedScore]:
    for node, (trajectory, step) in places.items():
        if not node.choice:
            yield from (replace(score, trajectory=trajectory, step=step) for score in node.logged.scores)


def _metadata(group: Group, places: dict[Node, tuple[int, int]]) -> dict[str, Any]:
    logged = group.logged()
    failed = [call.error for call in logged if call.error]
    again = [(node, group.answered_again(node)) for node in group.nodes() if not node.output]
    retries = [_retry(node, places[after]) for node, after in again if after in places]
    cached = sum(call.cached for call in logged)
    counted = {"failed_calls": failed, "retries": retries, "cached_calls": cached, "repeated_rows": group.repeated}
    return {key: value for key, value in counted.items() if value}


def _retry(node: Node, place: tuple[int, int]) -> dict[str, Any]:
    """A failed call, and the step that the same prompt became when it was sent again."""
    return {"trajectory": place[0], "step": place[1], "model": node.logged.call.model, "error": node.logged.error}


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)


def _end(call: LoggedCall) -> int | None:
    if call.ended_at_us is not None or call.call.started_at_us is None:
        return call.ended_at_us
    return call.call.started_at_us + int((facts.seconds(call.call.latency_s) or 0) * 1e6)
