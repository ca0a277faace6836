"""Facts of a tree are read off its record, and are those of the tree itself."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.nouns import Message, Score, Step, Trajectory
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.search.tree import SearchTree
from counterplay.searched import facts_of

END = Step(Message.assistant("end"), terminated=True)
ROOT = Trajectory((), (Message.user("go"),))


def of_tree(tree, reward):
    """Improved and solved, asked of the tree."""
    best = tree.best()
    if best is None or best.logged:
        return False, False
    logged = [node.score.value for node in tree.finished() if node.logged and node.score is not None]
    return best.score.value > max(logged, default=reward or 0.0), best.score.value >= 1.0


SCORES = st.sampled_from([None, Score(0.0), Score(0.5), Score(1.0)])


@st.composite
def records(draw):
    """Trees that a search could have made: nothing follows on an end."""
    tree = SearchTree.start(ROOT)
    for number in range(draw(st.integers(0, 7))):
        parent = draw(st.sampled_from([node for node in tree.nodes if not node.finished]))
        step = Step(Message.assistant(str(number)), terminated=draw(st.booleans()))
        node = tree.add(parent, step, logged=draw(st.booleans()))
        node.score, node.visits, node.value_sum = draw(SCORES), draw(st.integers(0, 2)), draw(st.sampled_from([0.0, 0.5, 1.0]))
    return tree.to_record("s")


@settings(max_examples=100, deadline=None)
@given(records())
def test_facts_are_those_of_the_tree(record):
    for reward in (None, 0.0, 0.5):
        facts = facts_of(record, reward)
        assert (facts.improved, facts.solved) == of_tree(SearchTree.from_record(record), reward)
        assert facts.nodes == len(record.nodes)
    assert facts.digest == facts_of(replace(record), None).digest


def made(*nodes):
    return SearchRecord("s", "mcts", ROOT, (NodeRecord(0, None, None), *nodes))


def test_the_best_leaf_that_is_not_the_logged_one_improves():
    logged = NodeRecord(1, 0, replace(END, action=Message.assistant("as logged")), logged=True, score=Score(0.5), visits=1)
    better = NodeRecord(2, 0, END, score=Score(1.0), visits=1)
    assert [(f.improved, f.solved) for f in [facts_of(made(logged, better), 0.5)]] == [(True, True)]
    assert not facts_of(made(logged, replace(better, score=Score(0.5))), None).improved, "no better than the log"
    assert facts_of(made(logged, replace(better, score=Score(0.6))), 0.9).improved, "the log's own score counts before its reward"
    assert not facts_of(made(replace(better, index=1, score=Score(0.6))), 0.9).improved
    assert not facts_of(made(logged, replace(better, score=None)), None).improved
    under = NodeRecord(3, 2, END, score=Score(0.4))
    assert not facts_of(made(logged, better, under), None).improved, "a node that was gone on from is no leaf"
    running = replace(better, step=replace(END, terminated=False))
    assert not facts_of(made(logged, running), None).improved, "one that has not ended is not finished"


def test_of_two_with_one_score_the_one_with_the_higher_value_is_the_best():
    logged = NodeRecord(1, 0, END, logged=True, score=Score(1.0), visits=2, value_sum=1.0)
    other = NodeRecord(2, 0, replace(END, action=Message.assistant("x")), score=Score(1.0), visits=2, value_sum=2.0)
    assert facts_of(made(logged, other), None).solved
    assert not facts_of(made(logged, replace(other, value_sum=1.0)), None).solved, "then the earlier"


def test_digests_differ_where_trees_do():
    whole = NodeRecord(1, 0, END, score=Score(0.5, "why"), visits=1, value_sum=0.5)
    others = [
        replace(whole, visits=2),
        replace(whole, score=Score(0.5, "because")),
        replace(whole, step=replace(END, reward=0.1)),
        replace(whole, step=replace(END, error="x")),
        replace(whole, step=replace(END, action=Message.assistant("else"))),
        replace(whole, step=replace(END, observations=(Message.user("so"),), grades=())),
        replace(whole, prior=0.5),
    ]
    assert len({facts_of(made(node), None).digest for node in (whole, *others)}) == 1 + len(others)
