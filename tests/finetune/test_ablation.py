"""Calls that are left out of a line, executed by a world: which were needed, and what is made of those that were not."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, Outcome, Source, Step, ToolCall, ToolSpec, Trace, Trajectory
from counterplay.finetune.ablation import ablate, ablated, ablation_labels, ablation_rows, ablations
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import SourcedTree
from counterplay.finetune.trajectories import sft_rows
from counterplay.search.tree import SearchTree

TOOLS = (
    ToolSpec.function("look", "Look an order up", {"type": "object"}, Effect("read", "order:{order}")),
    ToolSpec.function("unlock", "Unlock an order", {"type": "object"}, Effect("write", "order:{order}")),
    ToolSpec.function("refund", "Pay back", {"type": "object"}),
)
PROMPT = (Message.user("Unlock order 7 and refund 5 of it."),)


class Shop:
    """`refund` works on unlocked orders. The reward is 1 where 5 was refunded. Says what `look` finds."""

    def __init__(self, found='{"state": "locked"}', fails_on=""):
        self.found, self.fails_on, self.calls = found, fails_on, 0

    async def step(self, state, action):
        self.calls += 1
        done = [call for step in state.steps for call in step.action.tool_calls]
        results = []
        for call in action.tool_calls:
            if call.name == self.fails_on and not done:
                raise RuntimeError("the world broke")
            open_ = any(one.name == "unlock" for one in done)
            text = self.found if call.name == "look" else "Error: locked" if call.name == "refund" and not open_ else "ok"
            results.append(Message.tool(text, call.id))
            done.append(call)
        refunds = [
            step for step in state.steps for message in step.observations if message.content == "ok" and "refund" in step.action.signature
        ]
        if action.tool_calls:
            return Step(action, tuple(results))
        return Step(action, (), terminated=True, reward=float(bool(refunds)))


def outcome(trajectory):
    return trajectory.steps[-1].reward


def call(*names, **arguments):
    return Message.assistant(None, [ToolCall(f"{name}-{at}", name, json.dumps({"order": 7, **arguments})) for at, name in enumerate(names)])


def played(*actions, world=None):
    """The line of these actions, as the world plays it."""
    world, state = world or Shop(), Trajectory(TOOLS, PROMPT)
    for action in actions:
        step = asyncio.run(world.step(state, action))
        state = state.extend(replace(step, grades=(Grade.EXACT,) * len(step.observations)))
    return state


LINE = (call("look"), call("unlock"), call("refund", amount=5), Message.assistant("Done."))


def source(line, world=None, task="t1", **options):
    tree = asyncio.run(ablated(line, world or Shop(), outcome, **options))
    trace = Trace(f"trace-{task}", line, Source("test"), task=task, outcome=Outcome(1.0))
    return SourcedTree(tree, f"ablation-{task}", task, 0, (trace,))


def reasons(harvest):
    return Counter(drop.reason for drop in harvest.drops)


def test_the_call_that_nobody_missed_is_rejected_and_the_next_action_chosen():
    line = played(*LINE)
    harvest = ablation_rows([source(line)])
    (row,) = harvest.rows
    assert (row.prompt, row.chosen, row.rejected) == (line.prefix(0).messages, (LINE[1],), (LINE[0],))
    assert (row.probability, row.margin, row.lineage.fork_step, row.lineage.algorithm) == (2 / 3, 1.0, 0, "ablation")
    assert (row.lineage.grade, row.lineage.verifiers, row.lineage.traces) == (Grade.EXECUTED, ("outcome@",), ("trace-t1",))
    assert reasons(harvest) == {"the line fails without the call": 2}


def test_labels_say_which_steps_were_needed():
    found = source(played(*LINE))
    assert {label.step: label.value for label in ablation_labels(found)} == {0: 0.0, 1: 1.0, 2: 1.0}
    assert all((label.kind, label.n) == ("ablation", 1) for label in ablation_labels(found))
    assert [(one.call.name, one.needed) for one in ablations(found)] == [
        ("look", ""),
        ("unlock", "the line fails without the call"),
        ("refund", "the line fails without the call"),
    ]


@pytest.mark.parametrize(
    ("found", "needed"),
    [
        ('{"state": "locked", "total": 5}', False),  # 5 was in the prompt
        ('{"code": "X81"}', True),
        ('{"code": "x81"}', True),
        ('{"note": "amount is due"}', False),  # nobody repeats it
        ('{"note": "say hello when finished"}', True),
    ],
)
def test_what_only_the_call_told_makes_it_needed_where_a_later_action_says_it(found, needed):
    world = Shop(found)
    line = played(LINE[0], LINE[1], call("refund", amount=5, code="X81"), Message.assistant("Hello, done."), world=world)
    look = next(one for one in ablations(source(line, world)) if one.call.name == "look")
    assert look.needed == ("a later action uses what the call found" if needed else "")


def test_what_the_call_itself_said_was_known_before():
    world = Shop('{"order": 93}')
    line = played(call("look", number=93), LINE[1], call("refund", number=93), LINE[3], world=world)
    assert [one.needed for one in ablations(source(line, world))][:1] == [""]


def test_an_action_that_ends_the_line_stays():
    class Closing(Shop):
        async def step(self, state, action):
            step = await super().step(state, action)
            return replace(step, terminated=True, reward=1.0) if action.tool_calls[0].name == "refund" else step

    found = SourcedTree(asyncio.run(ablated(played(*LINE[:3], world=Closing()), Closing(), lambda _: 1.0)))
    assert [one.call.name for one in ablations(found)] == ["look", "unlock"]
    assert [node.score is None for node in found.tree.nodes if node.logged] == [True, True, False], "only ends are asked about"


def test_a_line_that_does_not_end_without_the_call_needs_it():
    class Patient(Shop):
        async def step(self, state, action):
            step = await super().step(state, action)
            return replace(step, terminated=len(state) == 3, reward=None)

    found = SourcedTree(asyncio.run(ablated(played(*LINE, world=Patient()), Patient(), lambda _: 1.0)), "s", "t")
    assert {one.needed for one in ablations(found)} == {"the line does not end without the call"}
    assert (found.tree.root.visits, found.tree.root.value_sum) == (1, 1.0), "only what has ended is a line"


def test_what_another_call_tells_again_is_known_without_the_first():
    world = Shop('{"code": "X81"}')
    line = played(call("look"), call("look", again=True), call("unlock"), call("refund", code="X81"), LINE[3], world=world)
    assert [one.needed for one in ablations(source(line, world))][:2] == ["", ""]


def test_an_action_with_several_calls_loses_one_and_teaches_no_pair():
    found = source(played(call("look", "unlock"), *LINE[2:]))
    assert [(one.call.name, bool(one.needed), one.alone) for one in ablations(found)][:2] == [
        ("look", False, False),
        ("unlock", True, False),
    ]
    assert {label.step: label.value for label in ablation_labels(found)} == {0: 0.5, 1: 1.0}
    harvest = ablation_rows([found])
    assert not harvest.rows
    assert reasons(harvest) == {"one of several calls of an action": 1, "the line fails without the call": 2}


def test_the_same_call_twice_is_no_pair_for_there_is_nothing_to_prefer():
    harvest = ablation_rows([source(played(LINE[0], *LINE))])
    assert reasons(harvest) == {"the next action is the same call": 1, "the line fails without the call": 2}
    assert [row.rejected for row in harvest.rows] == [(LINE[0],)]
    assert harvest.rows[0].lineage.fork_step == 1


def test_a_tool_that_other_lines_need_is_not_unlearnt():
    needing = Shop('{"code": "X81"}')
    needs = source(played(LINE[0], LINE[1], call("refund", code="X81"), LINE[3], world=needing), needing, task="t2")
    free = source(played(*LINE))
    assert [row.probability for row in ablation_rows([free, needs]).rows] == [0.5]
    again = replace(needs, search="ablation-t3", task="t3")
    harvest = ablation_rows([free, needs, again])
    assert not harvest.rows
    assert reasons(harvest)["other lines need calls of this tool"] == 1
    assert [row.probability for row in ablation_rows([free, needs, again], tau=0.3).rows] == [0.4]


def test_grades_and_prompts_that_are_not_known_keep_pairs_in():
    found = source(played(*LINE))
    assert reasons(ablation_rows([found], min_grade=Grade.EXACT))["graded below exact"] == 2, (
        "without the refund nothing is observed that was executed"
    )
    cut = replace(found.traces[0], completeness=replace(found.traces[0].completeness, inputs="partial"))
    assert reasons(ablation_rows([replace(found, traces=(cut,))]))["the prompt is not known whole"] == 1


def test_actions_nobody_sampled_teach_nothing():
    line = played(*LINE)
    mouthed = Trajectory(line.tools, line.prompt, (line.steps[0], replace(line.steps[1], sampled=False), *line.steps[2:]))
    assert reasons(ablation_rows([source(mouthed)]))["an action was not sampled"] == 1


def test_the_changed_steps_are_not_sampled_so_that_no_other_export_trains_on_them():
    found = source(played(*LINE))
    branches = [node for node in found.tree.nodes[1:] if not node.logged and (node.parent.logged or node.parent is found.tree.root)]
    assert branches
    assert not any(node.step.sampled for node in branches)
    assert not dpo_rows([found], tau=0.6).rows
    best = sft_rows([found], per_tree=9).rows
    assert sorted(len([m for m in row.messages if m.role == "assistant"]) - sum(row.trained) for row in best) == [0, 1]


def test_only_reads_are_left_out_where_asked():
    assert [one.call.name for one in ablations(source(played(*LINE), reads_only=True))] == ["look"]


def test_a_user_s_turn_and_the_last_action_stay():
    line = played(*LINE)
    spoken = replace(line.steps[1], observations=(*line.steps[1].observations, Message.user("Go on.")), grades=(Grade.EXACT,) * 2)
    kept = Trajectory(line.tools, line.prompt, (line.steps[0], spoken, *line.steps[2:]))
    assert [one.call.name for one in ablations(source(kept))] == ["look", "refund"]


def test_a_line_that_does_not_succeed_again_is_refused():
    line = played(*LINE)
    with pytest.raises(UserError, match="does not succeed when it is played again"):
        asyncio.run(ablated(line, Shop(), lambda _: 0.0))
    with pytest.raises(UserError, match="has not ended"):
        asyncio.run(ablated(line.prefix(2), Shop(), outcome))


def test_every_logged_success_is_tried_and_the_others_are_named():
    line = played(*LINE)

    def trace(name, trajectory=line, reward=1.0):
        return Trace(name, trajectory, Source("test"), task=name, outcome=Outcome(reward))

    unlogged = played(*LINE[1:])
    shortcut = Trajectory(unlogged.tools, unlogged.prompt, unlogged.steps[1:])
    traces = [trace("good"), trace("bad", reward=0.0), trace("open", line.prefix(2)), trace("other", shortcut), trace("broken")]
    trees, drops = asyncio.run(ablate(traces, lambda one: Shop(fails_on="look" if one.id == "broken" else ""), outcome))
    assert [(tree.task, tree.search, tree.traces[0].id) for tree in trees] == [("good", "ablation-good", "good")]
    assert {drop.name: drop.reason for drop in drops} == {
        "bad": "the logged run did not succeed",
        "open": "the logged run has not ended",
        "other": "the line does not succeed when it is played again",
        "broken": "the environment can't play the line again",
    }
    assert len(ablation_rows(trees).rows) == 1


def test_a_stored_tree_says_the_same():
    found = source(played(*LINE))
    again = SourcedTree(SearchTree.from_record(found.tree.to_record("s")), found.search, found.task, 0, found.traces)
    assert ablation_rows([again]) == ablation_rows([found])
    other = SourcedTree(SearchTree.start(Trajectory()), "s")
    assert ablation_rows([other]).rows == ()
