"""Randomness and time, pinned and put back."""

# ruff: noqa: NPY002  numpy's global generator is what is pinned

import asyncio
import builtins
import datetime as dt
import os
import random
import secrets
import threading
import time
import uuid
from contextlib import suppress
from uuid import uuid1, uuid4

import httpx2
import numpy as np
import openai
import pytest

from counterplay.core.errors import UserError
from counterplay.replay.agents.ambient import intercepting
from counterplay.replay.agents.pins import pinned
from tests.replay.agents.seen import Seen
from tests.replay.loopback import Loopback, completion

THEN = 1_700_000_000_123_457


def draw():
    return random.random(), random.getrandbits(99), float(np.random.rand()), uuid4(), uuid.uuid4(), uuid.uuid5(uuid.NAMESPACE_DNS, "x")


def test_the_same_seed_draws_the_same_and_another_does_not():
    draws = []
    for seed in (1, 1, 2):
        with pinned(seed=seed):
            draws.append(draw())
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0][:5], draws[2][:5], strict=True))
    assert draws[0][3] != draws[0][4]
    assert draws[0][3].version == 4


def test_everything_is_put_back():
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), float(np.random.rand())
    random.seed(5)
    np.random.seed(5)
    node, functions = uuid.getnode(), (uuid._generate_time_safe, uuid.os)
    with suppress(KeyError), pinned(seed=9, clock=THEN):
        draw()
        raise KeyError
    assert (random.random(), float(np.random.rand())) == expected
    assert (uuid.getnode(), (uuid._generate_time_safe, uuid.os)) == (node, functions)
    assert len({uuid4() for _ in range(9)}) == 9
    assert abs(time.time() - dt.datetime.now(dt.UTC).timestamp()) < 5
    assert time.time() > THEN / 1e6 + 1e7


def test_uuid1_is_the_same_at_the_same_time():
    drawn = []
    for _ in range(2):
        with pinned(seed=3, clock=THEN):
            drawn.append((uuid1(), uuid1(), uuid.uuid1()))
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    assert drawn[0][0].node >> 40 & 1
    assert abs(drawn[0][0].time / 10 - 12219292800e6 - THEN) < 2


def test_secrets_stay_secret():
    drawn = []
    for _ in range(2):
        with pinned(seed=3):
            drawn.append((secrets.token_hex(), os.urandom(8), random.SystemRandom().random()))
    assert all(a != b for a, b in zip(*drawn, strict=True))


def test_time_stands_still_and_moves_on():
    with pinned(clock=THEN) as pin:
        assert time.time_ns() == THEN * 1000
        assert dt.datetime.now(dt.UTC) == dt.datetime(2023, 11, 14, 22, 13, 20, 123457, tzinfo=dt.UTC)
        time.sleep(0.002)
        assert time.time_ns() == THEN * 1000
        pin.move_to(THEN + 5_000_001)
        assert time.time_ns() == (THEN + 5_000_001) * 1000
        pin.move_to(THEN)
        assert pin.now_us == THEN + 5_000_001
        assert time.time_ns() == pin.now_us * 1000
        pin.let_run()
        first = time.time_ns()
        time.sleep(0.002)
        assert time.time_ns() >= first + 2_000_000


def test_the_time_zone_stays(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with pinned(clock=THEN) as pin:
            pin.move_to(THEN + 1)
            assert (os.environ["TZ"], time.localtime().tm_hour, dt.datetime.now().hour) == ("Asia/Tokyo", 7, 7)  # noqa: DTZ005
    finally:
        monkeypatch.undo()
        time.tzset()


def test_without_a_clock_or_a_seed_nothing_is_pinned():
    state = random.getstate()
    with pinned() as pin:
        before = time.time()
        assert before > THEN / 1e6 + 1e7
        pin.move_to(THEN)
        pin.let_run()
        assert time.time() >= before
        assert random.getstate() == state
    with pinned(seed=1) as pin:
        assert time.time() > THEN / 1e6 + 1e7
        assert pin.now_us is None


async def test_timeouts_loops_and_clients_go_on_under_a_standing_clock():
    late = Loopback(0.5, completion("late"), default=lambda _: completion("ok"))
    with late as server, intercepting(Seen()), pinned(seed=1, clock=THEN):
        start, monotonic = time.perf_counter(), time.monotonic()
        await asyncio.sleep(0.01)
        assert time.perf_counter() - start >= 0.009
        assert time.monotonic() - monotonic >= 0.009
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(5), 0.01)
        assert not threading.Event().wait(0.01)
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as model:
            with pytest.raises(openai.APITimeoutError):
                await model.chat.completions.create(model="m", messages=[], timeout=0.1)
            assert (await model.chat.completions.create(model="m", messages=[])).choices[0].message.content == "ok"
        with httpx2.Client(base_url=server.base_url, timeout=0.05) as http:
            assert http.post("/x", json={}).status_code == 200
            server.script.extend([0.3, completion("late")])
            with pytest.raises(httpx2.ReadTimeout):
                http.post("/x", json={})


def test_one_at_a_time():
    with pinned(seed=1), pytest.raises(UserError, match="one at a time"), pinned(seed=2):
        pass
    with pinned(seed=1):
        pass


def test_a_missing_library_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "time_machine":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    state = random.getstate()
    with pytest.raises(UserError, match=r"counterplay\[pin\]"), pinned(seed=1, clock=THEN):
        pass
    assert random.getstate() == state
    with pinned(seed=1):
        pass
