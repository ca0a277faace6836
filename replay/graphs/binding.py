"""The user's graph over a copy of its state in memory.

The user's object is copied, never changed: its model nodes can be given an answer, its tool nodes are answered by what was prepared,
and nothing that it does reaches her checkpoints, her store or her caches. A tool that nobody prepared an answer for and nobody
named is not executed, wherever in the graph it is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, ToolSpec
from counterplay.replay.agents.ambient import Interruption, ModelAnswer, ModelRequest, ToolAnswer, ToolRequest, intercepting
from counterplay.replay.agents.guard import LiveEffect, guarded
from counterplay.replay.graphs.messages import message_of
from counterplay.replay.graphs.source import memory_serde, shared_serde

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, BaseMessage
    from langgraph.checkpoint.base import CheckpointTuple
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.pregel import Pregel

_USUAL = ("model", "agent")
_STRUCTURED = "structured_response"


@dataclass(frozen=True)
class Home:
    """A state of a graph, to be put into any number of fresh savers. `before` are ancestors that hold parts of it."""

    found: CheckpointTuple
    writes: tuple[tuple[str, str, Any], ...] = ()
    before: tuple[CheckpointTuple, ...] = ()

    def edited(self, messages_key: str, tool_call_id: str, content: str) -> Home:
        """The same state with another result of a call among its messages."""
        from langgraph.checkpoint.serde.types import _DeltaSnapshot

        values = self.found.checkpoint["channel_values"]
        stored = values[messages_key]
        messages = stored.value if isinstance(stored, _DeltaSnapshot) else stored
        last = max(i for i, each in enumerate(messages) if getattr(each, "tool_call_id", None) == tool_call_id)
        changed = [each.model_copy(update={"content": content}) if i == last else each for i, each in enumerate(messages)]
        told = _DeltaSnapshot(changed) if isinstance(stored, _DeltaSnapshot) else changed
        checkpoint = {**self.found.checkpoint, "channel_values": {**values, messages_key: told}}
        return replace(self, found=self.found._replace(checkpoint=cast("Any", checkpoint)))


@dataclass(frozen=True)
class Binding:
    """A user's graph and how it is run. `models` and `tools` are the nodes that call the model and those that call tools.

    `config` and `context` are what she gives to `invoke` beside the input. `blocking` runs the graph by its synchronous side in a
    thread. `through_model` gives an answer to the model call inside a model node, so that the node's own code reads it. `allow_hosts`
    are those that nodes may reach by themselves.
    """

    graph: Pregel[Any, Any, Any, Any]
    messages_key: str = "messages"
    models: frozenset[str] = frozenset()
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    context: Any = None
    blocking: bool = False
    through_model: bool = False
    allow_hosts: tuple[str, ...] = ()

    def asking(self, model: Any) -> Binding:
        """The same with another chat model. Raises UserError where the graph is not one of create_agent."""
        from counterplay.replay.graphs.nodes import with_model

        changed = {name: self.graph.nodes[name].copy({"bound": with_model(self.graph.nodes[name].bound, model)}) for name in self.models}
        return replace(self, graph=self.graph.copy({"nodes": {**self.graph.nodes, **changed}}))

    @property
    def stops(self) -> list[str]:
        return [*self.models, *self.tools]

    @property
    def tool_names(self) -> dict[str, Any]:
        """Every tool of the graph's own tool nodes by name."""
        return {name: tool for tools in self.tools.values() for name, tool in tools.items()}


class GraphOptions(TypedDict, total=False):
    """How a graph is run. `model_nodes` names the nodes that call the model, where they can't be found in a thread or by name.

    `config` and `context` are what `invoke` is given beside the input. `blocking` runs the synchronous side of the graph, in a
    thread: middleware may have that alone. `through_model` puts an answer into the model call inside the model node, so that the
    node's own code reads it; graphs with structured output are always answered so. `allow_hosts` names those that nodes may reach by
    themselves, without a model or a tool, as a retriever does; all others, and new processes, end the branch.
    """

    model_nodes: Iterable[str]
    config: Mapping[str, Any]
    context: Any
    blocking: bool
    through_model: bool
    allow_hosts: Iterable[str]


