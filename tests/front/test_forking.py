"""Where searches begin: the start, a step, or what a strategy says, with the log read before anything is played."""

import sys
from types import SimpleNamespace

import pytest

from counterplay import Store
from counterplay.branch_usage import TalliedPolicy
from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.journal import JournaledEnvironment, JournaledPolicy, JournaledVerifier, MemoryJournal
from counterplay.forking import Parts, siblings_of, start_at
from counterplay.loop import localise
from counterplay.parts import Asked
from counterplay.plan import STRATEGIES, Plan
from counterplay.replay.live import LiveEnvironment
from counterplay.searching import search
from counterplay.verifiers.outcome import outcome
from tests.front.moves import Mover, World, logged, sound

PARTS = SimpleNamespace(policy=None, World=World, sound=sound)
WRONG_AT_2 = "bbaaaa"


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        yield opened


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "front_parts", PARTS)
    return Asked("front_parts:policy", "front_parts:World", ("outcome", "front_parts:sound"))


def parts(policy, verifier=outcome):
    journal, environment = MemoryJournal(), LiveEnvironment(lambda: World("t"))
    return Parts(
        TalliedPolicy(JournaledPolicy(policy, journal)), JournaledEnvironment(environment, journal), JournaledVerifier(verifier, journal)
    )


async def run(store, asked, traces, plan, policy=None):
    PARTS.policy = policy or Mover()
    store.ingest(traces)
    return await search(store, traces, asked, plan)


def steps_tried(store, report):
    """The steps of the log at which there are alternatives, by trace."""
    found = {}
    for search_id in report.searches:
        record = store.search(search_id)
        depth = {None: -1}
        for node in record.nodes:
            depth[node.index] = depth[node.parent] + 1
        siblings = {node.parent for node in record.nodes if node.step is not None and not node.logged}
        found[record.trace] = sorted({depth[index] for index in siblings if record.nodes[index].logged or depth[index] == 0})
    return found


async def test_each_strategy_puts_its_own_step_first():
    trace, certain = logged("t", "bbaxaa"), Mover(1.0)
    assert len((await start_at(trace, "start", parts(certain), Budget())).state) == 0
    assert len((await start_at(trace, "4", parts(certain), Budget())).state) == 4
    assert len((await start_at(trace, "-2", parts(certain), Budget())).state) == 4
    dropped = await start_at(trace, "value_drop", parts(certain, sound), Budget())
    assert (len(dropped.state), dropped.why) == (2, "the value falls by 1.00 at step 2")
    failed = await start_at(trace, "tool_error", parts(certain), Budget())
    assert (len(failed.state), failed.why) == (3, "a call failed: error: no such place")
    assert not certain.draws
    policy = Mover(1.0)
    bisected = await start_at(trace, "pivot", parts(policy), Budget())
    assert (len(bisected.state), bisected.used.model_calls) == (2, sum(policy.draws.values()))
    assert "pivotal with probability 0.9" in bisected.why
    assert bisected.used.model_calls > 100


async def test_a_strategy_without_an_opinion_begins_at_the_start():
    quiet = logged("t", "aaaaaa")
    for strategy, said in (("tool_error", "tool_error found no step"), ("value_drop", "undetermined")):
        found = await start_at(quiet, strategy, parts(Mover()), Budget())
        assert len(found.state) == 0
        assert found.why.startswith(said)


async def test_a_strategy_that_found_nothing_is_in_the_report(store, asked):
    quiet = logged("t", "aaaaaa")
    begun = await run(store, asked, [quiet], Plan("best_of_n", {"n": 2}, fork="tool_error"))
    assert begun.notes == {"tool_error found no step": 1}
    forked = await run(store, asked, [quiet], Plan("fork_best_of_n", {"num_pivots": 2}, fork="tool_error"))
    assert forked.stopped == {"forked at 0, 3, even distances: tool_error found no step": 1}
    repaired = await run(store, asked, [quiet], Plan("repair", {}, fork="tool_error"))
    assert repaired.stopped == {"tool_error found no step to go back to": 1}
    failing = await run(store, asked, [logged("u", "bxaaaa")], Plan("best_of_n", {"n": 2}, fork="tool_error"))
    assert failing.notes == {}


@pytest.mark.parametrize("calls", [7, 60])
async def test_finding_the_step_leaves_half_of_the_budget_to_the_search(calls):
    for strategy in ("pivot", "entropy"):
        policy, budget = Mover(), Budget.of(model_calls=calls)
        found = await start_at(logged("t"), strategy, parts(policy), budget)
        assert 0 < found.used.model_calls == sum(policy.draws.values()) <= calls // 2
        assert budget.left("model_calls") == calls - found.used.model_calls
    late = Budget.of(seconds=0, model_calls=9)
    assert (await start_at(logged("t"), "pivot", parts(Mover()), late)).why == "pivot found no step"


