"""LangChain chat models that do not speak HTTP through a seen transport (local ones, gRPC, fakes), shown as Chat Completions.

They are seen where every way of asking them ends, in `_generate`, `_stream` and their async forms of the model's own class,
so that callbacks, caches and retries of LangChain work as ever. A model that is seen here is not seen again in a transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import dumps
from counterplay.replay.agents.ambient import Interceptor, Interruption, ModelAnswer, ModelRequest
from counterplay.replay.agents.calls import LET_THROUGH, MODEL, Clock, ask_model, covering, named_error, tell_model, watching
from counterplay.replay.agents.chat_wire import body_of, chunks_of, event_of, model_name, request_of, result_of
from counterplay.replay.agents.install import PATCHES
from counterplay.replay.agents.sse import DONE, EVENT_STREAM, event
from counterplay.replay.agents.teeing import CLOSED_EARLY

if TYPE_CHECKING:
    from langchain_core.outputs import ChatGenerationChunk, ChatResult

_MODULE = "langchain_core.language_models.chat_models"
_BY_TRANSPORT = {"langchain_openai", "langchain_anthropic", "langchain_mistralai", "langchain_groq"}
_OTHER_PATHS = {"langchain_aws", "langchain_google_vertexai"}  # subclasses of those that ask other servers, at other paths
_SDKS = {"openai", "anthropic"}
_INTERRUPTIONS: ContextVar[list[Interruption]] = ContextVar("counterplay_interruptions")


def by_transport(model: Any) -> bool:
    """Whether a chat model's calls leave through a transport that sees them."""
    rooms = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if rooms & _OTHER_PATHS:
        return False
    if rooms & _BY_TRANSPORT:
        return True
    held = (getattr(model, name, None) for name in type(model).model_fields)
    return any(type(value).__module__.partition(".")[0] in _SDKS for value in held)


def entered(original: Callable[..., Any]) -> Callable[..., Any]:
    """An entry of BaseChatModel that first makes sure that the model's own class is seen."""

    @wraps(original)
    def entry(self: Any, *args: Any, **kwargs: Any) -> Any:
        _prepare(type(self))
        return original(self, *args, **kwargs)

    return entry


