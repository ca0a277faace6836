"""Log-only stitching: runs merged by what they did, values from what they earned, no calls at all."""

import json
from pathlib import Path

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Step, ToolCall, Trajectory, steps_of
from counterplay.search.stitch import stitch
from counterplay.search.tree import SearchTree

DATA = Path(__file__).parents[3] / "shared" / "data" / "tau-bench-airline-gpt4o"


def step(name, arguments, result, call_id="c", prose=None, **flags):
    call = ToolCall(call_id, name, arguments)
    return Step(Message.assistant(prose, [call]), (Message.tool(result, call_id),), **flags)


def end(text, reward):
    return Step(Message.assistant(text), terminated=True, reward=reward)


def run(*steps, prompt="Help."):
    return Trajectory((), (Message.user(prompt),), steps)


LOOK = '{"id": 1, "full": true}'
RUNS = [
    run(step("look", LOOK, '{"a":1,"b":2}', "x1"), step("book", '{"n":1}', "ok", "x2"), end("Done.", 1.0)),
    run(step("look", '{"full":true,"id":1}', '{"b": 2, "a": 1}', "y1", "Let me see."), step("book", '{"n":1}', "ok"), end("All set!", 1.0)),
    run(step("look", LOOK, '{"a":1,"b":2}', "z1"), step("cancel", "{}", "gone", "z2"), end("Bye.", 0.0)),
    run(step("look", LOOK, "error", "w1"), end("Sorry.", 0.0), prompt="Help me."),
]


def test_runs_merge_by_calls_and_results_whatever_their_ids_key_order_and_prose():
    first, second, third, fourth = stitch(RUNS)
    assert (first.root.visits, first.root.value_sum) == (4, 2.0)
    look = first.nodes[1]
    assert (look.visits, look.value_sum, look.draws, look.prior, look.logged) == (4, 2.0, 4, 1.0, True)
    assert len(first.root.children) == 1
    book, cancel = look.children
    assert (book.visits, book.value_sum, book.logged) == (2, 2.0, True)
    assert (cancel.visits, cancel.value_sum, cancel.logged) == (1, 0.0, False)
    assert book.prior == pytest.approx(2 / 3)
    assert [child.visits for child in second.nodes[1].children] == [2, 1]
    # the run that did the worse thing has the better one beside it
    bad, good = third.nodes[1].children
    assert (bad.logged, bad.value, good.logged, good.value) == (True, 0.0, False, 1.0)
    # another result is another state: nothing to compare with
    assert len(fourth.nodes) == 3


def test_an_alternative_is_an_unexecuted_leaf_that_shares_the_exact_prompt():
    for tree, logged in zip(stitch(RUNS), RUNS, strict=True):
        path = [node for node in tree.nodes if node.logged]
        assert path[-1].state == logged
        for node in tree.nodes[1:]:
            assert node.state.key == node.parent.state.extend(node.step).key
            assert node.state.messages[: len(node.parent.state.messages)] == node.parent.state.messages
            if not node.logged:
                assert node.step.observations == ()
                assert node.step.sampled
                assert not node.children
                assert not node.finished
    good = stitch(RUNS)[2].nodes[1].children[1]
    assert good.step.action == RUNS[0].steps[1].action


def test_stitching_keeps_order_and_calls_nothing():
    trees = stitch(RUNS)
    assert len(trees) == len(RUNS)
    assert all(tree.used.model_calls is None and tree.stopped for tree in trees)
    assert [tree.best().score.value for tree in trees] == [1.0, 1.0, 0.0, 0.0]
    assert [[n.state.key for n in a.nodes] for a in stitch(RUNS)] == [[n.state.key for n in a.nodes] for a in trees]
    again = SearchTree.from_record(trees[2].to_record("x"))
    assert [(n.visits, n.value_sum, n.logged) for n in again.nodes] == [(n.visits, n.value_sum, n.logged) for n in trees[2].nodes]


def test_unlabelled_runs_merge_without_counting():
    unlabelled = run(step("look", LOOK, '{"a":1,"b":2}'), step("wait", "{}", "ok"), end("?", None))
    tree = stitch([*RUNS[:2], unlabelled])[0]
    assert (tree.root.visits, tree.root.value_sum) == (2, 2.0)
    wait = next(child for child in tree.nodes[1].children if not child.logged)
    assert (wait.visits, wait.draws) == (0, 1)
    assert wait.value is None


def test_prose_is_ignored_but_that_something_was_said_is_not():
    said = Step(Message.assistant("Who are you?"), (Message.user("I am Ann."),))
    also = Step(Message.assistant("Your name?"), (Message.user("Ann, and in a hurry."),))
    asked = [run(said, step("look", LOOK, "1"), end("a", 1.0)), run(also, step("look", LOOK, "1"), end("b", 0.0))]
    knowing = run(step("look", LOOK, "1"), end("c", 0.0))
    first, second, third = stitch([*asked, knowing])
    assert (first.nodes[2].visits, first.nodes[2].value_sum) == (2, 1.0)
    assert [child.step.action.signature for child in third.root.children] == [knowing.steps[0].action.signature, "say(Who are you?)"]
    assert len([node for node in second.nodes if node.logged]) == 3


def test_actions_no_model_sampled_are_no_alternatives():
    forced = run(step("look", LOOK, "x"), step("pay", "{}", "ok", sampled=False), end("a", 1.0))
    other = run(step("look", LOOK, "x"), step("wait", "{}", "ok"), end("b", 0.0))
    first, second = stitch([forced, other])
    assert len(second.nodes[1].children) == 1
    assert len(first.nodes[1].children) == 2


def test_rewards_outside_the_scale_are_refused():
    with pytest.raises(UserError, match=r"got a logged reward of -1.0"):
        stitch([run(end("a", -1.0))])
    assert stitch([run()]) == []


def test_real_runs_have_alternatives():
    files = sorted(DATA.rglob("*.json")) if DATA.exists() else []
    if not files:
        pytest.skip("the shared tau-bench data is not here")
    runs: dict[int, list[Trajectory]] = {}
    for file in files:
        for entry in json.loads(file.read_text()):
            prompt, steps = steps_of([Message.from_openai(fields) for fields in entry["traj"]])
            last = Step(steps[-1].action, steps[-1].observations, terminated=True, reward=float(entry["reward"]))
            runs.setdefault(entry["task_id"], []).append(Trajectory((), prompt, (*steps[:-1], last)))
    trees = [tree for group in runs.values() for tree in stitch(group)]
    assert len(trees) == sum(map(len, runs.values()))
    assert sum(not node.logged for tree in trees for node in tree.nodes[1:]) > len(trees)
    for tree in trees:
        for node in tree.nodes:
            assert 0 <= node.value_sum <= node.visits
