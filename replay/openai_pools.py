"""Connections to one server in several small pools.

A pool looks at every connection it has when a request comes and again when it goes, and at idle ones with a system call, so with a
hundred in flight that costs more than the request itself. Pools of a few connections, filled one after another, are looked at in no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

_SIZE = 8


class Pools:
    """Clients that `make` makes, at most `_SIZE` requests in flight in each; a further one is made when all are full.

    Stands where one `httpx2.AsyncClient` would: for `headers`, `send` and `aclose`.
    """

    def __init__(self, make: Callable[[], httpx2.AsyncClient]) -> None:
        self._make = make
        self.clients = [make()]
        self._busy = [0]

    @property
    def headers(self) -> httpx2.Headers:
        return self.clients[0].headers

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """The answer, read to its end."""
        busy = self._busy
        place = next((i for i, count in enumerate(busy) if count < _SIZE), len(busy))
        if place == len(busy):
            self.clients.append(self._make())
            busy.append(0)
        busy[place] += 1
        try:
            return await self.clients[place].send(request)
        finally:
            busy[place] -= 1

    async def aclose(self) -> None:
        """Close every connection. Raises what closing raised first, once all were tried."""
        closed = await asyncio.gather(*(client.aclose() for client in self.clients), return_exceptions=True)
        for error in closed:
            if error is not None:
                raise error
