"""Pairs of whole branches: the better against the worse, the shorter of two successes, and what was not needed."""

from collections import Counter
from dataclasses import replace

import pytest

from counterplay.core.nouns import Grade, Message, Outcome, Score, Step
from counterplay.finetune.ends import ends
from counterplay.finetune.kto import kto_trajectory_rows
from counterplay.finetune.merged import merged_logs
from counterplay.finetune.reward import reward_rows
from counterplay.finetune.rows import Harvest, SourcedTree
from counterplay.finetune.trajectory_pairs import shorter_rows, trajectory_rows
from counterplay.search.tree import SearchTree
from tests.finetune.forks import fork


def reasons(harvest):
    return Counter(drop.reason for drop in harvest.drops)


def deep(kit):
    """Two forks: at the root a failure leaves, one step later another; scores .0 and .4 against 1."""
    tree = SearchTree.start(kit.state(), "mcts", {"verifier": "ledger"})

    def leaf(parent, text, score):
        node = tree.add(parent, Step(kit.say(text), terminated=True))
        node.score = Score(score, "", "ledger", "2")

    looked = tree.add(tree.root, kit.step(kit.call("find", order=7), "found"))
    leaf(tree.root, "No.", 0.0)
    leaf(looked, "Yes.", 1.0)
    leaf(looked, "Perhaps.", 0.4)
    return SourcedTree(tree, search="s", task="t1")


def test_two_branches_of_one_fork_to_their_ends(kit):
    source = fork(kit, good=2, bad=2)
    (row,) = trajectory_rows([source]).rows
    assert row.prompt == source.tree.root.state.messages
    for side in (row.chosen, row.rejected):
        assert [m.role for m in side] == ["assistant", "tool", "assistant"]
    assert (row.chosen[-1].content, row.rejected[-1].content) == ("Refunded 5.", "Refunded 50.")
    assert row.trained == ((True, False, True),) * 2
    assert (row.margin, row.probability, row.lineage.fork_step, row.lineage.verifiers) == (1.0, 1.0, 1, ("ledger@2",))
    assert row.lineage.nodes[0] == source.tree.root.state.key


def test_best_against_worst_takes_the_widest_gap_and_nearest_the_latest_fork(kit):
    wide = trajectory_rows([deep(kit)])
    assert [(row.margin, row.rejected[-1].content) for row in wide.rows] == [(1.0, "No."), (pytest.approx(0.6), "Perhaps.")]
    assert [row.lineage.fork_step for row in wide.rows] == [0, 1]
    (near,) = trajectory_rows([deep(kit)], pairing="nearest").rows
    assert (near.lineage.fork_step, near.rejected[0].content) == (1, "Perhaps.")
    (forced,) = trajectory_rows([deep(kit)], pairing="nearest", min_gap=0.7).rows
    assert (forced.lineage.fork_step, forced.rejected[0].content) == (0, "No.")
    assert not trajectory_rows([deep(kit)], min_gap=1.1).rows


def test_the_worst_end_of_a_branch_stands_for_it(kit):
    tree = SearchTree.start(kit.state(), "mcts", {"verifier": "ledger"})
    looked = tree.add(tree.root, kit.step(kit.call("find", order=7), "found"))
    for parent, text, score in ((tree.root, "Yes.", 1.0), (looked, "Nearly.", 0.8), (looked, "No.", 0.0)):
        tree.add(parent, Step(kit.say(text), terminated=True)).score = Score(score, "", "ledger", "2")
    (row,) = trajectory_rows([SourcedTree(tree, task="t1")]).rows
    assert (row.chosen[-1].content, row.rejected[-1].content, row.margin) == ("Yes.", "No.", 1.0)


def test_what_may_not_leave_is_named_and_caps_hold(kit):
    assert reasons(trajectory_rows([fork(kit, grade=Grade.STALE)])) == {"stale": 1}
    assert reasons(trajectory_rows([fork(kit, sampled=False)])) == {"the action that sets a side apart was not sampled": 1}
    assert reasons(trajectory_rows([deep(kit)], per_tree=1)) == {"over the cap of 1 pairs a tree": 1}
    assert reasons(trajectory_rows([fork(kit), fork(kit)], per_task=1)) == {"over the cap of 1 pairs a task": 1}
    assert trajectory_rows([fork(kit, bad=0)]) == Harvest(), "two successes are no pair"


