"""Tapes: runs that were written side by side come out as one trace each, with all that was seen of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay.connectors.base import detect, ingest_items
from counterplay.connectors.tape import CONNECTOR
from counterplay.connectors.testing import check_connector, check_item
from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.nouns import Message, Outcome, ToolCall, Trace
from counterplay.core.records import Rejected
from counterplay.core.store import Store

SAMPLE = Path(__file__).parent / "samples" / "tape" / "runs.jsonl"
T = 1_760_000_000_000_000
USER = {"role": "user", "content": "Go."}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}} for name in ("look", "put")]


class Writer:
    """A tape by hand: each event a millisecond after the one before."""

    def __init__(self, run="r"):
        self.run, self.rows, self.n = run, [], 0

    def add(self, kind, **fields):
        row = {"kind": kind, "run": self.run, "n": self.n, "at": T + 1000 * self.n, **fields}
        self.n += 1
        self.rows.append(row)
        return row

    def begin(self, **fields):
        self.rows.append({"counterplay": "tape/1", "kind": "run", "run": self.run, "at": T - 1000, **fields})
        return self

    def end(self, **fields):
        self.rows.append({"kind": "end", "run": self.run, "at": T + 1000 * self.n, **fields})
        return self

    def model(self, messages, answer, *, tools=TOOLS, reason="stop", **fields):
        said = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        body = {"id": f"c{self.n}", "model": "m-1", "choices": [{"index": 0, "message": said, "finish_reason": reason}]}
        request = {"model": "m", "messages": messages, **({"tools": tools} if tools else {})}
        self.add(
            "model",
            **{"api": "chat", "url": "/v1/chat/completions", "attempt": 0, "request": request, "response": body, "status": 200, **fields},
        )
        return said

    def tool(self, name, arguments, value=None, **fields):
        self.add("tool", **{"name": name, "arguments": arguments, "value": value, "replayable": True, **fields})


def asks(*calls):
    """An assistant message that calls tools: (id, name, arguments)."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": i, "type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for i, n, a in calls],
    }


def result(call_id, text):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


@pytest.fixture
def read(tmp_path):
    """What comes out of some events, checked."""

    async def go(*writers, name="t.jsonl"):
        path = tmp_path / name
        rows = [row for each in writers for row in (each.rows if isinstance(each, Writer) else [each])]
        path.write_text("".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows))
        items = [item async for item in CONNECTOR.read(path)]
        for item in items:
            check_item(item)
        return items

    return go


def places(trace):
    return [(run["name"], run["trajectory"], run["step"], run["observation"]) for run in trace.metadata["tool_runs"]]


async def test_the_sample_says_all_there_is():
    traces = await check_connector(CONNECTOR, SAMPLE)
    assert detect(SAMPLE).name == "tape"
    first, second, third, loose = traces
    assert [len(trace.trajectory) for trace in traces] == [2, 1, 1, 2]
    assert (first.task, first.session, first.agent, first.tags) == ("17", "s1", "shop", ("night", "checked"))
    assert first.outcome == Outcome(0.75, True, "environment")
    assert first.source.format == "tape"
    assert (first.started_at_us, first.ended_at_us) == (T, T + 900_000)
    assert {score.name: (score.value, score.scaled, score.source, score.comment) for score in first.scores} == {
        "tone": (4, 0.75, "human", "kind"),
        "done": (True, 1.0, "unknown", ""),
    }
    assert [step.terminated for step in first.trajectory.steps] == [False, True]
    assert first.trajectory.steps[-1].reward == 0.75
    assert first.trajectory.steps[1].action.content == "Both are refunded."
    assert [(call.trajectory, call.step, call.streamed, call.first_token_s, call.latency_s) for call in first.calls] == [
        (0, 0, None, None, 0.2), (0, 1, True, 0.1, 0.3), (1, 0, None, None, 0.1),
    ]  # fmt: skip
    assert first.metadata["retries"] == [{"trajectory": 0, "step": 0, "model": "scripted", "error": "503: overloaded"}]
    assert first.metadata["pins"] == {"seed": 7}
    assert first.metadata["other_calls"] == {"/v1/embeddings": 1}
    assert first.metadata["commit"] == "abc"
    (sub,) = first.sub_trajectories
    assert (sub.agent, sub.parent_step, sub.continues) == ("sub-agent", 0, None)
    assert first.completeness.open_spans == 0
    assert (second.completeness.open_spans, second.trajectory.steps[-1].finished) == (1, False)
    assert "killed" in second.completeness.notes[0]
    assert third.trajectory.steps[-1].error == third.metadata["error"] == "PermissionError: no"
    assert not third.trajectory.steps[-1].terminated
    assert [message.content_text for message in loose.trajectory.messages] == ["Refund orders 17 and 18.", "Which?", "All.", "Done."]


