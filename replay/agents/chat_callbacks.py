"""LangChain's callbacks as a recorder, for people who want nothing replaced: `callback_handler(recorder)` in `config["callbacks"]`.

Callbacks can only watch: what the interceptor would answer is not asked for. Every chat model is shown as Chat Completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from counterplay.core.effects import EXTERNAL
from counterplay.core.nouns import parse_json_object
from counterplay.replay.agents.ambient import Interceptor, Interruption, ModelAnswer, ModelRequest, ToolAnswer, ToolRequest, current
from counterplay.replay.agents.calls import Clock, named_error, tell_model, tell_tool
from counterplay.replay.agents.chat_tools import answer_of
from counterplay.replay.agents.chat_wire import body_of, request_of
from counterplay.replay.agents.values import plain

if TYPE_CHECKING:
    from langchain_core.callbacks import BaseCallbackHandler

_PARAMETERS = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "reasoning_effort",
)  # fmt: skip


def callback_handler(interceptor: Interceptor) -> BaseCallbackHandler:
    """A handler that tells `interceptor` of every chat model and tool it is called for, when they have answered.

    Inside of `intercepting(interceptor)` it does nothing, for there they are seen already.
    """
    from langchain_core.callbacks import BaseCallbackHandler

    handler: BaseCallbackHandler = type("Recorder", (_Recorder, BaseCallbackHandler), {})(interceptor)
    return handler


class _Named:
    """What a request says of its model, from the parameters that callbacks give."""

    def __init__(self, parameters: Mapping[str, Any], serialized: Mapping[str, Any]) -> None:
        self.model_name = parameters.get("model") or parameters.get("model_name") or serialized.get("name") or "chat model"


class _Recorder:
    """The methods' names and arguments are LangChain's."""

    run_inline = True  # in the order of the calls, also from async code

    def __init__(self, interceptor: Interceptor) -> None:
        self._interceptor = interceptor
        self._models: dict[UUID, tuple[ModelRequest, Clock]] = {}
        self._tools: dict[UUID, tuple[ToolRequest, Clock]] = {}
        self._first: dict[UUID, float] = {}

    def on_chat_model_start(
        self, serialized: dict[str, Any] | None, messages: Sequence[Sequence[Any]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        if current() is self._interceptor:
            return
        parameters = kwargs.get("invocation_params") or {}
        options = {name: parameters[name] for name in _PARAMETERS if parameters.get(name) is not None}
        stop, named = options.pop("stop", None), _Named(parameters, serialized or {})
        request = request_of(named, messages[0], stop, options, stream=bool(parameters.get("stream")))
        self._models[run_id] = request, Clock()

    def on_llm_new_token(self, token: str, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        if run_id in self._models and run_id not in self._first:
            self._first[run_id] = self._models[run_id][1].elapsed_s()

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        if run_id in self._models and response.generations:
            model = str(self._models[run_id][0].fields["model"])
            self._answered(run_id, body_of(response.generations[0], model), None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        if run_id in self._models and not isinstance(error, Interruption):
            self._answered(run_id, b"", named_error(error))

    def _answered(self, run_id: UUID, body: bytes, error: str | None) -> None:
        request, clock = self._models.pop(run_id)
        times = clock.started_at_us, clock.elapsed_s(), self._first.pop(run_id, None)
        answer = ModelAnswer(body, 0 if error else 200, "application/json", *times, error)
        tell_model(self._interceptor, request, answer)

    def on_tool_start(self, serialized: dict[str, Any] | None, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        if current() is self._interceptor:
            return
        given = kwargs.get("inputs")
        arguments = given if isinstance(given, Mapping) else parse_json_object(input_str) or {"input": input_str}
        name = str((serialized or {}).get("name") or kwargs.get("name") or "tool")
        request = ToolRequest(name, {key: plain(value) for key, value in arguments.items()}, EXTERNAL)
        self._tools[run_id] = request, Clock()

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        self._gave(run_id, answer_of(output))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        if not isinstance(error, Interruption):
            self._gave(run_id, ToolAnswer(error=named_error(error), replayable=isinstance(error, Exception)))

    def _gave(self, run_id: UUID, answer: ToolAnswer) -> None:
        if run_id in self._tools:
            request, clock = self._tools.pop(run_id)
            timed = replace(answer, started_at_us=clock.started_at_us, latency_s=clock.elapsed_s())
            tell_tool(self._interceptor, request, timed)