def aentered(original: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the entry that `agenerate` gathers, which also notes how it was interrupted."""

    @wraps(original)
    async def entry(self: Any, *args: Any, **kwargs: Any) -> Any:
        _prepare(type(self))
        try:
            return await original(self, *args, **kwargs)
        except Interruption as interruption:
            _INTERRUPTIONS.get([]).append(interruption)
            raise

    return entry


def gathered(original: Callable[..., Any]) -> Callable[..., Any]:
    """`agenerate` gathers answers and takes what is no Exception for one of them: what ended the run is raised here instead."""

    @wraps(original)
    async def agenerate(self: Any, *args: Any, **kwargs: Any) -> Any:
        interruptions: list[Interruption] = []
        token = _INTERRUPTIONS.set(interruptions)
        try:
            return await original(self, *args, **kwargs)
        except Exception:
            if interruptions:
                raise interruptions[0] from None
            raise
        finally:
            _INTERRUPTIONS.reset(token)

    return agenerate


def _prepare(model: type) -> None:
    if watching(MODEL) is None:
        return
    for kind in model.__mro__:
        if (kind.__module__, kind.__name__) == (_MODULE, "BaseChatModel"):
            break
        for attribute, wrap in _WRAPS.items():
            if attribute in vars(kind):
                PATCHES.replace(kind, attribute, wrap)


class _Asked:
    """One call of a chat model: its request, what came of it, and its one report."""

    def __init__(self, interceptor: Interceptor, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, stream: bool) -> None:
        given = {**dict(zip(("messages", "stop", "run_manager"), args, strict=False)), **kwargs}
        messages, stop = given.pop("messages"), given.pop("stop", None)
        given.pop("run_manager", None)
        self.model, self.interceptor = model_name(model), interceptor
        self.request: ModelRequest = request_of(model, messages, stop, given, stream=stream)
        self.answer = ask_model(interceptor, self.request)
        self.clock = Clock()
        self.events: list[bytes] = []
        self.first_s: float | None = None
        self.done = False

    def live(self) -> AbstractContextManager[None]:
        """What the model does itself is part of this call."""
        return covering(MODEL | LET_THROUGH)

    def gave(self, result: ChatResult) -> ChatResult:
        self.report(body_of(result.generations, self.model), "application/json")
        return result

    def chunk(self, chunk: ChatGenerationChunk) -> None:
        self.first_s = self.clock.elapsed_s() if self.first_s is None else self.first_s
        self.events.append(event(dumps(event_of(chunk, self.model))))

    def streamed(self, error: str | None = None) -> None:
        end = [event(DONE)] if error is None else []
        self.report(b"".join(self.events + end), EVENT_STREAM, error=error)

    def failed(self, failure: BaseException) -> None:
        if isinstance(failure, Interruption):
            self.done = True
        elif self.events:
            self.streamed(named_error(failure))
        else:
            self.report(b"", "application/json", status=0, error=named_error(failure))

    def report(self, body: bytes, content_type: str, *, status: int = 200, error: str | None = None) -> None:
        if self.done:
            return
        self.done = True
        times = self.clock.started_at_us, self.clock.elapsed_s(), self.first_s
        tell_model(self.interceptor, self.request, ModelAnswer(body, status, content_type, *times, error))


def _watch(model: Any) -> Interceptor | None:
    found = watching(MODEL)
    return None if found is None or by_transport(model) else found


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        interceptor = _watch(self)
        if interceptor is None:
            return original(self, *args, **kwargs)
        asked = _Asked(interceptor, self, args, kwargs, stream=False)
        if asked.answer is not None:
            return result_of(asked.answer)
        try:
            with asked.live():
                result = original(self, *args, **kwargs)
        except BaseException as failure:
            asked.failed(failure)
            raise
        return asked.gave(result)

    return generate


def _agenerate(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def agenerate(self: Any, *args: Any, **kwargs: Any) -> Any:
        interceptor = _watch(self)
        if interceptor is None:
            return await original(self, *args, **kwargs)
        asked = _Asked(interceptor, self, args, kwargs, stream=False)
        if asked.answer is not None:
            return result_of(asked.answer)
        try:
            with asked.live():
                result = await original(self, *args, **kwargs)
        except BaseException as failure:
            asked.failed(failure)
            raise
        return asked.gave(result)

    return agenerate


_END: Any = object()


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        interceptor = _watch(self)
        if interceptor is None:
            yield from original(self, *args, **kwargs)
            return
        asked = _Asked(interceptor, self, args, kwargs, stream=True)
        if asked.answer is not None:
            yield from chunks_of(asked.answer)
            return
        chunks = original(self, *args, **kwargs)
        try:
            while True:
                with asked.live():  # only while the model works: a generator's caller sees what it sets
                    chunk = next(chunks, _END)
                if chunk is _END:
                    break
                asked.chunk(chunk)
                yield chunk
        except GeneratorExit:
            asked.streamed(CLOSED_EARLY)
            raise
        except BaseException as failure:
            asked.failed(failure)
            raise
        asked.streamed()

    return stream


def _astream(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def astream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        interceptor = _watch(self)
        if interceptor is None:
            async for chunk in original(self, *args, **kwargs):
                yield chunk
            return
        asked = _Asked(interceptor, self, args, kwargs, stream=True)
        if asked.answer is not None:
            for chunk in chunks_of(asked.answer):
                yield chunk
            return
        chunks = original(self, *args, **kwargs)
        try:
            while True:
                with asked.live():
                    chunk = await anext(chunks, _END)
                if chunk is _END:
                    break
                asked.chunk(chunk)
                yield chunk
        except GeneratorExit:
            asked.streamed(CLOSED_EARLY)
            raise
        except BaseException as failure:
            asked.failed(failure)
            raise
        asked.streamed()

    return astream


_WRAPS = {"_generate": _generate, "_agenerate": _agenerate, "_stream": _stream, "_astream": _astream}
