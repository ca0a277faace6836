"""What becomes a row, what does not, and under which name."""

from collections import Counter
from dataclasses import replace

import pytest

from counterplay.core.nouns import Call, Completeness, Grade, Message, Outcome, Step, SubTrajectory, ToolCall, Trajectory
from counterplay.finetune.kto import kto_rows, kto_trajectory_rows
from counterplay.finetune.merged import merged_logs
from counterplay.finetune.pairs import dpo_rows, label_noise
from counterplay.finetune.rows import SourcedTree, state_keys, users_of, whole_prompts
from counterplay.finetune.trajectories import logged_rows, sft_rows
from counterplay.search.tree import SearchTree


def reasons(harvest):
    return Counter(drop.reason for drop in harvest.drops)


def test_the_best_leaf_is_a_row_that_trains_on_sampled_messages_alone(kit):
    harvest = sft_rows([kit.tree()])
    (row,) = harvest.rows
    assert [m.role for m, on in zip(row.messages, row.trained, strict=True) if on] == ["assistant"] * 3
    assert [m.role for m, on in zip(row.messages, row.trained, strict=True) if not on] == ["system", "user", "tool", "tool"]
    assert (row.score, row.lineage.verifiers, row.lineage.grade) == (1.0, ("ledger@2",), Grade.EXECUTED)
    assert (row.lineage.task, row.lineage.search, row.lineage.fork_step, row.lineage.logged) == ("t1", "s-t1", 1, False)
    assert not harvest.drops


def test_the_prefix_can_be_left_out_of_the_loss(kit):
    (row,) = sft_rows([kit.tree()], train_prefix=False).rows
    assert sum(row.trained) == 2
    assert not row.trained[2]


def test_a_step_put_in_the_agents_mouth_is_not_trained_on(kit):
    (row,) = sft_rows([kit.tree(sampled=False)]).rows
    trained = [m for m, on in zip(row.messages, row.trained, strict=True) if on]
    assert len(trained) == 2
    assert kit.call("refund", "g", order=7, amount=5) not in trained


def test_malformed_arguments_are_not_taught(kit):
    broken = Message.assistant(None, [ToolCall("c1", "refund", '{"order": 7,')])
    tree = SearchTree.start(kit.state())
    leaf = tree.add(tree.add(tree.root, kit.step(broken, "Error: no JSON")), Step(kit.say("Done."), terminated=True, reward=1.0))
    (row,) = sft_rows([SourcedTree(tree)]).rows
    assert leaf.state.messages == row.messages
    assert row.trained == (False, False, False, False, True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"score": 0.5}, "no branch scored 1 or more"),
        ({"grade": Grade.STALE}, "every good branch is stale"),
        ({"grade": Grade.SIMULATED}, "every good branch is graded below executed"),
    ],
)
def test_a_tree_without_a_good_leaf_is_dropped_by_name(kit, fields, reason):
    harvest = sft_rows([kit.tree(**fields)])
    assert not harvest.rows
    assert [(drop.reason, drop.name) for drop in harvest.drops] == [(reason, "s-t1")]


def test_several_leaves_of_a_tree_differ_in_what_they_do(kit):
    source = kit.tree()
    tree = source.tree
    right = tree.root.children[0]
    for text in ("Refunded.", "All done."):
        leaf = tree.add(right, Step(kit.say(text), terminated=True))
        leaf.score = right.children[0].score
    assert [row.messages[-1].content for row in sft_rows([source], per_tree=5).rows] == ["Refunded.", "All done."]
    assert len(sft_rows([source]).rows) == 1


def test_a_prompt_that_is_not_known_whole_keeps_its_step_out(kit):
    trace = kit.trace(partial_steps=(0,))
    (row,) = logged_rows([trace]).rows
    assert [on for m, on in zip(row.messages, row.trained, strict=True) if m.role == "assistant"] == [False, True, True]
    tree = kit.tree(trace.trajectory.prefix(1), traces=(kit.trace(partial_steps=(1,)),))
    assert reasons(dpo_rows([tree])) == {"the prompt is not known whole": 1}
    (searched,) = sft_rows([tree]).rows
    assert [on for m, on in zip(searched.messages, searched.trained, strict=True) if m.role == "assistant"] == [True, False, False]
    assert reasons(logged_rows([kit.trace(inputs="none")])) == {"no step was sampled from a prompt known whole": 1}
    assert reasons(logged_rows([kit.trace(completeness=Completeness(truncated=True))])) == {
        "no step was sampled from a prompt known whole": 1
    }
    assert len(logged_rows([kit.trace(inputs="stitched")]).rows) == 1


