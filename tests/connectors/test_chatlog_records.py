"""`messages` records: the recorder's own lines, fine-tuning sets, and what is wrong with records that are none."""

import json

import pytest

from counterplay.connectors.chatlog import CONNECTOR
from counterplay.connectors.testing import check_connector, check_item
from counterplay.core.nouns import Trace

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}
CHAT = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "look"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm", "vendor": {"x": 1}},
    {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    {"role": "assistant", "content": "a cat \ud83d"},
]
RECORDED = {
    "id": "r1",
    "task": "t7",
    "session": "s1",
    "agent": "bookkeeper",
    "tools": [TOOL],
    "messages": CHAT,
    "prompt_messages": 2,
    "outcome": {"reward": 0.5, "success": False, "source": "environment", "details": {"why": "late"}},
    "calls": [
        {
            "model": "m",
            "params": {"temperature": 1},
            "usage": {"prompt_tokens": 5, "completion_tokens": 2},
            "latency_s": 0.1,
            "started_at_us": 17,
        },
        {
            "model": "m",
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "cost_usd": 0.25},
            "finish_reason": "stop",
            "response_id": "x",
        },
    ],
    "terminated": True,
    "truncated": False,
    "tags": ["night"],
    "metadata": {"effects": {"look": "read(room:{at})"}, "attempt": 3},
}


async def read(tmp_path, *rows):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [item async for item in CONNECTOR.read(path)]
    for item in items:
        check_item(item)
    return items


async def test_a_recorded_line_becomes_the_trace_that_was_recorded(tmp_path):
    (trace,) = await read(tmp_path, RECORDED)
    assert [m.to_openai() for m in trace.trajectory.messages] == CHAT
    assert [m.wire for m in trace.trajectory.messages][2].startswith('{"role":"assistant","content":null,"tool_calls"')
    assert (trace.task, trace.session, trace.agent, trace.tags) == ("t7", "s1", "bookkeeper", ("night",))
    assert [len(trace.trajectory.prompt), len(trace.trajectory)] == [2, 2]
    last = trace.trajectory.steps[-1]
    assert (last.reward, last.terminated, last.truncated) == (0.5, True, False)
    assert trace.trajectory.steps[0].reward is None
    assert (trace.outcome.success, trace.outcome.source, trace.outcome.details) == (False, "environment", {"why": "late"})
    assert str(trace.trajectory.tools[0].effect) == "read(room:{at})"
    assert trace.trajectory.tools[0].to_openai() == TOOL
    assert [(c.step, c.model, c.usage.input_tokens, c.usage.cost_usd) for c in trace.calls] == [(0, "m", 5, None), (1, "m", 9, 0.25)]
    assert (trace.calls[0].latency_s, trace.calls[0].started_at_us, trace.calls[1].finish_reason) == (0.1, 17, "stop")
    assert trace.metadata["attempt"] == 3
    assert trace.completeness.tools
    assert trace.completeness.system_prompt


async def test_two_runs_with_equal_messages_and_ids_of_their_own_are_two_traces(tmp_path):
    first, second, again = await read(tmp_path, RECORDED, {**RECORDED, "id": "r2"}, RECORDED)
    assert first.id != second.id
    assert first.id == again.id


async def test_truncation_failure_and_steps_that_no_model_wrote(tmp_path):
    metadata = {"error": "the server went away", "unsampled_steps": [0]}
    (trace,) = await read(tmp_path, {**RECORDED, "terminated": False, "truncated": True, "metadata": metadata})
    assert [step.sampled for step in trace.trajectory.steps] == [False, True]
    last = trace.trajectory.steps[-1]
    assert (last.terminated, last.truncated, last.error) == (False, True, "the server went away")
    assert [call.step for call in trace.calls] == [1]


async def test_fine_tuning_sets(tmp_path):
    weighted = {"messages": [*CHAT[:2], {"role": "assistant", "content": "no", "weight": 0}, {"role": "user", "content": "?"}, CHAT[4]]}
    completed = {"prompt": CHAT[:2], "completion": CHAT[2:], "tools": json.dumps([TOOL])}
    flat = {"messages": CHAT, "tools": [{"name": "look", "input_schema": {"type": "object"}, "annotations": {"readOnlyHint": True}}]}
    one, two, three = await read(tmp_path, weighted, completed, flat)
    assert [step.sampled for step in one.trajectory.steps] == [False, True]
    assert one.trajectory.steps[-1].terminated
    assert one.outcome.reward is None
    assert [m.to_openai() for m in two.trajectory.messages] == CHAT
    assert two.trajectory.tools[0].to_openai() == TOOL
    assert three.trajectory.tools[0].to_openai() == TOOL


async def test_a_bad_effect_leaves_the_tool_external_and_is_noted(tmp_path):
    (trace,) = await read(tmp_path, {**RECORDED, "metadata": {"effects": {"look": "reads"}}})
    assert trace.trajectory.tools[0].effect.kind == "external"
    assert "look" in trace.completeness.notes[0]


async def test_missing_tool_definitions_are_said(tmp_path):
    (trace,) = await read(tmp_path, {"messages": CHAT})
    assert not trace.completeness.tools


async def test_old_function_calls_and_odd_content_are_put_right(tmp_path):
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, "twice"]},
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "function", "name": "look", "content": {"seen": "cat"}},
        {
            "role": "assistant",
            "content": "ok",
            "tool_calls": [{"id": "c", "name": "look", "arguments": {"at": 2}}, {"function": {"name": "x"}}],
        },
    ]
    (trace,) = await read(tmp_path, {"messages": chat})
    asked, acted, seen, last = trace.trajectory.messages
    assert asked.content_text == "looktwice"
    assert [(c.name, c.id) for c in acted.tool_calls] == [("look", "look")]
    assert "function_call" not in acted.fields
    assert (seen.role, seen.tool_call_id, seen.content) == ("tool", "look", '{"seen":"cat"}')
    assert [(c.name, c.arguments) for c in last.tool_calls] == [("look", '{"at":2}'), ("x", "")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "without an assistant message"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "wizard"),
        ({"messages": []}, "none"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}, "function"),
        ({"messages": CHAT, "tools": 5}, "tools"),
        ({"messages": CHAT, "tools": ["x"]}, "tool"),
        ({"messages": CHAT, "tools": "[{"}, ""),
        ({"colour": "blue"}, "colour"),
        ({"prompt": "hi", "completion": "there"}, "neither"),
    ],
)
async def test_a_record_that_can_not_be_taken_says_why_and_the_others_go_on(tmp_path, row, reason):
    items = await read(tmp_path, RECORDED, row, RECORDED)
    assert [isinstance(item, Trace) for item in items] == [True, False, True]
    assert items[1].line == 2
    assert reason in items[1].reason


async def test_the_connector_conforms(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(RECORDED) + "\n{bad\n" + json.dumps({"messages": CHAT}) + "\n")
    assert len(await check_connector(CONNECTOR, path)) == 2
