"""Importance of rows and steps, against values worked out by hand."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.nouns import Outcome, Score
from counterplay.finetune.rows import Harvest
from counterplay.finetune.trajectories import attempts, logged_rows, sft_rows
from counterplay.finetune.variants import per_call_rows
from counterplay.finetune.weights import advantage_weighted, advantages, chances, importance, normalised, oreal_weighted, reshaped
from counterplay.finetune.write import read_dataset, write_dataset

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def reasons(harvest):
    return Counter(drop.reason for drop in harvest.drops)


def test_the_advantage_is_over_the_mean_of_all_attempts():
    assert advantages([1.0, 0.0, 0.5]) == [0.5, -0.5, 0.0]
    assert advantages([]) == []


def test_oreal_s_rewards_are_leave_one_out_advantages_of_plus_and_minus_one():
    # n = 4, k = 1: the success 1 - (-3) / 3 = 2; a failure -1 - (1 - 2) / 3 = -2 / 3, times 0.5
    assert reshaped([1.0, 0.0, 0.0, 0.0]) == pytest.approx([2.0, -1 / 3, -1 / 3, -1 / 3])
    # k = 3: a success 1 - (2 - 1) / 3 = 2 / 3; the failure -1 - 3 / 3 = -2, times 0.5
    assert reshaped([1.0, 1.0, 1.0, 0.0]) == pytest.approx([2 / 3, 2 / 3, 2 / 3, -1.0])
    assert reshaped([1.0, 0.0], negative=1.0) == [2.0, -2.0]
    assert reshaped([1.0, 1.0]) == [0.0, 0.0]
    assert reshaped([0.0, 0.4]) == [0.0, 0.0]
    assert reshaped([1.0]) == [0.0]


def test_oreal_s_steps_weigh_by_how_far_their_chances_are_past_one_half():
    assert importance([0.0, 0.5, 0.75, 1.0]) == [0.0, 0.0, 0.5, 1.0]
    assert importance([0.0, 0.25, 0.5, 1.0], success=False) == [1.0, 0.5, 0.0, 0.0]


@given(VALUES)
def test_weights_mean_one_and_keep_their_order(values):
    made = normalised(values)
    assert sum(made) / len(made) == pytest.approx(1.0 if sum(values) > 0 else 0.0)
    assert all((a < b) <= (x <= y) for a, x in zip(values, made, strict=True) for b, y in zip(values, made, strict=True))
    assert sum(advantages(values)) == pytest.approx(0.0, abs=1e-9)


@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_the_reshaped_rewards_of_a_task_sum_to_zero_but_for_their_factor(wins):
    made = reshaped([float(win) for win in wins], negative=1.0)
    assert sum(made) == pytest.approx(0.0)
    assert all(weight >= 0 if win else weight <= 0 for win, weight in zip(wins, made, strict=True))


def hard_and_easy(kit):
    """Task t1 succeeds in 1 of 4 attempts, task t2 in 2 of 3."""
    logs = [kit.trace("t1", reward=0.0, amount=amount) for amount in (6, 7, 8)] + [kit.trace("t2"), kit.trace("t2", reward=0.0, amount=9)]
    trees = [kit.tree(), kit.tree(kit.trajectory("t2").prefix(1), task="t2")]
    return trees, logs


def test_rows_of_hard_tasks_weigh_more(kit):
    trees, logs = hard_and_easy(kit)
    assert {unit: sorted(values) for unit, values in attempts(trees, logs).items()} == {"t1": [0, 0, 0, 1], "t2": [0, 1, 1]}
    rows = sft_rows(trees)
    made = advantage_weighted(rows, trees, logs)
    # 3 / 4 and 1 / 3, over their mean 13 / 24
    assert [row.weight for row in made.rows] == pytest.approx([18 / 13, 8 / 13])
    assert [replace(row, weight=1.0) for row in made.rows] == list(rows.rows)
    oreal = oreal_weighted(rows, trees, logs)
    # 2 * 3 / 3 = 2 and 2 * 1 / 2 = 1, over their mean 3 / 2
    assert [row.weight for row in oreal.rows] == pytest.approx([4 / 3, 2 / 3])


def test_rows_that_are_no_better_than_the_others_are_left_out_by_name(kit):
    made = advantage_weighted(logged_rows([kit.trace()]), [], [kit.trace()])
    assert reasons(made) == {"one attempt alone has nothing to be better than": 1}
    two = [kit.trace(), kit.trace(amount=6)]
    assert reasons(advantage_weighted(logged_rows(two), [], two)) == {"no better than the mean of its task": 2}
    assert reasons(oreal_weighted(logged_rows(two), [], two)) == {"no better than the mean of its task": 2}
    assert [drop.name for drop in made.drops] == [logged_rows([kit.trace()]).rows[0].name]
    unsaid = [kit.trace(outcome=Outcome(success=True)), kit.trace(reward=0.0)]
    assert [row.weight for row in advantage_weighted(logged_rows(unsaid), [], unsaid).rows] == [1.0]


def test_steps_weigh_by_the_chances_after_them(kit):
    source = kit.tree()
    (leaf,) = [node for node in source.tree.leaves() if node.finished]
    assert chances(source, leaf) == [5 / 6, 1.0]
    trees, logs = [source], [kit.trace(reward=0.0)]
    (row,) = oreal_weighted(sft_rows(trees), trees, logs).rows
    # max(2 * 5 / 6 - 1, 0) = 2 / 3 and 1, and nothing for the step before the root: 3 trained messages share 5 / 3
    expected = [0.0, 0.0, 0.0, 0.0, 2 / 3 * 9 / 5, 0.0, 9 / 5]
    assert row.step_weights == pytest.approx(expected)
    source.tree.nodes[1].score = Score(0.75)
    assert chances(source, leaf) == [5 / 6, 1.0], "what was played counts before what a verifier thinks"
    source.tree.nodes[1].visits = 0
    assert chances(source, leaf) == [0.75, 1.0]
    source.tree.nodes[1].score = None
    assert chances(source, leaf) == [0.5, 1.0]


def test_the_steps_of_logs_weigh_alike_and_all_of_them_mean_one(kit):
    trees, logs = hard_and_easy(kit)
    rows = sft_rows(trees) + logged_rows(logs)
    made = oreal_weighted(rows, trees, logs)
    weights = [weight for row in made.rows for weight, on in zip(row.step_weights, row.trained, strict=True) if on]
    assert sum(weights) / len(weights) == pytest.approx(1.0)
    assert sum(row.weight for row in made.rows) / len(made.rows) == pytest.approx(1.0)
    logged = next(row for row in made.rows if row.lineage.logged)
    assert len({weight for weight, on in zip(logged.step_weights, logged.trained, strict=True) if on}) == 1
    assert all(not weight for row in made.rows for weight, on in zip(row.step_weights, row.trained, strict=True) if not on)
    assert sorted(drop.reason for drop in made.drops) == ["the logged run did not succeed"] * 4


def test_rows_of_single_calls_end_before_their_line_does(kit):
    trees, logs = [kit.tree()], [kit.trace(reward=0.0)]
    made = oreal_weighted(per_call_rows(trees), trees, logs)
    # as in the whole row: 0 for the step before the root, then 2 / 3 and 1, over their mean 5 / 6
    assert [row.step_weights[-1] for row in made.rows] == pytest.approx([4 / 5, 6 / 5])
    assert all(len(row.step_weights) == len(row.messages) for row in made.rows)
    assert reasons(made)["no trained step of it raises its chances above one half"] == 1


def test_a_reward_counts_for_nothing_where_the_run_is_said_to_have_failed(kit):
    logs = [kit.trace(outcome=Outcome(1.0, success=False)), kit.trace(amount=6)]
    assert attempts([], logs) == {"t1": [0.0, 1.0]}
    assert [row.weight for row in advantage_weighted(logged_rows(logs), [], logs).rows] == [1.0]


def test_a_row_whose_trained_steps_lead_nowhere_is_left_out(kit):
    source = kit.tree(good=(4, 0.0))
    source.tree.nodes[1].visits = 0
    (row,) = sft_rows([source]).rows
    first = replace(row, trained=tuple(on and i == 2 for i, on in enumerate(row.trained)))
    made = oreal_weighted(Harvest((first,)), [source], [kit.trace(reward=0.0)])
    assert reasons(made) == {"no trained step of it raises its chances above one half": 1}
    trees, logs = hard_and_easy(kit)
    other = sft_rows(trees[1:]).rows
    assert [row.weight for row in oreal_weighted(Harvest((first, *other)), [source, *trees[1:]], logs).rows] == [1.0]


def test_weights_travel_in_the_files(kit, tmp_path):
    trees, logs = hard_and_easy(kit)
    made = oreal_weighted(sft_rows(trees), trees, logs)
    write_dataset(made, tmp_path / "weighted", split={"train": 1.0})
    write_dataset(sft_rows(trees), tmp_path / "plain", split={"train": 1.0})
    _, records = read_dataset(tmp_path / "weighted")
    assert {record["name"]: (record["weight"], tuple(record["step_weights"])) for record in records} == {
        row.name: (row.weight, row.step_weights) for row in made.rows
    }
    assert [(record["weight"], record["step_weights"]) for record in read_dataset(tmp_path / "plain")[1]] == [(1.0, [])] * 2
