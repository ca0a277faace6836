"""A log that was redacted when it was taken in still answers live actions, which are not redacted."""

import asyncio
import json

from counterplay import loop, parts
from counterplay.core.nouns import Grade, Message, ToolCall
from counterplay.core.store import Store

KEY = "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0" * 2


def call(name, arguments, call_id):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def log(path):
    tools = [{"type": "function", "function": {"name": "who", "description": "", "parameters": {"type": "object", "properties": {}}}}]
    asked = [{"role": "user", "content": "who has the key?"}]
    acted = {"role": "assistant", "content": None, "tool_calls": [call("who", {"key": KEY}, "c1")]}
    seen = {"role": "tool", "tool_call_id": "c1", "content": f"{KEY} belongs to Ann"}
    rows = []
    for messages, answer in ((asked, acted), ([*asked, acted, seen], {"role": "assistant", "content": "Ann"})):
        response = {"id": f"r{len(messages)}", "model": "m", "choices": [{"finish_reason": "stop", "message": answer}]}
        rows.append({"trace_id": "t", "request": {"model": "m", "messages": messages, "tools": tools}, "response": response})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path.parent / "effects.toml").write_text('[tools.who]\neffect = "read"\n')
    return path


def test_a_live_action_matches_the_redacted_log(tmp_path):
    store = tmp_path / "s.duckdb"
    with Store.open(store) as opened:
        loop.ingest([str(log(tmp_path / "log.jsonl"))], opened, effects=tmp_path / "effects.toml")
        assert KEY.encode() not in store.read_bytes()
        comparable, (trace,) = loop.comparable_of(opened), loop.select(opened)
    action = Message.assistant("let me see", [ToolCall("new", "who", json.dumps({"key": KEY}))])
    later = trace.trajectory.prefix(0)
    asked = parts.Asked(comparable=comparable)
    step = asyncio.run(asked.make_environment([trace])(trace).step(later, action))
    assert step.error is None
    assert step.grades in ((Grade.REUSED,), (Grade.EXACT,))
    assert "belongs to Ann" in step.observations[0].content_text
    without = asyncio.run(parts.Asked().make_environment([trace])(trace).step(later, action))
    assert without.truncated


def test_a_store_without_redactions_compares_texts_as_they_are(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as opened:
        assert loop.comparable_of(opened) is None