async def test_what_finding_the_step_took_is_in_the_report(store, asked):
    policy = Mover(0.9)
    plan = Plan("best_of_n", {"n": 3}, fork="pivot", trace_budget="model_calls=400")
    report = await run(store, asked, [logged("t")], plan, policy)
    assert report.used["model_calls"] == sum(policy.draws.values()) == report.live_calls
    record = store.search(report.searches[0])
    assert record.fork_step == 2
    assert "pivotal" in record.config["begun"]
    again = await run(store, asked, [logged("t")], plan, policy)
    assert (again.resumed, again.live_calls, again.digest) == (1, 0, report.digest)


async def test_the_strategy_is_the_localisation_of_searches_that_fork_a_whole_run(store, asked):
    log = logged("t", "bbaxaa")
    for algorithm, options in (("fork_best_of_n", {"num_pivots": 1}), ("repair", {"lookback": 0, "rounds": 1})):
        tried = {}
        for strategy in ("value_drop", "tool_error"):
            report = await run(store, asked, [log], Plan(algorithm, options, fork=strategy))
            (tried[strategy],) = steps_tried(store, report).values()
            assert store.search(report.searches[0]).config["localisation"] == strategy
        assert tried == {"value_drop": [2], "tool_error": [3]}
    default = await run(store, asked, [log], Plan("repair", {"lookback": 0, "rounds": 1}))
    named = await run(store, asked, [log], Plan("repair", {"lookback": 0, "rounds": 1}, fork="value_drop"))
    assert default.searches == named.searches


async def test_an_option_may_name_the_localisation_too(store, asked):
    policy = Mover()
    plan = Plan("fork_best_of_n", {"num_pivots": 1, "localisation": "rare_state"})
    report = await run(store, asked, [logged("t", "bbaxaa"), logged("t", "bbbbbb"), logged("u")], plan, policy)
    configs = {record.trace: record.config for record in map(store.search, report.searches)}
    assert "siblings" in configs["t-bbaxaa"]
    assert "siblings" not in configs["u-bbaaaa"]


def test_siblings_are_other_runs_of_the_task_by_the_same_agent(store):
    runs = [logged("t", "bbbbbb", agent="one"), logged("t", "aaaaaa", agent="one"), logged("t", "bbbbba", agent="two")]
    store.ingest([*runs, logged("u", "aaaaaa", agent="one", name="u")])
    others = siblings_of(store)
    assert [other.id for other in others(runs[0])] == ["t-aaaaaa"]
    assert others(runs[2]) == ()
    assert others(logged("u")) == ()


async def test_lines_that_are_in_the_log_cost_nothing(store, asked):
    """Sixteen logged runs of the task say what the start is worth; without them sixteen lines are played."""
    policy, alone = Mover(0.8), logged("alone")
    failed = logged("known")
    others = [logged("known", "bbbbbb" if i < 12 else "aaaaaa", name=f"k{i}") for i in range(16)]
    store.ingest([alone, failed, *others])
    drawn = {}
    for trace in (alone, failed):
        PARTS.policy = policy = Mover(0.8)
        found = await localise(store, [trace], asked, method="bisect")
        assert found.pivots[0].step == 2
        drawn[trace.id] = policy.draws.get(0, 0)
    assert drawn[alone.id] >= 16
    assert drawn[failed.id] == 0
    for algorithm in ("fork_best_of_n", "best_of_n"):
        PARTS.policy = policy = Mover(0.8)
        policy.fingerprint = algorithm  # so that no journal answers
        report = await search(store, [failed], asked, Plan(algorithm, {}, fork="pivot"))
        assert policy.draws.get(0, 0) == 0
        assert "siblings" in store.search(report.searches[0]).config


async def test_more_logs_make_another_search_where_they_are_read(store, asked):
    plan, cheap = Plan("fork_best_of_n", {"num_pivots": 1}, fork="rare_state"), Plan("fork_best_of_n", {"num_pivots": 1})
    first = await run(store, asked, [logged("t")], plan)
    unread = await run(store, asked, [logged("t")], cheap)
    store.ingest([logged("t", "bbbbbb")])
    assert (await run(store, asked, [logged("t")], plan)).searches != first.searches
    assert (await run(store, asked, [logged("t")], cheap)).searches == unread.searches


def test_what_can_t_be_forked_is_refused_before_anything_is_done():
    with pytest.raises(UserError, match=r"got --fork 3 for repair, .*pivots=3,7"):
        Plan("repair", fork="3")
    with pytest.raises(UserError, match="got --fork every for mcts, which goes on from one state"):
        Plan("mcts", fork="every")
    with pytest.raises(UserError, match=f"start, a step number, or one of {', '.join(STRATEGIES)}"):
        Plan("mcts", fork="middle")
    for given in ("pivots=1", "localisation=entropy"):
        with pytest.raises(UserError, match="got --fork pivot beside --option"):
            Plan.parse("fork_best_of_n", [given], fork="pivot")
    assert Plan("stitch").fork == "value_drop"
    assert Plan.parse("mcts", [], fork="-3").fork == "-3"
