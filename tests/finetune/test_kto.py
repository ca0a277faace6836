"""Answers that are good or bad: from the evidence of siblings, from verified ends, and in an order that trainers can batch."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.nouns import Grade, Message, Score, Step, ToolCall
from counterplay.finetune.kto import interleaved, kto_rows, kto_trajectory_rows, weights
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.forks import fork


def reasons(harvest):
    return Counter(drop.reason for drop in harvest.drops)


def test_an_action_is_held_against_its_siblings_together(kit):
    harvest = kto_rows([kit.tree()])
    good, bad = harvest.rows
    assert (good.label, good.completion[0].tool_calls[0].args["amount"]) == (True, 5)
    assert (bad.label, bad.completion[0].tool_calls[0].args["amount"]) == (False, 50)
    assert good.probability == bad.probability == pytest.approx(1 - 1 / 252)
    assert (good.visits, good.value_sum, bad.value_sum) == (4, 4.0, 0.0)
    assert good.prompt == bad.prompt == kit.trajectory().prefix(1).messages
    assert good.lineage.fork_step == 1
    assert len(set(good.lineage.nodes)) == 2
    for equal in ({"good": (100, 100.0), "bad": (2, 2.0)}, {"good": (100, 0.0), "bad": (2, 0.0)}):
        assert not kto_rows([kit.tree(**equal)]).rows, "what always succeeds is not worse for having been tried less often"
    middling = kit.tree(good=(4, 2.0), bad=(4, 2.0))
    assert not kto_rows([middling]).rows


def test_a_threshold_needs_no_siblings(kit):
    rows = kto_rows([kit.tree(good=(9, 9.0), bad=(9, 6.0))], threshold=0.5).rows
    assert [row.label for row in rows] == [True]
    assert rows[0].probability == pytest.approx(1 - 0.5**10)
    assert {row.label for row in kto_rows([kit.tree(good=(9, 9.0), bad=(9, 0.0))], threshold=0.5).rows} == {True, False}
    alone = kit.tree(bad=(0, 0.0))
    assert not kto_rows([alone]).rows
    assert len(kto_rows([alone], threshold=0.5).rows) == 1
    once = kit.tree(good=(1, 1.0), bad=(9, 0.0))
    assert [row.label for row in kto_rows([once], threshold=0.5, tau=0.7).rows] == [False], "one line is not enough to praise an action"
    assert len(kto_rows([once], threshold=0.5, tau=0.7, min_lines=1).rows) == 3, "what was said at its end is an action too"
    with pytest.raises(ValueError, match="tau"):
        kto_rows([], tau=0.4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"grade": Grade.STALE}, {"stale": 2}),
        ({"grade": Grade.SIMULATED}, {"graded below executed": 2}),
        ({"sampled": False}, {"an action was not sampled": 1}),
        ({"bad_error": "sandbox died"}, {"the machinery failed on an action": 1}),
    ],
)
def test_what_may_not_leave_is_named(kit, fields, reason):
    assert reasons(kto_rows([kit.tree(**fields)])) == reason


def test_malformed_arguments_are_undesirable_and_never_desirable(kit):
    source = kit.tree(bad=(0, 0.0), good=(0, 0.0))
    broken = Message.assistant(None, [ToolCall("c1", "refund", '{"order": 7,')])
    node = source.tree.add(source.tree.root, kit.step(broken, "Error: no JSON"))
    node.visits, node.value_sum = 9, 9.0
    assert reasons(kto_rows([source], threshold=0.5)) == {"the action's arguments are not a JSON object": 1}
    node.value_sum = 0.0
    assert [row.label for row in kto_rows([source], threshold=0.5).rows] == [False]


def test_searches_that_contradict_each_other_teach_nothing(kit):
    harvest = kto_rows([kit.tree(), kit.tree(good=(4, 0.0), bad=(4, 4.0))])
    assert not harvest.rows
    assert reasons(harvest) == {"another search has it the other way round": 4}


def test_equal_answers_of_several_searches_take_one_place_of_the_cap(kit):
    harvest = kto_rows([kit.tree(search=name) for name in "abc"], per_task=1)
    assert Counter(row.label for row in harvest.rows) == {True: 1, False: 1}
    assert reasons(harvest) == {"a duplicate": 4}


def test_the_cap_counts_each_label(kit):
    source = kit.tree()
    for amount in (60, 70, 80):
        node = source.tree.add(source.tree.root, kit.step(kit.call("refund", order=7, amount=amount), "ok"))
        node.visits, node.value_sum = 4, 0.0
    harvest = kto_rows([source], threshold=0.5, per_task=2)
    assert Counter(row.label for row in harvest.rows) == {True: 1, False: 2}
    assert reasons(harvest) == {"over the cap of 2 rows of a label a task": 2}


def test_whole_ways_to_the_end_are_masked(kit):
    source = fork(kit, good=2, bad=1)
    unsure = source.tree.add(source.tree.root, Step(kit.say("Hm."), terminated=True))
    unsure.score = Score(0.5, "", "ledger", "2")
    harvest = kto_trajectory_rows([source])
    assert [row.label for row in harvest.rows] == [True, True, False], "an end between the two bounds is neither"
    row = harvest.rows[0]
    assert reasons(harvest) == {"an end that is neither good nor bad": 1}
    assert row.prompt == source.tree.root.state.messages
    assert [m.role for m in row.completion] == ["assistant", "tool", "assistant"]
    assert row.trained == (True, False, True)
    assert (row.lineage.verifiers, row.visits, row.value_sum) == (("ledger@2",), 1, 1.0)
    assert reasons(kto_trajectory_rows([fork(kit, good=1, bad=1, grade=Grade.STALE)])) == {"stale": 2}


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(2, 9))
def test_every_batch_size_finds_both_labels_as_often_as_can_be(labels, size):
    order = interleaved(labels)
    assert sorted(order) == list(range(len(labels)))
    for wanted in (True, False):
        mine = [i for i in order if labels[i] is wanted]
        assert mine == sorted(mine), "rows of one label keep their order"
    spread = [labels[i] for i in order]
    full = [spread[i : i + size] for i in range(0, len(spread) - size + 1, size)]
    mixed = sum(len(set(batch)) == 2 for batch in full)
    rare = min(labels.count(True), labels.count(False))
    assert mixed >= min(len(full), rare) - 1, "at most the rest after the last full batch can hold one more"


def test_weights_are_those_that_the_trainer_wants():
    assert weights(10, 10) == (1.0, 1.0)
    assert weights(10, 30) == (3.0, 1.0)
    assert weights(30, 10) == (1.0, 3.0)
    assert weights(0, 5) == (1.0, 1.0)


def test_the_file_is_interleaved_in_each_split_and_the_card_says_the_weights(kit, tmp_path):
    rows = []
    for i in range(12):
        for row in kto_rows([kit.tree(kit.trajectory(f"t{i}").prefix(1), task=f"t{i}")]).rows:
            rows += [row] if row.label else [replace(row, completion=(kit.call("refund", order=i, amount=j),)) for j in (60, 70)]
    rows.sort(key=lambda row: row.label)
    report = write_dataset(rows, tmp_path / "kto", split={"train": 0.7, "test": 0.3})
    assert report.labels == {False: 24, True: 12}
    for split in ("train", "test"):
        labels = [record["label"] for record in read_dataset(tmp_path / "kto", split)[1]]
        assert all(len(set(labels[i : i + 3])) == 2 for i in range(0, len(labels) - 2, 3))
    card = (tmp_path / "kto" / "README.md").read_text()
    assert "12 desirable and 24 undesirable rows. For KTOConfig: `desirable_weight=2`, `undesirable_weight=1`." in card
    assert "Expected share of labels that are wrong: 0.0040" in card
