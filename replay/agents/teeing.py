"""Answers of model servers, passed on as they come and reported once: when they have ended, failed, or were closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, Literal

from counterplay.replay.agents.ambient import Interceptor, Interruption, ModelAnswer, ModelRequest
from counterplay.replay.agents.calls import Clock, named_error, tell_model
from counterplay.replay.agents.sse import EVENT_STREAM, is_complete

CLOSED_EARLY = "closed early"


class Watch:
    """One call that is let through: what has been seen of its answer, and the one report of it."""

    def __init__(self, interceptor: Interceptor, request: ModelRequest, library: Any) -> None:
        self.interceptor, self.request, self.library = interceptor, request, library
        self.clock = Clock()
        self.chunks: list[bytes] = []
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.status, self.content_type, self.encoding = 0, "application/json", ""
        self.done = False

    def streams(self, response: Any) -> bool:
        """Whether the body is passed on as it comes; notes what the answer is. One that has been read already is not."""
        self.status = response.status_code
        self.content_type = response.headers.get("content-type", self.content_type).partition(";")[0].strip().lower()
        self.encoding = response.headers.get("content-encoding", "")
        if response.is_stream_consumed or response.is_closed:
            return False
        return self.content_type == EVENT_STREAM or (self.request.stream and self.status < 400)

    def chunk(self, data: bytes) -> None:
        self.last_s = self.clock.elapsed_s()
        self.chunks.append(data)
        # Comments that keep a connection open are no token.
        if self.first_s is None and (self.encoding or b"data:" in data):
            self.first_s = self.last_s

    def answered(self, response: Any, body: bytes) -> Any:
        """Report an answer whose body, as it was sent, is here, and give it back unread."""
        if not response.is_stream_consumed:
            self.chunks = [body]
            response.stream = self.library.ByteStream(body)
        else:
            self.chunks, self.encoding = [response.content], ""
        self.report(None)
        return response

    def failed(self, failure: BaseException) -> None:
        """Report that there was no answer. A run that was ended from inside of the call was not answered by anyone."""
        if not isinstance(failure, Interruption):
            self.status = 0
            self.report(named_error(failure))

    def closed(self) -> None:
        """A stream was closed. Clients close it when they have read its last event, without waiting for its end."""
        if not self.done:
            self.report(None if is_complete(self._body()) else CLOSED_EARLY, self.last_s)

    def report(self, error: str | None, latency_s: float | None = None) -> None:
        if self.done:
            return
        self.done = True
        latency_s = self.clock.elapsed_s() if latency_s is None else latency_s
        answer = ModelAnswer(
            self._body(), self.status, self.content_type, self.clock.started_at_us, latency_s, self.first_s, error
        )  # fmt: skip
        tell_model(self.interceptor, self.request, answer)

    def _body(self) -> bytes:
        raw = b"".join(self.chunks)
        return _decoded(self.library, raw, self.encoding) if self.encoding and raw else raw


class _Tee:
    """A body that is passed on chunk by chunk as it comes."""

    def __init__(self, inner: Any, watch: Watch) -> None:
        self.inner, self.watch = inner, watch


class _SyncTee(_Tee):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self.inner:
                self.watch.chunk(chunk)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as failure:
            self.watch.report(named_error(failure))
            raise
        self.watch.report(None)

    def close(self) -> None:
        try:
            self.inner.close()
        finally:
            self.watch.closed()


class _AsyncTee(_Tee):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.inner:
                self.watch.chunk(chunk)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as failure:
            self.watch.report(named_error(failure))
            raise
        self.watch.report(None)

    async def aclose(self) -> None:
        try:
            await self.inner.aclose()
        finally:
            self.watch.closed()


@cache
def tee_class(library: Any, kind: Literal["sync", "async"]) -> Callable[..., Any]:
    mixin, base = (_SyncTee, library.SyncByteStream) if kind == "sync" else (_AsyncTee, library.AsyncByteStream)
    return type(mixin.__name__, (mixin, base), {})


def _decoded(library: Any, raw: bytes, encoding: str) -> bytes:
    """`raw` without its content encoding. What was cut off or can't be decoded here is kept as it was sent."""
    try:
        decoded: bytes = library.Response(200, headers={"content-encoding": encoding}, content=raw).content
    except library.DecodingError:
        return raw
    return decoded
