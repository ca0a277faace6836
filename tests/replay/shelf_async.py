"""The shelf as asynchronous worlds, and as one that can't be restored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from tests.replay.shelf import Shelf


class AsyncShelf(Shelf):
    """Waits in every method. `open_now` counts instances that are not closed; `most` how many calls were under way at once."""

    open_now: ClassVar[int] = 0
    under_way: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self, task: str = "t") -> None:
        super().__init__(task)
        self.closed = False
        AsyncShelf.open_now += 1

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        assert not self.closed, "a closed instance was used"
        AsyncShelf.under_way += 1
        AsyncShelf.most = max(AsyncShelf.most, AsyncShelf.under_way)
        try:
            await asyncio.sleep(0.001)
            return super().call(name, arguments)
        finally:
            AsyncShelf.under_way -= 1

    async def close(self) -> None:
        await asyncio.sleep(0)
        assert not self.closed, "an instance was closed twice"
        self.closed = True
        AsyncShelf.open_now -= 1


class AsyncSnapshotShelf(AsyncShelf):
    async def snapshot(self) -> object:
        await asyncio.sleep(0)
        return (tuple(self.items.items()), self.done)

    async def restore(self, snapshot: Any) -> None:
        await asyncio.sleep(0)
        self.items, self.done = dict(snapshot[0]), snapshot[1]


class AsyncCopyShelf(AsyncShelf):
    async def copy(self) -> AsyncCopyShelf:
        assert not self.closed
        await asyncio.sleep(0.002)
        assert not self.closed, "closed while it was copied"
        twin = type(self)()
        twin.prompt, twin.items, twin.done = self.prompt, dict(self.items), self.done
        return twin


class OneWayShelf(AsyncShelf):
    """A live system: nothing brings it back to an earlier state."""

    replayable = False
