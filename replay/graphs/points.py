"""The states of a thread that can be gone back to, and for all others the reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Trajectory, steps_of
from counterplay.replay.graphs.messages import keys_of, message_of, pending_calls

if TYPE_CHECKING:
    from langgraph.checkpoint.base import CheckpointTuple

_SUBGRAPH = (
    "it belongs to a sub-graph, which LangGraph runs again from its start when it is forked; "
    "fork the top-level checkpoint before the node that holds the sub-graph"
)
_ENDED = "the graph had come to its end, so nothing follows that could go otherwise"
_EXIT = (
    "the thread holds only how each run ended, as durability='exit' leaves it, so there is no earlier state; "
    "run the agent with durability='async' or 'sync', or re-run its code with replay_agent"
)


@dataclass(frozen=True)
class GraphPoint:
    """A checkpoint of a thread. `next` names the nodes that would run; `refused` says why it can't be forked, None that it can.

    `step` is the step of the trajectory that is to come, or whose tools are: a fork before step k of the ingested trace is the
    point whose `step` is k and whose next node is the model. `rewrites` counts how often the graph had trimmed or edited its
    messages before. `latest` says that the thread's latest checkpoint descends from it.
    """

    thread_id: str
    checkpoint_id: str
    next: tuple[str, ...] = ()
    step: int = 0
    messages: tuple[Message, ...] = field(default=(), repr=False)
    parent: str | None = None
    namespace: str = ""
    source: str = ""
    graph_step: int | None = None
    created_at: str = ""
    rewrites: int = 0
    latest: bool = True
    refused: str | None = None
    read: Read | None = field(default=None, repr=False, compare=False)

    @property
    def state(self) -> Trajectory:
        """The messages as a trajectory: prompt and steps, each observation graded exact. Tools are left out, as ingested traces do."""
        prompt, steps = steps_of(self.messages)
        return Trajectory((), prompt, steps)

    @cached_property
    def key(self) -> str:
        """Equal for equal messages, whoever wrote them down."""
        return [*keys_of(self.messages)][-1]


@dataclass(frozen=True)
class GraphForks:
    """All checkpoints of a thread, oldest first: `points` can be forked, `refused` can't. `note` says what is missing as a whole."""

    thread_id: str
    points: tuple[GraphPoint, ...] = ()
    refused: tuple[GraphPoint, ...] = ()
    note: str = ""

    def __iter__(self) -> Iterator[GraphPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def at(self, step: int, *, rewrites: int | None = None) -> GraphPoint:
        """The point before the model's call of trajectory step `step`, on the way to the latest checkpoint.

        Where the graph rewrote its messages, steps are counted anew: `rewrites` says after how many times, None the latest of all.
        Raises UserError where there is none.
        """
        asked = [
            point for point in self.points if point.latest and rewrites in (None, point.rewrites) and not pending_calls(point.messages)
        ]
        here = [point for point in asked if point.step == step]
        if not here:
            got = f"got step {step} of thread {self.thread_id}"
            raise UserError(got, f"one of {sorted({point.step for point in asked}) or 'none'}", self.note)
        return here[-1]

    def find(self, checkpoint_id: str) -> GraphPoint:
        """The point of that id. Raises UserError with the reason where it can't be forked."""
        found = next((each for each in (*self.points, *self.refused) if each.checkpoint_id == checkpoint_id), None)
        if found is None:
            raise UserError(f"got checkpoint {checkpoint_id!r}", f"one of thread {self.thread_id}", self.note)
        return checked(found)


def checked(point: GraphPoint) -> GraphPoint:
    if point.refused:
        raise UserError(f"checkpoint {point.checkpoint_id} can't be forked: {point.refused}", "one of graph_forks(...)")
    return point


@dataclass(eq=False)
class Read:
    """One reading of a thread from `source`: every checkpoint, and what they come to."""

    source: object
    messages_key: str
    tuples: dict[str, CheckpointTuple]
    forks: GraphForks = field(default_factory=lambda: GraphForks(""))

    @cached_property
    def models(self) -> frozenset[str]:
        """The nodes that call the model."""
        return model_nodes((*self.forks.points, *self.forks.refused))

    @cached_property
    def recordings(self) -> list[Trajectory]:
        return recordings((*self.forks.points, *self.forks.refused))

    @cached_property
    def parents(self) -> frozenset[str]:
        """The checkpoints that others descend from: what was waiting there has been done."""
        return frozenset(point.parent for point in (*self.forks.points, *self.forks.refused) if point.parent and not point.namespace)


def read_of(source: object, tuples: Iterable[CheckpointTuple], thread_id: str, messages_key: str) -> Read:
    """Raises UserError where there is no such thread, or it has no such channel of messages."""
    found = sorted(tuples, key=_order)
    read = Read(source, messages_key, {each.checkpoint["id"]: each for each in found})
    forks = _forks_of(found, thread_id, messages_key)
    read.forks = replace(
        forks,
        points=tuple(replace(point, read=read) for point in forks.points),
        refused=tuple(replace(point, read=read) for point in forks.refused),
    )
    return read


def _forks_of(tuples: Sequence[CheckpointTuple], thread_id: str, messages_key: str) -> GraphForks:
    if not tuples:
        raise UserError(f"got thread {thread_id!r}, which has no checkpoints", "the thread_id of a conversation that was kept")
    points = _latest_of(list(_points(tuples, thread_id, messages_key)))
    usable = tuple(point for point in points if not point.refused)
    said = [point for point in points if not point.namespace and point.messages]
    if not said:
        channels = sorted({name for each in tuples for name in each.checkpoint["channel_values"] if not name.startswith(("__", "branch:"))})
        raise UserError(f"thread {thread_id} has no messages in {messages_key!r}", f"messages_key=one of {', '.join(channels) or 'none'}")
    spoke = any(message.role == "assistant" for point in said for message in point.messages)
    note = _EXIT if spoke and not model_nodes(points) else ""
    return GraphForks(thread_id, usable, tuple(point for point in points if point.refused), note)


def model_nodes(points: Iterable[GraphPoint]) -> frozenset[str]:
    """The nodes after which the agent had said one thing more: those that call the model."""
    by_id = {point.checkpoint_id: point for point in points if not point.namespace}
    found = set()
    for child in by_id.values():
        point = by_id.get(child.parent or "")
        if point is not None and len(set(point.next)) == 1 and "__start__" not in point.next:
            said = child.messages[len(point.messages) :]
            found |= set(point.next) if any(message.role == "assistant" for message in said) else set()
    return frozenset(found)


def recordings(points: Iterable[GraphPoint]) -> list[Trajectory]:
    """The trajectories that a thread holds: one for each checkpoint whose messages no other goes on with."""
    kept: dict[str, GraphPoint] = {}
    inner: set[str] = set()
    for point in points:
        if not point.namespace and point.messages:
            *before, key = keys_of(point.messages)
            kept[key] = point
            inner.update(before)
    return [_finished(point) for key, point in kept.items() if key not in inner]


def next_nodes(found: CheckpointTuple) -> tuple[str, ...]:
    """The nodes that run next, by what stands in the checkpoint."""
    values = found.checkpoint["channel_values"]
    sent = [send.node if hasattr(send, "node") else str(send) for send in values.get("__pregel_tasks") or ()]
    told = [name.rpartition(":")[2] for name in values if name.startswith("branch:")]
    return (*sent, *told, *(["__start__"] if "__start__" in values else []))


def _finished(point: GraphPoint) -> Trajectory:
    state = point.state
    if point.next or not state.steps or state.steps[-1].action.tool_calls:
        return state
    return replace(state, steps=(*state.steps[:-1], replace(state.steps[-1], terminated=True)))


def _order(found: CheckpointTuple) -> tuple[str, str]:
    return str(found.config["configurable"].get("checkpoint_ns") or ""), found.checkpoint["id"]


def _points(tuples: Sequence[CheckpointTuple], thread_id: str, messages_key: str) -> Iterator[GraphPoint]:
    known: dict[str, GraphPoint] = {}
    held: dict[str, list[Any]] = {}
    by_id = {found.checkpoint["id"]: found for found in tuples}
    seen: dict[int, tuple[Any, Message]] = {}
    for found in tuples:
        config, own = found.config["configurable"], found.checkpoint["id"]
        above = (found.parent_config or {}).get("configurable", {}).get("checkpoint_id") or ""
        before = known.get(above)
        held[own] = _held(found, by_id.get(above), held.get(above, []), messages_key)
        messages = tuple(_messages(held[own], seen))
        steps = len(steps_of(messages)[1])
        following = next_nodes(found)
        namespace = str(config.get("checkpoint_ns") or "")
        rewritten = before is not None and messages[: len(before.messages)] != before.messages
        known[own] = GraphPoint(
            thread_id,
            own,
            following,
            steps - 1 if pending_calls(messages) else steps,
            messages,
            above or None,
            namespace,
            str(found.metadata.get("source") or ""),
            found.metadata.get("step"),
            str(found.checkpoint.get("ts") or ""),
            (before.rewrites if before else 0) + rewritten,
            refused=_SUBGRAPH if namespace else None if following else _ENDED,
        )
        yield known[own]


def _held(found: CheckpointTuple, above: CheckpointTuple | None, before: list[Any], messages_key: str) -> list[Any]:
    """What a channel holds at a checkpoint: for a delta channel its parent's state, and what was written there, as add_messages does it."""
    from langgraph.checkpoint.serde.types import _DeltaSnapshot
    from langgraph.graph.message import add_messages

    values = found.checkpoint["channel_values"]
    value = values.get(messages_key)
    if isinstance(value, _DeltaSnapshot):
        value = value.value
    if messages_key in values or above is None or messages_key not in found.checkpoint["channel_versions"]:
        return value if isinstance(value, list) else []
    for _, channel, written in above.pending_writes or ():
        before = cast("list[Any]", add_messages(cast("Any", before), written)) if channel == messages_key else before
    return before


def _messages(value: list[Any], seen: dict[int, tuple[Any, Message]]) -> Iterator[Message]:
    """Those of a channel; nothing where it holds something else."""
    from langchain_core.messages import BaseMessage

    for each in value:
        if not isinstance(each, BaseMessage):
            return
        if id(each) not in seen:
            seen[id(each)] = (each, message_of(each))  # the object is kept, so that its id is not used again
        yield seen[id(each)][1]


def _latest_of(points: list[GraphPoint]) -> list[GraphPoint]:
    by_id = {point.checkpoint_id: point for point in points if not point.namespace}
    path: set[str] = set()
    here = by_id.get(max(by_id, default=""))
    while here is not None and here.checkpoint_id not in path:
        path.add(here.checkpoint_id)
        here = by_id.get(here.parent or "")
    return [replace(point, latest=point.checkpoint_id in path) for point in points]
