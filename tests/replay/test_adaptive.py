"""The limit of one server: it grows where it is reached, falls where the server says so, and finds what a server bears."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.replay import openai_sending
from counterplay.replay.adaptive import Concurrency, Sign, Window
from counterplay.replay.openai_policy import OpenAIPolicy
from tests.replay import virtual
from tests.replay.model_servers import Limited


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def limit(**options):
    clock = Clock()
    return Concurrency(**{"most": 256, "clock": clock, **options}), clock


def round_trip(concurrency, clock, *, cap=10**9, latency_s=1.0, count=None):
    """Fill the limit; answers for the first `cap` after `latency_s`, the rest is turned away."""
    begun = [concurrency.begin() for _ in range(concurrency.room if count is None else count)]
    for one in begun[cap:]:
        concurrency.end(one, Sign.BUSY)
    clock.now_s += latency_s
    for one in begun[:cap]:
        concurrency.end(one, Sign.ANSWERED)


def turn_over(concurrency, clock, count, latency_s=1.0):
    """A full server: each request begins where one ends, `count` times over."""
    flying = [concurrency.begin() for _ in range(concurrency.room)]
    for _ in range(count):
        clock.now_s += latency_s / len(flying)
        concurrency.end(flying.pop(0), Sign.ANSWERED)
        flying += [concurrency.begin() for _ in range(concurrency.room)]
    for one in flying:
        concurrency.end(one, Sign.NONE)


def test_a_slow_start_doubles_and_then_one_is_added_a_round_trip():
    concurrency, clock = limit(start=4)
    turn_over(concurrency, clock, 4)
    assert concurrency.limit == 8
    turn_over(concurrency, clock, 8)
    assert concurrency.limit >= 15
    concurrency.end(concurrency.begin(), Sign.BUSY)
    after = concurrency.limit
    turn_over(concurrency, clock, after)
    assert after <= concurrency.limit <= after + 2


def test_it_does_not_grow_where_it_is_not_reached():
    concurrency, clock = limit(start=8)
    for _ in range(50):
        round_trip(concurrency, clock, count=7)
    assert concurrency.limit == 8


def test_one_sign_of_load_takes_a_tenth_and_a_round_is_cut_once():
    concurrency, _ = limit(start=100)
    begun = [concurrency.begin() for _ in range(100)]
    concurrency.end(begun[0], Sign.BUSY)
    assert concurrency.limit == 90
    for one in begun[1:10]:
        concurrency.end(one, Sign.BUSY)
    assert concurrency.limit == 90, "begun before the cut: the same sign"
    for one in begun[10:]:
        concurrency.end(one, Sign.NONE)
    concurrency.end(concurrency.begin(), Sign.BUSY)
    assert concurrency.limit == 81


@pytest.mark.parametrize("cap", [40, 64, 90])
def test_a_round_takes_as_much_as_was_turned_away(cap):
    concurrency, clock = limit(start=100)
    round_trip(concurrency, clock, cap=cap)
    assert concurrency.limit == max(50, cap)


def test_one_late_answer_is_no_sign_but_many_are():
    concurrency, _ = limit(start=50)
    begun = [concurrency.begin() for _ in range(50)]
    for one in begun[:5]:
        concurrency.end(one, Sign.SLOW)
    assert concurrency.limit == 50
    concurrency.end(begun[5], Sign.SLOW)
    assert concurrency.limit == 45


def test_latency_beyond_the_best_of_a_long_window_shrinks_it_to_what_was_good():
    concurrency, clock = limit(start=32, least=1)
    round_trip(concurrency, clock, latency_s=1.0)
    grown = concurrency.limit
    round_trip(concurrency, clock, latency_s=2.4)
    assert concurrency.limit >= grown, "a fuller batch may be slower"
    for _ in range(20):
        round_trip(concurrency, clock, latency_s=9.0)
    assert 14 <= concurrency.limit <= 17, "about what the best window had in flight on average"


def test_more_in_flight_that_brings_fewer_answers_is_given_up():
    concurrency, _ = limit(start=60)
    concurrency._windows.append(Window(1.0, 20.0))
    concurrency._judge(Window(1.6, 40.0))
    assert concurrency.limit == 60, "25 answers a second are more than 20"
    concurrency._judge(Window(2.45, 52.0))
    assert concurrency.limit == 54, "21 are fewer than 25, for more in flight"


def test_what_is_far_back_is_forgotten():
    concurrency, clock = limit(start=16, most=16)
    for _ in range(3):
        round_trip(concurrency, clock, latency_s=0.1)
    limits = set()
    for _ in range(30):
        round_trip(concurrency, clock, latency_s=1.0)
        limits.add(concurrency.limit)
    assert min(limits) < 14
    turn_over(concurrency, clock, 40 * 32)
    assert concurrency.limit == 16, "answers have become longer for good"


def test_answers_that_come_first_do_not_pass_for_what_is_usual():
    concurrency, clock = limit(start=64)
    begun = [concurrency.begin() for _ in range(64)]
    begun.append(concurrency.begin())
    for one in begun[:40]:
        clock.now_s += 0.1
        concurrency.end(one, Sign.ANSWERED)
    assert not concurrency._windows, "the slower part of those that began together is still to come"
    for one in begun[40:64]:
        clock.now_s += 0.1
        concurrency.end(one, Sign.ANSWERED)
    assert [window.latency_s for window in concurrency._windows] == [pytest.approx(3.3)]


SERVERS = {
    "429 above 40": (lambda: virtual.Limited(40, 40, 2.0), 128, 40),
    "429 above 160": (lambda: virtual.Limited(160, 160, 2.0), 300, 160),
    "429 above 3": (lambda: virtual.Limited(3, 3, 2.0), 32, 3),
    "16 slots, 429 above 40": (lambda: virtual.Limited(16, 40, 2.0), 96, 16),
    "16 slots, 429 above 40, Retry-After": (lambda: virtual.Limited(16, 40, 2.0, headers={"Retry-After": "2"}), 96, 16),
    "thrashes above 48": (lambda: virtual.Batching(1, 1, 1.0), 96, 48),
}


@pytest.mark.parametrize("name", SERVERS)
def test_it_comes_to_nine_tenths_of_the_best_fixed_limit_and_is_told_nothing(name):
    make, asking, best = SERVERS[name]
    wanted = virtual.answers(make, virtual.fixed(best), asking=asking)["settled"]
    assert wanted >= virtual.answers(make, virtual.fixed(best // 2), asking=asking)["settled"]
    found = virtual.answers(make, virtual.adaptive, asking=asking)
    assert found["settled"] >= 0.9 * wanted
    assert found["turned_away"] < 0.05 or best == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), max_size=300), st.integers(1, 3), st.integers(3, 40))
@settings(deadline=None)
def test_it_stays_within_its_bounds_and_counts_what_is_in_flight(ends, least, most):
    clock = Clock()
    concurrency = Concurrency(most=most, least=least, clock=clock)
    flying = []
    for kind, seconds in ends:
        flying += [concurrency.begin() for _ in range(concurrency.room)]
        clock.now_s += seconds
        concurrency.end(flying.pop(int(seconds) % len(flying)), list(Sign)[kind])
        assert least <= concurrency.limit <= most
        assert concurrency.in_flight == len(flying)


async def asked(server, monkeypatch, concurrency, times):
    """40 callers ask `times` times each, with `concurrency` as the policy's limit."""
    monkeypatch.setattr("counterplay.replay.openai_policy.Concurrency", lambda **_: concurrency)
    root = Trajectory((), (Message.user("go"),))
    async with OpenAIPolicy("m", base_url=server.base_url, concurrency=64, n_support="never") as policy:

        async def ask(number):
            for time in range(times):
                await policy.propose(root.extend(Step(Message.assistant(f"{number} {time}"))), 1)

        await asyncio.gather(*(ask(number) for number in range(40)))
    return policy


@pytest.mark.parametrize("headers", [{}, {"Retry-After-Ms": "10"}])
async def test_it_settles_at_what_a_server_bears(monkeypatch, headers):
    monkeypatch.setattr(openai_sending, "_FIRST_DELAY_S", 0.02)
    with Limited(slots=10, most=20, service_s=0.06, headers=headers) as server:
        found = Concurrency(most=64)
        policy = await asked(server, monkeypatch, found, 5)
        assert server.counts["answered"] == policy.tally.calls == 40 * 5
        assert 8 <= found.limit <= 30
        assert server.counts["turned away"] < 0.3 * policy.tally.calls