def test_the_shorter_of_two_successes_is_chosen(kit):
    (row,) = shorter_rows([fork(kit, good=3, bad=1, longer=2)]).rows
    assert (row.chosen[-1].content, row.rejected[-1].content) == ("Refunded 5.", "Refunded 7.")
    assert row.margin == 8.0, "four look-ups, each a call of the model and one of a tool"
    assert not shorter_rows([fork(kit, good=3, longer=2)], min_saved=9).rows
    hasty = fork(kit, good=3, longer=2)
    hasty.tree.add(hasty.tree.root, Step(kit.say("No."), terminated=True)).score = Score(0.0, "", "ledger", "2")
    assert shorter_rows([hasty]).rows[0].chosen[-1].content == "Refunded 5.", "a failure is no shorter way to succeed"
    assert not shorter_rows([fork(kit, good=3, longer=0)]).rows, "equally long branches are no pair"


def test_a_shorter_branch_that_succeeded_by_luck_is_left_out(kit):
    source = fork(kit, good=2, bad=0, longer=1)
    lucky, sure = source.tree.root.children
    lucky.visits, lucky.value_sum = 9, 1.0
    sure.visits, sure.value_sum = 9, 9.0
    assert reasons(shorter_rows([source])) == {"the shorter branch fails more often": 1}
    assert len(shorter_rows([source], tau=1.0).rows) == 1


def test_calls_left_out_are_told_from_other_ways_of_doing_it(kit):
    other = fork(kit, good=2, bad=0, longer=1)
    assert not shorter_rows([other], left_out=True).rows, "another amount was refunded, not only a look-up left out"
    talkative = SearchTree.start(kit.state(), "mcts", {"verifier": "ledger"})
    for parent in (talkative.root, talkative.add(talkative.root, Step(kit.say("Let me see.")))):
        done = talkative.add(parent, kit.step(kit.call("refund", "r", order=7, amount=5), "ok", call_id="r"))
        talkative.add(done, Step(kit.say("Refunded."), terminated=True)).score = Score(1.0, "", "ledger", "2")
    assert len(shorter_rows([SourcedTree(talkative, task="t1")]).rows) == 1
    assert not shorter_rows([SourcedTree(talkative, task="t1")], left_out=True).rows, "a word less is no tool call less"
    tree = SearchTree.start(kit.state(), "mcts", {"verifier": "ledger"})
    refund = kit.call("refund", "r", order=7, amount=5)
    looked = tree.add(tree.root, kit.step(kit.call("find", order=7), "found"))
    for parent in (looked, tree.root):
        leaf = tree.add(tree.add(parent, kit.step(refund, "ok", call_id="r")), Step(kit.say("Refunded."), terminated=True))
        leaf.score = Score(1.0, "", "ledger", "2")
    (row,) = shorter_rows([SourcedTree(tree, task="t1")], left_out=True).rows
    assert (row.margin, len(row.chosen), len(row.rejected)) == (2.0, 3, 5)


def test_logged_runs_fork_where_they_first_differ(kit):
    def run(name, amount, reward, **fields):
        trace = kit.trace("t1", reward=reward, amount=amount, **fields)
        steps = kit.trajectory("t1", amount=5).steps[:1] + trace.trajectory.steps[1:]
        return replace(trace, id=name, trajectory=replace(trace.trajectory, steps=steps))

    traces = [run("good", 5, 1.0), run("bad", 50, 0.0), run("same", 50, 0.0), run("unknown", 60, 0.0, outcome=Outcome())]
    sources = merged_logs([*traces, kit.trace(None), kit.trace("other", outcome=Outcome(success=False))])
    assert [(source.task, len(source.tree.finished())) for source in sources] == [("t1", 2), (None, 0), ("other", 1)]
    assert [(drop.reason, drop.name) for source in sources for drop in source.drops] == [
        ("the outcome is unknown", "unknown"),
        ("the task is not known", "trace-None-1-5"),
    ]
    tree = sources[0].tree
    assert (tree.root.visits, tree.root.value_sum) == (3, 1.0)
    (row,) = trajectory_rows(sources).rows
    assert (row.lineage.fork_step, row.lineage.logged, row.lineage.verifiers) == (1, True, ("outcome@",))
    assert row.visits == (1, 2)
    assert trajectory_rows(merged_logs([run("good", 5, 1.0), run("told", 50, 1.0, outcome=Outcome(1.0, success=False))])).rows


