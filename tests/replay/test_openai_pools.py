"""Small pools: filled one after another, a further one only where all are full, all closed."""

import asyncio

import httpx2
import openai
import pytest

from counterplay.core.errors import PolicyError
from counterplay.core.nouns import Message, State
from counterplay.replay import openai_pools
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.openai_pools import Pools
from tests.replay.loopback import Loopback, completion

START = State((), (Message.user("go"),))


class Held:
    """A transport that answers when it is told to."""

    def __init__(self):
        self.gates = []

    def client(self):
        at = len(self.gates)
        self.gates.append([])

        async def answer(_request):
            gate = asyncio.Event()
            self.gates[at].append(gate)
            await gate.wait()
            return httpx2.Response(200, content=b"{}")

        return httpx2.AsyncClient(transport=httpx2.MockTransport(answer), headers={"x-pool": str(at)})


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_further_pool_is_made_only_where_all_are_full():
    held = Held()
    pools = Pools(held.client)
    request = httpx2.Request("POST", "http://server/")
    sent = [asyncio.create_task(pools.send(request)) for _ in range(20)]
    await settled()
    assert [len(gates) for gates in held.gates] == [8, 8, 4]
    for gate in held.gates[0][:3]:
        gate.set()
    await settled()
    more = [asyncio.create_task(pools.send(request)) for _ in range(4)]
    await settled()
    assert [len(gates) for gates in held.gates] == [8 + 3, 8, 4 + 1], "the first that has room is filled first"
    sent[-1].cancel()
    await settled()
    assert pools._busy == [8, 8, 4]
    for gate in [gate for gates in held.gates for gate in gates]:
        gate.set()
    await asyncio.gather(*sent[:-1], *more)
    assert pools._busy == [0, 0, 0]
    assert pools.headers["x-pool"] == "0"
    await pools.aclose()
    assert all(client.is_closed for client in pools.clients)


async def test_a_policy_asks_through_pools_that_keep_the_official_client_s_ways(monkeypatch):
    monkeypatch.setattr(openai_pools, "_SIZE", 2)
    with Loopback(default=lambda _: completion("hello")) as server:
        policy = OpenAIPolicy("m", base_url=server.base_url, api_key="k", n_support="never", concurrency=6)
        async with policy:
            assert len(await policy.propose(START, 6)) == 6
            clients = policy._router.servers[0].sender.http.clients
            assert len(clients) == 3
            assert all(isinstance(client, openai.DefaultAsyncHttpxClient) for client in clients)
            await policy.propose(START, 6)
            assert policy._router.servers[0].sender.http.clients == clients
        assert all(client.is_closed for client in clients)
        assert len(server.bodies) == 12


async def test_a_client_of_ones_own_is_used_alone_and_stays_open():
    with Loopback(default=lambda _: completion("hello")) as server:
        async with httpx2.AsyncClient() as mine:
            async with OpenAIPolicy("m", base_url=server.base_url, api_key="k", http_client=mine) as policy:
                await policy.propose(START, 3)
                assert policy._router.servers[0].sender.http is mine
            assert not mine.is_closed


async def test_a_server_that_is_gone_is_told_as_before():
    policy = OpenAIPolicy("m", base_url="http://127.0.0.1:9/v1", api_key="k", retries=0)
    async with policy:
        with pytest.raises(PolicyError, match="can't be reached"):
            await policy.propose(START, 1)
