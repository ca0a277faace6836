"""What the fuzzing program found, one test each: it stays repaired."""

import gzip
import json
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from bench.fuzzing.checks import check
from counterplay.connectors import facts, mlflow, toolbench
from counterplay.connectors.base import CONNECTORS
from counterplay.connectors.chat.halves import half_of
from counterplay.connectors.messages import responses
from counterplay.connectors.messages.openai import usage_of
from counterplay.connectors.normalise import message_of
from counterplay.connectors.otlp_decode import records_of
from counterplay.connectors.spans.readings import Reading, SpanTree
from counterplay.connectors.spans.span import Span
from counterplay.core.errors import SourceError
from counterplay.core.nouns import ToolSpec, Trace
from counterplay.core.records import Rejected

SAMPLES = Path(__file__).parent / "samples"


async def read(name, path):
    items = [item async for item in CONNECTORS[name].read(path)]
    check(items)
    return items


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(name):
    return [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()]


@pytest.mark.parametrize("moment", [1e30, 1e300, 10**30, 3.2e300, 9e19 * 1e9])
def test_a_moment_after_the_year_9999_is_none(moment):
    assert facts.time_us(moment) is None
    assert facts.time_us(1.7e9) == facts.time_us(1.7e18) == 1_700_000_000_000_000


def test_numbers_that_no_column_holds_count_as_not_logged():
    assert facts.count(2**63) == facts.count(1e300) == 0
    assert facts.whole_number(2**63) is facts.whole_number("9" * 30) is facts.whole_number(1e300) is facts.whole_number("9" * 5000) is None
    assert facts.whole_number(str(-(2**63))) == -(2**63)
    assert facts.seconds(1e308) is facts.seconds(-1) is facts.seconds("1") is None
    assert facts.seconds(1.5) == 1.5
    assert usage_of({"input_tokens": 2**64, "output_tokens": "7", "cached_tokens": 2**70}).output_tokens == 7


async def test_a_time_of_the_year_a_billion_does_not_keep_a_session_from_the_store(tmp_path):
    rows = sample("codex/session.jsonl")
    rows[-1]["timestamp"] = 3.2e25
    (trace,) = await read("codex", lines(tmp_path / "x", rows))
    assert trace.ended_at_us is not None


async def test_a_wait_of_forever_is_no_crash(tmp_path):
    document = json.loads((SAMPLES / "otlp/vercel.json").read_text())
    for span in document["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        span["attributes"].append({"key": "ai.response.msToFirstChunk", "value": {"doubleValue": 1e308}})
        span["attributes"].append({"key": "gen_ai.response.time_to_first_chunk", "value": {"doubleValue": 1e308}})
    (tmp_path / "x").write_text(json.dumps(document))
    (trace,) = await read("otlp", tmp_path / "x")
    assert all(call.first_token_s is None for call in trace.calls)


def test_an_item_can_not_bring_tool_calls_or_names_that_are_none():
    with pytest.raises(ValueError, match="tool_calls"):
        responses.answer_of([{"role": "assistant", "content": "x", "tool_calls": [[[None]]]}])
    (given,) = responses.messages_of(None, [{"role": "user", "content": "x", "name": {"a": 1}}])
    assert isinstance(given.name, str)
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    said = responses.answer_of([call, {"type": "message", "role": "assistant", "content": "x", "tool_calls": [], "phase": "end"}])
    assert [each.id for each in said.tool_calls] == ["c"]
    assert said.fields["phase"] == "end"


def test_a_custom_tool_call_of_chat_completions():
    call = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": "ls -la", "extra": 1}}
    (found,) = message_of({"role": "assistant", "content": None, "tool_calls": [call]}).tool_calls
    assert (found.id, found.name, found.arguments) == ("c1", "run", "ls -la")
    assert message_of({"role": "assistant", "tool_calls": [call]}).fields["tool_calls"][0]["custom"] == call["custom"]
    with pytest.raises(ValueError, match="name"):
        message_of({"role": "assistant", "tool_calls": [{"id": "c1", "type": "custom", "custom": {"input": "x"}}]})


@pytest.mark.parametrize("name", ["langfuse", "langsmith", "langgraph", "braintrust", "phoenix", "mlflow", "inspect", "otlp"])
@pytest.mark.parametrize("at", [12, 14, 16])
async def test_damage_in_a_gzip_stream(tmp_path, name, at):
    data = bytearray(gzip.compress(b"SQLite format 3\0" + bytes(2000) if name == "langgraph" else b'{"id": "x"}\n' * 200))
    data[at % len(data)] ^= 0x55
    (tmp_path / "x").write_bytes(data)
    with pytest.raises((OSError, EOFError, zlib.error)):
        gzip.decompress(bytes(data))
    try:
        items = await read(name, tmp_path / "x")
    except SourceError:
        return
    assert items
    assert all(isinstance(item, Rejected) for item in items)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
async def test_a_table_without_rows_is_named(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "csv":
        path.write_text("id,trace_id,type\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": pa.array([], pa.string())}), path)
    (item,) = await read("langfuse", path)
    assert "without rows" in item.reason


