"""Who gets how much of one budget: by expected gain or evenly, never more than the whole, and everyone else is told why."""

import asyncio
import itertools
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay import Store
from counterplay.core.budget import KINDS, Budget
from counterplay.core.errors import CounterplayError, UserError
from counterplay.core.nouns import Call, Usage
from counterplay.dividing import Shares, divide, estimates
from counterplay.parts import Asked
from counterplay.plan import COUNTED, Pace, Plan
from counterplay.searching import search
from tests.front.moves import Mover, World, logged, sound

PARTS = SimpleNamespace(policy=None, World=World, sound=sound)
GOOD = "bbbbbb"
NUMBERS = itertools.count()


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_store():
    with Store.open(":memory:") as opened:
        yield opened


def history(task, won, lost):
    """One failed run to search, and what is known of its task besides."""
    return [logged(task, name=f"{task}/{i}") for i in range(lost)] + [logged(task, GOOD, name=f"{task}+{i}") for i in range(won)]


def limits_of(division, kind):
    return {name: getattr(make().limits, kind) for name, make in division.budgets.items()}


def test_the_unsure_and_the_nearly_solved_get_more_than_the_hopeless_and_the_mastered(store):
    tasks = {"unsure": (4, 4), "nearly": (6, 2), "hopeless": (0, 8), "mastered": (40, 1)}
    for task, (won, lost) in tasks.items():
        store.ingest(history(task, won, lost))
    traces = [store.trace(f"{task}/0") for task in tasks]
    known = estimates(store, traces)
    assert {name: (e.successes, e.attempts) for name, e in known.items()} == {
        "unsure/0": (4, 8),
        "nearly/0": (6, 8),
        "hopeless/0": (0, 8),
        "mastered/0": (40, 41),
    }
    division = divide(store, traces, Plan(budget="model_calls=18"))  # three lines of six calls
    assert sum(limits_of(division, "model_calls").values()) == 18
    got = {task: limits_of(division, "model_calls").get(f"{task}/0", 0) for task in tasks}
    assert got == {"unsure": 12, "nearly": 6, "hopeless": 0, "mastered": 0}
    assert division.skipped == {
        "hopeless/0": "the budget brings more elsewhere (0 of 8 logged runs of its task succeeded)",
        "mastered/0": "the budget brings more elsewhere (40 of 41 logged runs of its task succeeded)",
    }
    evenly = divide(store, traces, Plan(budget="model_calls=30", split="even"))
    assert set(limits_of(evenly, "model_calls").values()) == {7}
    assert evenly.skipped == {}


def test_where_nothing_is_known_all_get_a_line_and_the_cheap_ones_more(store):
    traces = [logged("short", "aaa"), logged("long", "a" * 30)]
    store.ingest(traces)
    division = divide(store, traces, Plan(budget="model_calls=66"))
    assert limits_of(division, "model_calls") == {"short-aaa": 36, "long-" + "a" * 30: 30}


def test_a_trace_budget_goes_to_those_that_promise_most(store):
    store.ingest([*history("hopeless", 0, 8), *history("unsure", 4, 4)])
    traces = [store.trace("hopeless/0"), store.trace("unsure/0")]
    division = divide(store, traces, Plan(budget="model_calls=20", trace_budget="model_calls=20"))
    assert limits_of(division, "model_calls") == {"unsure/0": 20}
    assert "0 of 8" in division.skipped["hopeless/0"]
    first = divide(store, traces, Plan(budget="model_calls=20", trace_budget="model_calls=20", split="even"))
    assert limits_of(first, "model_calls") == {"hopeless/0": 20}
    own_time = divide(store, traces, Plan(budget="model_calls=40,seconds=50", trace_budget="seconds=5"))
    assert set(limits_of(own_time, "seconds").values()) == {5}


def test_a_trace_budget_that_lasts_for_all_goes_to_all(store):
    tasks = {"hopeless": (0, 200), "unsure": (4, 4), "new": (0, 1)}
    for task, (won, lost) in tasks.items():
        store.ingest(history(task, won, lost))
    traces = [store.trace(f"{task}/0") for task in tasks]
    division = divide(store, traces, Plan(budget="model_calls=60", trace_budget="model_calls=20"))
    assert set(limits_of(division, "model_calls").values()) == {20}
    assert len(division.budgets) == 3
    assert not division.skipped


def test_a_dollar_is_not_spread_over_traces_that_get_no_line_of_it(store):
    priced = [
        replace(trace, calls=(Call(0, usage=Usage(cost_usd=1.0)),)) for trace in (history("unsure", 4, 4)[0], history("hopeless", 0, 8)[0])
    ]
    store.ingest([*history("unsure", 4, 4)[1:], *history("hopeless", 0, 8)[1:], *priced])
    division = divide(store, priced, Plan(budget="usd=1"))
    assert limits_of(division, "usd") == {"unsure/0": 1.0}
    assert set(division.skipped) == {"hopeless/0"}


