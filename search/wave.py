"""Running the calls of a wave: begun in order, a limited number in flight, and no task made where nothing waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator


class Wave:
    """Runs waves of calls of one kind, at most `concurrency` calls in flight.

    The caller's own task is the first worker. The others are made at once where the last wave had to wait, so that a batching
    policy sees all calls together, and else only when the first worker has to wait: answers that are there already (from a
    journal, a recording, a plain function) cost no task and no turn of the event loop.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._waited = True

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
        tasks: list[asyncio.Task[int]] = []

        def spawn() -> None:
            tasks.extend(asyncio.ensure_future(_work(todo, call)) for _ in range(others))

        later = None if self._waited else asyncio.get_running_loop().call_soon(spawn)
        if later is None:
            spawn()
        try:
            done = await _work(todo, call)
            if later is not None:
                later.cancel()
            if tasks:
                await asyncio.gather(*tasks)
        finally:
            if later is not None:
                later.cancel()
            for task in tasks:
                task.cancel()
        self._waited = done < count


async def _work(todo: Iterator[int], call: Callable[[int], Awaitable[None]]) -> int:
    done = 0
    for i in todo:
        await call(i)
        done += 1
    return done