async def test_a_csv_line_without_an_end_is_not_held(tmp_path, monkeypatch):
    from counterplay.connectors import tables

    monkeypatch.setattr(tables, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(tables, "_MAX_COMMAS", 100)
    for long in ("x" * 5000, "," * 900):
        (tmp_path / "x").write_text(f"id,trace_id,type\nt1,t1,TRACE\n{long}\nt2,t2,TRACE\n")
        items = await read("langfuse", tmp_path / "x")
        assert any("a line of" in item.reason for item in items if isinstance(item, Rejected))


async def test_a_message_without_content_or_a_call_without_a_name_is_named(tmp_path):
    rows = sample("managed-agents/session.jsonl")
    broken = [{"id": "x1", "type": "agent.message"}, {"id": "x2", "type": "agent.tool_use", "input": {}}]
    items = await read("managed-agents", lines(tmp_path / "x", [*rows, *broken]))
    assert sum(isinstance(item, Trace) for item in items) == 1
    assert [item.line for item in items if isinstance(item, Rejected)] == [len(rows) + 1, len(rows) + 2]
    rows = [{**row, "content": "plain text"} if row.get("type") == "agent.message" else row for row in rows]
    (trace,) = await read("managed-agents", lines(tmp_path / "y", rows))
    assert trace.trajectory.steps[-1].action.content_text == "plain text"


@pytest.mark.parametrize("misspelt", ["scope_span", "scopeSpan", "kwargs"])
async def test_a_container_with_unknown_fields_only_is_named(tmp_path, misspelt):
    text = (SAMPLES / "otlp/openinference.json").read_text()
    for old, new in (("scopeSpans", misspelt), ('"spans"', '"span"')):
        (tmp_path / "x").write_text(text.replace(old, new))
        assert all(isinstance(item, Rejected) for item in await read("otlp", tmp_path / "x"))
        assert await read("otlp", tmp_path / "x")
    (tmp_path / "x").write_text('{"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": []}]}, {"scopeSpans": null}]}')
    assert await read("otlp", tmp_path / "x") == []


async def test_a_code_of_ten_thousand_digits_is_no_score(tmp_path):
    row = json.loads((SAMPLES / "toolbench/answer.json").read_text())
    text = json.dumps(row).replace('"observation_code": 0', '"observation_code": ' + "9" * 400)
    (tmp_path / "x").write_text(text)
    (trace,) = [item async for item in toolbench.CONNECTOR.read(tmp_path / "x")]
    check([trace])


def database(path, *statements):
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return path


async def test_a_database_whose_ids_are_numbers_or_missing(tmp_path):
    path = database(
        tmp_path / "x",
        "CREATE TABLE trace_info (request_id, experiment_id, timestamp_ms, status)",
        "CREATE TABLE trace_tags (key, value, request_id)",
        "INSERT INTO trace_info VALUES (17, 1, 1, 'OK')",
        "INSERT INTO trace_info VALUES (NULL, 1, 2, 'OK')",
        "INSERT INTO trace_tags VALUES ('a', 'b', 17)",
    )
    items = [item async for item in mlflow.CONNECTOR.read(path)]
    check(items)
    assert any("without a request_id" in item.reason for item in items)


@pytest.mark.parametrize("name", ["langgraph", "mlflow"])
async def test_a_schema_that_is_not_utf_8(tmp_path, name):
    path = database(tmp_path / "x", "CREATE TABLE checkpoints (thread_id, checkpoint)", "CREATE TABLE trace_info (request_id)")
    path.write_bytes(path.read_bytes().replace(b"thread_id", b"thr\xff\xe3_id").replace(b"CREATE TABLE", b"CREATE TAB\xe9E"))
    with pytest.raises(SourceError):
        await read(name, path)


def test_a_chain_of_parents_without_end_takes_no_square_of_its_length():
    spans = [Span("t", str(i), str(i - 1)) for i in range(20_000)]
    tree = SpanTree([(span, Reading("agent" if i % 2 else "llm")) for i, span in enumerate(spans)])
    assert len(tree.nodes["19999"].path) <= 200
    assert sum(1 for _ in tree.ancestors(spans[-1])) == 200


@pytest.mark.parametrize("name", ["langfuse/rows.jsonl", "otlp/logs.jsonl", "chatlog/records.jsonl"])
async def test_a_reason_is_not_as_long_as_what_it_is_about(tmp_path, name):
    text = (SAMPLES / name).read_text()
    for word in ("t1", "0af7651916cd43dd8448eb211c80319c", '"user"'):
        (tmp_path / "x").write_text(text.replace(word, f'"{"x" * 9000}"' if word == '"user"' else "x" * 9000))
        items = await read(name.partition("/")[0], tmp_path / "x")
        assert all(len(item.reason) <= 1000 for item in items if isinstance(item, Rejected))


@pytest.mark.parametrize(
    "body", ['[{"id": "a", "traceId": "t", "name": "n", "timestamp": "x"}]', '{"name": "n", "colour": "blue"}', '[{"name": "n"}, 5]']
)
async def test_a_post_of_scores_without_a_score_is_named(tmp_path, body):
    items = await read("otlp", lines(tmp_path / "x", [{"path": "/api/public/scores", "body": body}]))
    assert items
    assert all(isinstance(item, Rejected) for item in items)


async def test_a_call_id_that_is_an_object_is_none(tmp_path):
    text = (SAMPLES / "otlp/kinds.jsonl").read_text()
    old = '{"key": "langfuse.observation.metadata.tool_call_id", "value": {"stringValue": "c"}}'
    assert old in text
    new = old.replace('{"stringValue": "c"}', '{"kvlistValue": {"values": [{"key": "a", "value": {"intValue": 1}}]}}')
    (tmp_path / "x").write_text(text.replace(old, new))
    assert any(isinstance(item, Trace) for item in await read("otlp", tmp_path / "x"))


async def test_a_message_on_a_line_of_an_unknown_type_is_named(tmp_path):
    rows = sample("claude-code/session.jsonl")
    items = await read("claude-code", lines(tmp_path / "x", [*rows, {**rows[1], "uuid": "x", "type": "mystery", "sessionId": "other"}]))
    assert [item.line for item in items if isinstance(item, Rejected)] == [len(rows) + 1]


def test_a_tool_whose_function_is_a_text_has_no_schema():
    tool = ToolSpec.from_openai({"type": "function", "function": "get", "name": "get"})
    assert (tool.name, dict(tool.parameters)) == ("get", {})
    assert dict(ToolSpec.from_openai({"function": {"name": "f", "parameters": "none"}}).parameters) == {}


async def test_an_agent_message_that_says_nothing_is_named(tmp_path):
    rows = [
        {"id": "e1", "type": "user.message", "content": [{"type": "text", "text": "hi"}]},
        {"id": "e2", "type": "agent.message", "content": [{"type": "text", "text": "hello"}]},
        {"id": "e3", "type": "agent.message", "content": []},
    ]
    items = await read("managed-agents", lines(tmp_path / "x", rows))
    assert sum(isinstance(item, Rejected) for item in items) == 1


async def test_a_braintrust_row_of_no_known_kind_is_named(tmp_path):
    rows = [{"id": "r1", "span_id": "s1", "root_span_id": "s1", "span_parents": None, "span_attributes": 5, "input": "x", "output": "y"}]
    (item,) = await read("braintrust", lines(tmp_path / "x", rows))
    assert isinstance(item, Rejected)
    assert "span_attributes" in item.reason


async def test_a_message_whose_line_and_role_are_both_unknown_is_named(tmp_path):
    rows = sample("claude-code/session.jsonl")
    damaged = {**rows[1], "uuid": "x", "type": "mystery", "message": {"role": "fix it", "content": "user"}}
    items = await read("claude-code", lines(tmp_path / "x", [*rows, damaged]))
    assert [item.line for item in items if isinstance(item, Rejected)] == [len(rows) + 1]


async def test_a_codex_header_that_says_nothing_is_named(tmp_path):
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}
    rows = [{"type": "session_meta", "payload": {}}, *({"type": "response_item", "payload": item} for item in (said, answer))]
    items = await read("codex", lines(tmp_path / "x", rows))
    assert [item.line for item in items if isinstance(item, Rejected)] == [1]