def test_less_than_a_line_is_divided_evenly(store):
    traces = [logged(f"t{i}") for i in range(3)]
    division = divide(store, traces, Plan(budget="model_calls=2"))
    assert limits_of(division, "model_calls") == {"t0-bbaaaa": 1, "t1-bbaaaa": 1}
    assert division.skipped == {"t2-bbaaaa": "the budget of 2 model_calls lasts for 2 of 3 traces at 1 each"}


def test_without_a_limit_everyone_is_searched_without_one(store):
    traces = [logged(f"t{i}") for i in range(3)]
    for text in ("", "seconds=9"):
        division = divide(store, traces, Plan(budget=text))
        assert len(division.budgets) == 3
        assert set(limits_of(division, "model_calls").values()) == {None}
    with pytest.raises(UserError, match="gain or even"):
        Plan(split="fair")


AMOUNTS = {"model_calls": st.integers(0, 200), "tool_calls": st.integers(0, 200), "tokens": st.integers(0, 5000), "usd": st.floats(0, 3)}
budgets = st.fixed_dictionaries({}, optional={**AMOUNTS, "simulations": st.integers(0, 50)}).map(
    lambda given: ",".join(f"{kind}={amount}" for kind, amount in given.items())
)
numbers = itertools.count()


def logs(found):
    """Logged runs of tasks that no example before had."""
    example = next(numbers)
    return [logged(f"{example} t{task}", moves, name=f"{example}/{i}") for i, (task, moves) in enumerate(found)]


runs = st.lists(st.tuples(st.integers(0, 5), st.text("ab", min_size=1, max_size=12)), min_size=1, max_size=12, unique_by=lambda run: run)


@settings(max_examples=40, deadline=None)
@given(runs, budgets, budgets, st.sampled_from(["gain", "even"]))
def test_parts_are_never_above_the_whole_and_nobody_is_forgotten(shared_store, found, whole, each, split):
    plan, traces = Plan(budget=whole, trace_budget=each, split=split), logs(found)
    shared_store.ingest(traces)
    division = divide(shared_store, traces, plan)
    assert set(division.budgets) | set(division.skipped) == {trace.id for trace in traces}
    assert not set(division.budgets) & set(division.skipped)
    for kind in KINDS:
        limit = getattr(Budget.parse(whole).limits, kind)
        parts = limits_of(division, kind).values()
        if limit is not None and kind != "seconds":
            assert sum(parts) <= limit * (1 + 1e-12)
            if kind in COUNTED and getattr(Budget.parse(each).limits, kind) is None:
                assert all(part == int(part) >= 1 for part in parts)


@settings(max_examples=25, deadline=None)
@given(
    runs.filter(lambda found: len(found) < 6),
    st.fixed_dictionaries({}, optional={"model_calls": st.integers(1, 90), "tool_calls": st.integers(1, 60)}),
    st.sampled_from(
        [
            ("fork_best_of_n", "value_drop", "gain"),
            ("fork_best_of_n", "pivot", "even"),
            ("mcts", "pivot", "gain"),
            ("best_of_n", "entropy", "even"),
            ("repair", "rare_state", "gain"),
        ]
    ),
    st.builds(Pace, st.integers(1, 64)),
)
def test_no_budget_is_ever_exceeded_in_all(shared_store, found, limits, how, pace):
    sys.modules["front_parts"] = PARTS
    PARTS.policy = Mover()
    algorithm, fork, split = how
    budget = ",".join(f"{kind}={amount}" for kind, amount in limits.items())
    options = {"num_simulations": 8} if algorithm == "mcts" else {}
    plan = Plan(algorithm, options, fork, budget, split=split, pace=pace)
    asked = Asked("front_parts:policy", "front_parts:World", ("outcome",), max_steps=12, seed=next(NUMBERS))  # each a job of its own
    traces = logs(found)
    shared_store.ingest(traces)
    try:
        report = asyncio.run(search(shared_store, traces, asked, plan))
    except CounterplayError:
        return
    for kind, limit in limits.items():
        assert report.used.get(kind, 0) <= limit
    if "model_calls" in limits:
        assert sum(PARTS.policy.draws.values()) <= limits["model_calls"]


class Dying(Mover):
    """Gives `left` answers and no more."""

    def __init__(self, left=10**9):
        super().__init__()
        self.left = left

    async def propose(self, state, n):
        self.left -= 1
        if self.left < 0:
            raise asyncio.CancelledError
        return await super().propose(state, n)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "front_parts", PARTS)
    return Asked("front_parts:policy", "front_parts:World", ("outcome",))


async def played(store, asked, traces, plan, left=10**9):
    PARTS.policy = Dying(left)
    report = await search(store, traces, asked, plan)
    return report, {record.trace: record for record in map(store.search, report.searches)}