async def test_tool_runs_of_the_sample():
    first = next(item for item in [each async for each in CONNECTOR.read(SAMPLE)] if isinstance(item, Trace))
    text, data, hidden = first.metadata["tool_runs"]
    assert text == {
        "name": "get_order", "arguments": {"order_id": "17"}, "error": None, "replayable": True,
        "trajectory": 0, "step": 0, "observation": 0,
    }  # fmt: skip
    assert (data["value"], data["observation"]) == ({"paid": 3.5}, 1)
    assert (hidden["name"], hidden["value"], hidden["step"]) == ("may_refund", True, None)
    assert {tool.name: tool.effect for tool in first.trajectory.tools} == {
        "get_order": Effect.parse("read(order:{order_id})"),
        "refund": EXTERNAL,
    }


async def test_messages_are_the_bytes_that_were_sent(read):
    sent = [{"content": "ü €", "role": "user", "x": [1.5, {"b": 1, "a": 2}]}]
    run = Writer().begin()
    run.model(sent, "ok")
    (trace,) = await read(run.end())
    assert trace.trajectory.prompt[0].wire == json.dumps(sent[0], ensure_ascii=False, separators=(",", ":"))
    assert [tool.wire for tool in trace.trajectory.tools] == [json.dumps(tool, separators=(",", ":")) for tool in TOOLS]


async def test_runs_written_side_by_side_in_any_order_are_the_same_traces(read):
    runs = []
    for name in "ab":
        run = Writer(name).begin(task=name)
        first = run.model([USER], asks(("1", "look", {})))
        run.tool("look", {}, "seen")
        run.model([USER, first, result("1", "seen")], "done")
        runs.append(run.end(outcome={"reward": 1.0}))
    wanted = await read(*runs)
    mixed = [row for pair in zip(runs[0].rows, runs[1].rows, strict=True) for row in pair]
    assert await read(*mixed) == [replace(trace, source=replace(trace.source, line=line)) for line, trace in enumerate(wanted, 1)]
    turned = [runs[0].rows[0], *reversed(runs[0].rows[1:])]
    (alone,) = await read(*turned)
    assert replace(alone, source=wanted[0].source) == wanted[0]


async def test_runs_of_one_session_that_go_on_from_each_other_stay_two_traces(read):
    one, two = Writer("one").begin(session="s"), Writer("two").begin(session="s")
    said = one.model([USER], "Yes?")
    two.model([USER, said, {"role": "user", "content": "More."}], "Done.")
    first, second = await read(one.end(), two.end())
    assert (first.session, second.session) == ("s", "s")
    assert (len(first.trajectory), len(second.trajectory)) == (1, 2)
    assert [step.sampled for step in second.trajectory.steps] == [False, True]


async def test_what_the_request_s_own_metadata_says_does_not_take_runs_apart_or_together(read):
    run = Writer("one").begin()
    said = {"role": "assistant", "content": "a"}
    for number, messages in enumerate(([USER], [USER, said, USER])):
        request = {"model": "m", "messages": messages, "metadata": {"trace_id": f"t{number}", "session_id": f"s{number}", "task": "y"}}
        run.add("model", api="chat", request=request, response={"choices": [{"message": said, "finish_reason": "stop"}]}, status=200)
    (trace,) = await read(run.end())
    assert (trace.task, trace.session, len(trace.trajectory), len(trace.sub_trajectories)) == (None, None, 2, 0)


async def test_a_trace_keeps_its_id_while_its_run_goes_on(read):
    run = Writer().begin()
    first = run.model([USER], asks(("1", "look", {})))
    (early,) = await read(run)
    run.model([USER, first, result("1", "seen")], "done")
    (late,) = await read(run.end())
    assert early.id == late.id
    assert (await read(Writer("other").begin().end(), run))[-1].id == early.id


