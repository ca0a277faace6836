"""Running the calls of a wave: begun in order, a limited number in flight, and no task made where nothing waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextvars import copy_context


class Wave:
    """Runs waves of calls of one kind, at most `concurrency` calls in flight.

    The caller's own task is the first worker. The others are made at once where the last wave had to wait, so that a batching
    policy sees all calls together, and else only when the first worker has to wait: answers that are there already (from a
    journal, a recording, a plain function) cost no task and no turn of the event loop.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._waited = True
        self._spawn: Callable[[], None] | None = None
        self._armed: asyncio.AbstractEventLoop | None = None

    async def run(self, call: Callable[[int], Awaitable[None]], count: int) -> None:
        """Await call(0) to call(count - 1). The first exception cancels the calls in flight and is raised."""
        if count == 1:
            await call(0)
            return
        todo = iter(range(count))
        others = min(self.concurrency, count) - 1
        if others < 1:
            await _work(todo, call)
            return
        loop, context = asyncio.get_running_loop(), copy_context()
        tasks: list[asyncio.Task[int]] = []

        def spawn() -> None:
            tasks.extend(loop.create_task(_work(todo, call), context=context.copy()) for _ in range(others))

        if self._waited:
            spawn()
        else:
            self._spawn = spawn
            self._arm(loop)
        try:
            done = await _work(todo, call)
            self._spawn = None
            if tasks:
                await asyncio.gather(*tasks)
        finally:
            self._spawn = None
            for task in tasks:
                task.cancel()
        self._waited = done < count

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the other workers made as soon as the event loop turns; that stays armed over waves that never let it turn."""
        if self._armed is not loop:
            self._armed = loop
            loop.call_soon(self._turned)

    def _turned(self) -> None:
        self._armed = None
        if self._spawn is not None:
            self._spawn()


async def _work(todo: Iterator[int], call: Callable[[int], Awaitable[None]]) -> int:
    done = 0
    for i in todo:
        await call(i)
        done += 1
    return done