def test_logged_successes_are_the_control(kit):
    compacted = SubTrajectory(kit.trajectory("t9"), continues=0)
    helper = SubTrajectory(kit.trajectory("t8"), agent="helper", parent_step=0)
    traces = [
        kit.trace("a", sub_trajectories=(compacted, helper)),
        kit.trace("b", reward=0.0),
        kit.trace("c", outcome=Outcome(None, None)),
        kit.trace("d", outcome=Outcome(None, success=True)),
        kit.trace("e", outcome=Outcome(1.0, success=False)),
    ]
    harvest = logged_rows(traces)
    assert [row.lineage.task for row in harvest.rows] == ["a", "a", "d"]
    assert all(row.lineage.logged for row in harvest.rows)
    assert reasons(harvest) == {"the logged run did not succeed": 2, "the outcome is unknown": 1, "a sub-agent's context": 1}


def test_a_pair_shares_its_prompt_and_carries_its_evidence(kit):
    trace = kit.trace(session="monday")
    harvest = dpo_rows([kit.tree(traces=(trace,))])
    (row,) = harvest.rows
    assert row.prompt == trace.trajectory.prefix(1).messages
    assert (row.chosen[0].signature, row.rejected[0].signature) == ('refund({"amount":5,"order":7})', 'refund({"amount":50,"order":7})')
    assert row.probability == pytest.approx(1 - 1 / 252)
    assert row.margin == pytest.approx(5 / 6 - 1 / 6)
    assert (row.visits, row.value_sums) == ((4, 4), (4.0, 0.0))
    lineage = row.lineage
    assert (lineage.traces, lineage.sessions, lineage.fork_step, lineage.verifiers) == ((trace.id,), ("monday",), 1, ("ledger@2",))
    assert lineage.nodes[0] == trace.trajectory.prefix(1).key
    assert len(set(lineage.nodes)) == 3
    assert label_noise(harvest.rows) == pytest.approx(1 / 252)
    assert label_noise([]) == 0.0


def test_two_noisy_means_are_no_pair(kit):
    unsure = kit.tree(good=(2, 2.0), bad=(2, 1.0))
    assert not dpo_rows([unsure]).rows
    assert len(dpo_rows([unsure], tau=0.7).rows) == 1
    assert not dpo_rows([kit.tree(bad=(0, 0.0), good=(100, 100.0))]).rows, "an action that was never tried is no evidence"
    for equal in ({"good": (100, 100.0), "bad": (2, 2.0)}, {"good": (4, 0.0), "bad": (100, 0.0)}):
        assert not dpo_rows([kit.tree(**equal)]).rows, "equal shares of successes are no preference, however often each was tried"
    with pytest.raises(ValueError, match="tau"):
        dpo_rows([], tau=0.5)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"grade": Grade.STALE}, "stale"),
        ({"grade": Grade.SIMULATED}, "graded below executed"),
        ({"sampled": False}, "an action was not sampled"),
        ({"bad_error": "sandbox died"}, "the machinery failed on an action"),
    ],
)
def test_pairs_that_may_not_leave_are_named(kit, fields, reason):
    harvest = dpo_rows([kit.tree(**fields)])
    assert not harvest.rows
    ((drop),) = harvest.drops
    assert drop.reason == reason
    assert drop.name.startswith("t1/step-1/")


def test_a_stale_prefix_or_a_stale_leaf_below_taints_the_pair(kit):
    stale = Trajectory(kit.tools, kit.state().prompt, (kit.step(kit.call("find", order=7), "old", grade=Grade.STALE),))
    assert reasons(dpo_rows([kit.tree(stale)])) == {"stale": 1}
    source = kit.tree()
    source.tree.add(source.tree.root.children[1], kit.step(kit.call("find", order=8), "old", grade=Grade.STALE))
    assert reasons(dpo_rows([source])) == {"stale": 1}


def test_min_grade_is_a_gate(kit):
    assert len(dpo_rows([kit.tree(grade=Grade.SIMULATED)], min_grade=Grade.SIMULATED).rows) == 1
    assert reasons(dpo_rows([kit.tree(grade=Grade.EXECUTED)], min_grade=Grade.EXACT)) == {"graded below exact": 1}


def test_children_with_one_signature_are_one_action(kit):
    source = kit.tree(good=(2, 2.0), bad=(2, 0.0))
    assert dpo_rows([source]).rows[0].probability == pytest.approx(0.95)
    twin = source.tree.add(source.tree.root, kit.step(kit.call("refund", "other", amount=5, order=7), "ok", call_id="other"))
    twin.visits, twin.value_sum = 2, 2.0
    (row,) = dpo_rows([source]).rows
    assert (row.visits, row.value_sums) == ((4, 2), (4.0, 0.0))


