"""Sending bytes to an OpenAI-compatible server: through the official client's connections, under its address and key.

The client's own `create` parses, copies and validates the whole history once a call, which costs more CPU than everything else of a
search together. Here a request is its bytes, and what is left of the client is what it knows: where, as whom, and how to connect.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2
    import openai

    from counterplay.replay.openai_pools import Pools

_FIRST_DELAY_S, _LONGEST_DELAY_S, _LONGEST_ASKED_S = 0.5, 8.0, 120.0
_BUSY = (429, 503, 529)
_NO_CREDIT = (b"insufficient_quota", b"billing_hard_limit_reached")


class Sender:
    """Posts bodies to one path of `client`'s server through `http`, the connections that `client` was made with."""

    def __init__(self, client: openai.AsyncOpenAI, http: httpx2.AsyncClient | Pools, path: str, *, timeout_s: float) -> None:
        import httpx2

        self.http, self.timeout_s = http, timeout_s
        self.url = httpx2.URL(str(client.base_url)).join(path)
        known = {**client.default_headers, **client.auth_headers, "Content-Type": "application/json", "Accept": "application/json"}
        self.headers = http.headers.copy()
        self.headers.update({name: value for name, value in known.items() if isinstance(value, str)})
        # Connecting ends before the whole does, so that a server that was never reached can be told from one that does not answer.
        self.extensions = {"timeout": httpx2.Timeout(timeout_s, connect=timeout_s / 2).as_dict()}

    async def send(self, body: bytes, attempt: int = 0) -> httpx2.Response:
        """The answer, of whatever status, read to its end within `timeout_s`, however slowly it comes.

        `attempt` counts from 0. Raises TimeoutError, or httpx2.RequestError where there is no whole answer for another reason.
        """
        import httpx2

        try:
            async with asyncio.timeout(self.timeout_s):
                return await self.http.send(self._request(body, attempt))
        except httpx2.TimeoutException as error:
            raise TimeoutError from error

    def _request(self, body: bytes, attempt: int) -> httpx2.Request:
        import httpx2

        headers = self.headers
        if attempt:
            headers = headers.copy()
            headers["x-stainless-retry-count"] = str(attempt)
        return httpx2.Request("POST", self.url, headers=headers, content=body, extensions=dict(self.extensions))


def repeatable(response: httpx2.Response) -> bool:
    """Whether to ask again: as the official client would, but not where the account has no credit left."""
    asked_s = _header_s(response.headers)
    if asked_s is not None and asked_s > _LONGEST_ASKED_S:
        return False
    said = response.headers.get("x-should-retry")
    if said in ("true", "false"):
        return bool(said == "true")
    return (response.status_code in (408, 409, 429) or response.status_code >= 500) and not out_of_credit(response)


def was_sent(error: BaseException) -> bool:
    """Whether a request that ended in this error may have come to the server; not one that found no connection, or was none."""
    import httpx2

    said = error.__cause__ if isinstance(error, TimeoutError) else error
    unreached = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
    return not isinstance(said, unreached) and can_be_sent(error)


def can_be_sent(error: BaseException) -> bool:
    """Whether the request of this error is one at all: an address without http://, or a key that is no header, never comes to be."""
    import httpx2

    return not isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError)


def busy(status: int) -> bool:
    """Whether a server says with this status that it has too much to do."""
    return status in _BUSY


def out_of_credit(response: httpx2.Response) -> bool:
    """Whether a 429 is about money and not about pace."""
    return response.status_code == 429 and any(code in response.content for code in _NO_CREDIT)


def retry_after_s(headers: httpx2.Headers) -> float | None:
    """Seconds to wait as the server asks for; None where it asks for nothing that can be kept to."""
    asked_s = _header_s(headers)
    return asked_s if asked_s is not None and 0 < asked_s <= _LONGEST_ASKED_S else None


def _header_s(headers: httpx2.Headers) -> float | None:
    """`Retry-After-Ms`, else `Retry-After` in seconds or as a date; None where there is none to be read."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if not math.isnan(seconds):
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else email.utils.mktime_tz(date) - time.time()


def backoff_s(attempt: int) -> float:
    """Seconds before a further attempt: half a second, doubled each time up to eight, less up to a quarter."""
    return min(_FIRST_DELAY_S * 2.0 ** min(attempt, 10), _LONGEST_DELAY_S) * (1 - 0.25 * random.random())
