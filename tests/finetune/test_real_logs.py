"""The export on 100 real runs of gpt-4o: ids, pairs and trajectories without one model call."""

import json

import pytest

from counterplay.core.nouns import Message, Outcome, Source, Trace, Trajectory, steps_of
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import SourcedTree
from counterplay.finetune.trajectories import logged_rows
from counterplay.finetune.write import read_dataset, write_dataset
from counterplay.search.tree import SearchTree


@pytest.fixture(scope="module")
def traces(shared_data):
    (path,) = (shared_data / "tau-bench-airline-gpt4o").glob("*.json")
    made = []
    for run in json.loads(path.read_text(encoding="utf-8")):
        prompt, steps = steps_of([Message.from_openai(fields) for fields in run["traj"]])
        name = f"{run['task_id']}-{run['trial']}"
        made.append(
            Trace(name, Trajectory((), prompt, steps), Source("tau-bench"), task=str(run["task_id"]), outcome=Outcome(run["reward"]))
        )
    return made


def kind(action):
    """What an action does: its tool calls, or that it talks."""
    return action.signature if action.tool_calls else "talks"


def merged(task, traces):
    """All runs of one task as one tree of what they did: the simplest stitching."""
    tree = SearchTree.start(traces[0].trajectory.prefix(0), "merged")
    for trace in traces:
        node = tree.root
        for step in trace.trajectory.steps:
            same = [child for child in node.children if kind(child.step.action) == kind(step.action)]
            node = same[0] if same else tree.add(node, step, logged=True)
        node.backup(trace.outcome.reward)
    return SourcedTree(tree, task=task, traces=tuple(traces))


def test_reused_ids_are_unique_after_export_and_every_result_keeps_its_call(traces, tmp_path):
    report = write_dataset(logged_rows(traces), tmp_path / "sft", split={"train": 1.0})
    assert report.rows["train"] >= 30
    assert report.reissued >= 5
    by_name = {trace.id: trace for trace in traces}
    for record in read_dataset(tmp_path / "sft")[1]:
        calls = [call["id"] for m in record["messages"] for call in m.get("tool_calls") or ()]
        results = [m["tool_call_id"] for m in record["messages"] if m["role"] == "tool"]
        assert len(set(calls)) == len(calls)
        assert [call for call in calls if call in results] == results
        logged = [m.content for m in by_name[record["traces"][0]].trajectory.messages]
        assert [m["content"] for m in record["messages"]] == logged


def test_step_level_pairs_out_of_real_runs(traces, tmp_path):
    groups = {}
    for trace in traces:
        groups.setdefault(trace.task, []).append(trace)
    trees = [merged(task, group) for task, group in groups.items()]
    harvest = dpo_rows(trees, tau=0.7)
    assert harvest.rows
    report = write_dataset(harvest, tmp_path / "dpo", split={"train": 1.0})
    for record in read_dataset(tmp_path / "dpo")[1]:
        assert record["chosen"] != record["rejected"]
        assert record["probability"] >= 0.7
    assert 0 < report.label_noise <= 0.3
