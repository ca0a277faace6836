"""Search trees through the store: exact, shared with the logs, replaced whole."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from counterplay.core.budget import Amounts
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Grade, Message, Proposal, Score, Source, Step, Trace, Trajectory
from counterplay.core.store import Store
from counterplay.search.tree import SearchTree
from tests.core import generated

LOGGED = Trajectory(
    (), (Message.user("add 1 and 1"),), tuple(Step(Message.assistant(f"so {i}"), (Message.user("and?"),)) for i in range(4))
)
TRACE = Trace("t", LOGGED, Source("test"), task="sum", calls=(Call(0),))


def step(text, *, end=False, reward=None):
    return Step(Message.assistant(text), () if end else (Message.user("go"),), terminated=end, reward=reward)


def tree():
    grown = SearchTree.start(LOGGED.prefix(2), "mcts", {"c_puct": 1.25, "n": None})
    logged = grown.add(grown.root, LOGGED.steps[2], logged=True)
    grown.add(logged, replace(LOGGED.steps[3], terminated=True), logged=True).backup(0.0)
    other = grown.add(grown.root, step("or 2"), Proposal(Message.assistant("or 2"), prior=0.3, logprob=-1.5))
    leaf = grown.add(other, replace(step("it is 2", end=True, reward=1.0), grades=()))
    leaf.score = Score(1.0, "right", "sum", "1")
    leaf.backup(1.0)
    grown.add(other, step("unfinished"))
    grown.stopped, grown.used = "budget", Amounts(3, 4, 120, 0.01, 2, 1.5)
    return grown


def record(grown, name="s1"):
    return grown.to_record(name, trace="t", task="sum", fork_step=2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(generated.searches(), generated.searches())
def test_any_search_comes_back_equal_and_is_replaced_whole(first, second):
    with Store.open(":memory:") as store:
        assert store.put_search(first)
        assert store.search("s") == first
        assert not store.put_search(first)
        assert store.verify() == []
        assert store.put_search(second) == (second != first)
        assert store.search("s") == second
        assert store.verify() == []
        assert len(store.searches()) == 1


def test_a_tree_comes_back_as_the_tree_it_was():
    with Store.open(":memory:") as store:
        store.put_search(record(tree()))
        again = SearchTree.from_record(store.search("s1"))
        assert record(again) == record(tree())
        assert again.best().value == 1.0


def test_searches_share_content_with_the_log_and_with_each_other():
    with Store.open(":memory:") as store:
        store.ingest([TRACE])
        before = store.stats().nodes
        store.put_search(record(tree()))
        assert store.stats().nodes == before + 5, "or 2, go; it is 2; unfinished, go"
        store.put_search(record(tree(), "s2"))
        assert store.stats().nodes == before + 5


def test_finished_leaves_off_the_recorded_branch_are_counterfactual_trajectories():
    grown = tree()
    with Store.open(":memory:") as store:
        store.ingest([TRACE])
        store.put_search(record(grown))
        (row,) = store.trajectories(kind="counterfactual")
        assert (row.trace, row.fork_step, row.search, row.steps, row.reward, row.grade) == ("t", 2, "s1", 4, 1.0, Grade.EXACT)
        assert store.trajectory(row.id) == grown.best().state
        assert row.tip == grown.best().state.key
        assert [r.kind for r in store.trajectories(trace="t")] == ["logged", "fork", "counterfactual"]
        assert store.trace("t") == TRACE


def test_a_search_that_grew_replaces_the_smaller_one():
    grown = tree()
    with Store.open(":memory:") as store:
        store.put_search(record(grown))
        other = next(node for node in grown.nodes if node.step and node.step.action.content == "or 2")
        grown.add(other, step("it is 3", end=True)).backup(0.0)
        assert store.put_search(record(grown))
        assert store.search("s1") == record(grown)
        assert len(store.trajectories(search="s1", kind="counterfactual")) == 2
        (row,) = store.searches(trace="t", task="sum", algorithm="mcts")
        assert (row.nodes, row.finished, row.stopped) == (7, 2, "budget")
        assert store.verify() == []


def test_a_replacement_that_fails_leaves_the_old_search():
    with Store.open(":memory:") as store:
        store.put_search(record(tree()))
        broken = replace(record(tree()), task="\N{SNOWMAN}", fork_step=2**40)
        with pytest.raises(Exception, match=r"INT32"):
            store.put_search(broken)
        assert store.search("s1") == record(tree())
        assert store.verify() == []
        assert store.put_search(replace(broken, fork_step=3)), "the failure leaves a store that works"


def test_an_unknown_search_names_the_close_ones():
    with Store.open(":memory:") as store:
        store.put_search(record(tree(), "mcts-t-2"))
        with pytest.raises(UserError, match="Close: mcts-t-2"):
            store.search("mcts-t-3")
