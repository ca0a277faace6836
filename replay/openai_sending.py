"""Sending bytes to an OpenAI-compatible server: through the official client's connections, under its address and key.

The client's own `create` parses, copies and validates the whole history once a call, which costs more CPU than everything else of a
search together. Here a request is its bytes, and what is left of the client is what it knows: where, as whom, and how to connect. A request
is repeated as the client would repeat it.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from counterplay.core.turns import Turns, turns

if TYPE_CHECKING:
    import httpx2
    import openai

    from counterplay.replay.openai_pools import Pools

_FIRST_DELAY_S, _LONGEST_DELAY_S, _LONGEST_ASKED_S = 0.5, 8.0, 120.0


class Sender:
    """Posts bodies to one path of `client`'s server through `http`, the connections that `client` was made with.

    Repeats up to `retries` times on 408, 409, 429, 5xx, timeouts and lost connections, and where the server says `x-should-retry`; after
    what the server asks for in `Retry-After` (up to two minutes, else it is not repeated), else after 0.5 s, doubled each time up to
    8 s, less up to a quarter. What a server asks for holds for all requests of the limiter that the caller's search is under.
    """

    def __init__(self, client: openai.AsyncOpenAI, http: httpx2.AsyncClient | Pools, path: str, *, timeout_s: float, retries: int) -> None:
        import httpx2

        self.http, self.retries = http, retries
        self.url = httpx2.URL(str(client.base_url)).join(path)
        known = {**client.default_headers, **client.auth_headers, "Content-Type": "application/json", "Accept": "application/json"}
        self.headers = http.headers.copy()
        self.headers.update({name: value for name, value in known.items() if isinstance(value, str)})
        self.extensions = {"timeout": httpx2.Timeout(timeout_s).as_dict()}

    async def post(self, body: bytes, repeating: Callable[[], None] = lambda: None) -> httpx2.Response:
        """The answer, of whatever status, to the last attempt. `repeating` is called before each further attempt.

        Raises httpx2.TransportError where the last attempt had no answer.
        """
        import httpx2

        attempt = 0
        while True:
            response: httpx2.Response | None = None
            try:
                response = await self.http.send(self._request(body, attempt))
            except httpx2.TransportError:
                if attempt >= self.retries:
                    raise
            if response is not None and (response.is_success or attempt >= self.retries or not repeatable(response)):
                return response
            asked_s = None if response is None else retry_after_s(response.headers)
            taking: Turns | None = turns.get()
            if asked_s is not None and taking is not None:
                taking.pause(asked_s)
            await asyncio.sleep(_backoff_s(attempt) if asked_s is None else asked_s)
            attempt += 1
            repeating()

    def _request(self, body: bytes, attempt: int) -> httpx2.Request:
        import httpx2

        headers = self.headers
        if attempt:
            headers = headers.copy()
            headers["x-stainless-retry-count"] = str(attempt)
        return httpx2.Request("POST", self.url, headers=headers, content=body, extensions=dict(self.extensions))


def repeatable(response: httpx2.Response) -> bool:
    """Whether the official client would ask again."""
    asked_s = _header_s(response.headers)
    if asked_s is not None and asked_s > _LONGEST_ASKED_S:
        return False
    said = response.headers.get("x-should-retry")
    if said in ("true", "false"):
        return bool(said == "true")
    return response.status_code in (408, 409, 429) or response.status_code >= 500


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


def _backoff_s(attempt: int) -> float:
    return min(_FIRST_DELAY_S * 2.0 ** min(attempt, 10), _LONGEST_DELAY_S) * (1 - 0.25 * random.random())
