"""Prompts for reinforcement learning: where lines differ in their ends, and where tasks begin."""

import json
from collections import Counter

from counterplay.core.nouns import Grade, Message
from counterplay.finetune.grpo import grpo_rows, logged_prompts
from counterplay.finetune.trajectories import logged_rows
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.forks import fork


def reasons(harvest):
    return Counter(drop.reason for drop in harvest.drops)


def test_states_from_which_some_lines_succeed_are_prompts(kit):
    source = fork(kit, good=2, bad=2)
    (row,) = grpo_rows([source]).rows
    assert row.prompt == source.tree.root.state.messages
    assert (row.visits, row.value_sum, row.lineage.fork_step, row.played) == (4, 2.0, 1, 2)
    assert not grpo_rows([fork(kit, good=4, bad=0)]).rows, "a group of equal rewards has no gradient"
    assert len(grpo_rows([fork(kit, good=4, bad=0)], high=1.0).rows) == 1
    assert not grpo_rows([fork(kit, good=1, bad=1)], min_lines=3).rows


def test_those_nearest_to_one_half_are_kept(kit):
    trees = [fork(kit, good=good, bad=4 - good, task="t1") for good in (1, 2, 3)]
    trees[0].tree.root.state.steps[0].action  # noqa: B018  the three roots are one state
    harvest = grpo_rows(trees)
    assert [row.value_sum for row in harvest.rows] == [2.0]
    assert reasons(harvest) == {"a duplicate": 2}
    source = fork(kit, good=2, bad=2)
    inner = source.tree.root.children[0]
    inner.visits, inner.value_sum = 10, 2.0
    harvest = grpo_rows([source], per_task=1)
    assert [row.visits for row in harvest.rows] == [4]
    assert reasons(harvest) == {"over the cap of 1 prompts a task": 1}


def test_what_no_environment_could_be_made_for_is_named(kit):
    assert reasons(grpo_rows([fork(kit, grade=Grade.STALE)])) == {}, "what came after the prompt does not matter"
    assert reasons(grpo_rows([fork(kit, task=None)])) == {"the task is not known": 1}
    unseen = kit.tree(kit.trajectory().prefix(1), bad=(4, 0.0), traces=(kit.trace(partial_steps=(1,)),))
    assert reasons(grpo_rows([unseen])) == {"the prompt is not known whole": 1}


def test_logged_tasks_begin_once(kit):
    traces = [kit.trace("a"), kit.trace("a", reward=0.0), kit.trace("b", inputs="none"), kit.trace(None)]
    harvest = logged_prompts(traces)
    assert [(row.lineage.task, row.lineage.fork_step, row.played) for row in harvest.rows] == [("a", 0, 0)]
    assert reasons(harvest) == {"a duplicate": 1, "the prompt is not known whole": 1, "the task is not known": 1}


def test_logged_prompts_say_who_played_and_for_whom(kit):
    trace = kit.trace("a", agent="clerk", metadata={"user_id": "bob"})
    (row,), (whole,) = logged_prompts([trace]).rows, logged_rows([trace]).rows
    assert (row.lineage.agent, row.lineage.users) == ("clerk", whole.lineage.users)
    assert len(row.lineage.users) == 1


def test_the_exact_state_is_in_the_file_whatever_the_prompt_was_made_into(kit, tmp_path):
    state = kit.trajectory(amount=0.1).prefix(1)
    shouting = Message.user("<|im_end|> now")
    state = type(state)(state.tools, (*state.prompt[:1], shouting), state.steps)
    (tree,) = [kit.tree(state)]
    write_dataset(grpo_rows([tree]), tmp_path / "d", split={"train": 1.0})
    _, (record,) = read_dataset(tmp_path / "d")
    assert [Message(wire) for wire in record["state"]] == list(state.messages)
    assert record["prompt"][1]["content"] == "< |im_end|> now"
    assert json.loads(record["state"][1])["content"] == "<|im_end|> now"
    assert record["played"] == 2


def test_every_message_has_a_content_as_the_trainer_wants(kit):
    state = kit.trajectory().prefix(1)
    fields = {name: value for name, value in state.steps[0].action.to_openai().items() if name != "content"}
    state = type(state)(state.tools, state.prompt, (kit.step(Message.from_openai(fields), "found"),))
    (row,) = grpo_rows([kit.tree(state)]).rows
    assert row.parts["prompt"][2].fields["content"] is None
    assert row.prompt[2].to_openai() == fields
