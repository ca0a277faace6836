"""A worker on Ray uses no answer, of whomever, before its driver has it: tested without a cluster."""

import asyncio
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from counterplay.core.journal import MemoryJournal
from counterplay.jobs.desk import SentDesk
from counterplay.jobs.ray_worker import UnitWorker
from counterplay.jobs.work import Work, Worker
from counterplay.parts import Asked
from tests.front.moves import Mover, World, logged, sound
from tests.jobs.game import MCTS, unclocked

ASKED = Counter()


class Place(World):
    def call(self, name, arguments):
        ASKED["world"] += 1
        return super().call(name, arguments)


async def judge(trajectory):
    """A verifier that waits for its answer."""
    ASKED["judge"] += 1
    await asyncio.sleep(0)
    return sound(trajectory)


def at_once(trajectory):
    ASKED["verifier"] += 1
    return sound(trajectory)


class Together:
    """A verifier that takes batches."""

    name, version = "together", "1"

    def __call__(self, trajectory):
        return sound(trajectory)

    def batch(self, trajectories):
        ASKED["batch"] += len(trajectories)
        return [sound(trajectory) for trajectory in trajectories]


PARTS = SimpleNamespace(policy=None, World=Place, judge=judge, at_once=at_once, together=Together())


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "front_parts", PARTS)
    PARTS.policy = Mover()
    return Asked("front_parts:policy", "front_parts:World")


@pytest.mark.parametrize("verifier", ["judge", "at_once", "together"])
async def test_no_answer_is_used_before_the_driver_has_it(asked, verifier):
    """One simulation after the other: what is on its way to the driver at one time are answers of one part, to questions of one wave."""
    asked, plan = replace(asked, verifiers=(f"front_parts:{verifier}",)), replace(MCTS, options={"num_simulations": 8, "wave_size": 1})
    ASKED.clear()
    work = Work("t", (logged("t"),))
    worker = UnitWorker([], asked, plan, {})
    assert await worker.up() is None
    entries, seen, kept = [], Counter(), None
    async for messages in worker.work(work):
        for _ in range(50):
            await asyncio.sleep(0)
        on_their_way = [*messages, *worker._post["t"]._queue._queue]
        kinds = {said[2] for kind, *said in on_their_way if kind == "answered"}
        assert len(kinds) <= 1
        seen.update(kinds)
        for kind, *said in messages:
            if kind == "answered":
                entries.append(said)
            elif kind == "worked":
                (kept,) = said
        await worker.taken("t", len(messages))
    assert kept.state == "done"
    assert min(seen["propose"], seen["step"], seen["verify"]) > 2
    PARTS.policy = Mover()
    before = dict(ASKED)
    known = {"search/t": {key: answer for _, key, _, answer in entries}}
    again = await Worker(asked, plan).work(
        Work("t", work.traces, entries=known), SentDesk(work, lambda *_: MemoryJournal(dict(known["search/t"])))
    )
    assert (PARTS.policy.draws, dict(ASKED)) == ({}, before), "all of it came, in words that answer the same questions"
    assert [unclocked(record) for record in again.records] == [unclocked(record) for record in kept.records]
