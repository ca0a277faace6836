"""Asynchronous worlds, worlds in threads, and worlds that can't be restored: one instance a branch, none shared, none left open."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import ClassVar

import pytest

from counterplay.core.errors import DivergenceError, UserError
from counterplay.core.nouns import Message
from counterplay.replay.live import LiveEnvironment, execute
from tests.replay.shelf import CopyShelf, Shelf, SnapshotShelf, act, results, walk
from tests.replay.shelf_async import AsyncCopyShelf, AsyncShelf, AsyncSnapshotShelf, OneWayShelf

MAKES = pytest.mark.parametrize("make", [AsyncShelf, AsyncSnapshotShelf, AsyncCopyShelf])
TOTAL = act("total")


def put(name: str, n: int) -> Message:
    return act(("put", {"name": name, "n": n}))


@pytest.fixture(autouse=True)
def _counts():
    AsyncShelf.open_now = AsyncShelf.under_way = AsyncShelf.most = 0


@MAKES
@pytest.mark.parametrize("factory", ["class", "function", "coroutine"])
async def test_asynchronous_worlds_are_played_together_without_threads(make, factory):
    async def slowly():
        await asyncio.sleep(0)
        return make()

    threads = threading.active_count()

    def quickly():
        return make()

    async with LiveEnvironment({"class": make, "function": quickly, "coroutine": slowly}[factory]) as environment:
        fork = await walk(environment, await environment.initial(), put("a", 1), put("b", 1))
        actions = [act(("put", {"name": "a", "n": n}), "total") for n in range(20)]
        steps = await asyncio.gather(*(environment.step(fork, action) for action in actions))
        assert [step.observations[1].content_text for step in steps] == [f'{{"a": {2 + n}, "b": 3}}' for n in range(20)]
        assert AsyncShelf.most == 20
        assert threading.active_count() == threads
    assert AsyncShelf.open_now == 0


@MAKES
async def test_after_a_backtrack_an_asynchronous_world_is_in_its_state_too(make):
    async with LiveEnvironment(make) as environment:
        deep = await walk(environment, await environment.initial(), put("a", 1), put("a", 2), put("b", 5))
        back = await walk(environment, deep.prefix(1), put("a", 10), TOTAL)
        assert results(back) == ["a is 2", "a is 12", '{"a": 12, "b": 2}']
        wrong = replace(deep.steps[1], observations=(Message.tool("a is 9", "c0"),))
        with pytest.raises(DivergenceError, match="at step 1 of put"):
            await LiveEnvironment(make).step(replace(deep, steps=(deep.steps[0], wrong)), TOTAL)
        assert "RuntimeError" in (await environment.step(deep, act("crash"))).error
    assert AsyncShelf.open_now == 0


@MAKES
async def test_a_step_that_is_cancelled_leaves_nothing_open(make):
    async with LiveEnvironment(make) as environment:
        fork = await walk(environment, await environment.initial(), put("a", 1))
        for _ in range(4):
            step = asyncio.ensure_future(environment.step(fork, act("total", "total", "total")))
            await asyncio.sleep(0.002)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
        assert results(await walk(environment, fork, TOTAL))[-1] == '{"a": 2, "b": 2}'
    assert AsyncShelf.open_now == 0


async def test_an_asynchronous_world_is_refused_where_a_plain_one_is_needed():
    with pytest.raises(UserError, match="asynchronous world"):
        execute(AsyncShelf(), TOTAL)
    AsyncShelf.open_now = 0
    waiting = LiveEnvironment(AsyncShelf, blocking=True)
    with pytest.raises(UserError, match="blocking for AsyncShelf"):
        await waiting.initial()
    await waiting.aclose()
    assert AsyncShelf.open_now == 0

    async def slowly():
        return Shelf()

    environment = LiveEnvironment(slowly)
    with pytest.raises(UserError, match="open"):
        _ = environment.fingerprint
    async with environment:
        assert environment.fingerprint.startswith("live:shelf-1:")


async def test_a_broken_method_of_a_world_leaves_nothing_open():
    class Forgetful(AsyncSnapshotShelf):
        async def restore(self, snapshot):
            raise OSError("the disk is gone")

    class Unready(AsyncSnapshotShelf):
        async def snapshot(self):
            raise OSError("the disk is full")

    for make, complaint in ((Forgetful, "gone"), (Unready, "full")):
        async with LiveEnvironment(make) as environment:
            root = await environment.initial()
            with pytest.raises(OSError, match=complaint):
                await walk(environment, root, put("a", 1), TOTAL)
        assert AsyncShelf.open_now == 0


class Waiting(Shelf):
    """A plain world that blocks until as many others wait as the test wants."""

    barrier: ClassVar[threading.Barrier]
    open_now: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()
    users: ClassVar[dict[int, int]] = {}

    def __init__(self, task: str = "t") -> None:
        super().__init__(task)
        with Waiting.lock:
            Waiting.open_now += 1

    def call(self, name, arguments):
        with Waiting.lock:
            assert not Waiting.users.get(id(self)), "two branches share an instance"
            Waiting.users[id(self)] = threading.get_ident()
        try:
            if name == "total":
                Waiting.barrier.wait(10)
            return super().call(name, arguments)
        finally:
            with Waiting.lock:
                Waiting.users[id(self)] = 0

    def close(self) -> None:
        with Waiting.lock:
            Waiting.open_now -= 1


class WaitingSnapshots(Waiting, SnapshotShelf):
    pass


class WaitingCopies(Waiting, CopyShelf):
    pass


@pytest.mark.parametrize("make", [Waiting, WaitingSnapshots, WaitingCopies])
async def test_blocking_worlds_wait_side_by_side_each_for_itself(make):
    Waiting.barrier, Waiting.open_now = threading.Barrier(24), 0
    environment = LiveEnvironment(make, blocking=True, cache_states=4)
    fork = await walk(environment, await environment.initial(), put("a", 1))
    steps = await asyncio.gather(*(environment.step(fork, act(("put", {"name": "a", "n": n}), "total")) for n in range(24)))
    assert [step.observations[1].content_text for step in steps] == [f'{{"a": {2 + n}, "b": 2}}' for n in range(24)]
    await environment.aclose()
    assert Waiting.open_now == 0


@pytest.mark.parametrize("make", [Waiting, WaitingSnapshots, WaitingCopies])
async def test_closing_waits_for_the_threads_of_steps_that_were_given_up(make):
    Waiting.barrier, Waiting.open_now = threading.Barrier(2), 0
    environment = LiveEnvironment(make, blocking=True)
    fork = await walk(environment, await environment.initial(), put("a", 1))
    step = asyncio.ensure_future(environment.step(fork, TOTAL))
    await asyncio.to_thread(_until, lambda: Waiting.barrier.n_waiting == 1)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    closing = asyncio.ensure_future(environment.aclose())
    await asyncio.to_thread(Waiting.barrier.wait, 10)
    await closing
    assert Waiting.open_now == 0


def _until(condition) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never came to that")


async def test_a_world_that_can_not_be_restored_is_never_executed_again():
    async with LiveEnvironment(OneWayShelf) as environment:
        root = await environment.initial()
        line = await walk(environment, root, put("a", 1), put("a", 1), TOTAL)
        assert results(line)[-1] == '{"a": 3, "b": 2}'
        before, made = Shelf.executed.copy(), Shelf.made.copy()
        for state in (line.prefix(1), line.prefix(2)):
            lost = await environment.step(state, TOTAL)
            assert lost.truncated
            assert "can't be restored" in lost.error
            assert lost.observations == ()
        assert (Shelf.executed, Shelf.made) == (before, made)
        assert results(await walk(environment, line, TOTAL))[-1] == '{"a": 3, "b": 2}'
    logged = await LiveEnvironment(OneWayShelf).step(line.prefix(2), TOTAL)
    assert logged.error is not None
    assert Shelf.executed == before + type(before)(total=1)


async def test_lines_that_look_alike_have_each_their_own_instance():
    async with LiveEnvironment(OneWayShelf, cache_states=1) as environment:
        root = await environment.initial()
        lines = [await walk(environment, root, put("a", 1)) for _ in range(5)]
        assert len({line.key for line in lines}) == 1
        ends = [await walk(environment, line, put("b", n), TOTAL) for n, line in enumerate(lines)]
        assert [results(end)[-1] for end in ends] == [f'{{"a": 2, "b": {2 + n}}}' for n in range(5)]
        assert (await environment.step(lines[0], TOTAL)).error is not None
        assert Shelf.made["shelf"] == 5
    assert AsyncShelf.open_now == 0


class LimitedShelf(Shelf):
    truncated = False

    def call(self, name, arguments):
        self.truncated = self.executed["total"] >= 1
        return super().call(name, arguments)


async def test_a_limit_of_the_worlds_own_truncates():
    environment = LiveEnvironment(LimitedShelf)
    state = await walk(environment, await environment.initial(), TOTAL, TOTAL)
    assert [(step.terminated, step.truncated) for step in state.steps] == [(False, False), (False, True)]
    assert state.steps[-1].reward == 0.0


class Gallery(Shelf):
    def call(self, name, arguments):
        return [{"type": "text", "text": super().call(name, arguments)}, {"type": "image_url", "image_url": {"url": "data:,x"}}]


async def test_content_parts_are_kept_and_anything_else_is_an_error():
    step = await LiveEnvironment(Gallery).step(await LiveEnvironment(Gallery).initial(), TOTAL)
    assert step.observations[0].content[1]["image_url"] == {"url": "data:,x"}
    assert step.observations[0].content_text == '{"a": 1, "b": 2}'

    class Number(Shelf):
        def call(self, name, arguments):
            return 3

    assert (
        "returned int 3, wanted text or content parts"
        in (await LiveEnvironment(Number).step(await LiveEnvironment(Number).initial(), TOTAL)).error
    )
