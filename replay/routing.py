"""One model behind several addresses: which server gets which request, and what happens when one fails.

A request goes where its prefix was: rendezvous hashing (Thaler & Ravishankar 1998) of the prompt, so that all branches of a trace meet
the prompt cache that the first of them filled, with no table to keep or to share. No server is given more than a quarter above its share
(Mirrokni, Thorup & Zadimoghaddam 2018, "Consistent Hashing with Bounded Loads"); the share of a slow one is smaller. A server that has
room takes over what waits for one that has none. One address is the same with nothing to choose.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from counterplay.core.errors import PolicyError
from counterplay.core.turns import turns
from counterplay.replay.adaptive import Begun, Concurrency, Sign, share_of
from counterplay.replay.health import Health
from counterplay.replay.openai_answers import NoAnswerError
from counterplay.replay.openai_sending import Sender, backoff_s, busy, can_be_sent, repeatable, retry_after_s, was_sent
from counterplay.replay.openai_tally import Tally

if TYPE_CHECKING:
    import httpx2

_LOG = logging.getLogger("counterplay.replay.routing")
_LOG.addHandler(logging.NullHandler())
T = TypeVar("T")
_SLACK = 1.25
_FEW = 4  # so many requests may be at one server whatever the others have
_BUSIER = 4  # a server that says it is busy is asked that many times as often as one that fails
_UNREADABLE = 3  # each such answer costs money, and a server that always gives one is no model's


@dataclass(slots=True, eq=False)
class Server:
    """One address and what is known of it. `open_at_s` is when it wants the next request (`Retry-After`)."""

    url: str
    sender: Sender
    limit: Concurrency
    health: Health
    waiting: deque[_Waiting] = field(default_factory=deque)
    open_at_s: float = -float("inf")

    @property
    def load(self) -> int:
        return self.limit.in_flight + len(self.waiting)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request that has no server yet. `failed` are servers that failed it a moment ago."""

    leave: asyncio.Future[Leave]
    key: str
    failed: set[Server]


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave to make one request of `server`."""

    server: Server
    begun: Begun


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """What the last attempt came to: `value` where it was answered, else why not."""

    server: Server
    sign: Sign
    value: T | None = None
    response: httpx2.Response | None = None
    error: Exception | None = None

    @property
    def answered(self) -> bool:
        return self.sign is Sign.ANSWERED

    @property
    def unreadable(self) -> bool:
        return isinstance(self.error, PolicyError) and not isinstance(self.error, NoAnswerError)


class Router:
    """Sends each request to one of `servers`, at most `most` at once over all of them, and repeats what fails.

    A request is repeated up to `retries` times on 408, 409, 5xx, timeouts, broken connections and answers that can't be read (those three
    times at most), and four times as often where the server says that it is busy (429, 503, 529). It goes to another server at once where
    there is one that has not failed it; else again after a pause that doubles. What a server asks for in `Retry-After` holds for
    everything that goes there. `clock` gives seconds that never go back.
    """

    def __init__(
        self, servers: Sequence[Server], *, most: int, retries: int, tally: Tally, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.servers, self.most, self.retries, self.tally, self.clock = tuple(servers), most, retries, tally, clock
        self.in_flight = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = float("inf")

    async def post(self, body: bytes, key: str, read: Callable[[bytes, str], T]) -> Attempt[T]:
        """The first answer that `read` can read, else the last attempt. `key` is the prefix by which a server is chosen.

        `read` is given the answer and the server's address, and raises NoAnswerError where it is an error in disguise, another
        PolicyError where it is nonsense.
        """
        failed: set[Server] = set()
        bad = unreadable = waits = made = 0
        while True:
            attempt = await self._attempt(body, key, failed, made, read)
            made += 1
            if attempt.answered or not _worth_repeating(attempt):
                return attempt
            unreadable += attempt.unreadable
            if attempt.sign is Sign.BUSY:
                waits += 1
            else:
                bad += 1
            if bad > self.retries or waits > _BUSIER * self.retries or unreadable > _UNREADABLE:
                return attempt
            failed.add(attempt.server)
            if not any(server not in failed and server.health.available for server in self.servers):
                failed.clear()
                await asyncio.sleep(self._pause_s(attempt, made - 1))
            self.tally.retries += 1

    async def aclose(self) -> None:
        """Close every connection. Raises what closing raised first, once all were tried."""
        closed = await asyncio.gather(*(server.sender.http.aclose() for server in self.servers), return_exceptions=True)
        for error in closed:
            if error is not None:
                raise error

    async def _attempt(self, body: bytes, key: str, failed: set[Server], number: int, read: Callable[[bytes, str], T]) -> Attempt[T]:
        import httpx2

        leave = await self._take(key, failed)
        server, sign, well = leave.server, Sign.NONE, None
        try:
            response = await server.sender.send(body, number)
            sign, well = _meaning(response.status_code)
            if not response.is_success:
                self._heed(server, response)
                return Attempt(server, sign, None, response)
            value = read(response.content, server.url)
            sign, well = Sign.ANSWERED, True
            return Attempt(server, sign, value, response)
        except NoAnswerError as error:
            sign, well = _meaning(error.status)
            return Attempt(server, sign, None, None, error)
        except PolicyError as error:
            sign, well = Sign.NONE, None
            return Attempt(server, sign, None, None, error)
        except (TimeoutError, httpx2.RequestError) as error:
            sign, well = Sign.SLOW if isinstance(error, TimeoutError) else Sign.NONE, False
            self.tally.lost += was_sent(error)
            return Attempt(server, sign, None, None, error)
        finally:
            self._give_back(leave, sign, well=well)

    def _heed(self, server: Server, response: httpx2.Response) -> None:
        """Keep to what the server asks for."""
        asked_s = retry_after_s(response.headers)
        if asked_s is None or not repeatable(response):
            return
        server.open_at_s = max(server.open_at_s, self.clock() + asked_s)
        taking = turns.get()
        if taking is not None and len(self.servers) == 1:
            taking.pause(asked_s)

    def _pause_s(self, attempt: Attempt[T], attempts: int) -> float:
        """What a request waits before it is made again; where the server said how long, it waits with all others that go there."""
        if attempt.response is not None and retry_after_s(attempt.response.headers) is not None:
            return 0.0
        if attempts == 0 and attempt.sign is not Sign.BUSY and attempt.response is None:
            return 0.0  # a torn answer or a broken connection is no sign of load
        return backoff_s(attempts)

    async def _take(self, key: str, failed: set[Server]) -> Leave:
        """Wait for a server to have room."""
        request = _Waiting(asyncio.get_running_loop().create_future(), key, failed)
        self._choose(request).waiting.append(request)
        self._dispatch()
        try:
            return await request.leave
        except asyncio.CancelledError:
            if request.leave.done() and not request.leave.cancelled():
                self._give_back(request.leave.result(), Sign.NONE, well=None)  # leave was given, and nothing asked
            else:
                for server in self.servers:
                    if request in server.waiting:
                        server.waiting.remove(request)
            raise

    def _choose(self, request: _Waiting) -> Server:
        """The first in the order of the request's key that is well, has not failed it, and has not more than its share."""
        if len(self.servers) == 1:
            return self.servers[0]
        well = [server for server in self.servers if server.health.available]
        untried = [server for server in well if server not in request.failed]
        able = untried or well or [server for server in self.servers if server not in request.failed] or list(self.servers)
        weights = self._weights(able)
        total, whole = sum(server.load for server in able) + 1, sum(weights.values())
        ranked = sorted(able, key=lambda server: rank(request.key, server.url), reverse=True)
        for server in ranked:
            if server.load < max(_FEW, share_of(total, weights[server], whole, slack=_SLACK)):
                return server
        return ranked[0]

    def _weights(self, servers: Sequence[Server]) -> dict[Server, float]:
        """Each server's share of the load: less where its answers take longer."""
        known = [server.limit.latency_s for server in servers if server.limit.latency_s]
        usual = sum(known) / len(known) if known else 1.0
        return {server: usual / (server.limit.latency_s or usual) for server in servers}

    def _dispatch(self) -> None:
        """Begin what may begin: at each server what waits for it, and then what waits for one that can't take it."""
        while self.in_flight < self.most:
            roomy = [server for server in self.servers if self._has_room(server)]
            own = [server for server in roomy if server.waiting]
            if own:
                server = max(own, key=lambda server: len(server.waiting))
                self._begin(server, server.waiting.popleft())
                continue
            found = next(((server, request) for server in roomy if (request := self._taken_over(server)) is not None), None)
            if found is None:
                break
            self._begin(*found)
        self._wake_later()

    def _has_room(self, server: Server) -> bool:
        if not server.limit.room or self.clock() < server.open_at_s:
            return False
        return server.health.available or not any(other.health.available for other in self.servers)

    def _taken_over(self, server: Server) -> _Waiting | None:
        """A request that waits elsewhere for room and may go to `server` as well; the first of the longest queue."""
        if not server.health.available:
            return None
        for other in sorted(self.servers, key=lambda other: -len(other.waiting)):
            if other.waiting and (server not in other.waiting[0].failed or not other.health.available):
                return other.waiting.popleft()
        return None

    def _begin(self, server: Server, request: _Waiting) -> None:
        if request.leave.cancelled():  # given up a moment ago
            return
        self.in_flight += 1
        server.health.begin()
        request.leave.set_result(Leave(server, server.limit.begin()))

    def _give_back(self, leave: Leave, sign: Sign, *, well: bool | None) -> None:
        server = leave.server
        self.in_flight -= 1
        server.limit.end(leave.begun, sign)
        opened = server.health.opened
        server.health.end(well=well)
        if server.health.opened != opened:
            host = urlsplit(server.url).netloc.rpartition("@")[2]
            level, name = (logging.INFO, "server.closed") if opened else (logging.WARNING, "server.opened")
            _LOG.log(level, name, extra={"counterplay": {"server": host}})
        self._dispatch()

    def _wake_later(self) -> None:
        """Where something waits, come back when the next server wants requests again or has rested."""
        now_s = self.clock()
        times = [s.open_at_s for s in self.servers] + [s.health.rested_at_s for s in self.servers if s.health.opened]
        times = [at_s for at_s in times if at_s > now_s] if any(server.waiting for server in self.servers) else []
        if self._timer is not None and (not times or min(times) < self._due_s):
            self._timer.cancel()
            self._timer = None
        if times and self._timer is None:
            self._due_s = min(times)
            self._timer = asyncio.get_running_loop().call_later(self._due_s - now_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._dispatch()


def rank(key: str, url: str) -> int:
    """Rendezvous hashing: the server with the highest rank for a key has it. Depends on nothing else, in any process."""
    return int.from_bytes(blake2b(f"{key}\n{url}".encode(), digest_size=8).digest())


def _worth_repeating(attempt: Attempt[T]) -> bool:
    if attempt.response is not None:
        return repeatable(attempt.response)
    if attempt.error is not None and not can_be_sent(attempt.error):
        return False
    return not isinstance(attempt.error, NoAnswerError) or attempt.error.status in (408, 409, 429) or attempt.error.status >= 500


def _meaning(status: int) -> tuple[Sign, bool | None]:
    """What a status says of the load on a server, and whether it is well; None where it says nothing."""
    if busy(status):
        return Sign.BUSY, None
    if status == 408:
        return Sign.SLOW, None
    return Sign.NONE, False if status >= 500 else None
