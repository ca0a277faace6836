"""Stand-ins for parts of a graph: a model node that says what it is told, tool nodes that take prepared answers, a store that keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.store.base import BaseStore, Op, PutOp, Result

from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from langgraph.prebuilt import ToolNode
    from langgraph.pregel._read import PregelNode

    from counterplay.replay.graphs.binding import Orders


class AnsweredNode(Runnable[Any, Any]):
    """A model node. Where an answer is ordered, it gives that once, in the node's place or in its model's; else it is the node."""

    def __init__(self, node: Runnable[Any, Any], orders: Orders, messages_key: str, through_model: bool) -> None:
        self.node, self.orders, self.messages_key, self.through_model = node, orders, messages_key, through_model

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        said = self._said()
        return self._checked(self.node.invoke(input, config, **kwargs)) if said is None else said

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        said = self._said()
        return self._checked(await self.node.ainvoke(input, config, **kwargs)) if said is None else said

    def _said(self) -> Any:
        if self.through_model or self.orders.say is None:
            return None
        said, self.orders.say = self.orders.say, None
        return {self.messages_key: [said]}

    def _checked(self, output: Any) -> Any:
        if self.orders.say is not None:
            if not self.orders.said:
                raise self.orders.stop("the model node did not ask its model in a way that can be answered")
            self.orders.say, self.orders.said = None, False
        return output


def answered_tools(nodes: Mapping[str, PregelNode], orders: Orders) -> dict[str, PregelNode]:
    """Copies of a graph's nodes, those of the graphs inside it included, whose tool nodes ask `orders` first."""
    from langgraph.prebuilt import ToolNode
    from langgraph.pregel import Pregel

    found = dict(nodes)
    for name, node in nodes.items():
        if isinstance(node.bound, ToolNode):
            found[name] = node.copy({"bound": _answered(node.bound, orders)})
        elif isinstance(node.bound, Pregel):
            inner = node.bound.copy({"nodes": answered_tools(node.bound.nodes, orders), "cache": None})
            found[name] = node.copy({"bound": inner, "subgraphs": [inner]})
    return found


def _answered(tools: ToolNode, orders: Orders) -> ToolNode:
    twin = copy.copy(tools)
    sync, asynchronous = tools._wrap_tool_call, tools._awrap_tool_call  # noqa: SLF001  there is no public way to wrap once more

    wrapped = sync is not None or asynchronous is not None

    def wrap_tool_call(request: Any, execute: Any) -> Any:
        answer = _answer(request, orders, wrapped=wrapped)
        if answer is not None:
            return answer
        return execute(request) if sync is None else sync(request, execute)

    async def awrap_tool_call(request: Any, execute: Any) -> Any:
        answer = _answer(request, orders, wrapped=wrapped)
        if answer is not None:
            return answer
        return await (execute(request) if asynchronous is None else asynchronous(request, execute))

    twin._wrap_tool_call = wrap_tool_call  # noqa: SLF001
    # With a synchronous wrapper alone, a tool node uses that in its asynchronous side too.
    twin._awrap_tool_call = None if asynchronous is None and sync is not None else awrap_tool_call  # noqa: SLF001
    twin.func, twin.afunc = twin._func, twin._afunc  # noqa: SLF001  these were bound to the original
    return twin


def _answer(request: Any, orders: Orders, *, wrapped: bool) -> Any:
    """The prepared answer to a call; None where it is to be executed, or names a tool that is not there and gets told so.

    Raises Interruption where none of that is so. It is no Exception, so that no tool node makes an answer of it.
    """
    call = request.tool_call
    found = orders.answers.pop(call["id"], None)
    if found is None and call["name"] not in orders.execute and (wrapped or request.tool is not None):
        raise orders.stop(f"{call['name']} has no prepared answer, is not named in execute_tools and was not executed")
    return found


def with_model(node: Any, model: Any) -> Any:
    """A copy of `create_agent`'s model node that asks another chat model. Raises UserError where a node is not made so."""
    twin = copy.copy(node)
    for side in ("func", "afunc"):
        function = getattr(node, side, None)
        if function is not None:
            setattr(twin, side, _with_model(function, model))
    return twin


def _with_model(function: Any, model: Any) -> Any:
    names = function.__code__.co_freevars if isinstance(function, FunctionType) else ()
    if "model" not in names:
        do = "Build your graph with the other model and fork the same checkpoint with that."
        raise UserError("got another model for a node that create_agent did not make", "a graph of create_agent", do)
    cells = tuple(CellType(model) if name == "model" else cell for name, cell in zip(names, function.__closure__, strict=True))
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    twin.__kwdefaults__, twin.__annotations__ = function.__kwdefaults__, function.__annotations__
    return twin


class QuietStore(BaseStore):
    """The user's store, which can be read. A branch that writes to it is ended: what others read there would change."""

    def __init__(self, store: BaseStore, orders: Orders) -> None:
        self.supports_ttl = store.supports_ttl
        self._store, self._orders = store, orders

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return self._store.batch(self._reads(ops))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await self._store.abatch(self._reads(ops))

    def _reads(self, ops: Iterable[Op]) -> list[Op]:
        found = list(ops)
        if any(isinstance(op, PutOp) for op in found):
            raise self._orders.stop("the graph writes to its store, which a branch must not change")
        return found