def test_a_batch_result_that_is_no_object_is_no_answer():
    assert half_of({"custom_id": "x", "result": [{"type": "succeeded"}]}) is None


async def test_an_event_of_an_unknown_type_with_content_is_named(tmp_path):
    rows = sample("managed-agents/session.jsonl")
    odd = {"id": "odd", "type": "user.cu", "content": [{"type": "text", "text": "a cat"}]}
    items = await read("managed-agents", lines(tmp_path / "x", [*rows, odd]))
    assert any(isinstance(item, Rejected) and "user.cu" in item.reason for item in items)


async def test_a_damaged_page_does_not_pass_for_an_empty_table(tmp_path):
    path = tmp_path / "x.sqlite"
    columns = "thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata"
    database(path, f"CREATE TABLE checkpoints ({columns})", "CREATE TABLE writes (thread_id)")
    data = bytearray(path.read_bytes())
    data[4096:4104] = b"\x0d\0\0\xff\xff\xff\xff\0"
    path.write_bytes(data)
    try:
        items = [item async for item in CONNECTORS["langgraph"].read(path)]
    except SourceError:
        return
    assert items


async def test_codex_lines_that_say_nothing_are_named(tmp_path):
    header = {"timestamp": "2026-01-01T00:00:00Z", "type": "session_meta", "payload": {"id": "s1", "cwd": "/app"}}
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}]}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "seen"}]}
    damaged = [{"type": "session_meta", "payload": {"value": header["payload"]}}, {"type": "response_item", "payload": {"output": "b"}}]
    rows = [header, *({"type": "response_item", "payload": item} for item in (said, answer)), *damaged]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = [item async for item in CONNECTORS["codex"].read(tmp_path / "s.jsonl")]
    reasons = [item.reason for item in items if isinstance(item, Rejected)]
    assert len(items) == 3
    assert "a session_meta that says nothing of its session" in reasons[0]
    assert "a response_item without a type" in reasons[1]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"scopelogs": []}, "got the fields 'scopelogs'"),
        ({"body": {"kvlistValue": [{"values": []}]}}, "got a list, wanted a dict"),
        ({"body": {"kvlistValue": {"values": {"key": "content"}}}}, "got a dict, wanted a list"),
        ({"body": {"arrayValue": {"values": 5}}}, "got a int, wanted a list"),
    ],
)
def test_log_records_of_another_shape_are_named(record, reason):
    (found,) = records_of({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})
    assert reason in found
