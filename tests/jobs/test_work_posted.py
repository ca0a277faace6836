"""A worker on Ray asks its model nothing more before its driver has what it was answered: tested without a cluster."""

import asyncio
from types import SimpleNamespace

import pytest

from counterplay.core.journal import MemoryJournal
from counterplay.jobs.desk import SentDesk
from counterplay.jobs.ray_worker import UnitWorker
from counterplay.jobs.work import Work, Worker
from counterplay.parts import Asked
from tests.front.moves import Mover, World, logged, sound
from tests.jobs.game import MCTS, unclocked

PARTS = SimpleNamespace(policy=None, World=World, sound=sound)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "front_parts", PARTS)
    PARTS.policy = Mover()
    return Asked("front_parts:policy", "front_parts:World", ("outcome", "front_parts:sound"))


async def test_what_was_answered_is_with_the_driver_before_more_is_asked(asked):
    work = Work("t", (logged("t"),))
    worker = UnitWorker([], asked, MCTS, {})
    assert await worker.up() is None
    entries, asked_at, kept = [], [], None
    async for messages in worker.work(work):
        asked_at.append(sum(PARTS.policy.draws.values()))
        for kind, *said in messages:
            if kind == "answered":
                entries.append(said)
            elif kind == "worked":
                (kept,) = said
        for _ in range(50):
            await asyncio.sleep(0)
        assert sum(PARTS.policy.draws.values()) == asked_at[-1], "nothing is asked while the driver says nothing"
        await worker.taken("t", len(messages))
    assert kept.state == "done"
    assert len(set(asked_at)) > 2
    PARTS.policy = Mover()
    known = {"search/t": {key: answer for _, key, _, answer in entries}}
    again = await Worker(asked, MCTS).work(
        Work("t", work.traces, entries=known), SentDesk(work, lambda *_: MemoryJournal(dict(known["search/t"])))
    )
    assert PARTS.policy.draws == {}, "all of it came, in words that answer the same questions"
    assert [unclocked(record) for record in again.records] == [unclocked(record) for record in kept.records]
