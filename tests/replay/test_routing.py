"""One model behind several addresses: who gets what, what happens when one is slow, busy or dies, and what is paid."""

import asyncio
import json
from collections import Counter

import pytest

from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.core.protocols import fingerprint_of
from counterplay.replay import openai_sending
from counterplay.replay.adaptive import Concurrency, Sign
from counterplay.replay.health import Health
from counterplay.replay.openai_policy import OpenAIPolicy, addresses
from counterplay.replay.openai_tally import Tally
from counterplay.replay.routing import Router, Server, rank
from tests.replay import virtual
from tests.replay.loopback import Loopback, completion
from tests.replay.model_servers import Limited, ModelServer, Reply


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(openai_sending, "_FIRST_DELAY_S", 0.02)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def root(number):
    return Trajectory((), (Message.system("Keep books."), Message.user(f"task {number}")))


def branches(number, count):
    return [root(number).extend(Step(Message.assistant(f"branch {branch}"))) for branch in range(count)]


def task_of(body):
    return json.loads(body)["messages"][1]["content"]


def policy_at(*servers, **options):
    urls = ",".join(server if isinstance(server, str) else server.base_url for server in servers)
    return OpenAIPolicy("m", base_url=urls, **{"concurrency": 32, "n_support": "never", **options})


async def ask_all(policy, states):
    return await asyncio.gather(*(policy.propose(state, 1) for state in states))


# --- addresses ------------------------------------------------------------------------------------------------------------------------


def test_several_addresses_are_one_text_or_a_sequence():
    assert addresses("http://a/v1,http://b:8/v1 , https://c/v1") == ("http://a/v1", "http://b:8/v1", "https://c/v1")
    assert addresses(["http://a/v1", "http://a/v1", "http://b/x,y/v1"]) == ("http://a/v1", "http://b/x,y/v1")
    assert addresses(None) == addresses("") == ()


@pytest.mark.parametrize("address", ["127.0.0.1:9101/v1", "localhost/v1", "ftp://a/v1", "http://a/v1 b/v1", "http://"])
def test_an_address_without_http_is_refused_before_anything_is_asked(address):
    with pytest.raises(UserError, match=r"wanted an address with http:// or https://"):
        OpenAIPolicy("m", base_url=address)
    with pytest.raises(UserError) as told:
        addresses("me:sekrit@host/v1")
    assert "sekrit" not in str(told.value)


def test_the_fingerprint_does_not_know_who_answers():
    assert fingerprint_of(policy_at("http://a/v1", "http://b/v1")) == fingerprint_of(policy_at("http://c/v1"))


# --- health ---------------------------------------------------------------------------------------------------------------------------


def test_five_failures_in_a_row_open_the_circuit_and_a_probe_closes_it():
    clock = Clock()
    health = Health(clock=clock)
    for well in [False] * 4 + [True] + [False] * 4:
        health.end(well=well)
    assert health.available
    health.end(well=False)
    assert not health.available
    clock.now_s = 0.9
    assert not health.available
    clock.now_s = 1.0
    assert health.available
    health.begin()
    assert not health.available, "one probe at a time"
    health.end(well=False)
    clock.now_s = 2.9
    assert not health.available, "twice as long"
    clock.now_s = 3.0
    health.begin()
    health.end(well=True)
    assert health.available
    assert not health.opened


def test_half_of_the_last_requests_open_it_too_and_what_says_nothing_does_not():
    health = Health(clock=Clock())
    for well in [False, False, True] * 3:
        health.end(well=well)
    assert not health.opened
    health.end(well=None)
    assert not health.opened
    health.end(well=False)
    assert health.opened


def test_what_fails_late_does_not_keep_an_open_circuit_open_for_longer():
    clock = Clock()
    health = Health(clock=clock)
    for _ in range(50):
        health.end(well=False)
    clock.now_s = 1.0
    assert health.available
    for _ in range(12):
        health.begin()
        health.end(well=False)
        clock.now_s = health.rested_at_s
    assert clock.now_s - 60 <= health.rested_at_s
    assert health._rest_s == 60


# --- who gets what --------------------------------------------------------------------------------------------------------------------


class Deaf:
    """A sender whose requests end when told to."""

    def __init__(self):
        self.sent, self.http = [], None

    async def send(self, body, attempt=0):
        gate = asyncio.get_running_loop().create_future()
        self.sent.append((body, gate))
        return await gate


def router_of(count, *, most=1000, limit=100, clock=None):
    clock = clock or Clock()
    limits = [Concurrency(most=limit, start=limit, clock=clock) for _ in range(count)]
    servers = [Server(f"http://s{i}/v1", Deaf(), limits[i], Health(clock=clock)) for i in range(count)]
    return Router(servers, most=most, retries=2, tally=Tally(), clock=clock), servers