async def test_parallel_equal_calls_go_to_their_own_observations(read):
    run = Writer().begin()
    first = run.model([USER], asks(("1", "look", {"id": 1}), ("2", "look", {"id": 1}), ("3", "look", {"id": 2})))
    run.tool("look", {"id": 2}, "two")
    run.tool("look", {"id": 1}, "one")
    run.tool("look", {"id": 1}, "one again")
    second = run.model([USER, first, result("3", "two"), result("1", "one"), result("2", "one again")], asks(("4", "look", {"id": 1})))
    run.tool("look", {"id": 1}, "changed")
    run.model([USER, first, result("3", "two"), result("1", "one"), result("2", "one again"), second, result("4", "changed")], "done")
    (trace,) = await read(run.end())
    assert places(trace) == [("look", 0, 0, 0), ("look", 0, 0, 1), ("look", 0, 0, 2), ("look", 0, 1, 0)]
    assert all("value" not in told for told in trace.metadata["tool_runs"])


async def test_a_tool_that_was_not_run_at_first_is_not_taken_for_the_first_call(read):
    """The first call was answered from a cache of the agent's: the run belongs to the second."""
    run = Writer().begin()
    first = run.model([USER], asks(("1", "look", {})))
    second = run.model([USER, first, result("1", "cached")], asks(("2", "look", {})))
    run.tool("look", {}, "fresh")
    run.model([USER, first, result("1", "cached"), second, result("2", "fresh")], "done")
    (trace,) = await read(run.end())
    assert places(trace) == [("look", 0, 1, 0)]


@pytest.mark.parametrize(
    ("asked", "name", "given", "value", "text", "found"),
    [
        ({"id": "7"}, "look", {"id": 7, "limit": 10}, {"a": 1.5}, '{"a": 1.5}', True),  # read and completed by the function's signature
        ({"id": "7", "junk": 1}, "look", {"id": "7"}, "x", "X", True),  # an argument the function does not know
        ({"id": "7"}, "look", {"id": "8"}, "x", "X", False),
        ({"id": "7"}, "look", {"id": "8"}, "x", "x", True),  # it says the same
        ({"id": "7"}, "fetch", {"id": "7"}, "x", "x", True),  # the agent has another name for it
        ({"id": "7"}, "fetch", {"id": "7"}, "x", "X", False),
        ({}, "fetch", {}, [1, True], "[1, true]", True),
    ],
)
async def test_whose_result_a_run_s_is(read, asked, name, given, value, text, found):  # noqa: PLR0917  a row of the table
    run = Writer().begin()
    first = run.model([USER], asks(("1", "look", asked)))
    run.tool(name, given, value)
    run.model([USER, first, result("1", text)], "done")
    (trace,) = await read(run.end())
    assert places(trace) == [(name, 0, 0, 0) if found else (name, None, None, None)]
    assert ("value" in trace.metadata["tool_runs"][0]) == (value != text)


async def test_a_run_before_any_call_and_one_whose_result_was_never_sent(read):
    run = Writer().begin()
    run.tool("look", {}, "early")
    run.model([USER], asks(("1", "look", {})))
    run.tool("look", {}, None, error="ValueError: no", replayable=False)
    (trace,) = await read(run.end(error="ValueError: no"))
    assert places(trace) == [("look", None, None, None), ("look", 0, 0, None)]
    assert [(told["error"], told["replayable"]) for told in trace.metadata["tool_runs"]] == [(None, True), ("ValueError: no", False)]


async def test_effects_that_functions_declare_alike(read):
    run = Writer().begin()
    first = run.model([USER], asks(("1", "look", {}), ("2", "put", {})))
    for name, effect in (("look", "read(a)"), ("look", "read(a)"), ("put", "write(a)"), ("put", "pure"), ("unseen", "pure")):
        run.tool(name, {}, "x", effect=effect)
    run.model([USER, first, result("1", "x"), result("2", "x")], "done")
    (trace,) = await read(run.end())
    assert [(tool.name, str(tool.effect)) for tool in trace.trajectory.tools] == [("look", "read(a)"), ("put", "external")]


async def test_an_undeclared_effect_does_not_undo_what_annotations_say(read):
    run = Writer().begin()
    tools = [{**TOOLS[0], "annotations": {"readOnlyHint": True}}]
    run.model([USER], asks(("1", "look", {})), tools=tools)
    run.tool("look", {}, "x", effect="external")
    (trace,) = await read(run.end())
    assert trace.trajectory.tools[0].effect.kind == "read"


