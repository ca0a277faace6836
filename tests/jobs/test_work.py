"""The work of one unit is what `counterplay search` does for that trace: same ids, same trees; and one bad unit stops no other."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from counterplay import Store
from counterplay.core.errors import StoreError, UserError
from counterplay.core.nouns import Completeness, Message, Source, Trace, Trajectory
from counterplay.dividing import Shares
from counterplay.jobs.crews import InProcess
from counterplay.jobs.work import ERRORS, Work, Worker, _told, needs_peers
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.replay.agents.plan import Seen
from counterplay.searching import _job, search
from tests.front.moves import Mover, World, answer, logged, sound
from tests.jobs.game import MCTS, runs, unclocked, worked, works
from tests.replay.loopback import Loopback

PARTS = SimpleNamespace(policy=None, World=World, sound=sound)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "front_parts", PARTS)
    PARTS.policy = Mover()
    return Asked("front_parts:policy", "front_parts:World", ("outcome", "front_parts:sound"))


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        opened.ingest(runs())
        yield opened


async def searched(asked, plan, traces):
    """The trees of the existing command, in a store of their own, and the shares it gave out."""
    with Store.open(":memory:") as store:
        store.ingest(traces)
        report = await search(store, traces, asked, plan)
        shares = Shares(store, plan, _job(asked, plan)).kept["shares"]
        return {store.search(name).trace: store.search(name) for name in report.searches}, shares, report


PLANS = {
    "one state": MCTS,
    "not named": Plan.parse(None, []),
    "forked where siblings differ": Plan("beam", fork="pivot"),
    "whole run, by siblings": Plan("fork_best_of_n", {"n": 2}, fork="rare_state"),
    "stopped early": replace(MCTS, stop_when="value=1"),
    "own budget": replace(MCTS, trace_budget="model_calls=9"),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    "parts", [("front_parts:policy", "front_parts:World"), ("front_parts:policy", "recorded")], ids=lambda parts: parts[1]
)
async def test_a_unit_comes_to_the_tree_that_a_search_of_all_traces_comes_to(asked, store, plan, parts):
    asked = replace(asked, policy=parts[0], environment=parts[1])
    wanted, _, _ = await searched(asked, plan, runs())
    made = await worked(InProcess(store, asked, plan), works(store, asked, plan))
    assert len(made) == len(wanted) == 12
    for unit, one in made.items():
        assert [unclocked(record) for record in one.records] == [unclocked(wanted[unit])]


async def test_the_logged_policy_knows_the_runs_of_the_task_in_the_order_of_the_store(asked, store):
    plan, asked = replace(MCTS, fork="1"), replace(asked, policy="logged")
    for task in ("t0", "t1", "t2"):
        traces = [trace for trace in runs() if trace.task == task]
        wanted, _, _ = await searched(asked, plan, traces)
        made = await worked(InProcess(store, asked, plan), works(store, asked, plan, {trace.id for trace in traces}))
        assert {unit: one.records[0].id for unit, one in made.items()} == {trace: record.id for trace, record in wanted.items()}
        assert all(unclocked(one.records[0]) == unclocked(wanted[unit]) for unit, one in made.items())


async def test_a_share_that_was_given_out_is_the_unit_s_budget(asked, store):
    plan = replace(MCTS, budget="model_calls=40")
    wanted, shares, report = await searched(asked, plan, runs())
    given = [replace(work, share=shares[work.unit]) for work in works(store, asked, plan) if work.unit in shares]
    made = await worked(InProcess(store, asked, plan), given)
    assert {unit: one.records[0].id for unit, one in made.items()} == {trace: record.id for trace, record in wanted.items()}
    assert sum(one.used["model_calls"] for one in made.values()) == report.used["model_calls"] <= 40
    assert sum(one.live_calls for one in made.values()) == report.live_calls
    assert sum(one.improved for one in made.values()) == report.improved


async def test_tasks_are_stitched_as_ever_and_nobody_is_asked(store):
    wanted, _, _ = await searched(Asked(), Plan("stitch"), runs())
    made = await worked(InProcess(store, Asked(), Plan("stitch")), works(store, Asked(), Plan("stitch")))
    assert list(made) == ["t0", "t1", "t2"]
    records = [record for one in made.values() for record in one.records]
    assert {record.trace: record for record in records} == wanted
    assert {one.live_calls for one in made.values()} == {0}
    nothing = Trace("n", Trajectory(), Source("test"))
    assert (await Worker(Asked(), Plan("stitch")).work(Work("n", (nothing,)), None)).state == "skipped"


async def test_what_is_in_the_store_already_is_not_made_again(asked, store):
    first = await worked(InProcess(store, asked, MCTS), works(store, asked, MCTS))
    for one in first.values():
        store.put_search(one.records[0])
    PARTS.policy = again = Mover()
    second = await worked(InProcess(store, asked, MCTS), works(store, asked, MCTS))
    assert again.draws == {}
    assert all(one.held and one.state == "done" and one.records == first[unit].records for unit, one in second.items())
    assert not any(one.held for one in first.values())


class Fails(Mover):
    """Fails in an own way for every task that is named for one."""

    async def propose(self, state, n):
        task = state.prompt[-1].content_text.split()[-1]
        if len(state) == 2 and task == "bug":
            raise asyncio.InvalidStateError("nobody foresaw this")
        if len(state) == 2 and task in SAID:
            from counterplay.core.errors import PolicyError

            raise PolicyError(SAID[task])
        return await super().propose(state, n)


SAID = {
    "rate_limit": "http://x/v1 answered 429: 'slow down', after 5 retries",
    "server": "http://x/v1 answered 503: 'no', after 5 retries",
    "refused": "http://x/v1 answered 413: 'too long'",
    "policy": "the model failed: RuntimeError",
}


async def test_why_a_unit_failed_is_told_by_class_and_stops_no_other(asked, store):
    PARTS.policy = Fails()
    store.ingest([logged(task, name=task) for task in (*SAID, "bug", "fine")])
    partial = replace(logged("t9", name="partial"), completeness=Completeness(inputs="partial"))
    store.ingest([partial, Trace("empty", Trajectory(), Source("test"))])
    names = {*SAID, "bug", "fine", "partial", "empty"}
    plan = Plan("best_of_n", {"n": 2}, fork="1")
    made = await worked(InProcess(store, asked, plan), works(store, asked, plan, names))
    states = {unit: (one.state, one.error_class) for unit, one in made.items()}
    told = {name: ("failed", name) for name in SAID}
    assert states == {**told, "bug": ("failed", "policy"), "fine": ("done", ""), "partial": ("failed", "user"), "empty": ("skipped", "")}
    assert {one.error_class for one in made.values()} <= {"", *ERRORS}
    assert SAID["server"] in made["server"].reason
    assert made["empty"].reason == "it has no steps"


async def test_a_defect_of_our_own_is_the_unit_s_and_a_store_that_fails_is_everybody_s(asked, store, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("counterplay.searching.usage_config", lambda *_: 1 / 0)
        made = await worked(InProcess(store, asked, MCTS), works(store, asked, MCTS)[:2])
    assert {(one.state, one.error_class, one.reason) for one in made.values()} == {
        ("failed", "defect", "ZeroDivisionError: division by zero")
    }

    def full(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr("counterplay.core.store.journal.StoreJournal.put", full)
    PARTS.policy = Mover(0.6)
    with pytest.raises(StoreError, match="the disk is full"):
        await worked(InProcess(store, asked, MCTS), works(store, asked, MCTS)[:1])


class Elsewhere(World):
    """The world of another task."""

    def __init__(self, task):
        super().__init__(task)
        self.prompt = (Message.user("go elsewhere"),)


async def test_a_prompt_that_is_not_the_logged_one_is_not_worth_another_try(asked, store, monkeypatch):
    monkeypatch.setattr(PARTS, "Elsewhere", Elsewhere, raising=False)
    asked = replace(asked, environment="front_parts:Elsewhere")
    for plan in (replace(MCTS, fork="1"), Plan("fork_best_of_n", {"n": 2})):
        made = await worked(InProcess(store, asked, plan), works(store, asked, plan)[:2])
        assert {(one.state, one.error_class) for one in made.values()} == {("failed", "user")}
        assert all("prompt_drift" in one.reason for one in made.values())
    agent = f"the agent, re-run, was interrupted: {Seen('prompt_drift', 'agent', 0, 1)}; wanted what the state says"
    assert _told("environment", agent) == "user"
    assert _told("environment", agent.replace("prompt", "result")) == "environment"


async def test_what_a_proposal_that_failed_had_paid_for_is_counted(asked, store):
    refused = []

    def one_fails(request):
        if len(request["messages"]) == 1 and not refused and request["seed"] % 2:
            refused.append(request)
            return 400, {"error": "no"}
        return answer(request)

    with Loopback(default=one_fails) as server:
        parts, plan = replace(asked, policy="openai:m", base_url=server.base_url), Plan("best_of_n", {"n": 6}, fork="start")
        made = await worked(InProcess(store, parts, plan), works(store, parts, plan))
        assert refused
        assert sum(one.live_calls for one in made.values()) == server.served["calls"] == store.costs("")[0].paid.calls
        assert sum(one.tally["input_tokens"] for one in made.values()) == server.served["prompt_tokens"]


async def test_a_hurt_tree_is_given_out_and_made_again_by_the_next_attempt(asked, store):
    class Out(Mover):
        async def propose(self, state, n):
            if len(state) == 4:
                raise OSError("the line is down")
            return await super().propose(state, n)

    work = works(store, asked, MCTS)[:1]
    PARTS.policy = Out()
    (hurt,) = (await worked(InProcess(store, asked, MCTS), work)).values()
    assert (hurt.state, hurt.error_class, len(hurt.records)) == ("failed", "policy", 1)
    assert "the line is down" in hurt.reason
    assert hurt.failures["policy"]["count"] >= 1
    store.put_search(hurt.records[0])
    PARTS.policy = Mover()
    (well,) = (await worked(InProcess(store, asked, MCTS), work)).values()
    assert (well.state, well.held, well.failures) == ("done", False, {})
    assert well.records[0].id == hurt.records[0].id


async def test_no_more_units_than_the_crew_s_size_are_under_way(asked, store):
    crew = InProcess(store, asked, replace(MCTS, concurrency=3))
    under_way, most = 0, 0
    working = crew.worker.work

    async def work(*given):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        done = await working(*given)
        under_way -= 1
        return done

    crew.worker.work = work
    await worked(crew, works(store, asked, MCTS))
    assert (crew.size, most) == (3, 3)


def test_what_no_job_can_do_is_refused():
    with pytest.raises(UserError, match=r"got --search auto for a job: .* one search for all units"):
        Worker(Asked("logged"), Plan("auto"))
    with pytest.raises(UserError, match="for stitch"):
        Worker(Asked("logged"), Plan("stitch"))
    with pytest.raises(UserError, match="a limit in usd"):
        Worker(Asked("openai:m"), Plan(trace_budget="usd=1"))
    with pytest.raises(UserError, match="got no policy"):
        Worker(Asked(), Plan())


def test_peers_are_read_where_something_reads_them(asked):
    assert not needs_peers(asked, MCTS)
    assert needs_peers(asked, replace(MCTS, fork="pivot"))
    assert needs_peers(asked, Plan("fork_best_of_n", {"localisation": "rare_state"}))
    assert needs_peers(replace(asked, environment="recorded"), MCTS)
    assert needs_peers(replace(asked, policy="logged"), MCTS)
    assert not needs_peers(Asked(), Plan("stitch"))
