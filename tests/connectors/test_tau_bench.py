"""tau-bench result files: what every run becomes, and the real file against itself."""

import json
from collections import Counter
from pathlib import Path

import pytest

from counterplay.connectors.base import ingest_items
from counterplay.connectors.tau_bench import CONNECTOR
from counterplay.connectors.testing import check_connector, check_item
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL = DATA / "tau-bench-airline-gpt4o"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the shared real logs are not here")
CHAT = [
    {"role": "system", "content": "# Retail agent policy"},
    {"role": "user", "content": "hi"},
    {
        "content": None,
        "role": "assistant",
        "tool_calls": [{"function": {"arguments": "{}", "name": "get_order"}, "id": "c", "type": "function"}],
    },
    {"role": "tool", "tool_call_id": "c", "name": "get_order", "content": "#W1"},
    {"content": "done", "role": "assistant"},
    {"role": "user", "content": "###STOP###"},
]
RUN = {
    "task_id": 3,
    "reward": 1.0,
    "info": {"task": {"user_id": "u", "actions": []}, "source": "user", "user_cost": 0.1, "reward_info": {"reward": 1.0}},
    "traj": CHAT,
    "trial": 0,
}


async def read(tmp_path, rows):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows, indent=2))
    assert CONNECTOR.detect(path.read_bytes(), path) > 0
    items = [item async for item in CONNECTOR.read(path)]
    for item in items:
        check_item(item)
    return items


async def test_a_run_with_its_reward(tmp_path):
    (trace,) = await read(tmp_path, [RUN])
    assert [m.to_openai() for m in trace.trajectory.messages] == CHAT
    assert (trace.task, trace.metadata["trial"], trace.outcome.reward, trace.outcome.success) == ("retail/3", 0, 1.0, True)
    assert trace.outcome.source == "environment"
    last = trace.trajectory.steps[-1]
    assert (last.reward, last.terminated, last.truncated, last.observations[-1].content) == (1.0, True, False, "###STOP###")
    assert not trace.completeness.tools
    assert trace.completeness.system_prompt


async def test_trials_are_traces_of_their_own_and_a_repeated_row_is_not(tmp_path):
    one, two, three = await read(tmp_path, [RUN, {**RUN, "trial": 1}, RUN])
    assert one.id != two.id
    assert one.id == three.id


async def test_a_step_limit_is_a_truncation(tmp_path):
    info = {**RUN["info"], "reward_info": None}
    (trace,) = await read(tmp_path, [{**RUN, "reward": 0.0, "info": info, "traj": CHAT[:-1]}])
    assert (trace.trajectory.steps[-1].terminated, trace.trajectory.steps[-1].truncated) == (False, True)
    (ended,) = await read(tmp_path, [{**RUN, "reward": 0.0, "info": info}])
    assert (ended.trajectory.steps[-1].terminated, ended.trajectory.steps[-1].truncated) == (True, False)


async def test_failed_runs_are_named_and_those_that_got_somewhere_are_kept(tmp_path):
    error = {"error": "boom", "traceback": "..."}
    failed, broken, good = await read(tmp_path, [{**RUN, "info": error, "traj": []}, {**RUN, "info": error, "traj": CHAT[:-2]}, RUN])
    assert isinstance(failed, Rejected)
    assert "boom" in failed.reason
    assert broken.trajectory.steps[-1].error == "boom"
    assert not broken.trajectory.steps[-1].terminated
    assert isinstance(good, Trace)


async def test_bad_rows_among_good_ones(tmp_path):
    rows = [
        RUN,
        {"task_id": 1},
        {**RUN, "traj": 5},
        {**RUN, "traj": [{"role": "user", "content": "x"}]},
        {**RUN, "task_id": 4, "reward": None},
    ]
    items = await read(tmp_path, rows)
    assert [isinstance(item, Trace) for item in items] == [True, False, False, False, True]
    assert items[4].outcome.reward is None
    assert items[4].trajectory.steps[-1].reward is None


@pytest.mark.parametrize(
    ("system", "tool", "task"),
    [
        ("# Airline Agent Policy", "x", "airline/3"),
        ("", "get_order", "retail/3"),
        ("", "book_reservation", "airline/3"),
        ("", "x", "tau-bench/3"),
    ],
)
async def test_the_domain_comes_from_the_content(tmp_path, system, tool, task):
    chat = json.loads(json.dumps(CHAT).replace("# Retail agent policy", system).replace("get_order", tool))
    (trace,) = await read(tmp_path, [{**RUN, "traj": chat}])
    assert trace.task == task


async def test_a_truncated_file_gives_its_whole_runs(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RUN, {**RUN, "trial": 1}, {**RUN, "trial": 2}], indent=2)[:-300])
    items = [item async for item in CONNECTOR.read(path)]
    assert [item.metadata["trial"] for item in items if isinstance(item, Trace)] == [0, 1]
    assert any(isinstance(item, Rejected) and item.byte_offset > 0 for item in items)


async def test_transcripts_train_nothing_that_they_do_not_hold(tmp_path):
    text = "user: hi\nassistant: None\ntool: #W1\nsecond line\nassistant: done\nuser: bye ###STOP###"
    path = tmp_path / "few_shot.jsonl"
    path.write_text(json.dumps({"messages_display": text}) + "\n" + json.dumps({"messages_display": "no speaker"}) + "\n")
    trace, rejected = [item async for item in CONNECTOR.read(path)]
    check_item(trace)
    assert [m.content for m in trace.trajectory.messages] == ["hi", "None", "#W1\nsecond line", "done", "bye ###STOP###"]
    assert [step.sampled for step in trace.trajectory.steps] == [False, True]
    assert trace.completeness.inputs == "partial"
    assert rejected.line == 2


@real
async def test_the_real_file_is_taken_in_whole():
    items = [item async for item in ingest_items(REAL)]
    (path,) = REAL.glob("*.json")
    rows = json.loads(path.read_text())
    assert all(isinstance(item, Trace) for item in items)
    assert [[m.to_openai() for m in t.trajectory.messages] for t in items] == [row["traj"] for row in rows]
    assert [list(m.to_openai()) for t in items for m in t.trajectory.messages] == [list(m) for row in rows for m in row["traj"]]
    assert len({t.id for t in items}) == 100
    assert len({t.task for t in items}) == 25
    assert {t.task.split("/")[0] for t in items} == {"airline"}
    assert [t.outcome.reward for t in items] == [row["reward"] for row in rows]
    assert sum(t.outcome.success for t in items) == 49
    assert Counter((t.trajectory.steps[-1].terminated, t.trajectory.steps[-1].truncated) for t in items) == {
        (True, False): 98,
        (False, True): 2,
    }
    reused = [t for t in items if len(ids := [c.id for m in t.trajectory.messages for c in m.tool_calls]) > len(set(ids))]
    assert len(reused) >= 20


@real
async def test_real_files_conform():
    (path,) = REAL.glob("*.json")
    assert len(await check_connector(CONNECTOR, path)) == 100
    for name, count in (("Airline", 19), ("Retail", 69)):
        assert len(await check_connector(CONNECTOR, DATA / "tau-bench-fewshot" / f"Mock{name}DomainEnv-few_shot.jsonl")) == count