async def test_scores_tags_and_outcomes_that_come_after_the_end(read):
    run = Writer().begin(tags=["a"])
    run.model([USER], "x")
    run.end(outcome={"success": False, "source": "harness"}, scores=[{"name": "one", "value": True}], tags=["b"])
    ended = run.rows[-1]["at"]
    run.n += 1000
    run.end(outcome={"reward": 1.0, "source": "human"}, scores=[{"name": "two", "value": 5, "low": 0, "high": 10}], tags=["b", "c"])
    (trace,) = await read(run)
    assert trace.outcome == Outcome(1.0, None, "human")
    assert [(score.name, score.scaled) for score in trace.scores] == [("one", 1.0), ("two", 0.5)]
    assert trace.tags == ("a", "b", "c")
    assert trace.ended_at_us == ended


async def test_a_copy_of_every_line_changes_nothing(read):
    run = Writer().begin()
    first = run.model([USER], asks(("1", "look", {})))
    run.tool("look", {}, "x")
    run.model([USER, first, result("1", "x")], "done")
    run.end(scores=[{"name": "n", "value": True}], tags=["t"])
    (once,) = await read(run)
    (twice,) = await read(run, *run.rows)
    assert twice.metadata.pop("repeated_rows") == 2
    assert twice == once


async def test_failures_and_refusals(read):
    run = Writer().begin()
    run.model([USER], "never", status=0, response=None, error="ConnectError: refused")
    run.model([USER], "never", status=429, response={"error": {"message": "slow down"}}, attempt=1)
    run.model([USER], "never", status=500, response="<html>", attempt=2)
    run.model([USER], "at last", attempt=3)
    (trace,) = await read(run.end())
    assert len(trace.trajectory) == 1
    assert trace.metadata["failed_calls"] == ["ConnectError: refused", "429: slow down", "500: <html>"]
    assert [retry["step"] for retry in trace.metadata["retries"]] == [0, 0, 0]


async def test_a_stream_that_was_closed_early_is_no_training_data(read):
    run = Writer().begin()
    chunk = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}, "finish_reason": None}]}
    run.add(
        "model", api="chat", url="/", attempt=0, request={"model": "m", "messages": [USER], "stream": True},
        events=f"data: {json.dumps(chunk)}\n\n", status=200, error="closed early",
    )  # fmt: skip
    (trace,) = await read(run.end())
    assert (trace.trajectory.steps[0].action.content, trace.trajectory.steps[0].sampled) == ("Hel", False)
    assert trace.completeness.truncated
    chunk["choices"][0]["finish_reason"] = "stop"  # closed when all had been said
    run.rows[1]["events"] = f"data: {json.dumps(chunk)}\n\n"
    (trace,) = await read(run)
    assert (trace.trajectory.steps[0].sampled, trace.completeness.truncated) == (True, False)


