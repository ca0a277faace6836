"""Step-labelled data: every label is a score of the step it was given to, every alternative a branch."""

import json
from pathlib import Path

import pytest

from counterplay.connectors.prm_data import CONNECTOR
from counterplay.connectors.testing import check_connector, check_item
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected
from counterplay.verifiers.evaluation.truth import labelled

REAL = Path(__file__).parents[3] / "shared" / "data" / "openr-math-aps"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the shared real logs are not here")


def completion(text, rating, **more):
    return {"text": text, "rating": rating, "flagged": False, **more}


PRM800K = {
    "labeler": "l1",
    "timestamp": "2022-07-30T23:23:32",
    "generation": 4,
    "question": {"problem": "2+2?", "ground_truth_answer": "4"},
    "label": {
        "steps": [
            {"completions": [completion("two", 1)], "human_completion": None, "chosen_completion": 0},
            {
                "completions": [completion("five", -1), completion("six", -1)],
                "human_completion": completion("sum", None),
                "chosen_completion": None,
            },
            {"completions": [completion("well", 0), completion("4", 1)], "human_completion": None, "chosen_completion": 1},
        ],
        "finish_reason": "solution",
    },
}
PROCESS_BENCH = {
    "id": "gsm8k-1",
    "generator": "m",
    "problem": "2+2?",
    "steps": ["two", "five", "5"],
    "final_answer_correct": False,
    "label": 1,
}
TRL = {"prompt": "2+2?", "completions": ["two", "4"], "labels": [True, False]}
SHEPHERD = {
    "input": "2+2? Step 1: two \u043a\u0438\nStep 2: five. The answer is: 5 \u043a\u0438",
    "label": "2+2? Step 1: two +\nStep 2: five. The answer is: 5 -",
    "task": "GSM8K",
}
TREE = {
    "question": "2+2?",
    "final_answer": "4",
    "question_id": 7,
    "reasoning_steps": {
        "text": "2+2?",
        "mc_value": 0.5,
        "children": [
            {"text": "5", "mc_value": 0.0, "children": []},
            {
                "text": "two",
                "mc_value": 0.75,
                "children": [{"text": "3", "mc_value": 0.0, "children": []}, {"text": "4", "mc_value": 1.0, "children": []}],
            },
        ],
    },
}
PREFIXES = {
    "question": "2+2?",
    "final_answer": "4",
    "reasoning_steps": [
        {"solution_prefix": "2+2?", "mc_value": 0.5},
        {"solution_prefix": "2+2?\n\ntwo", "mc_value": 0.75},
        {"solution_prefix": "2+2?\n\ntwo\n\n4", "mc_value": 1.0},
        {"solution_prefix": "2+2?\n\ntwo", "mc_value": 0.5},
        {"solution_prefix": "2+2?\n\n5", "mc_value": 0.0},
    ],
}
AGENT = {
    "question": "2+2?",
    "data_source": "hotpot",
    "query_index": 3,
    "sample_index": 1,
    "record_id": "hotpot:3:1",
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}],
    "messages": [
        {"role": "user", "content": "2+2?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        {"role": "assistant", "content": "perhaps"},
        {"role": "assistant", "content": "5"},
    ],
    "step_labels": {"1": 1, "3": 0, "4": -1},
    "final_label": -1,
}
ROWS = {
    "agentprocessbench": AGENT,
    "prm800k": PRM800K,
    "processbench": PROCESS_BENCH,
    "trl": TRL,
    "math-shepherd": SHEPHERD,
    "openr-tree": TREE,
    "openr": PREFIXES,
}


