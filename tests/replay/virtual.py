"""The real router and limits against servers that take their time on a clock that jumps: the same on any machine."""

import asyncio
import random
import selectors

import httpx2

from counterplay.replay.adaptive import Concurrency
from counterplay.replay.health import Health
from counterplay.replay.openai_tally import Tally
from counterplay.replay.routing import Router, Server


class Jumping(selectors.DefaultSelector):
    """Instead of waiting, the clock jumps to where there is something to do."""

    now_s = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout:
            self.now_s += timeout
        return ready


def virtually(main):
    """Run `main(clock)` to its end in virtual time."""
    selector = Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    try:
        return loop.run_until_complete(main(loop.time))
    finally:
        loop.close()


class Limited:
    """Works at `slots` requests at once, an exponential time of mean `service_s` each (or exactly that); above `most` in all: 429."""

    def __init__(self, slots, most, service_s, *, headers=None, spread=True):
        self.slots, self.most, self.service_s, self.headers = asyncio.Semaphore(slots), most, service_s, headers or {}
        self.in_flight, self.turned_away, self.spread, self.http = 0, 0, spread, None
        self._random = random.Random(1)

    async def send(self, body, attempt=0):
        self.in_flight += 1
        try:
            status, headers = await self.reply()
            return httpx2.Response(status, headers=headers)
        finally:
            self.in_flight -= 1

    async def reply(self):
        if self.in_flight > self.most:
            self.turned_away += 1
            await asyncio.sleep(0.02)
            return 429, self.headers
        async with self.slots:
            await asyncio.sleep(self.service_s * (self._random.expovariate(1) if self.spread else 1))
        return 200, {}


class Batching(Limited):
    """Slower by 1/32 of its time for each request in flight; above 48, by its square."""

    async def reply(self):
        flying = self.in_flight
        spread = 0.5 + self._random.random()
        await asyncio.sleep(self.service_s * spread * (1 + flying / 32) * max(1.0, flying / 48) ** 2)
        return 200, {}


def answers(make, limit, *, seconds=120.0, asking=128):
    """Answers a second by the limit that `limit(clock)` makes, over the whole time and over its second half, and what it then was."""
    random.seed(3)

    async def main(clock):
        served, found = make(), limit(clock)
        server = Server("http://server/v1", served, found, Health(clock=clock))
        tally, at = Tally(), []
        router = Router([server], most=10**6, retries=10**6, tally=tally, clock=clock)

        async def ask(number):
            while clock() < seconds:
                await router.post(b"", f"{number}", lambda said, _: said)
                at.append(clock())

        await asyncio.gather(*(ask(number) for number in range(asking)))
        late = sum(seconds / 2 <= time_s < seconds for time_s in at)
        whole = sum(time_s < seconds for time_s in at)
        away = served.turned_away / (served.turned_away + len(at))
        return {"settled": late / (seconds / 2), "whole": whole / seconds, "limit": found.limit, "turned_away": away}

    return virtually(main)


def adaptive(clock):
    return Concurrency(most=256, clock=clock)


def fixed(limit):
    return lambda clock: Concurrency(most=limit, least=limit, clock=clock)