async def test_the_other_apis(read):
    responses = Writer("responses").begin()
    call = {"type": "function_call", "id": "fc", "call_id": "k1", "name": "look", "arguments": "{}"}
    answer = {"id": "resp_1", "object": "response", "model": "m", "status": "completed", "output": [call]}
    request = {"model": "m", "input": "Go.", "instructions": "Be kind."}
    responses.add("model", api="responses", request=request, response=answer, status=200)
    responses.tool("look", {}, "seen")
    say = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]}
    more = {"model": "m", "instructions": "Be kind.", "previous_response_id": "resp_1"}
    more["input"] = [{"type": "function_call_output", "call_id": "k1", "output": "seen"}]
    responses.add("model", api="responses", request=more, response={**answer, "id": "resp_2", "output": [say]}, status=200)
    messages = Writer("messages").begin()
    request = {"model": "claude-x", "max_tokens": 9, "system": "Be kind.", "messages": [{"role": "user", "content": "Go."}]}
    answer = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn"}
    messages.add("model", api="messages", request=request, response={**answer, "content": [{"type": "text", "text": "done"}]}, status=200)
    one, two = await read(responses.end(), messages.end())
    assert [message.role for message in one.trajectory.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert places(one) == [("look", 0, 0, 0)]
    assert [message.content_text for message in two.trajectory.messages] == ["Be kind.", "Go.", "done"]


async def test_runs_that_make_no_trace_are_named(read):
    empty = Writer("empty").begin(task="x").end()
    failed = Writer("failed").begin()
    failed.model([USER], "never", status=500, response=None, error="down")
    other = Writer("other").begin()
    other.add("model", api="other", url="/v1/embeddings", request={"model": "e", "input": "x"}, response={}, status=200)
    items = await read(empty, failed.end(), other.end())
    assert all(isinstance(item, Rejected) for item in items)
    assert ["holds no model call" in item.reason for item in items] == [True, False, True]
    assert "500: down" in items[1].reason


BAD = {
    "an event of the kind 'note'": {"kind": "note", "run": "r"},
    "names no run": {"kind": "tool", "name": "x"},
    "names no run ": {"kind": "end", "run": ""},
    "without its name": {"kind": "tool", "run": "r", "arguments": {}},
    "without arguments by name": {"kind": "tool", "run": "r", "name": "x", "arguments": [1]},
    "wanted pure, read": {"kind": "tool", "run": "r", "name": "x", "effect": "readish"},
    "version 'tape/2'": {"counterplay": "tape/2", "kind": "run", "run": "r"},
    "without a request": {"kind": "model", "run": "r", "api": "chat"},
    "without a request ": {"kind": "model", "run": "r", "api": "chat", "request": "plain text"},
    "message 0: a message has the role": {"kind": "model", "run": "r", "api": "chat", "request": {"messages": [{"role": "x"}]}},
}


@pytest.mark.parametrize("reason", BAD)
async def test_what_is_no_event_is_named_and_costs_nothing_else(read, reason):
    run = Writer().begin()
    run.model([USER], "x")
    (wanted,) = await read(run.end())
    items = await read(*run.rows[:2], BAD[reason], *run.rows[2:])
    (rejected,) = [item for item in items if isinstance(item, Rejected)]
    assert reason.strip() in rejected.reason
    assert rejected.line == 3
    assert [item for item in items if isinstance(item, Trace)] == [wanted]


async def test_hostile_values_cost_their_own_events_at_most(read):
    run = Writer().begin(task={"a": 1}, tags=[1, None, {}], metadata=[1], pins="x", session=True)
    run.model([USER], "x", latency_s="fast", first_token_s={}, attempt=[], url={}, at="yesterday")
    run.tool("look", {"a": {"b": [None]}}, {"deep": [[[[1]]]]}, at=None, n="one", latency_s=-1)
    run.end(
        outcome={"reward": "high", "success": "yes"}, scores=[1, {"name": 3, "value": {}}, {"name": "n", "value": 1, "low": 2, "high": 1}]
    )
    (trace,) = await read(run)
    assert (trace.task, trace.session, trace.tags, trace.outcome) == (None, None, ("1",), Outcome())
    assert [score.name for score in trace.scores] == ["n"]
    assert "pins" not in trace.metadata


async def test_a_run_spread_over_files_is_one_trace(tmp_path):
    run = Writer().begin(task="17")
    first = run.model([USER], asks(("1", "look", {})))
    run.model([USER, first, result("1", "x")], "done")
    run.end(outcome={"success": True})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.rows[:2]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.rows[2:]))
    (trace,) = [item async for item in ingest_items(tmp_path)]
    assert (trace.task, len(trace.trajectory), trace.outcome.success) == ("17", 2, True)


async def test_a_tape_goes_through_a_store_and_back(tmp_path):
    traces = [item async for item in CONNECTOR.read(SAMPLE)]
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest(traces)
        assert store.verify() == []
        assert sorted(store.load(), key=lambda trace: trace.id) == sorted(traces, key=lambda trace: trace.id)
        assert store.ingest(traces).traces_known == len(traces)


async def test_a_second_choice_and_a_message_for_later(read):
    """Arguments that are no JSON, and a call without an id, are still found."""
    run = Writer().begin()
    said = Message.assistant(None, [ToolCall("", "look", "not json"), ToolCall("", "look", "{}")]).to_openai()
    run.model([USER], said)
    run.tool("look", {}, "b")
    run.model([USER, said, result("", "a"), result("", "b")], "done")
    (trace,) = await read(run.end())
    assert places(trace) == [("look", 0, 0, 1)]