@pytest.mark.parametrize("seen", [lambda place: "ok", lambda place: f"at {place}"], ids=["same", "other answers"])
def test_runs_that_act_alike_are_one_end_of_their_mean_in_any_order(kit, seen):
    def run(place, said, reward):
        steps = (kit.step(kit.call("find", order=7), seen(place)), Step(kit.say(said), terminated=True))
        return replace(kit.trace(), id=f"{said}-{place}", trajectory=replace(kit.state(), steps=steps), outcome=Outcome(reward))

    def ways(rewards):
        runs = [run(place, "A", reward) for place, reward in enumerate(rewards)]
        return merged_logs([*runs, run(9, "B", 0.0)])

    for rewards in ([0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]):
        found = ends(ways(rewards)[0])
        assert [(end.node.state.steps[-1].action.content, end.score, end.visits) for end in found] == [("A", 0.25, 4), ("B", 0.0, 1)]
        assert not trajectory_rows(ways(rewards)).rows, "one success of four is no way to prefer"
        unsure = kto_trajectory_rows(ways(rewards))
        assert [(row.label, row.visits) for row in unsure.rows] == [(False, 1)]
        assert reasons(unsure) == {"an end that is neither good nor bad": 1}
    (row,) = kto_trajectory_rows(ways([1.0] * 4)).rows[:1]
    assert (row.label, row.visits, row.value_sum) == (True, 4, 4.0)
    (pair,) = trajectory_rows(ways([1.0] * 4), per_tree=1).rows
    assert (pair.chosen[-1].content, pair.rejected[-1].content) == ("A", "B")


def test_a_stale_line_says_nothing_of_those_that_act_like_it(kit):
    source = fork(kit, good=1, bad=1)
    false = fork(kit, good=1, bad=0, grade=Grade.STALE).tree
    acted, said = (node.step for node in false.nodes[1:])
    node = source.tree.add(source.tree.add(source.tree.root, replace(acted, observations=(Message.tool("old", "r"),))), said)
    node.score = Score(0.0, "books", "ledger", "2")
    node.backup(0.0)
    assert [(end.score, end.visits) for end in ends(source)] == [(1.0, 1), (0.0, 1)]


def test_runs_that_can_t_be_merged_are_named_by_every_kind_of_row(kit):
    whole = kit.trace()
    failed = replace(whole.trajectory.steps[0], error="timeout")
    odd = replace(whole, id="odd", trajectory=replace(whole.trajectory, steps=(failed, *whole.trajectory.steps[1:])))
    short = replace(whole, id="short", trajectory=whole.trajectory.prefix(1))
    empty = replace(whole, id="empty", trajectory=whole.trajectory.prefix(0))
    traces = [short, odd, empty, replace(whole, id="loose", task=None), replace(whole, id="unknown", outcome=Outcome()), whole]
    expected = {
        ("another run goes on from its end", "short"),
        ("the run went on after an end", "odd"),
        ("the run has no step", "empty"),
        ("the task is not known", "loose"),
        ("the outcome is unknown", "unknown"),
    }
    for harvest in (kto_trajectory_rows(merged_logs(traces)), trajectory_rows(merged_logs(traces)), shorter_rows(merged_logs(traces))):
        assert {(drop.reason, drop.name) for drop in harvest.drops} == expected
    (row,) = kto_trajectory_rows(merged_logs(traces)).rows
    assert row.lineage.traces == ("short", whole.id)


def test_reward_rows_keep_everything_and_the_margin(kit):
    pairs = trajectory_rows([fork(kit), fork(kit, grade=Grade.STALE)])
    rewards = reward_rows(pairs)
    assert rewards.drops == pairs.drops
    (pair,), (row,) = pairs.rows, rewards.rows
    assert (row.kind, pair.kind) == ("reward", "dpo")
    assert dict(row.values) == dict(pair.values)
    assert (row.parts, row.lineage, row.margin) == (pair.parts, pair.lineage, 1.0)