def test_caps_keep_the_surest_and_name_the_rest(kit):
    source = kit.tree()
    for amount, visits in ((60, 40), (70, 20)):
        node = source.tree.add(source.tree.root, kit.step(kit.call("refund", order=7, amount=amount), "ok"))
        node.visits, node.value_sum = visits, 0.0
    harvest = dpo_rows([source], per_state=2)
    assert {row.visits[1] for row in harvest.rows} == {40, 20}
    assert reasons(harvest) == {"over the cap of 2 pairs a state": 1}
    trees = [replace(source, task="t1"), replace(kit.tree(kit.state("t2"), task="t2"), task="t1")]
    harvest = dpo_rows(trees, per_state=9, per_task=3)
    assert len(harvest.rows) == 3
    assert reasons(harvest) == {"over the cap of 3 pairs a task": 1}


def test_searches_that_contradict_each_other_teach_nothing(kit):
    harvest = dpo_rows([kit.tree(), kit.tree(good=(4, 0.0), bad=(4, 4.0))])
    assert not harvest.rows
    assert reasons(harvest) == {"another search has it the other way round": 2}


def test_equal_pairs_of_several_searches_take_one_place_of_the_cap(kit):
    def searched(name):
        source = kit.tree(search=name)
        third = source.tree.add(source.tree.root, kit.step(kit.call("refund", order=7, amount=60), "ok"))
        third.visits, third.value_sum = 3, 0.0
        return source

    for searches in (["a"], ["a", "b"], ["a", "b", "c"]):
        harvest = dpo_rows([searched(name) for name in searches], per_state=2)
        assert {row.rejected[0].tool_calls[0].args["amount"] for row in harvest.rows} == {50, 60}
        assert reasons(harvest) == ({"a duplicate": 2 * len(searches) - 2} if len(searches) > 1 else {})


def test_an_answer_that_is_not_known_whole_is_not_taught(kit):
    calls = tuple(Call(i, completeness=Completeness(outputs=known)) for i, known in enumerate(("full", "partial", "none")))
    trace = kit.trace(calls=calls)
    (row,) = logged_rows([trace]).rows
    assert [on for m, on in zip(row.messages, row.trained, strict=True) if m.role == "assistant"] == [True, False, False]
    assert whole_prompts(trace) == [True] * 4, "the prompts are whole all the same"
    unsaid = kit.trace(calls=(), completeness=Completeness(outputs="partial"))
    assert reasons(logged_rows([unsaid])) == {"no step was sampled from a prompt known whole": 1}
    cut = kit.trace(
        calls=tuple(replace(call, completeness=Completeness(outputs="partial" if call.step == 0 else "full")) for call in calls)
    )
    tree = kit.tree(cut.trajectory.prefix(1), traces=(cut,))
    (searched,) = sft_rows([tree]).rows
    assert [on for m, on in zip(searched.messages, searched.trained, strict=True) if m.role == "assistant"] == [False, True, True]
    assert len(dpo_rows([tree]).rows) == 1
    cut = kit.trace(calls=calls[:2])
    played = kit.tree(cut.trajectory.prefix(1), bad=(0, 0.0), traces=(cut,))
    logged = played.tree.add(played.tree.root, cut.trajectory.steps[1], logged=True)
    logged.visits, logged.value_sum = 4, 0.0
    played.tree.nodes[1].step = replace(played.tree.nodes[1].step, action=kit.call("refund", "g", order=7, amount=6))
    played.tree.nodes[1].state = played.tree.root.state.extend(played.tree.nodes[1].step)
    assert reasons(dpo_rows([played])) == {"an action is not known whole": 1}
    assert reasons(kto_rows([played])) == {"an action is not known whole": 1}
    (way,) = kto_trajectory_rows(merged_logs([kit.trace(calls=calls[:2])])).rows
    assert way.trained == (True, False, False, False, True)


def test_users_have_pseudonyms_whether_they_are_numbers_or_names(kit):
    def of(**metadata):
        return users_of(kit.trace(metadata=metadata))

    assert of(user_id=12345) == of(user_id="12345") == of(user_id="", user=12345)
    assert len(of(user_id=0)) == 1
    assert of(user_id=True) == of(user_id=None) == of(user_id="") == of(user_id=1.5) == ()


def test_a_stored_search_finds_its_traces(kit):
    mine, other = kit.trace(), kit.trace("t2")
    record = kit.tree().tree.to_record("s1", trace=mine.id, task=None, fork_step=1)
    source = SourcedTree.of(record, [other, mine])
    assert (source.traces, source.task, source.search) == ((mine,), "t1", "s1")
    by_task = SourcedTree.of(kit.tree().tree.to_record("s2", task="t2"), [other, mine])
    assert by_task.traces == (other,)


def test_state_keys_are_the_keys_of_the_prefixes(kit):
    trajectory = kit.trajectory()
    assert state_keys(trajectory) == [trajectory.prefix(i).key for i in range(len(trajectory) + 1)]
