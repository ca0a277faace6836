"""What a live environment keeps: by count and by bytes, least recently used first out, nothing closed that is in use."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any, ClassVar

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.replay.kept import Kept
from counterplay.replay.live import LiveEnvironment
from tests.replay.shelf import CopyShelf, Shelf, SnapshotShelf, act, results, walk
from tests.replay.shelf_async import AsyncCopyShelf, AsyncShelf

TOTAL = act("total")


def put(name: str, n: int) -> Message:
    return act(("put", {"name": name, "n": n}))


class Heavy(SnapshotShelf):
    """Its snapshots weigh a thousand bytes for each item."""

    def snapshot_bytes(self, saved: Any) -> int:
        return 1000 * len(saved[0])


async def test_bytes_are_limited_by_the_worlds_own_measure():
    environment = LiveEnvironment(Heavy, cache_bytes=7000)
    state = await walk(environment, await environment.initial(), *[put(f"x{i}", 1) for i in range(4)])
    assert environment._kept.size == 6000  # the last state alone, of six items; the one before had five
    assert len(environment._kept) == 1
    Shelf.executed.clear()
    await environment.step(state, TOTAL)
    assert Shelf.executed == {"total": 1}


async def test_a_state_that_is_too_large_is_not_kept_and_the_nearest_ancestor_is_used():
    environment = LiveEnvironment(Heavy, cache_bytes=4500)
    state = await walk(environment, await environment.initial(), put("x", 1), put("y", 1), put("z", 1))
    assert results(state)[-1] == "z is 1"
    assert environment._kept.size <= 4500
    Shelf.executed.clear()
    assert results(await walk(environment, state, TOTAL))[-1] == '{"a": 1, "b": 2, "x": 1, "y": 1, "z": 1}'
    assert Shelf.executed["put"] == 3  # nothing but the beginning could be kept beside the larger states


@pytest.mark.parametrize("make", [SnapshotShelf, CopyShelf])
async def test_bytes_are_those_of_the_pickle_where_the_world_does_not_say(make):
    unlimited, limited = LiveEnvironment(make), LiveEnvironment(make, cache_bytes=10_000_000)
    for environment in (unlimited, limited):
        await walk(environment, await environment.initial(), put("a", 1))
    assert unlimited._kept.size == 0
    assert 0 < limited._kept.size < 10_000
    limited.close()
    assert limited._kept.size == 0
    assert len(limited._kept) == 0


async def test_an_idle_instance_weighs_what_the_world_says_or_nothing():
    class Process(Shelf):
        def snapshot_bytes(self, saved: Any) -> int:
            assert saved is self
            return 600

    for make, kept in ((Process, 1), (Shelf, 4)):
        environment = LiveEnvironment(make, cache_bytes=1000)
        for n in range(4):
            await walk(environment, await environment.initial(), put("a", n))
        assert len(environment._kept) == kept


async def test_a_state_that_can_not_be_measured_is_named_and_closed():
    class Locked(AsyncCopyShelf):
        def __init__(self, task: str = "t") -> None:
            super().__init__(task)
            self.lock = threading.Lock()

    AsyncShelf.open_now = 0
    async with LiveEnvironment(Locked, cache_bytes=100) as environment:
        root = await LiveEnvironment(Shelf).initial()
        with pytest.raises(UserError, match=r"a state of Locked can't be measured: .*snapshot_bytes"):
            await environment.step(root, put("a", 1))
    assert AsyncShelf.open_now == 0


async def test_least_recently_used_goes_first():
    environment = LiveEnvironment(SnapshotShelf, cache_states=3)
    root = await environment.initial()
    a, b, c = [await walk(environment, root, put("a", n)) for n in range(3)]
    environment.close()
    for state in (a, b):
        await environment.step(state, act("finish"))
    Shelf.executed.clear()
    await environment.step(a, act("finish"))
    await environment.step(c, act("finish"))
    await environment.step(a, act("finish"))
    assert Shelf.executed["put"] == 1
    await environment.step(c, TOTAL)
    await environment.step(a, act("finish"))
    assert Shelf.executed["put"] == 1
    await environment.step(b, act("finish"))
    assert Shelf.executed["put"] == 2


async def test_idle_instances_have_a_limit_of_their_own():
    class Process(Shelf):
        idle_limit = 2

    environment = LiveEnvironment(Process)
    root = await environment.initial()
    states = [await walk(environment, root, put("a", n)) for n in range(6)]
    assert len(environment._kept) == 2
    Shelf.executed.clear()
    for state in reversed(states):
        await environment.step(state, act("finish"))
    assert Shelf.executed["put"] == 4


async def test_what_is_being_copied_is_not_closed_and_is_closed_after():
    AsyncShelf.open_now = 0
    async with LiveEnvironment(AsyncCopyShelf, cache_states=1) as environment:
        root = await environment.initial()
        forks = [await walk(environment, root, put("a", n)) for n in range(4)]
        generator = random.Random(3)
        chosen = [generator.choice(forks) for _ in range(60)]
        steps = await asyncio.gather(*(environment.step(state, TOTAL) for state in chosen))
        assert [step.observations[0].content_text for step in steps] == [f'{{"a": {1 + forks.index(state)}, "b": 2}}' for state in chosen]
    assert AsyncShelf.open_now == 0


class Counted(CopyShelf):
    open_now: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()
    closed = False

    def __init__(self, task: str = "t") -> None:
        super().__init__(task)
        with Counted.lock:
            Counted.open_now += 1

    def copy(self):
        assert not self.closed
        twin = super().copy()
        assert not self.closed
        return twin

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        with Counted.lock:
            Counted.open_now -= 1


async def test_many_threads_on_a_small_cache_share_nothing_and_leave_nothing():
    Counted.open_now = 0
    environment = LiveEnvironment(Counted, cache_states=2, blocking=True)
    root = await environment.initial()
    forks = [await walk(environment, root, put("a", n), put("b", 1)) for n in range(5)]
    chosen = [random.Random(i).choice(forks) for i in range(200)]
    steps = await asyncio.gather(*(environment.step(state, act(("put", {"name": "b", "n": 1}), "total")) for state in chosen))
    assert [step.observations[1].content_text for step in steps] == [f'{{"a": {1 + forks.index(state)}, "b": 4}}' for state in chosen]
    await environment.aclose()
    assert Counted.open_now == 0


async def test_one_that_can_not_be_closed_does_not_keep_the_others_open():
    class Stuck(AsyncShelf):
        async def close(self) -> None:
            await super().close()
            if self.items["a"] == 2:
                raise OSError("stuck")

    AsyncShelf.open_now = 0
    environment = LiveEnvironment(Stuck)
    root = await environment.initial()
    for n in range(4):
        await walk(environment, root, put("a", n))
    with pytest.raises(OSError, match="stuck"):
        await environment.aclose()
    assert AsyncShelf.open_now == 0


async def test_taking_from_nothing_is_nothing():
    assert await Kept(3).take("nowhere", Shelf) is None
