"""`--search auto`: which searches are sensible, that what is learned is kept, and that nothing depends on chance or on a kill."""

import asyncio
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from counterplay import Store
from counterplay.core.errors import UserError
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.replay.capabilities import Capabilities
from counterplay.search.bandit import Strategies
from counterplay.search.registry import LOGGED, SEARCHES, UNSTOPPABLE, find, options
from counterplay.searching import search
from counterplay.strategies import arms, family, rounds, sized
from tests.front.moves import Mover, World, logged, sound

PARTS = SimpleNamespace(policy=None, World=World, sound=sound)
ANYTHING, FORWARD_ONLY, HERE_ONLY = Capabilities("snapshot", ""), Capabilities("none", "", reenacts=False), Capabilities("copy", "", False)
AUTO = {"algorithm": "auto", "budget": "model_calls=1200"}


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "front_parts", PARTS)
    return Asked("front_parts:policy", "front_parts:World", ("outcome", "front_parts:sound"))


class Dying(Mover):
    """Gives `left` answers and no more."""

    def __init__(self, left=10**9):
        super().__init__()
        self.left, self.given = left, 0

    async def propose(self, state, n):
        self.given += 1
        if self.given > self.left:
            raise asyncio.CancelledError
        return await super().propose(state, n)


async def played(store, asked, traces, left=10**9, **plan):
    PARTS.policy = Dying(left)
    report = await search(store, traces, asked, Plan(**{**AUTO, **plan}))
    return report, {record.trace: record.algorithm for record in map(store.search, report.searches)}


@pytest.mark.parametrize("found", [ANYTHING, FORWARD_ONLY, HERE_ONLY])
@pytest.mark.parametrize("process", [True, False])
@pytest.mark.parametrize("calls", [None, 1, 40, 100, 500])
def test_every_arm_is_a_search_with_options_that_it_knows(found, process, calls):
    names = arms(found, process=process, lines=1e9 if calls is None else calls / 10)
    assert len(names) >= 2
    for name in names:
        assert sized(name, calls, 10).keys() <= options(find(name)).keys()
        assert SEARCHES[name]
        assert found.reenacts or name not in LOGGED
        Plan(name, sized(name, calls, 10))


def test_what_was_asked_for_leaves_out_what_can_t_keep_to_it():
    assert not set(arms(ANYTHING, process=True, lines=4, forked="start")) & LOGGED
    assert set(arms(ANYTHING, process=False, lines=4, forked="every")) <= LOGGED
    assert not set(arms(ANYTHING, process=True, lines=4, stops=True)) & UNSTOPPABLE
    with pytest.raises(UserError, match="--search auto with a fork or a condition"):
        arms(FORWARD_ONLY, process=False, lines=4, stops=True)
    with pytest.raises(UserError, match="got --option n for auto; wanted none"):
        Plan.parse("auto", ["n=3"])
    assert Plan.parse("auto", [], fork="every").fork == "every"


def test_classes_are_agents_and_families_of_tasks():
    names = {"train-0001": "/train", "airline/17": "/airline", "books": "/books", "Book 3 flights to Oslo": "/"}
    assert {task: family(logged(task)) for task in names} == names
    assert family(logged("train-7", agent="clerk")) == "clerk/train"


def test_each_round_is_as_large_as_all_before_it():
    traces = [logged(f"t{i}") for i in range(50)]
    sizes = [len(one) for one in rounds(traces)]
    assert sizes == [8, 8, 16, 18]
    assert [trace for one in rounds(traces) for trace in one] == traces


def test_what_costs_less_is_preferred():
    known, chosen = Strategies(("dear", "cheap")), Counter()
    for trace in range(200):
        name = known.choose("c", seed=trace)
        chosen[name] += 1
        known = known.after("c", name, 0.5, cost={"dear": 40, "cheap": 10}[name])
    assert chosen["cheap"] > 150
    assert known.cost("c", "cheap") == pytest.approx(10, rel=0.2)
    assert Strategies.from_json(known.to_json()) == known
    old = Strategies.from_json({"names": ["a"], "record": {"c": {"a": [4, 2.0]}}})
    assert (old.of("c", "a"), old.cost("c", "a")) == ((4, 2.0), 1.0)
    with pytest.raises(UserError, match="got cost 0"):
        known.after("c", "cheap", 1.0, cost=0)