async def settled():
    for _ in range(8):
        await asyncio.sleep(0)


async def ending(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def post(router, body, key):
    return asyncio.ensure_future(router.post(body, key, lambda said, _: said))


async def test_one_prefix_goes_to_one_server_and_many_to_all():
    router, servers = router_of(3)
    asked = []
    for number in range(60):
        first = max(servers, key=lambda server: rank(f"key {number}", server.url))
        few = first.load < 4
        asked.append(post(router, b"%d" % number, f"key {number}"))
        await settled()
        went = next(server for server in servers if server.sender.sent and server.sender.sent[-1][0] == b"%d" % number)
        assert went is first or not few
    loads = [server.load for server in servers]
    assert sum(loads) == 60
    assert max(loads) <= 25 + 1, "no more than a quarter above the share"
    await ending(asked)
    assert (router.in_flight, [server.load for server in servers]) == (0, [0, 0, 0])


async def test_one_hot_prefix_stays_within_the_bound_and_spills_in_its_own_order():
    router, servers = router_of(3)
    asked = [post(router, b"x", "hot") for _ in range(4)]
    await settled()
    order = sorted(servers, key=lambda server: rank("hot", server.url), reverse=True)
    assert [server.load for server in order] == [4, 0, 0], "a few do not leave their server"
    asked += [post(router, b"x", "hot") for _ in range(26)]
    await settled()
    loads = [server.load for server in order]
    assert loads == sorted(loads, reverse=True)
    assert max(loads) == 13
    await ending(asked)


async def test_a_slow_server_is_given_less():
    router, servers = router_of(2)
    servers[0].limit.latency_s, servers[1].limit.latency_s = 3.0, 1.0
    asked = [post(router, b"%d" % i, f"key {i}") for i in range(80)]
    await settled()
    assert servers[0].load <= 27, "a quarter above a quarter"
    await ending(asked)


async def test_who_has_room_takes_over_what_waits_for_one_that_has_none():
    router, servers = router_of(2, limit=3)
    asked = [post(router, b"x", "hot") for _ in range(4)]
    await settled()
    assert sorted(server.limit.in_flight for server in servers) == [1, 3]
    assert not any(server.waiting for server in servers)
    await ending(asked)


async def test_no_more_are_in_flight_than_all_together_may():
    router, servers = router_of(2, most=5)
    asked = [post(router, b"%d" % i, f"key {i}") for i in range(12)]
    await settled()
    assert router.in_flight == 5
    waiting = sum(len(server.waiting) for server in servers)
    assert waiting == 7
    asked[-1].cancel()
    asked[0].cancel()
    await settled()
    assert (router.in_flight, sum(len(server.waiting) for server in servers)) == (5, 5)
    await ending(asked)
    assert (router.in_flight, sum(len(server.waiting) for server in servers)) == (0, 0)


async def test_where_nobody_is_well_somebody_is_asked():
    router, servers = router_of(2)
    for server in servers:
        server.health.opened, server.health.rested_at_s = True, 1e9
    asked = [post(router, b"x", f"key {i}") for i in range(6)]
    await settled()
    assert router.in_flight == 6
    await ending(asked)


# --- real servers ---------------------------------------------------------------------------------------------------------------------


async def test_the_branches_of_a_trace_meet_the_server_that_knows_them():
    with ModelServer() as one, ModelServer() as two, ModelServer() as three:
        async with policy_at(one, two, three) as policy:
            for _ in range(3):
                for number in range(12):
                    await ask_all(policy, branches(number, 3))
        seen = [Counter(task_of(body) for body in server.bodies) for server in (one, two, three)]
    assert sum(sum(counts.values()) for counts in seen) == policy.tally.calls == 108
    assert all(len([counts for counts in seen if counts[f"task {number}"]]) == 1 for number in range(12))
    assert all(seen), "and no server is left out"


async def test_a_server_that_dies_costs_no_answer_and_nothing_twice():
    with Limited(8, 100, 0.01) as one, Limited(8, 100, 0.01) as two, Limited(8, 100, 0.01) as three:
        async with policy_at(one, two, three, retries=4) as policy:
            states = [state for number in range(30) for state in branches(number, 4)]
            asked = asyncio.ensure_future(ask_all(policy, states))
            await asyncio.to_thread(one.busy.wait, 20)
            await asyncio.to_thread(one.die)
            proposals = await asked
            known = policy._router.servers[0].health
            assert known.opened
    assert policy.tally.failures == 0
    assert policy.tally.calls == len(states)
    assert sum(server.counts["answered"] for server in (one, two, three)) <= policy.tally.calls + policy.tally.lost
    seeds = [json.loads(body)["seed"] for body in two.bodies + three.bodies]
    assert len(seeds) == len(set(seeds)), "what one of them answered was not asked of the other"
    usage = sum(p.usage.tokens for (p,) in proposals)
    assert usage == policy.tally.input_tokens + policy.tally.output_tokens == 15 * len(states)


async def test_what_fails_at_one_server_is_asked_of_another_at_once():
    with Loopback(default=lambda _: (500, b"oops")) as ill, ModelServer() as well:
        async with policy_at(ill, well, retries=1) as policy:
            for number in range(12):
                await policy.propose(root(number), 1)
    assert policy.tally.retries == len(ill.bodies) > 0
    assert (policy.tally.calls, policy.tally.failures) == (12, 0)


def test_what_a_server_asks_for_holds_for_all_that_goes_there():
    class Wishing(virtual.Limited):
        async def reply(self):
            at.append(asyncio.get_running_loop().time())
            return (429, {"Retry-After": "90"}) if len(at) == 1 else (200, {})

    at = []

    async def main(clock):
        server = Server("http://server/v1", Wishing(1, 1, 1), Concurrency(most=64, clock=clock), Health(clock=clock))
        router = Router([server], most=64, retries=2, tally=Tally(), clock=clock)
        first = post(router, b"", "key")
        await asyncio.sleep(1)
        await asyncio.gather(first, *(post(router, b"", f"key {i}") for i in range(5)))

    virtual.virtually(main)
    assert at[0] == 0
    assert len(at) == 7
    assert min(at[1:]) == pytest.approx(90)


async def test_a_server_that_comes_back_is_found_by_a_probe(monkeypatch):
    monkeypatch.setattr("counterplay.replay.health._FIRST_REST_S", 0.05)
    ill = True

    class Ill(ModelServer):
        async def reply(self, body):
            if ill:
                return Reply(500, b"out of memory")
            return self.answered(body)

    with Ill() as one, ModelServer() as two:
        async with policy_at(one, two) as policy:
            await ask_all(policy, [root(number) for number in range(40)])
            asked_ill = one.counts["requests"]
            assert policy._router.servers[0].health.opened
            assert asked_ill < 30
            ill = False
            await asyncio.sleep(0.1)
            await ask_all(policy, [root(number) for number in range(40, 80)])
            await ask_all(policy, [root(number) for number in range(80, 120)])
            assert not policy._router.servers[0].health.opened
        assert one.counts["answered"] > 5
    assert policy.tally.calls == 120


async def test_a_slow_server_gets_the_smaller_part_and_holds_nobody_up():
    with Limited(64, 100, 0.4) as slow, Limited(64, 100, 0.001) as fast:
        async with policy_at(slow, fast, concurrency=16) as policy:
            for _ in range(3):
                await ask_all(policy, [root(number) for number in range(40)])
    assert slow.counts["answered"] + fast.counts["answered"] == policy.tally.calls == 120
    assert fast.counts["answered"] > 1.5 * slow.counts["answered"]


async def test_a_busy_server_s_wish_holds_for_it_alone():
    def busy_first(request):
        return (429, {"error": "x"}, {"Retry-After": "100"}) if len(one.bodies) == 1 else completion("a")

    with Loopback(default=busy_first) as one, Loopback(default=lambda _: completion("b")) as two:
        async with policy_at(one, two) as policy:
            said = await ask_all(policy, [root(number) for number in range(40)])
        assert len(one.bodies) <= 20
        assert len(two.bodies) >= 20
    assert policy.tally.calls == 40
    assert {p.action.content for (p,) in said} <= {"a", "b"}


async def test_a_dead_and_a_refusing_server_are_named():
    with ModelServer() as gone:
        url = gone.base_url
    async with policy_at(url, retries=1) as policy:
        with pytest.raises(PolicyError, match=f"{url} can't be reached"):
            await policy.propose(root(0), 1)
    with Loopback(default=lambda _: (401, b"bad key")) as refusing:
        async with policy_at(refusing, retries=1) as policy:
            with pytest.raises(UserError, match=refusing.base_url):
                await policy.propose(root(0), 1)


async def test_a_request_given_up_leaves_nothing_behind():
    with Limited(1, 100, 0.2) as server:
        async with policy_at(server, concurrency=2) as policy:
            asked = [asyncio.ensure_future(policy.propose(root(number), 1)) for number in range(6)]
            await asyncio.sleep(0.1)
            await ending(asked)
            router = policy._router
            assert (router.in_flight, router.servers[0].load) == (0, 0)
            assert await policy.propose(root(7), 1)


def test_a_sign_of_each_status():
    from counterplay.replay.routing import _meaning

    assert [_meaning(status) for status in (429, 503, 529, 500, 502, 408, 400)] == [
        (Sign.BUSY, None),
        (Sign.BUSY, None),
        (Sign.BUSY, None),
        (Sign.NONE, False),
        (Sign.NONE, False),
        (Sign.SLOW, None),
        (Sign.NONE, None),
    ]
