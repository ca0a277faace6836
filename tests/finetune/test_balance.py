"""Caps and balance: no task and no tool has more rows than allowed, and who a dataset is made of is told."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolCall
from counterplay.finetune.balance import balance, capped, taught, tools_of
from counterplay.finetune.kto import KTORow
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import Lineage, SFTRow
from counterplay.finetune.trajectories import logged_rows, sft_rows

ASK = Message.user("Do it.")


def row(task, *tools, score=None, number=0, **lineage):
    """A row that trains on one call of each tool, and has an untrained call of `other` before them."""
    calls = [Message.assistant(None, [ToolCall(f"c{i}", tool, f'{{"n":{number}}}')]) for i, tool in enumerate(tools)]
    untrained = Message.assistant(None, [ToolCall("o", "other", "{}")])
    return SFTRow((ASK, untrained, *calls), (False, False, *(True for _ in calls)), score=score, lineage=Lineage(task, **lineage))


def test_what_is_taught_is_what_is_trained_on_and_not_what_is_rejected(kit):
    (pair,) = dpo_rows([kit.tree()]).rows
    assert taught(pair) == list(pair.chosen)
    assert tools_of(row("t", "a", "b", "a")) == ["a", "b"]
    good = KTORow((ASK,), (kit.call("find"),), label=True)
    assert (tools_of(good), tools_of(replace(good, label=False))) == (["find"], [])


def test_caps_keep_the_best_and_name_the_rest():
    rows = [row("t1", "a", score=score, number=i) for i, score in enumerate([0.2, 0.9, 0.5])] + [row("t2", "a", score=0.1)]
    kept, drops = capped(rows, per_task=2)
    assert kept == [rows[1], rows[2], rows[3]]
    assert [(drop.reason, drop.name) for drop in drops] == [("over the cap of 2 rows of a task", rows[0].name)]
    kept, drops = capped(rows, per_tool=2)
    assert kept == [rows[1], rows[2]]
    assert Counter(drop.reason for drop in drops) == {"over the cap of 2 rows that call a": 2}
    assert capped(rows) == (rows, [])
    with pytest.raises(UserError, match="per_tool=0"):
        capped(rows, per_tool=0)


def test_rows_that_are_left_out_by_one_cap_do_not_fill_the_other():
    rows = [row("t1", "a", "b", score=0.9), row("t2", "a", score=0.8), row("t2", "b", score=0.7), row("t2", "c", score=0.6)]
    kept, _ = capped(rows, per_task=1, per_tool=1)
    assert kept == [rows[0], rows[3]]


def test_which_of_equals_is_kept_follows_from_name_and_seed_not_from_order():
    rows = [row("t", "a", number=i) for i in range(9)]
    assert {one.name for one in capped(rows, per_task=3)[0]} == {one.name for one in capped(rows[::-1], per_task=3)[0]}
    assert {capped(rows, per_task=3, seed=seed)[0][0].name for seed in range(5)} != {capped(rows, per_task=3)[0][0].name}


def test_a_bound_cap_is_a_gate(kit, tmp_path):
    from counterplay.finetune.write import write_dataset

    rows = [one for amount in (5, 6, 7) for one in logged_rows([kit.trace(amount=amount)]).rows]
    report = write_dataset(rows, tmp_path / "d", gates=[partial(capped, per_task=2)])
    assert sum(report.rows.values()) == 2
    assert report.dropped == {"over the cap of 2 rows of a task": 1}


ROWS = st.lists(st.tuples(st.sampled_from("xyz"), st.sets(st.sampled_from("abc"), max_size=3), st.integers(0, 3)), max_size=25)


@given(ROWS, st.integers(1, 4), st.integers(1, 4))
def test_caps_hold_and_everything_is_kept_or_named(drawn, per_task, per_tool):
    rows = [row(task, *sorted(tools), score=score / 3, number=i) for i, (task, tools, score) in enumerate(drawn)]
    kept, drops = capped(rows, per_task=per_task, per_tool=per_tool)
    assert len(kept) + len(drops) == len(rows)
    assert max(Counter(one.lineage.task for one in kept).values(), default=0) <= per_task
    assert max(Counter(tool for one in kept for tool in tools_of(one)).values(), default=0) <= per_tool
    assert all(one in rows for one in kept)


def test_the_balance_counts_rows_and_trained_messages():
    rows = [
        row("t1", "a", "a", "b", agent="ann", algorithm="mcts"),
        row("t1", "a", agent="ann"),
        row(None, "b", traces=("x",)),
        SFTRow((ASK, Message.assistant("Done.")), (False, True), lineage=Lineage("t2")),
    ]
    made = balance(rows)
    assert (made.task.rows, made.task.messages) == ({"t1": 2, "t2": 1, "x": 1}, {"t1": 4, "t2": 1, "x": 1})
    assert (made.tool.rows, made.tool.messages) == ({"a": 2, "b": 2, "none": 1}, {"a": 3, "b": 2, "none": 1})
    assert (made.agent.rows, made.algorithm.rows) == ({"ann": 2, "none": 2}, {"logged": 3, "mcts": 1})
    assert made.task.share == 4 / 6
    entropy = -(4 / 6 * math.log(4 / 6) + 2 * (1 / 6) * math.log(1 / 6))
    assert made.task.effective == pytest.approx(math.exp(entropy))


@given(st.integers(1, 12))
def test_equal_tasks_are_as_many_as_they_are(count):
    made = balance(row(f"t{i}", "a") for i in range(count))
    assert made.task.effective == pytest.approx(count)
    assert made.task.share == pytest.approx(1 / count)
    assert made.tool.effective == pytest.approx(1)


def test_the_report_can_be_read_by_people_and_machines(kit):
    made = balance(sft_rows([kit.tree()]).rows)
    assert made.to_json()["tool"] == {
        "rows": {"find": 1, "none": 1, "refund": 1},
        "messages": {"find": 1, "none": 1, "refund": 1},
        "share": pytest.approx(1 / 3),
        "effective": pytest.approx(3),
    }
    text = made.markdown(most=2)
    assert "| tool | 3 | 3.0 | 33% | find (1, 1), none (1, 1) |" in text
    assert "| task | 1 | 1.0 | 100% | t1 (1, 3) |" in text
    assert "\\|" in balance([row("a|b", "x")]).markdown()
    nothing = balance([])
    assert (nothing.task.share, nothing.task.effective) == (0.0, 0.0)
    assert "| task | 0 | 0.0 | 0% |" in nothing.markdown()