async def read(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [item async for item in CONNECTOR.read(path)]
    for item in items:
        check_item(item)
    return items


def said(trajectory):
    return [step.action.content for step in trajectory.steps]


def scores(trace, trajectory=0):
    return [(s.step, s.value, s.scaled) for s in trace.scores if s.trajectory == trajectory]


@pytest.mark.parametrize("dialect", ROWS)
async def test_every_shape_is_known_by_its_fields(tmp_path, dialect):
    path = tmp_path / "any"
    path.write_text(json.dumps(ROWS[dialect]) + "\n")
    (trace,) = await check_connector(CONNECTOR, path)
    assert trace.source.dialect == dialect
    assert [message.content for message in trace.trajectory.prompt] == ["2+2?"]
    assert all(sub.trajectory.prompt == trace.trajectory.prompt for sub in trace.sub_trajectories)
    assert trace.trajectory.steps[-1].terminated


async def test_prm800k_ratings_choices_and_what_a_person_wrote(tmp_path):
    (trace,) = await read(tmp_path, PRM800K)
    assert said(trace.trajectory) == ["two", "sum", "4"]
    assert [step.sampled for step in trace.trajectory.steps] == [True, False, True]
    assert scores(trace) == [(0, 1.0, 1.0), (2, 1.0, 1.0)]
    assert [(said(sub.trajectory), sub.parent_step) for sub in trace.sub_trajectories] == [
        (["two", "five"], 1),
        (["two", "six"], 1),
        (["two", "sum", "well"], 2),
    ]
    assert scores(trace, 1) == [(1, -1.0, 0.0)]
    assert scores(trace, 3) == [(2, 0.0, 0.5)]
    assert (trace.outcome.success, trace.outcome.source) == (True, "human")
    assert trace.metadata["question"] == {"ground_truth_answer": "4"}


@pytest.mark.parametrize(("reason", "success"), [("found_error", False), ("give_up", None), ("bad_problem", None), (None, None)])
async def test_prm800k_ends_as_the_labeller_says(tmp_path, reason, success):
    label = {**PRM800K["label"], "finish_reason": reason, "steps": [*PRM800K["label"]["steps"], {"completions": []}]}
    (trace,) = await read(tmp_path, {**PRM800K, "label": label})
    assert trace.outcome.success is success
    assert said(trace.trajectory) == ["two", "sum", "4"]


async def test_processbench_says_nothing_of_steps_behind_the_first_error(tmp_path):
    wrong, right = await read(tmp_path, PROCESS_BENCH, {**PROCESS_BENCH, "label": -1, "final_answer_correct": True})
    assert scores(wrong) == [(0, True, 1.0), (1, False, 0.0)]
    assert scores(right) == [(0, True, 1.0), (1, True, 1.0), (2, True, 1.0)]
    assert (wrong.task, wrong.outcome.success, right.outcome.success) == ("gsm8k-1", False, True)
    assert {s.source for s in wrong.scores} == {"human"}
    assert wrong.metadata["generator"] == "m"


async def test_agentprocessbench_marks_stand_at_the_assistants_messages(tmp_path):
    (trace,) = await read(tmp_path, AGENT)
    assert scores(trace) == [(0, 1.0, 1.0), (1, 0.0, 0.5), (2, -1.0, 0.0)]
    assert [len(step.observations) for step in trace.trajectory.steps] == [1, 0, 0]
    assert (trace.outcome.success, trace.outcome.source, trace.task) == (False, "human", "hotpot:3")
    assert [tool.name for tool in trace.trajectory.tools] == ["add"]
    (truth,) = labelled([trace])
    assert (truth.labels, truth.first_error, truth.gold) == ((1, 0, -1), 2, 0.0)


@pytest.mark.parametrize("marks", [{"2": 1}, {"9": 1}, {"x": 1}, {"1": 2}, {"1": True}, {"1": "1"}])
async def test_a_mark_that_is_none_or_at_no_step_costs_its_row(tmp_path, marks):
    found = await read(tmp_path, {**AGENT, "step_labels": marks}, AGENT)
    assert [isinstance(item, Rejected) for item in found] == [True, False]
    assert "mark" in found[0].reason


async def test_math_shepherd_signs_stand_where_the_marks_do(tmp_path):
    (trace,) = await read(tmp_path, SHEPHERD)
    assert said(trace.trajectory) == ["Step 1: two", "Step 2: five. The answer is: 5"]
    assert scores(trace) == [(0, True, 1.0), (1, False, 0.0)]


async def test_trl_rows_are_what_is_trained_on(tmp_path):
    chat = [{"role": "system", "content": "add"}, {"role": "user", "content": "2+2?"}]
    plain, chatted = await read(tmp_path, TRL, {**TRL, "prompt": chat})
    assert scores(plain) == [(0, True, 1.0), (1, False, 0.0)]
    assert plain.completeness.inputs == "full"
    assert [message.role for message in chatted.trajectory.prompt] == ["system", "user"]


async def test_openr_trees_and_prefixes_tell_the_same(tmp_path):
    tree, prefixes = await read(tmp_path, TREE, PREFIXES)
    assert said(tree.trajectory) == said(prefixes.trajectory) == ["two", "4"]
    assert scores(tree) == [(0, 0.75, 0.75), (1, 1.0, 1.0)]
    assert scores(prefixes) == [(0, 0.75, 0.75), (0, 0.5, 0.5), (1, 1.0, 1.0)]  # a prefix that was tried twice has two values
    assert [(said(sub.trajectory), sub.parent_step) for sub in tree.sub_trajectories] == [(["5"], 0), (["two", "3"], 1)]
    assert [said(sub.trajectory) for sub in prefixes.sub_trajectories] == [["5"]]
    assert (tree.task, tree.metadata["final_answer"], tree.metadata["root_value"]) == ("7", "4", 0.5)
    assert tree.outcome.success is None


async def test_a_worse_branch_does_not_lead_for_being_longer(tmp_path):
    short, long = {"text": "4", "mc_value": 1.0}, {"text": "hm", "mc_value": 0.5, "children": [{"text": "5", "mc_value": 0.0}]}
    (trace,) = await read(tmp_path, {**TREE, "reasoning_steps": {"text": "2+2?", "children": [long, short]}})
    assert said(trace.trajectory) == ["4"]


async def test_only_trl_prompts_are_taken_for_whole(tmp_path):
    traces = await read(tmp_path, *ROWS.values())
    assert {t.source.dialect: (t.completeness.inputs, t.completeness.system_prompt) for t in traces} == {
        dialect: ("full", True) if dialect == "trl" else ("stitched", False) for dialect in ROWS
    }


BAD = [
    {**PROCESS_BENCH, "label": 3},
    {**PROCESS_BENCH, "steps": []},
    {**PROCESS_BENCH, "steps": ["two", 2]},
    {**TRL, "labels": [True]},
    {**TRL, "labels": [True, "yes"]},
    {**SHEPHERD, "label": "2+2? Step 1: two\n"},
    {**SHEPHERD, "input": SHEPHERD["input"] + " and on"},
    {**TREE, "reasoning_steps": {"text": "2+2?", "children": []}},
    {**TREE, "reasoning_steps": {"text": "2+2?", "children": ["5"]}},
    {**PREFIXES, "reasoning_steps": [{"solution_prefix": "another question", "mc_value": 1}]},
    {**PRM800K, "label": {"steps": [{"completions": [completion("two", 1)], "chosen_completion": 4}]}},
    {**PRM800K, "label": {"steps": [{"completions": []}, {"completions": [completion("two", 1)]}]}},
    {"colour": "blue"},
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
async def test_a_row_that_does_not_fit_costs_itself_alone(tmp_path, bad):
    first, rejected, last = await read(tmp_path, PRM800K, bad, TRL)
    assert isinstance(first, Trace)
    assert isinstance(last, Trace)
    assert isinstance(rejected, Rejected)
    assert rejected.line == 2


@real
async def test_the_real_files():
    counts = {}
    for path in sorted(REAL.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        traces = await check_connector(CONNECTOR, path)
        assert len(traces) == len(rows)
        counts[path.stem] = [len(trace.sub_trajectories) for trace in traces]
        assert all(trace.scores for trace in traces)
    assert counts == {
        "samples_math-aps-tree": [136, 84, 19],
        "samples_math-aps": [80, 6, 35],
        "samples_math-shepherd": [0] * 7,
        "samples_prm800k": [9, 3, 6, 6, 6, 0],
    }


@real
async def test_every_logged_value_of_the_real_trees_is_a_score():
    path = REAL / "samples_math-aps-tree.jsonl"
    for line, trace in zip(path.read_text().splitlines(), await check_connector(CONNECTOR, path), strict=True):
        nodes = json.loads(line)["reasoning_steps"]["children"]
        values = []
        while nodes:
            values += [node["mc_value"] for node in nodes]
            nodes = [child for node in nodes for child in node["children"]]
        assert sorted(values) == sorted(score.value for score in trace.scores)
