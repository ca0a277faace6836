"""OpenAI-compatible servers on loopback with the habits of real ones: a capacity, a prompt cache, faults, an end.

Each runs in a thread with an event loop of its own and keeps account of what it answered.
"""

import asyncio
import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

from tests.replay.loopback import completion


@dataclass
class Reply:
    """`how`: whole; cut (the connection ends in the middle of the body); reset (before any byte); stall (never answered);
    drip (a byte now and then, until the client goes).
    """

    status: int = 200
    body: bytes = b"{}"
    headers: dict = field(default_factory=dict)
    how: str = "whole"


def usual(request):
    return completion(*[f"answer {request.get('seed')} {at}" for at in range(request.get("n", 1))])


def billed(answer):
    return answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


class ModelServer:
    """Answers with `answer(request)`; a context manager. `counts` holds what it did, by word."""

    def __init__(self, answer=usual):
        self.answer, self.counts = answer, Counter()
        self.in_flight = self.most_in_flight = self.port = 0
        self.bodies = []
        self.busy = threading.Event()
        """Set once it has had six requests."""
        self._connections = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def die(self):
        """Nothing listens any more, and what is connected is reset."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    async def _start(self):
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self):
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader, writer):
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length[15:]))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.counts["requests"] += 1
        self.bodies.append(body)
        if len(self.bodies) == 6:
            self.busy.set()
        try:
            reply = await self.reply(body)
        finally:
            self.in_flight -= 1
        if reply.how == "stall":
            await reader.read(1)  # until the client goes
            return False
        if reply.how == "reset":
            return False
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        said = reply.body[: {"cut": len(reply.body) // 2, "drip": 1}.get(reply.how)]
        writer.write(f"HTTP/1.1 {reply.status} X\r\nContent-Length: {len(reply.body)}\r\n{extra}\r\n".encode() + said)
        await writer.drain()
        while reply.how == "drip":
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.03)
            self.counts["dripped"] += 1
        return reply.how == "whole"

    async def reply(self, body):
        return self.answered(body)

    def answered(self, body):
        answer = self.answer(json.loads(body))
        self.counts["answered"] += 1
        self.counts["tokens"] += billed(answer)
        return Reply(body=json.dumps(answer).encode())


class Limited(ModelServer):
    """Works at `slots` requests at once, `service_s` each; more wait, and more than `most` in all are turned away with 429."""

    def __init__(self, slots, most, service_s=0.02, *, headers=None, answer=usual):
        super().__init__(answer)
        self.slots, self.most, self.service_s, self.headers = asyncio.Semaphore(slots), most, service_s, headers or {}

    async def reply(self, body):
        if self.in_flight > self.most:
            self.counts["turned away"] += 1
            return Reply(429, b'{"error": {"message": "slow down"}}', self.headers)
        async with self.slots:
            await asyncio.sleep(self.service_s)
        return self.answered(body)


class Flaky(ModelServer):
    """Of its answers, seeded: 10 % are 500s, 5 % resets, 5 % never come, 5 % are torn with status 200; and bursts of 429.

    What happens to a request depends on the request and how often it was made, not on when. Torn answers are billed: half of them end
    with the connection, half of them look whole. Every `burst`-th request begins a burst of `burst_length` 429s, each second one with
    `Retry-After-Ms`.
    """

    def __init__(self, seed=0, *, burst=60, burst_length=6, answer=usual):
        super().__init__(answer)
        self.seed, self.burst, self.burst_length = seed, burst, burst_length
        self._made, self._seen, self._left, self._bursts = Counter(), 0, 0, 0

    async def reply(self, body):
        self._seen += 1
        if self._seen % self.burst == 0:
            self._left, self._bursts = self.burst_length, self._bursts + 1
        await asyncio.sleep(0.002)
        if self._left:
            self._left -= 1
            self.counts["429"] += 1
            return Reply(429, b'{"error": {"message": "rate limit"}}', {"Retry-After-Ms": "30"} if self._bursts % 2 else {})
        return self._drawn(body)

    def _drawn(self, body):
        self._made[body] += 1
        drawn = random.Random(f"{self.seed}/{blake2b(body).hexdigest()}/{self._made[body]}").random()
        if drawn < 0.10:
            self.counts["500"] += 1
            return Reply(500, b"oops")
        if drawn < 0.20:
            how = "reset" if drawn < 0.15 else "stall"
            self.counts[how] += 1
            return Reply(how=how)
        if drawn < 0.25:
            answer = self.answer(json.loads(body))
            self.counts["torn"] += 1
            self.counts["torn tokens"] += billed(answer)
            text = json.dumps(answer).encode()
            if drawn < 0.225:
                self.counts["cut"] += 1
                return Reply(body=text, how="cut")
            return Reply(body=text[: len(text) * 2 // 3])
        return self.answered(body)
