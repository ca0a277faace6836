"""A thread under a graph: what it recorded answers the graph's tools, and any of its states is a home to start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from counterplay.core.effects import Effect
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Environment
from counterplay.replay.graphs.answers import ToolAnswers, bound_to_state
from counterplay.replay.graphs.binding import Binding, Home, bound, settled, tool_specs
from counterplay.replay.graphs.points import GraphForks, GraphPoint, Read, read_of
from counterplay.replay.graphs.source import Source, reader

_FAILED = ("__error__", "__error_source_node__")


def graph_forks(source: Source, thread_id: str, *, messages_key: str = "messages", allow_classes: Iterable[type] = ()) -> GraphForks:
    """The checkpoints of a thread of the database at a path, or of a checkpointer, which are only read.

    `allow_classes` are those whose objects may be made of what a file says; messages and plain data always are.
    Raises UserError where there is no such thread or `messages_key` names no channel of messages, SourceError where it can't be read.
    """
    return read_of(source, reader(source, allow_classes).checkpoints(thread_id), thread_id, messages_key).forks


async def agraph_forks(source: Source, thread_id: str, *, messages_key: str = "messages", allow_classes: Iterable[type] = ()) -> GraphForks:
    """The same for checkpointers that are read in an event loop."""
    return read_of(source, await reader(source, allow_classes).acheckpoints(thread_id), thread_id, messages_key).forks


@dataclass(frozen=True)
class Thread:
    """A reading of a thread, and the graph that wrote it."""

    read: Read
    binding: Binding

    @classmethod
    def of(cls, read: Read, graph: Any, options: Mapping[str, Any]) -> Thread:
        """`options` are those of `bound`."""
        return cls(read, bound(graph, read.models, **{"messages_key": read.messages_key, **options}))

    def home(self, checkpoint_id: str) -> Home:
        """The state at a checkpoint. What its tasks wrote is taken along only where nothing has come of it yet."""
        found = self.read.tuples[checkpoint_id]
        waiting = () if checkpoint_id in self.read.parents else found.pending_writes or ()
        writes = tuple(write for write in waiting if write[1] not in _FAILED)
        return settled(self.binding, Home(found, writes, tuple(reversed([*self._ancestors(found)]))))

    def answers(
        self,
        effects: Mapping[str, Effect],
        environment: Environment | None,
        execute_tools: Iterable[str],
        recorded: Iterable[Trajectory],
    ) -> ToolAnswers:
        """The tools' answers out of this thread and `recorded`."""
        specs = tool_specs(self.binding, effects)
        declared = {spec.name for spec in specs if spec.effect.kind != "external"}
        return ToolAnswers(
            [*self.read.recordings, *recorded],
            effects={**{spec.name: spec.effect for spec in specs}, **effects},
            environment=environment,
            execute_tools=execute_tools,
            bound_to_state=bound_to_state(self.binding.tool_names, self.read.tuples.values(), self.read.messages_key, declared),
        )

    def _ancestors(self, found: Any) -> Any:
        """Those that hold parts of this one's state, nearest first; none without delta channels."""
        from langgraph.channels.delta import DeltaChannel

        missing = {name for name, channel in self.binding.graph.channels.items() if isinstance(channel, DeltaChannel)}
        missing -= found.checkpoint["channel_values"].keys()
        while missing and found.parent_config is not None:
            above = self.read.tuples.get(found.parent_config["configurable"]["checkpoint_id"])
            if above is None:
                return
            yield (found := above)
            missing -= found.checkpoint["channel_values"].keys()


def reading(source: Source, checkpoint: GraphPoint | str | None) -> Read | None:
    """The reading that a point comes from, where that was of this source."""
    read = checkpoint.read if isinstance(checkpoint, GraphPoint) else None
    return read if read is not None and (read.source is source or read.source == source) else None


def read_thread(source: Source, thread_id: str, messages_key: str, allow_classes: Iterable[type]) -> Read:
    return read_of(source, reader(source, allow_classes).checkpoints(thread_id), thread_id, messages_key)


async def aread_thread(source: Source, thread_id: str, messages_key: str, allow_classes: Iterable[type]) -> Read:
    return read_of(source, await reader(source, allow_classes).acheckpoints(thread_id), thread_id, messages_key)
