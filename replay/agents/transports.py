"""Model calls seen where they leave the process: in the transports of httpx2 and httpx, whatever SDK sends them.

A transport sees every retry, the exact bytes and the server-sent events. Streams are passed on chunk by chunk as they
come, and the recorder is told once, when a stream has ended or was closed. Headers, which hold secrets, are shown to
nobody. Requests that are no model calls pass untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import cache, partial, wraps
from typing import Any, Literal, TypeVar, cast

from counterplay.core.errors import UserError
from counterplay.replay.agents.ambient import Api, Interceptor, ModelRequest
from counterplay.replay.agents.calls import LET_THROUGH, MODEL, ask_model, covering, watching
from counterplay.replay.agents.guard import check_request
from counterplay.replay.agents.responses import response_of
from counterplay.replay.agents.teeing import CLOSED_EARLY, Watch, tee_class

__all__ = ["CLOSED_EARLY", "api_of", "async_recording_transport", "recording_transport"]

T = TypeVar("T")

_APIS: tuple[tuple[str, Api], ...] = (
    ("/chat/completions", "chat"),
    ("/responses", "responses"),
    ("/v1/messages", "messages"),
    ("/completions", "other"),
    ("/embeddings", "other"),
)
_SIGNS = ("model", "messages", "input", "prompt")
_IN_PROCESS = ("WSGITransport", "ASGITransport", "MockTransport", "RecordingTransport")


def recording_transport(inner: T) -> T:
    """A sync transport for a client's `transport=` whose model calls are seen, round a transport of the user's own.

    Outside of a run it does nothing. Raises UserError where `inner` is no transport of httpx2 or httpx.
    """
    return _explicit(inner, "sync")


def async_recording_transport(inner: T) -> T:
    """As `recording_transport`, for the transport of an async client."""
    return _explicit(inner, "async")


def api_of(method: str, path: str) -> Api | None:
    """The API that a request to `path` speaks; None where it is no model call."""
    if method != "POST":
        return None
    path = path.rstrip("/")
    return next((api for suffix, api in _APIS if path.endswith(suffix)), None)


def watched(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def handle_request(self: Any, request: Any) -> Any:
        interceptor = watching(MODEL)
        if interceptor is None:
            return original(self, request)
        return _handle(interceptor, request, partial(_send, self, original))

    return handle_request


def awatched(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        interceptor = watching(MODEL)
        if interceptor is None:
            return await original(self, request)
        return await _ahandle(interceptor, request, partial(_send, self, original))

    return handle_async_request


def _send(transport: Any, original: Callable[..., Any], request: Any) -> Any:
    """Send a request for real. Over a connection that is open already nothing but this would stop it."""
    if type(transport).__name__ not in _IN_PROCESS:
        check_request(request.url.host, request.url.port or {"http": 80, "https": 443}.get(request.url.scheme))
    return original(transport, request)


def _handle(interceptor: Interceptor, request: Any, send: Callable[[Any], Any]) -> Any:
    api = api_of(request.method, request.url.path)
    shown = None if api is None else _shown(api, request, request.read())
    if shown is None:
        return send(request)
    answer = ask_model(interceptor, shown)
    if answer is not None:
        return response_of(_library(request), request, answer)
    watch = Watch(interceptor, shown, _library(request))
    try:
        with covering(MODEL | LET_THROUGH):
            response = send(request)
            body = None if watch.streams(response) else _whole(response)
    except BaseException as failure:
        watch.failed(failure)
        raise
    if body is None:
        response.stream = tee_class(watch.library, "sync")(response.stream, watch)
        return response
    return watch.answered(response, body)


async def _ahandle(interceptor: Interceptor, request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    api = api_of(request.method, request.url.path)
    shown = None if api is None else _shown(api, request, await request.aread())
    if shown is None:
        return await send(request)
    answer = ask_model(interceptor, shown)
    if answer is not None:
        return response_of(_library(request), request, answer)
    watch = Watch(interceptor, shown, _library(request))
    try:
        with covering(MODEL | LET_THROUGH):
            response = await send(request)
            body = None if watch.streams(response) else await _awhole(response)
    except BaseException as failure:
        watch.failed(failure)
        raise
    if body is None:
        response.stream = tee_class(watch.library, "async")(response.stream, watch)
        return response
    return watch.answered(response, body)


def _shown(api: Api, request: Any, body: bytes) -> ModelRequest | None:
    """The request as interceptors see it; None where its body is none of a model call. The query may hold keys: it is left out."""
    attempt = request.headers.get("x-stainless-retry-count", "0")
    shown = ModelRequest(api, body, request.url.path, int(attempt) if attempt.isdecimal() else 0)
    return shown if any(sign in shown.fields for sign in _SIGNS) else None


def _whole(response: Any) -> bytes:
    """The body as it was sent, undecoded; empty where someone has read it."""
    if response.is_stream_consumed:
        return b""
    try:
        return b"".join(response.stream)
    finally:
        response.stream.close()


async def _awhole(response: Any) -> bytes:
    if response.is_stream_consumed:
        return b""
    try:
        return b"".join([chunk async for chunk in response.stream])
    finally:
        await response.stream.aclose()


def _library(request: Any) -> Any:
    """The module, httpx2 or httpx, whose request this is."""
    for kind in type(request).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in {"httpx", "httpx2"}:
            return sys.modules[name]
    raise UserError(f"got a request of {type(request).__module__}", "one of httpx2 or httpx")


def _explicit(inner: T, kind: Literal["sync", "async"]) -> T:
    base = "BaseTransport" if kind == "sync" else "AsyncBaseTransport"
    for library in (sys.modules.get("httpx2"), sys.modules.get("httpx")):
        if library is not None and isinstance(inner, getattr(library, base)):
            return cast("T", _explicit_class(getattr(library, base), kind)(inner))
    raise UserError(f"{inner!r:.80} is no {kind} transport", f"a {base} of httpx2 or httpx")


@cache
def _explicit_class(base: type, kind: Literal["sync", "async"]) -> Callable[..., Any]:
    def init(self: Any, inner: Any) -> None:
        self.inner = inner

    def close(self: Any) -> None:
        self.inner.close()

    async def aclose(self: Any) -> None:
        await self.inner.aclose()

    def handle_request(self: Any, request: Any) -> Any:
        return self.inner.handle_request(request)

    async def handle_async_request(self: Any, request: Any) -> Any:
        return await self.inner.handle_async_request(request)

    members: dict[str, Any] = {"__init__": init, "close": close, "handle_request": watched(handle_request)}
    if kind == "async":
        members = {"__init__": init, "aclose": aclose, "handle_async_request": awatched(handle_async_request)}
    return type("RecordingTransport", (base,), members)
