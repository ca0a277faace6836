"""Answers given in place, as the responses of httpx2 and httpx that they stand for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, cast

from counterplay.replay.agents.ambient import ModelAnswer
from counterplay.replay.agents.teeing import CLOSED_EARLY

_RETRIED = (408, 409, 429)


def response_of(library: Any, request: Any, answer: ModelAnswer) -> Any:
    """The response that an answer given in place stands for. Raises the transport's error where that is what was recorded."""
    if answer.status == 0:
        raise _transport_error(library, answer.error or "", request) or library.ConnectError(answer.error or "", request=request)
    failure = None if answer.error in {None, CLOSED_EARLY} else _transport_error(library, answer.error or "", request)
    headers = {"content-type": answer.content_type}
    if answer.status in _RETRIED or answer.status >= 500:
        headers["retry-after-ms"] = "1"  # a client that tries again need not wait: nobody is to be spared
    if failure is None:
        stream = library.ByteStream(answer.body)
        headers["content-length"] = str(len(answer.body))
    else:
        stream = _given_class(library)(answer.body, failure)
    return library.Response(answer.status, headers=headers, stream=stream, request=request)


def _transport_error(library: Any, error: str, request: Any) -> Exception | None:
    """The library's own error of the recorded name, such as ReadTimeout; None where it has none of that name."""
    name, _, message = error.partition(": ")
    kind = getattr(library, name, None)
    if isinstance(kind, type) and issubclass(kind, library.TransportError):
        return cast("Exception", kind(message, request=request))
    return None


class _Given:
    """The body of an answer given in place, which breaks off with an error where the recorded one did."""

    def __init__(self, body: bytes, failure: Exception) -> None:
        self.body, self.failure = body, failure

    def __iter__(self) -> Iterator[bytes]:
        yield self.body
        raise self.failure

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body
        raise self.failure


@cache
def _given_class(library: Any) -> Callable[..., Any]:
    return type("Given", (_Given, library.AsyncByteStream, library.SyncByteStream), {})
