"""One row a call, only improved steps, recovery kept, the shortest success, the best of n: what each holds and trains on."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.nouns import (
    Grade,
    LoggedScore,
    Message,
    Outcome,
    Score,
    Source,
    Step,
    SubTrajectory,
    ToolCall,
    Trace,
    Trajectory,
    steps_of,
)
from counterplay.core.tool_errors import is_error
from counterplay.finetune import recovery
from counterplay.finetune.improved import improved_rows, surely_higher
from counterplay.finetune.masks import tokenised
from counterplay.finetune.records import make_records
from counterplay.finetune.recovery import failed_calls, falls, recovery_rows
from counterplay.finetune.rows import SourcedTree
from counterplay.finetune.trainers import quiet
from counterplay.finetune.trajectories import attempts, logged_rows, sft_rows, successes
from counterplay.finetune.variants import distill_rows, per_call, per_call_rows, prompt_completion, shortest_rows
from counterplay.finetune.write import read_dataset, write_dataset
from counterplay.search.tree import SearchTree

START = Trajectory((), (Message.system("You act."), Message.user("Do it.")))


def reasons(harvest):
    return Counter(drop.reason for drop in harvest.drops)


def move(name, result=None, **flags):
    call = ToolCall("c", name, flags.pop("arguments", "{}"))
    observed = Message.tool(f"did {name}" if result is None else result, "c")
    return Step(Message.assistant(None, [call]), (observed,), grades=(flags.pop("grade", Grade.EXECUTED),), **flags)


def grow(shape, algorithm="best_of_n", *, logged=(), scores=None, grades=None, unsampled=(), **source):
    """A tree from {path: (visits, value_sum)}, paths of letters; a path that ends in a digit is an end, with its score W / N."""
    tree = SearchTree.start(START, algorithm)
    nodes = {"": tree.root}
    for path in sorted(shape, key=len):
        visits, value_sum = shape[path]
        if path:
            step = move(
                path[-1], terminated=path[-1].isdigit(), sampled=path not in unsampled, grade=(grades or {}).get(path, Grade.EXECUTED)
            )
            nodes[path] = tree.add(nodes[path[:-1]], step, logged=path in logged)
        node = nodes[path]
        node.visits, node.value_sum = visits, value_sum
        if path and path[-1].isdigit():
            node.score = Score(value_sum / visits, "", "outcome", "1")
        elif scores and path in scores:
            node.score = Score(scores[path])
    return SourcedTree(tree, **{"search": "s", "task": "t", **source})


def trained(row):
    """The names of the tools called in trained messages, in order."""
    return "".join(m.tool_calls[0].name for m, on in zip(row.messages, row.trained, strict=True) if on and m.tool_calls)


# a: the logged action, mostly fails; b: surely better; c: played twice. Below b, d and e are alike.
FORK = {"": (14, 7.0), "a": (5, 0.0), "b": (7, 6.0), "c": (2, 1.0), "a0": (1, 0.0), "bd": (4, 4.0), "be": (3, 2.0), "bd1": (1, 1.0)}


# --- one row a call -----------------------------------------------------------------------------------------------------------------------


def test_every_sampled_call_is_a_row_that_ends_with_it(kit):
    whole = sft_rows([kit.tree()])
    (row,), calls = whole.rows, per_call_rows([kit.tree()]).rows
    ends = [i for i, on in enumerate(row.trained) if on]
    assert [one.messages for one in calls] == [row.messages[: i + 1] for i in ends]
    assert all(one.trained == (*(False,) * i, True) for one, i in zip(calls, ends, strict=True))
    assert all((one.score, one.lineage, one.tools) == (row.score, row.lineage, row.tools) for one in calls)
    assert len({one.name for one in calls}) == len(calls) == 3


def test_calls_of_trees_and_logs_that_share_a_prefix_are_rows_once(kit):
    trace = kit.trace()
    harvest = per_call_rows([kit.tree(traces=(trace,))], [trace])
    assert len(harvest.rows) == 5
    assert reasons(harvest) == {"a duplicate": 1}


def test_unsampled_steps_have_no_row_and_weights_go_with_their_message(kit):
    assert len(per_call_rows([kit.tree(sampled=False)]).rows) == 2
    (row,) = sft_rows([kit.tree()]).rows
    steps = tuple(float(i) for i in range(len(row.messages)))
    harvest = per_call(type(sft_rows([]))((replace(row, weight=2.0, step_weights=steps),)))
    assert [one.weight for one in harvest.rows] == [2.0 * i for i, on in enumerate(row.trained) if on]
    assert all(not one.step_weights for one in harvest.rows)


def test_calls_train_on_the_same_tokens_as_the_whole_row(kit, tokenizer):
    (whole,), calls = sft_rows([kit.tree()]).rows, per_call_rows([kit.tree()]).rows
    records = [record for _, record in make_records([whole, *calls]).kept]
    ids = [list(tokenised(tokenizer, one["messages"], one["tools"], one["trained"])) for one in records]
    assert all(len(made) == 1 for made in ids)
    first, *rest = (made for (made,) in ids)
    assert all(made["input_ids"] == first["input_ids"][: len(made["input_ids"])] for made in rest)
    merged = [-100] * len(first["input_ids"])
    for made in rest:
        for at, label in enumerate(made["labels"]):
            merged[at] = label if label != -100 else merged[at]
    assert merged == first["labels"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trainer_without_masks_trains_on_the_calls_alone(kit, tokenizer, model_dir, tmp_path):
    import datasets
    from trl import SFTConfig, SFTTrainer

    rows = per_call_rows([kit.tree()], [kit.trace("b")])
    write_dataset(rows, tmp_path / "d", split={"train": 1.0}, tokenizer=tokenizer)
    with quiet():
        loaded = datasets.load_dataset(str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "cache"))
        data = prompt_completion(loaded)
        options = {"max_steps": 2, "per_device_train_batch_size": 3, "max_length": None, "save_strategy": "no", "logging_steps": 1}
        cpu = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
        args = SFTConfig(output_dir=str(tmp_path / "out"), **options, **cpu)
        trainer = SFTTrainer(model=str(model_dir), args=args, train_dataset=data, processing_class=tokenizer)
        trainer.train()
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 2
    read = {record["name"]: record for record in read_dataset(tmp_path / "d")[1]}
    seen = set()
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            text = tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label != -100])
            seen.add(text)
            assert tokenizer.decode(ids).replace("<|endoftext|>", "").endswith(text)
    expected = [
        tokenizer.apply_chat_template(record["messages"], tools=record["tools"], tokenize=False).removeprefix(
            tokenizer.apply_chat_template(record["messages"][:-1], tools=record["tools"], tokenize=False, add_generation_prompt=True)
        )
        for record in read.values()
    ]
    assert seen == set(expected)
    write_dataset(sft_rows([kit.tree()]), tmp_path / "whole", split={"train": 1.0})
    with quiet():
        whole = datasets.load_dataset(str(tmp_path / "whole"), split="train", cache_dir=str(tmp_path / "whole-cache"))
        with pytest.raises(ValueError, match="trains on 3 messages"):
            prompt_completion(whole)


# --- only improved steps ------------------------------------------------------------------------------------------------------------------


def test_only_steps_that_surely_beat_what_was_done_otherwise_are_trained_on():
    (row,) = improved_rows([grow(FORK, logged=("a", "a0"))]).rows
    assert trained(row) == "b", "d is no surer than e, and the last step had no alternative"
    assert row.messages == sft_rows([grow(FORK)]).rows[0].messages
    assert improved_rows([grow(FORK)]).rows[0].trained == row.trained, "without a logged action it is held against all others together"
    # P(Beta(7, 2) > Beta(1, 6)) = 0.998; against c alone P(Beta(7, 2) > Beta(2, 2)) = 0.848
    assert improved_rows([grow(FORK, logged=("c",))]).rows == ()
    assert len(improved_rows([grow(FORK, logged=("c",))], tau=0.84).rows) == 1


def test_steps_that_are_not_sampled_or_rest_on_simulations_are_not_improvements():
    said = "no step is surely better than what was done instead"
    assert reasons(improved_rows([grow(FORK, unsampled=("b",))])) == {said: 1}
    assert reasons(improved_rows([grow(FORK, grades={"a": Grade.SIMULATED, "c": Grade.SIMULATED})])) == {said: 1}
    assert reasons(improved_rows([grow({"": (1, 0.0), "a": (1, 0.0), "a0": (1, 0.0)})])) == {"no branch scored 1 or more": 1}
    with pytest.raises(ValueError, match="tau"):
        improved_rows([], tau=0.5)


def test_fewer_lines_alone_are_no_worse():
    assert surely_higher((4, 4.0), (4, 0.0), 0.9)
    assert not surely_higher((100, 100.0), (1, 1.0), 0.9), "the prior alone says so"
    assert not surely_higher((1, 1.0), (1, 0.0), 0.9)


# --- recovery kept ------------------------------------------------------------------------------------------------------------------------

# a is surely worse than b, and one line through it still succeeds, by way of c.
LAPSE = {"": (14, 8.0), "a": (8, 2.0), "b": (6, 6.0), "ac": (2, 2.0), "ax": (6, 0.0), "acd": (2, 2.0), "acd1": (2, 2.0), "bz": (1, 0.0)}


def test_a_line_through_a_bad_step_to_a_good_end_masks_the_step_and_trains_the_correction():
    harvest = recovery_rows([grow(LAPSE)])
    (row,) = harvest.rows
    assert trained(row) == "cd1"
    assert [m.content_text for m in row.messages if m.role == "tool"] == ["did a", "did c", "did d", "did 1"], "nothing is left out"
    (whole,) = recovery_rows([grow(LAPSE)], train_wrong=True).rows
    assert trained(whole) == "acd1"


def test_a_success_without_a_fall_is_no_recovery():
    straight = {"": (2, 2.0), "a": (2, 2.0), "ab": (2, 2.0), "ab1": (2, 2.0)}
    assert reasons(recovery_rows([grow(straight)])) == {"no step of a success went wrong and was made good": 1}
    assert reasons(recovery_rows([grow({"": (1, 0.0), "a0": (1, 0.0), "a": (1, 0.0)})])) == {"no branch scored 1 or more": 1}
    last = {"": (9, 4.0), "1": (5, 1.0), "b": (4, 4.0)}
    shaky = grow(last)
    shaky.tree.nodes[1].score = Score(1.0)
    assert not recovery_rows([shaky]).rows, "after the last step there is nothing that could have made it good"


def test_a_process_verifiers_scores_show_a_fall_and_the_way_back():
    line = {"": (1, 1.0), "a": (1, 1.0), "ab": (1, 1.0), "abc": (1, 1.0), "abcd": (1, 1.0), "abcd1": (1, 1.0)}
    scores = {"": 0.5, "a": 0.6, "ab": 0.2, "abc": 0.2, "abcd": 0.8}
    (row,) = recovery_rows([grow(line, scores=scores)]).rows
    assert trained(row) == "acd1"
    assert trained(recovery_rows([grow(line, scores={**scores, "abc": 0.0})]).rows[0]) == "ad1", "a second fall is wrong too"
    assert not recovery_rows([grow(line, scores=scores)], min_drop=0.5).rows


def test_the_value_of_a_state_can_fall_without_an_alternative():
    shape = {"": (20, 18.0), "a": (20, 18.0), "ab": (5, 1.0), "abc": (1, 1.0), "abc1": (1, 1.0)}
    assert [trained(row) for row in recovery_rows([grow(shape)]).rows] == ["ac1"]
    assert not recovery_rows([grow({**shape, "ab": (5, 4.0)})]).rows


def test_falls_are_found_across_unknown_states():
    def lower(up, down):
        return up - down >= 0.2

    assert falls([0.5, None, 0.1, 0.5, 0.45, 0.35], lower) == {0, 1}
    assert falls([None, 0.9, 0.5, 0.2, 0.9, 0.6], lower) == {1, 2, 4}
    assert falls([None, None], lower) == set()
    assert falls([0.9, 0.3, 0.5, 0.2], lower) == {0}, "at 0.5 it is not back yet"


def test_a_failed_call_that_was_put_right_is_a_recovery_in_a_log(kit):
    wrong = Step(kit.call("find", order=6), (Message.tool("Error: no such order", "c1"),), grades=(Grade.EXACT,))
    usual = kit.trajectory().steps
    trace = replace(kit.trace(), trajectory=Trajectory(kit.tools, kit.state().prompt, (wrong, *usual)), calls=())
    (row,) = recovery_rows(traces=[trace]).rows
    assert trained(row) == "findrefund"
    assert row.messages == logged_rows([trace]).rows[0].messages
    assert row.trained.index(True) == 4
    again = replace(wrong, action=usual[0].action)
    assert failed_calls(Trajectory((), (), (again, *usual))) == set(), "the same call at once again: it failed by chance"
    assert failed_calls(Trajectory((), (), (again, usual[1], *usual))) == {0}
    assert failed_calls(Trajectory((), (), (wrong, again, usual[1], *usual))) == {0, 1}
    assert failed_calls(Trajectory((), (), (wrong, again))) == set(), "nothing was put right"
    assert reasons(recovery_rows(traces=[kit.trace(), kit.trace(reward=0.0)])) == {
        "no step of a success went wrong and was made good": 1,
        "the logged run did not succeed": 1,
    }


def test_failed_calls_are_found_in_one_pass(kit, monkeypatch):
    looked = []
    monkeypatch.setattr(recovery, "is_error", lambda message: looked.append(message) or "Error" in message.content)
    steps = [kit.step(kit.call("find", order=place), "Error: no" if place % 2 else "found") for place in range(300)]

    class Counted(list):
        read = 0

        def __iter__(self):
            Counted.read += len(self)
            return super().__iter__()

    monkeypatch.setattr(recovery, "_answers", lambda step, plain=recovery._answers: Counted(plain(step)))
    found = failed_calls(Trajectory((), (), (*steps, kit.step(kit.call("find", order=1), "found"))))
    assert found == set(range(1, 300, 2))
    assert len(looked) == 301
    assert Counted.read < 1500


def test_a_failed_call_in_a_tree_is_wrong_whatever_the_counts(kit):
    tree = SearchTree.start(kit.state())
    node = tree.add(tree.root, kit.step(kit.call("find", order=6), "Error: no such order"))
    for step in kit.trajectory().steps:
        node = tree.add(node, step)
    assert [trained(row) for row in recovery_rows([SourcedTree(tree)]).rows] == ["findrefund"]


def test_failed_calls_of_real_runs_are_read_and_their_corrections_trained(shared_data):
    (path,) = (shared_data / "tau-bench-airline-gpt4o").glob("*.json")
    traces = []
    for logged in json.loads(path.read_text(encoding="utf-8")):
        prompt, steps = steps_of([Message.from_openai(fields) for fields in logged["traj"]])
        name, task = f"{logged['task_id']}-{logged['trial']}", str(logged["task_id"])
        outcome = Outcome(logged["reward"])
        traces.append(Trace(name, Trajectory((), prompt, steps), Source("tau-bench"), task=task, outcome=outcome))
    whole = {row.lineage.nodes[0]: row for row in logged_rows(traces).rows}
    rows = recovery_rows(traces=traces).rows
    masked = [
        (row.messages[at].tool_calls[0].name, is_error(row.messages[at + 1]))
        for row in rows
        for at, (was, now) in enumerate(zip(whole[row.lineage.nodes[0]].trained, row.trained, strict=True))
        if was != now
    ]
    assert len(rows) == 4
    assert set(masked) == {("update_reservation_flights", True)}
    assert len(masked) >= len(rows)


def test_logged_scores_of_steps_show_a_fall(kit):
    said = tuple(LoggedScore("quality", value, value, step=step) for step, value in enumerate([0.9, 0.1, 0.9]))
    (row,) = recovery_rows(traces=[kit.trace(scores=said)]).rows
    assert trained(row) == "find"
    assert [on for m, on in zip(row.messages, row.trained, strict=True) if m.role == "assistant"] == [True, False, True]
    elsewhere = tuple(replace(score, trajectory=1) for score in said)
    assert not recovery_rows(traces=[kit.trace(scores=elsewhere)]).rows


# --- the shortest success -----------------------------------------------------------------------------------------------------------------

TWO = {"": (2, 2.0), "a": (1, 1.0), "b": (1, 1.0), "a1": (1, 1.0), "bc": (1, 1.0), "bc1": (1, 1.0)}


def test_the_success_with_the_fewest_calls_is_taken_from_trees_and_logs_of_a_task(kit):
    harvest = shortest_rows([grow(TWO)])
    assert [trained(row) for row in harvest.rows] == ["a1"]
    assert reasons(harvest) == {"a longer success of its task": 1}
    log = kit.trace("t")
    harvest = shortest_rows([grow(TWO)], [log], per_task=2)
    assert [len(row.messages) for row in harvest.rows] == [6, 7], "three calls in both, and the log has fewer characters no more"
    assert shortest_rows([grow(TWO, task="u")], [log]).rows[0].lineage.task == "t"
    assert len(shortest_rows([grow(TWO, task="u")], [log]).rows) == 2


def test_calls_put_in_the_agents_mouth_do_not_make_a_success_longer():
    assert [trained(row) for row in shortest_rows([grow(TWO, unsampled=("b", "bc"))]).rows] == ["1"]


def test_a_compacted_success_is_as_long_as_its_contexts_together(kit):
    compacted = kit.trace("t", sub_trajectories=(SubTrajectory(kit.trajectory("t9"), continues=0),))
    assert [one.calls for one in successes([], [compacted])[0]["t"]] == [6]
    assert len(shortest_rows([], [compacted]).rows) == 2
    assert [trained(row) for row in shortest_rows([grow(TWO)], [compacted]).rows] == ["a1"]


def test_a_success_that_was_logged_and_searched_is_one(kit):
    trace = kit.trace()
    tree = SearchTree.start(trace.trajectory.prefix(0), "fork_best_of_n")
    node = tree.root
    for step in trace.trajectory.steps:
        node = tree.add(node, step, logged=True)
    node.score = Score(1.0)
    source = SourcedTree(tree, "s", "t1", 0, (trace,))
    found, drops = successes([source], [trace])
    assert [len(ones) for ones in found.values()] == [1]
    assert [drop.reason for drop in drops] == ["a duplicate"]
    assert attempts([source, source], [trace]) == {"t1": [1.0]}


# --- the best of n ------------------------------------------------------------------------------------------------------------------------


def test_the_best_of_all_attempts_at_a_task_is_its_first_attempt(kit):
    good = grow({"": (2, 1.9), "a": (1, 1.0), "a1": (1, 1.0), "b": (1, 0.9), "b1": (1, 0.9)})
    harvest = distill_rows([good], [kit.trace("t", reward=0.0)], min_score=0.5)
    assert [(trained(row), row.score) for row in harvest.rows] == [("a1", 1.0)]
    assert reasons(harvest) == {"not the best attempt of its task": 1, "the logged run did not succeed": 1}
    assert len(distill_rows([good], min_score=0.5, cap=2).rows) == 2


def test_one_attempt_chooses_nothing(kit):
    assert reasons(distill_rows([], [kit.trace()])) == {"fewer than 2 attempts to choose from": 1}
    assert len(distill_rows([], [kit.trace(), kit.trace(reward=0.0)]).rows) == 1
    assert reasons(distill_rows([], [kit.trace(outcome=Outcome())])) == {"the outcome is unknown": 1}


def test_at_a_state_the_best_way_on_is_trained_from_there():
    harvest = distill_rows([grow({**TWO, "bd": (1, 0.0), "bd0": (1, 0.0)})], per="state")
    assert [(trained(row), row.lineage.fork_step) for row in harvest.rows] == [("a1", 0), ("c1", 1)]
    lone = grow({"": (2, 1.0), "a": (1, 1.0), "b": (1, 0.0), "a1": (1, 1.0)})
    assert reasons(distill_rows([lone], per="state")) == {"fewer than 2 attempts to choose from": 1}
    failed = grow({**TWO, "bc1": (1, 0.0), "bd": (1, 0.0), "bd0": (1, 0.0)})
    assert reasons(distill_rows([failed], per="state")) == {"no attempt from this state was good": 1}
    assert reasons(distill_rows([grow({"": (1, 1.0), "1": (1, 1.0)})], per="state")) == {"no state with alternatives": 1}


# --- what holds of all --------------------------------------------------------------------------------------------------------------------


@st.composite
def shapes(draw):
    """Random trees: up to 3 children a node, depth 3, ends scored 0 or 1; counts as a search would back them up."""
    shape: dict[str, tuple[int, float]] = {}

    def fill(path):
        if len(path) == 3 or (path and draw(st.booleans())):
            wins = draw(st.booleans())
            end = path + ("1" if wins else "0")
            shape[end] = (1, float(wins))
            shape[path] = (1, float(wins))
            return shape[path]
        total, value = 0, 0.0
        for name in "abc"[: draw(st.integers(1, 3))]:
            n, w = fill(path + name)
            total, value = total + n, value + w
        shape[path] = (total, value)
        return shape[path]

    fill("")
    unsampled = draw(st.sets(st.sampled_from(sorted(shape)), max_size=4))
    return shape, unsampled


VARIANTS = {
    "per-call": lambda tree: per_call_rows([tree], per_tree=3),
    "improved": lambda tree: improved_rows([tree], tau=0.6, per_tree=3),
    "recovery": lambda tree: recovery_rows([tree], tau=0.6, per_tree=3),
    "recovery, all": lambda tree: recovery_rows([tree], tau=0.6, per_tree=3, train_wrong=True),
    "shortest": lambda tree: shortest_rows([tree], per_task=2),
    "distill": lambda tree: distill_rows([tree], cap=2),
    "distill, state": lambda tree: distill_rows([tree], per="state"),
}


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_no_row_trains_on_what_was_not_sampled_and_nothing_is_lost_without_a_name(made):
    shape, unsampled = made
    source = grow(shape, unsampled=unsampled)
    sampled = {}
    for leaf in source.tree.leaves():
        at = len(leaf.state.prompt)
        flags = [False] * len(leaf.state.messages)
        for step in leaf.state.steps:
            flags[at] = step.sampled
            at += len(step.messages)
        sampled[leaf.state.key] = flags
    for name, variant in VARIANTS.items():
        harvest = variant(source)
        assert harvest.rows or harvest.drops, name
        for row in harvest.rows:
            flags = sampled[row.lineage.nodes[0]]
            assert any(row.trained)
            assert all(allowed or not on for allowed, on in zip(flags, row.trained, strict=False)), name
            assert row.score == 1.0