@pytest.mark.parametrize("split", ["gain", "even"])
async def test_a_killed_job_finds_its_shares_and_its_trees_whatever_was_logged_since(asked, split):
    plan = Plan("best_of_n", {"n": 4}, fork="start", budget="model_calls=120", split=split, concurrency=1)
    traces = [logged(f"t{i}") for i in range(5)]
    with Store.open(":memory:") as whole:
        whole.ingest(traces)
        wanted, trees = await played(whole, asked, traces, plan)
    with Store.open(":memory:") as store:
        store.ingest(traces)
        with pytest.raises(asyncio.CancelledError):
            await played(store, asked, traces, plan, left=70)
        finished = [row.id for row in store.searches() if row.stopped]
        assert 2 <= len(finished) <= 4
        news = [logged("t0", GOOD, name=f"won{i}") for i in range(9)] + [logged(f"new{i}") for i in range(5)]
        store.ingest(news)
        later = [*traces, *news[9:]]
        report, _ = await played(store, asked, later, plan)
        assert (report.searches, report.digest, report.resumed) == (wanted.searches, wanted.digest, len(finished))
        assert set(report.skipped) == {f"new{i}-bbaaaa" for i in range(5)}
        assert "run the same command again" in report.skipped["new0-bbaaaa"]
        assert report.used["model_calls"] <= 120

        more, now = await played(store, asked, later, plan)
        assert (more.resumed, more.skipped) == (5, {})
        assert {trace: record.id for trace, record in now.items() if trace in trees} == {t: record.id for t, record in trees.items()}
        assert 0 < more.live_calls <= 120, "the new ones share a whole budget of their own"
        again, _ = await played(store, asked, later, plan)
        assert (again.resumed, again.live_calls, again.digest) == (10, 0, more.digest)


def test_other_traces_alone_are_another_job(store):
    first, other = logged("a"), logged("b")
    store.ingest([first, other])
    plan = Plan(budget="model_calls=30")
    assert limits_of(Shares(store, plan, "job").of([first]), "model_calls") == {first.id: 30}
    assert limits_of(Shares(store, plan, "job").of([other]), "model_calls") == {other.id: 30}, "the first was killed and is left"


def test_a_share_that_was_not_used_is_not_given_out_again(store):
    failed, new = logged("a"), logged("c")
    store.ingest([failed, new])
    plan = Plan(budget="model_calls=30", split="even")
    job = Shares(store, plan, "job")
    job.of([failed])
    job.end()
    again = Shares(store, plan, "job").of([failed, new])
    assert limits_of(again, "model_calls") == {failed.id: 30}
    assert set(again.skipped) == {new.id}


async def test_those_that_got_nothing_compete_again_and_only_with_new_ones(asked):
    plan = Plan("best_of_n", {"n": 2}, fork="start", budget="model_calls=12")
    with Store.open(":memory:") as store:
        store.ingest([trace for task, won in (("a", 2), ("b", 2), ("c", 0)) for trace in history(task, won, 2)])
        traces = [store.trace(f"{task}/0") for task in "abc"]
        first, _ = await played(store, asked, traces, plan)
        assert set(first.skipped) == {"c/0"}
        same, _ = await played(store, asked, traces, plan)
        assert (same.skipped, same.live_calls) == (first.skipped, 0)
        store.ingest([logged("d")])
        traces.append(store.trace("d-bbaaaa"))
        _, trees = await played(store, asked, traces, plan)
        assert set(trees) == {"a/0", "b/0", "c/0", "d-bbaaaa"}
        other, _ = await played(store, asked, traces, replace(plan, budget="model_calls=24"))
        assert other.skipped == {}, "another budget is another job"
        assert sum(store.search(search_id).config["budget"]["model_calls"] for search_id in other.searches) <= 24


@pytest.mark.parametrize("fork", ["rare_state", "pivot"])
async def test_a_killed_job_reads_the_other_runs_as_it_first_found_them(asked, fork):
    plan = Plan("fork_best_of_n", {"n": 2, "num_pivots": 1}, fork=fork, trace_budget="model_calls=60", concurrency=1)
    traces = [logged("t", name=f"t{i}") for i in range(4)]
    with Store.open(":memory:") as whole:
        whole.ingest(traces)
        await played(whole, asked, traces, plan)
        needed = 10**9 - PARTS.policy.left
    with Store.open(":memory:") as store:
        store.ingest(traces)
        with pytest.raises(asyncio.CancelledError):
            await played(store, asked, traces, plan, left=needed * 2 // 3)
        finished = {row.id for row in store.searches() if row.stopped}
        store.ingest([logged("t", GOOD, name=f"won{i}") for i in range(5)])
        report, _ = await played(store, asked, traces, plan)
        assert report.resumed == len(finished) >= 1
        assert finished <= set(report.searches)
        later, _ = await played(store, asked, traces, plan)
        assert not set(later.searches) & set(report.searches), "the next job reads what there is by then"
