"""LangChain tools: shown by the name and arguments that the model gave, answered in place or executed.

They are seen where `run` and `arun` call the tool's own code, so that LangChain's callbacks, checks of arguments and
handling of tool errors work as ever. What LangGraph injects (state, store, runtime) is no argument of the model's.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

from counterplay.core.effects import EXTERNAL, Effect
from counterplay.replay.agents.ambient import Interceptor, ToolAnswer, ToolRequest
from counterplay.replay.agents.calls import TOOL, ask_tool, check_unseen, covering, restored_error, watching
from counterplay.replay.agents.functions import EXECUTED, MARK, Execution
from counterplay.replay.agents.install import PATCHES
from counterplay.replay.agents.values import Type, plain, shown

_MODULE = "langchain_core.tools.base"
_MESSAGE = "tool_message"
_PLAIN = Type()


@dataclass(frozen=True)
class _Pending:
    """The call that `run` is about to make."""

    tool: Any
    arguments: Mapping[str, Any]
    tool_call_id: str | None


_PENDING: ContextVar[_Pending | None] = ContextVar("counterplay_pending_tool", default=None)


def effect_of(tool: Any) -> Effect:
    """From `tool.metadata["effect"]`, else from the `@tool` mark of the function it wraps, else external.

    Raises ValueError on an effect that can't be read.
    """
    named = (tool.metadata or {}).get("effect")
    if isinstance(named, Effect):
        return named
    if named is not None:
        return Effect.parse(str(named))
    for attribute in ("func", "coroutine"):
        marked = getattr(getattr(tool, attribute, None), MARK, None)
        if marked is not None:
            effect: Effect = marked.spec.effect
            return effect
    return EXTERNAL


def arguments_of(tool: Any, tool_input: Any) -> dict[str, Any]:
    """What the model gave, without what was injected."""
    if not isinstance(tool_input, Mapping):
        names = list(tool.args)
        return {names[0] if len(names) == 1 else "input": plain(tool_input)}
    given = dict(tool_input)
    hide = getattr(tool, "_filter_injected_args", None)
    kept = given if hide is None else hide(given)
    return {name: plain(value) for name, value in kept.items() if hide is not None or name in tool.args}


def entered(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def run(self: Any, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        if watching(TOOL) is None:
            check_unseen(self.name, effect_of(self))
            return original(self, tool_input, *args, **kwargs)
        token = _PENDING.set(_prepare(self, tool_input, kwargs))
        try:
            return original(self, tool_input, *args, **kwargs)
        finally:
            _PENDING.reset(token)

    return run


def aentered(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def arun(self: Any, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        if watching(TOOL) is None:
            check_unseen(self.name, effect_of(self))
            return await original(self, tool_input, *args, **kwargs)
        token = _PENDING.set(_prepare(self, tool_input, kwargs))
        try:
            return await original(self, tool_input, *args, **kwargs)
        finally:
            _PENDING.reset(token)

    return arun


def _prepare(tool: Any, tool_input: Any, kwargs: Mapping[str, Any]) -> _Pending:
    for kind in type(tool).__mro__:
        if (kind.__module__, kind.__name__) == (_MODULE, "BaseTool"):
            break
        for attribute, wrap in (("_run", _run), ("_arun", _arun)):
            if attribute in vars(kind):
                PATCHES.replace(kind, attribute, wrap)
    return _Pending(tool, arguments_of(tool, tool_input), kwargs.get("tool_call_id"))


def _watch(tool: Any) -> tuple[Interceptor, _Pending] | None:
    interceptor, pending = watching(TOOL), _PENDING.get()
    return None if interceptor is None or pending is None or pending.tool is not tool else (interceptor, pending)


def _run(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = _watch(self)
        if watch is None:
            return original(self, *args, **kwargs)
        interceptor, pending = watch
        request = ToolRequest(self.name, pending.arguments, effect_of(self))
        answer = ask_tool(interceptor, request)
        if answer is not None:
            return _given(self, pending, answer)
        execution = Execution(interceptor, request)
        try:
            with covering(EXECUTED):
                result = original(self, *args, **kwargs)
        except Exception as failure:
            _raised(execution, failure)
            raise
        execution.gave(answer_of(result))
        return result

    return run


def _arun(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def arun(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = _watch(self)
        if watch is None:
            return await original(self, *args, **kwargs)
        interceptor, pending = watch
        request = ToolRequest(self.name, pending.arguments, effect_of(self))
        answer = ask_tool(interceptor, request)
        if answer is not None:
            return _given(self, pending, answer)
        execution = Execution(interceptor, request)
        try:
            with covering(EXECUTED):
                result = await original(self, *args, **kwargs)
        except (Exception, CancelledError) as failure:
            _raised(execution, failure)
            raise
        execution.gave(answer_of(result))
        return result

    return arun


def _raised(execution: Execution, failure: Exception | CancelledError) -> None:
    """LangGraph's interrupts are control flow and end no call: they can't be raised again from their text."""
    if any(kind.__name__ == "GraphBubbleUp" for kind in type(failure).__mro__):
        execution.gave(ToolAnswer(shown(failure), replayable=False))
    else:
        execution.raised(failure)


def answer_of(result: Any) -> ToolAnswer:
    from langchain_core.messages import ToolMessage

    if isinstance(result, ToolMessage):
        kept = result.model_dump(exclude={"type", "tool_call_id"}, exclude_defaults=True)
        answer = _PLAIN.answer(kept)
        return ToolAnswer({_MESSAGE: answer.value}) if answer.replayable else ToolAnswer(str(result.text), replayable=False)
    if isinstance(result, tuple):
        answer = _PLAIN.answer(list(result))  # content and artifact
        return answer if answer.replayable else ToolAnswer(shown(result), replayable=False)
    return _PLAIN.answer(result)


def _given(tool: Any, pending: _Pending, answer: ToolAnswer) -> Any:
    from langchain_core.messages import ToolMessage
    from langchain_core.tools import ToolException

    if answer.error is not None:
        raise restored_error(answer.error, ToolException)
    value = _PLAIN.restore(answer.value)
    if isinstance(value, dict) and value.keys() == {_MESSAGE}:
        return ToolMessage(**value[_MESSAGE], tool_call_id=pending.tool_call_id or "")
    if tool.response_format == "content_and_artifact":
        return tuple(value) if isinstance(value, list) else (value, None)
    return value
