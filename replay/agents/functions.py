"""Functions declared with `@tool`, called by an agent's own code: shown to the run's interceptor, and answered by it or executed.

Outside of a run the function is called as it is. A tool that calls another is seen once, as the outermost.
"""

from __future__ import annotations

import inspect
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, wraps
from types import FunctionType
from typing import Any, TypeVar, cast, get_type_hints

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.replay.agents.ambient import Interceptor, ToolAnswer, ToolRequest
from counterplay.replay.agents.calls import (
    INSIDE_TOOL,
    LET_THROUGH,
    TOOL,
    Clock,
    ask_tool,
    check_unseen,
    covering,
    named_error,
    restored_error,
    tell_tool,
    watching,
)
from counterplay.replay.agents.values import Type, plain
from counterplay.replay.world import ToolError

F = TypeVar("F", bound=Callable[..., Any])
MARK = "__counterplay_tool__"
EXECUTED = TOOL | LET_THROUGH | INSIDE_TOOL


DECLARED: dict[str, set[Effect]] = {}
"""What the tools declared in this process do, by name; a name that several tools bear may have several effects."""


def watched(function: F, name: str, effect: Effect) -> F:
    """`function`, whose calls inside of a run are seen under `name`. Raises UserError on a generator function.

    A result given in place is restored through the return annotation; a recorded error is raised again, as its builtin type
    where it is one, else as ToolError.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f"tool {name} is a generator function", "one that returns its whole result", "Collect what it yields into a list.")
    declared = _Function(function, name, effect)
    DECLARED.setdefault(name, set()).add(effect)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        interceptor = watching(TOOL)
        if interceptor is None:
            check_unseen(name, effect)
            return function(*args, **kwargs)
        return declared.call(interceptor, args, kwargs)

    @wraps(function)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        interceptor = watching(TOOL)
        if interceptor is None:
            check_unseen(name, effect)
            return await function(*args, **kwargs)
        return await declared.acall(interceptor, args, kwargs)

    return cast("F", acall if inspect.iscoroutinefunction(function) else call)


class Execution:
    """One call of a tool that is let through: its one report."""

    def __init__(self, interceptor: Interceptor, request: ToolRequest) -> None:
        self.interceptor, self.request, self.clock = interceptor, request, Clock()

    def gave(self, answer: ToolAnswer) -> None:
        timed = replace(answer, started_at_us=self.clock.started_at_us, latency_s=self.clock.elapsed_s())
        tell_tool(self.interceptor, self.request, timed)

    def raised(self, failure: Exception | CancelledError) -> None:
        """A call that was cancelled gave nothing that could be given again."""
        self.gave(ToolAnswer(error=named_error(failure), replayable=isinstance(failure, Exception)))


class _Function:
    def __init__(self, function: Callable[..., Any], name: str, effect: Effect) -> None:
        self.function, self.name, self.effect = function, name, effect
        # A decorator that gives arguments of its own has the signature of what it wraps, and takes another.
        self.signatures = inspect.signature(function), _own_signature(function)

    @cached_property
    def returns(self) -> Type:
        try:
            return Type(get_type_hints(self.function, include_extras=True).get("return"))
        except (NameError, TypeError):
            return Type()  # annotations that are there for the type checker alone

    def request(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ToolRequest | None:
        """None where the arguments don't fit: the function itself says so."""
        bound = next((found for signature in self.signatures if (found := _bound(signature, args, kwargs)) is not None), None)
        if bound is None:
            return None
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            elif name != "self":
                arguments[name] = value
        return ToolRequest(self.name, {name: plain(value) for name, value in arguments.items()}, self.effect)

    def call(self, interceptor: Interceptor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        request = self.request(args, kwargs)
        if request is None:
            return self.function(*args, **kwargs)
        answer = ask_tool(interceptor, request)
        if answer is not None:
            return self.given(answer)
        execution = Execution(interceptor, request)
        try:
            with covering(EXECUTED):
                result = self.function(*args, **kwargs)
        except Exception as failure:
            execution.raised(failure)
            raise
        execution.gave(self.returns.answer(result))
        return result

    async def acall(self, interceptor: Interceptor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        request = self.request(args, kwargs)
        if request is None:
            return await self.function(*args, **kwargs)
        answer = ask_tool(interceptor, request)
        if answer is not None:
            return self.given(answer)
        execution = Execution(interceptor, request)
        try:
            with covering(EXECUTED):
                result = await self.function(*args, **kwargs)
        except (Exception, CancelledError) as failure:
            execution.raised(failure)
            raise
        execution.gave(self.returns.answer(result))
        return result

    def given(self, answer: ToolAnswer) -> Any:
        if answer.error is not None:
            raise restored_error(answer.error, ToolError)
        return self.returns.restore(answer.value)


def _bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments | None:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        return None


def _own_signature(function: Callable[..., Any]) -> inspect.Signature:
    """What a function really takes, whatever it says of itself: a call that does not fit this one executes nothing."""
    if not isinstance(function, FunctionType):
        return inspect.signature(function, follow_wrapped=False)
    bare = FunctionType(function.__code__, {}, function.__name__, function.__defaults__, function.__closure__)
    bare.__kwdefaults__ = function.__kwdefaults__
    return inspect.signature(bare)