def bound(
    graph: Any,
    found_models: Iterable[str] = (),
    *,
    messages_key: str = "messages",
    model_nodes: Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
    context: Any = None,
    blocking: bool = False,
    through_model: bool = False,
    allow_hosts: Iterable[str] = (),
) -> Binding:
    """A binding. The model nodes are those named, else those found in the thread, else `model` or `agent`. Raises UserError where
    the graph is none, has no such nodes or no such channel.
    """
    from langgraph.prebuilt import ToolNode
    from langgraph.pregel import Pregel

    if not isinstance(graph, Pregel):
        raise UserError(
            f"got {type(graph).__name__} as a graph", "a compiled LangGraph graph, such as create_agent(...) or builder.compile()"
        )
    if messages_key not in graph.channels:
        raise UserError(f"got messages_key {messages_key!r}", f"one of the graph's channels: {', '.join(sorted(graph.channels))}")
    tools = {name: dict(node.bound.tools_by_name) for name, node in graph.nodes.items() if isinstance(node.bound, ToolNode)}
    unknown = set(model_nodes) - set(graph.nodes)
    if unknown:
        raise UserError(f"got model nodes {sorted(unknown)}", f"nodes of the graph: {', '.join(graph.nodes)}")
    plain = {name for name, node in graph.nodes.items() if not node.subgraphs and name not in tools}
    models = set(model_nodes) or set(found_models) & plain or {name for name in _USUAL if name in plain}
    structured = _STRUCTURED in graph.channels
    return Binding(
        graph, messages_key, frozenset(models), tools, config or {}, context, blocking, through_model or structured, tuple(allow_hosts)
    )


def tool_specs(binding: Binding, effects: Mapping[str, Effect]) -> tuple[ToolSpec, ...]:
    """The tools of a graph as the model is offered them.

    An effect is the given one, else that of the tool's metadata or `@tool` mark, else that of its MCP annotations, else external.
    """
    from langchain_core.utils.function_calling import convert_to_openai_tool

    from counterplay.replay.agents.chat_tools import effect_of

    found = []
    for name, tool in binding.tool_names.items():
        effect = effects.get(name) or effect_of(tool)
        if effect == EXTERNAL and name not in effects:
            effect = Effect.from_mcp(tool.metadata or {})
        found.append(ToolSpec.from_openai(convert_to_openai_tool(tool), effect))
    return tuple(found)


@dataclass
class Orders:
    """What a branch has been given: the model's next answer, the tools' answers by call, and the names of those to be executed."""

    say: AIMessage | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    execute: Collection[str] = ()
    said: bool = False
    stopped: str = ""

    def stop(self, reason: str) -> Interruption:
        """What ends the branch. It is noted too, for LangChain's own code loses what is no Exception on its way up."""
        self.stopped = self.stopped or reason
        return Interruption(reason)


class Branch:
    """One copy of a graph's state that goes on by itself. Nobody else holds its saver.

    `next` names the nodes that run next, empty at the end; `interrupts` are the questions that the graph waits for answers to.
    """

    def __init__(self, binding: Binding, home: Home | None, execute: Collection[str] = ()) -> None:
        from langgraph.checkpoint.memory import InMemorySaver

        self.binding, self.orders = binding, Orders(execute=frozenset(execute))
        self.saver: InMemorySaver = InMemorySaver(serde=memory_serde())
        self._graph = _twin(binding, self.saver, self.orders)
        self._config = {**binding.config, "configurable": {**binding.config.get("configurable", {}), "thread_id": "counterplay"}}
        self.next: tuple[str, ...] = ()
        self.interrupts: tuple[Any, ...] = ()
        self.messages: list[BaseMessage] = []
        if home is not None:
            self._settle(home)

    async def run(self, given: Any = None, *, after: Collection[str] = ()) -> None:
        """Run until a model node or a tool node is next, or one in `after` is through, or the end. Raises what the nodes raise.

        Raises Interruption where a tool was called that may not be, where the graph writes to its store, and where a node reaches out
        to a host or starts a process. Nothing is traced to LangSmith.
        """
        from langsmith import tracing_context as untraced

        options: dict[str, Any] = {"interrupt_before": self.binding.stops, "durability": "exit", "context": self.binding.context}
        if after:
            options["interrupt_after"] = list(after)
        graph: Any = self._graph

        def note(effect: LiveEffect) -> None:
            self.orders.stop(str(effect))

        try:
            with intercepting(_Watch(self.orders)), guarded(allow_hosts=self.binding.allow_hosts, on_effect=note), untraced(enabled=False):
                if self.binding.blocking:
                    await asyncio.to_thread(graph.invoke, given, self._config, **options)
                else:
                    await graph.ainvoke(given, self._config, **options)
        except (Exception, Interruption):
            if not self.orders.stopped:
                raise
        if self.orders.stopped:
            raise Interruption(self.orders.stopped)
        self.look()

    def look(self) -> None:
        """Take stock of where the graph stands."""
        self.saver.serde = cast("Any", _SHARED.serde)
        snapshot = self._graph.get_state(cast("Any", self._config))
        self.saver.serde = cast("Any", memory_serde())
        self.next, self.interrupts = snapshot.next, snapshot.interrupts
        self.messages = list(_get(snapshot.values, self.binding.messages_key) or ())

    @property
    def at_tools(self) -> bool:
        return any(name in self.binding.tools for name in self.next)

    @property
    def at_model(self) -> bool:
        return any(name in self.binding.models for name in self.next)

    def home(self) -> Home:
        """Where the graph stands now, for others to start from."""
        self.saver.serde = cast("Any", _SHARED.serde)
        found = self.saver.get_tuple(cast("Any", self._config))
        self.saver.serde = cast("Any", memory_serde())
        assert found is not None
        waiting = [write for write in found.pending_writes or () if write[1] not in _SIGNALS]
        return settled(self.binding, Home(found, tuple(waiting)), self._graph)

    def _settle(self, home: Home) -> None:
        for found in (*home.before, home.found):
            parent = (found.parent_config or {}).get("configurable", {}).get("checkpoint_id")
            place = {"configurable": {"thread_id": "counterplay", "checkpoint_ns": "", "checkpoint_id": parent}}
            kept = self.saver.put(cast("Any", place), found.checkpoint, found.metadata, found.checkpoint["channel_versions"])
            writes = home.writes if found is home.found else found.pending_writes or ()
            for order, task in enumerate(dict.fromkeys(write[0] for write in writes)):
                mine = [(channel, value) for own, channel, value in writes if own == task]
                self.saver.put_writes(kept, mine, task, f"{order:08}")
        self.look()