async def test_the_same_store_and_seed_give_the_same_trees_at_any_concurrency(asked):
    made = []
    for concurrency in (1, 64):
        traces = [logged(f"t{i}") for i in range(12)]
        with Store.open(":memory:") as store:
            store.ingest(traces)
            report, names = await played(store, asked, traces, concurrency=concurrency)
            again, _ = await played(store, asked, traces, concurrency=concurrency)
        assert (again.resumed, again.live_calls, again.digest) == (12, 0, report.digest)
        assert set(names.values()) <= set(arms(ANYTHING, process=True, lines=10))
        assert sum(report.notes.values()) == 12
        made.append((report.digest, names))
    assert made[0] == made[1]
    assert len(set(made[0][1].values())) > 1


async def test_a_killed_job_chooses_as_it_would_have_chosen(asked):
    traces = [logged(f"t{i}") for i in range(12)]
    with Store.open(":memory:") as whole:
        whole.ingest(traces)
        wanted, names = await played(whole, asked, traces, concurrency=1)
        calls = PARTS.policy.given
    with Store.open(":memory:") as store:
        store.ingest(traces)
        for share in (0.2, 0.3, 0.4):
            with pytest.raises(asyncio.CancelledError):
                await played(store, asked, traces, left=int(share * calls), concurrency=1)
        store.ingest([logged(f"t{i}", "bbbbbb", name=f"more{i}") for i in range(9)])
        report, chosen = await played(store, asked, traces)
    assert chosen == names
    assert (report.searches, report.digest) == (wanted.searches, wanted.digest)
    assert report.live_calls < wanted.live_calls


async def test_what_others_learn_meanwhile_changes_no_choice_that_was_made(asked, monkeypatch):
    job = {"budget": "", "trace_budget": "model_calls=60", "fork": "start"}
    traces, others = [logged(f"t{i}") for i in range(8)], [logged(f"t{i}") for i in range(50, 74)]
    with Store.open(":memory:") as store:
        store.ingest([*traces, *others])
        with pytest.raises(asyncio.CancelledError):
            await played(store, asked, traces, left=90, concurrency=1, **job)
        begun = {row.id: row.algorithm for row in store.searches() if row.stopped}
        rare = min(arms(ANYTHING, process=True, lines=10, forked="start"), key=lambda name: list(begun.values()).count(name))
        monkeypatch.setattr("counterplay.searched._improved", lambda tree, reward: tree.algorithm == rare)
        await played(store, asked, others, **job)
        report, _ = await played(store, asked, traces, **job)
    assert len(begun) >= 2
    assert set(begun) <= set(report.searches)
    assert report.resumed == len(begun)


async def test_what_one_job_learned_the_next_one_begins_with(asked, monkeypatch):
    """Where only one of the searches ever improves on the log, it is what comes to be chosen."""
    monkeypatch.setattr("counterplay.searched._improved", lambda tree, reward: tree.algorithm == "rebase")
    first = [logged(f"t{i}") for i in range(24)]
    told, unlike = ([logged(f"t{i}", name=f"{who}{i}", agent=who) for i in range(50, 62)] for who in (None, "x"))
    with Store.open(":memory:") as store:
        store.ingest(first)
        await played(store, asked, first, budget="", trace_budget="model_calls=60", fork="start")
        store.ingest([*told, *unlike])
        _, knowing = await played(store, asked, told, budget="", trace_budget="model_calls=60", fork="start")
        _, elsewhere = await played(store, asked, unlike, budget="", trace_budget="model_calls=60", fork="start")
    assert Counter(knowing.values())["rebase"] >= 10
    assert Counter(elsewhere.values())["rebase"] < 10, "another agent's traces are another class"
