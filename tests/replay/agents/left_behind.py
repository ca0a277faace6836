"""Agents that would not end: each stays in its process, so `test_left_behind.py` runs these in one of their own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from counterplay.reenact import replay_agent
from counterplay.replay.agents.latch import PATIENCE
from tests.replay.agents import kinds
from tests.replay.agents.test_replaying import DEFINITIONS, PROMPT, Model, async_client_of, client_of, recorded, replayed

__all__ = ["recorded"]


@pytest.fixture(autouse=True)
def _fresh():
    kinds.fresh()


def endless(url):
    """Tries for ever."""
    with client_of(url, max_retries=2) as client:
        while True:
            try:
                return client.chat.completions.create(model="other", messages=PROMPT, tools=DEFINITIONS)
            except:  # noqa: E722
                pass


def endless_pool(url):
    """Tries for ever in a pool, and waits for it."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(endless, [url, url]))


async def endless_async(url):
    """Tries for ever, in tasks whose exceptions it is given as values."""

    async def one(client):
        while True:
            try:
                return await client.chat.completions.create(model="other", messages=PROMPT, tools=DEFINITIONS)
            except BaseException:  # noqa: BLE001
                await asyncio.sleep(0)

    async with async_client_of(url, max_retries=2) as client:
        return await asyncio.gather(one(client), one(client), return_exceptions=True)


@pytest.mark.parametrize("agent", [endless, endless_pool, endless_async])
def test_an_agent_that_tries_for_ever_is_left_behind(agent, recorded):
    trace = recorded(kinds.plain)
    replay, requests = replayed(agent, trace)
    assert replay.abandoned
    assert replay.interruption.startswith("argument drift at step 0: model: got other, wanted m")
    assert (replay.returned, replay.error, requests) == (None, None, 0)
    assert PATIENCE == 100


def test_an_agent_that_hangs_is_given_up(recorded):
    trace = recorded(kinds.plain)
    never = threading.Event()
    with Model() as server:
        replay = replay_agent(lambda url: never.wait(), trace, arguments={"url": server.base_url}, timeout_s=0.05)
    never.set()
    assert replay.abandoned
    assert "took more than 0.05 s" in replay.interruption