_SIGNALS = ("__interrupt__", "__error__", "__resume__", "__error_source_node__")


def settled(binding: Binding, home: Home, graph: Pregel[Any, Any, Any, Any] | None = None) -> Home:
    """The same state with nothing in its ancestors: what a delta channel has there is put into the checkpoint."""
    from langgraph.channels.delta import DeltaChannel
    from langgraph.checkpoint.serde.types import _DeltaSnapshot

    values = home.found.checkpoint["channel_values"]
    missing = [name for name, channel in binding.graph.channels.items() if isinstance(channel, DeltaChannel) and name not in values]
    if not missing:
        return home if not home.before else Home(home.found, home.writes)
    if graph is None:
        graph = Branch(binding, home)._graph  # noqa: SLF001
    state = graph.get_state({"configurable": {"thread_id": "counterplay", "checkpoint_id": home.found.checkpoint["id"]}}).values
    told = {name: _DeltaSnapshot(_get(state, name)) for name in missing if _get(state, name) is not None}
    checkpoint = {**home.found.checkpoint, "channel_values": {**values, **told}}
    return Home(home.found._replace(checkpoint=cast("Any", checkpoint)), home.writes)


class _Shared:
    """One reader for all copies: equal messages of all branches are one object, which no node ever gets hold of."""

    def __init__(self) -> None:
        self._serde: Any = None

    @property
    def serde(self) -> Any:
        if self._serde is None:
            self._serde = shared_serde(None)
        return self._serde


_SHARED = _Shared()


@dataclass(frozen=True)
class _Watch:
    """Sees what a branch's code does behind its nodes: a tool that is not named is not executed, an answer is given once."""

    orders: Orders

    def model(self, request: ModelRequest) -> ModelAnswer | None:
        from counterplay.replay.agents.answers import answer

        if self.orders.say is None:
            return None
        if self.orders.said:
            raise self.orders.stop("the model node asks its model more than once, so one answer does not decide what it says")
        self.orders.said = True
        return answer(request, [message_of(self.orders.say)], Call(0))

    def model_answered(self, request: ModelRequest, answer: ModelAnswer) -> None:
        """Nothing is recorded."""

    def tool(self, request: ToolRequest) -> ToolAnswer | None:
        if request.name not in self.orders.execute:
            raise self.orders.stop(
                f"{request.name} was called by a node that is no tool node; it is not named in execute_tools and was not executed"
            )
        return None

    def nested(self, name: str) -> None:
        """Interrupts where an external tool that another tool calls is not named."""
        if name not in self.orders.execute:
            raise self.orders.stop(f"{name} was called by another tool; it is not named in execute_tools itself and was not executed")

    def tool_answered(self, request: ToolRequest, answer: ToolAnswer) -> None:
        """Nothing is recorded."""


def _twin(binding: Binding, saver: InMemorySaver, orders: Orders) -> Pregel[Any, Any, Any, Any]:
    from counterplay.replay.graphs.nodes import AnsweredNode, QuietStore, answered_tools

    nodes = answered_tools(binding.graph.nodes, orders)
    for name in binding.models:
        nodes[name] = nodes[name].copy({"bound": AnsweredNode(nodes[name].bound, orders, binding.messages_key, binding.through_model)})
    store = binding.graph.store
    return binding.graph.copy(
        {
            "nodes": nodes,
            "checkpointer": saver,
            "cache": None,
            "store": None if store is None else QuietStore(store, orders),
            "interrupt_before_nodes": [],
            "interrupt_after_nodes": [],
        }
    )


def _get(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, Mapping) else getattr(values, name, None)
