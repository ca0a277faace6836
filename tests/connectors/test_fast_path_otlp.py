"""Spans read by the news of their prompts, and in parts, give the very traces that parsing everything, in one reader, gives."""

from __future__ import annotations

import copy
import heapq
import json
import random

import pytest

from counterplay import reading
from counterplay.connectors.dialects import genai
from counterplay.connectors.facts import parse
from counterplay.connectors.messages.listed import Known, Lists
from counterplay.connectors.otlp import CONNECTOR, _documents_of
from counterplay.connectors.otlp_traces import traces
from counterplay.connectors.parts import Names, Owners, Part, Undivided
from counterplay.reading import Reading

SPELLINGS = (
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    json.dumps,
    lambda value: json.dumps(value, indent=1),
    lambda value: " " + json.dumps(value) + "\n",
)
TOOLS = [{"type": "function", "name": f"tool_{i}", "description": "é" * 60, "parameters": {"type": "object"}} for i in range(9)]


def attribute(key, value):
    return {"key": key, "value": {"stringValue": value}}


def harmed(rng, text):
    """A value cut by a length limit, redacted, encoded twice, or no list; most are as they were."""
    if rng.random() > 0.15:
        return text
    return rng.choice([
        text[: rng.randrange(len(text))],
        "__REDACTED__",
        json.dumps(text),
        text.replace("fine", "__REDACTED__"),
        text + rng.choice(["]", ",", "x", " "]),
        text.replace('"role"', '"role":"user","role"', 1),
        text.replace("{", "[", 1),
    ])  # fmt: skip


def message(rng, role, number):
    parts = [{"type": "text", "content": f"{number} " + rng.choice(["fine", '☃ \\ " é', "x" * 200])}]
    if role == "assistant":
        parts.append(
            {"type": "tool_call", "id": f"c{number}", "name": "tool_1", "arguments": rng.choice([{"n": number, "x": 1e-05}, "{}"])}
        )
    if role == "tool":
        parts = [{"type": "tool_call_response", "id": f"c{number}", "response": rng.choice([{"ok": number}, "done"])}]
    return {"role": role, "parts": parts}


def spans(seed, count=40):
    """The model calls of some runs in turn, with prompts that grow, are cut back or edited."""
    rng = random.Random(seed)
    spelled = rng.choice(SPELLINGS)
    runs = [[{"role": "system", "parts": [{"type": "text", "content": "Policy. " * 99}]}, message(rng, "user", i)] for i in range(4)]
    found = []
    for number in range(count):
        run = rng.randrange(4)
        prompt = copy.deepcopy(runs[run])
        kind = rng.random()
        if kind < 0.1:
            prompt = prompt[: rng.randrange(1, len(prompt) + 1)]
        elif kind < 0.2:
            prompt[rng.randrange(len(prompt))]["parts"][0]["content"] = f"edited {number}"
        elif kind < 0.25:
            prompt = [dict(reversed(each.items())) for each in prompt]
        answer = message(rng, "assistant", number)
        runs[run] = [*prompt, answer, message(rng, "tool", number)]
        told = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.input.messages": harmed(rng, spelled(prompt)),
            "gen_ai.output.messages": harmed(rng, spelled([answer])),
            "gen_ai.tool.definitions": harmed(rng, spelled(TOOLS[: rng.choice([8, 8, 8, 9])])),
        }
        if rng.random() < 0.1:
            told["gen_ai.system_instructions"] = spelled(prompt[0]["parts"])
        times = {"startTimeUnixNano": str(10**18 + number * 10**9), "endTimeUnixNano": str(10**18 + number * 10**9 + 5)}
        about = {"traceId": f"{run + 1:032x}", "spanId": f"{number + 1:016x}", "name": "chat m", **times}
        found.append({**about, "attributes": [attribute(key, value) for key, value in told.items()]})
    return found


def export(found):
    return {"resourceSpans": [{"scopeSpans": [{"spans": found}]}]}


def written(path, seed, *, batch):
    """Exports of `batch` spans, or of one run each where that is None; now and then one that is none, or damaged."""
    rng, found = random.Random(seed), spans(seed)
    if batch is None:
        groups = {}
        for span in found:
            groups.setdefault(span["traceId"], []).append(span)
        batches = list(groups.values())
    else:
        batches = [found[i : i + batch] for i in range(0, len(found), batch)]
    texts = [json.dumps(export(each), separators=rng.choice([(",", ":"), None])) for each in batches]
    texts.insert(
        rng.randrange(len(texts)), rng.choice(['{"resourceSpans": 1}', "{}", "[1]", '{"resourceSpans":[{"scopeSpans":[{"spans":[7]}]}]}'])
    )
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


class Plain(Lists):
    """Parses everything."""

    def parse(self, text):
        return parse(text)


@pytest.mark.parametrize("seed", range(40))
def test_news_alone_give_what_parsing_everything_gives(tmp_path, monkeypatch, seed):
    file = written(tmp_path / "log.jsonl", seed, batch=7)
    quick = list(traces(_documents_of([file])))
    for name in ("_PROMPTS", "_TOOLSETS"):
        monkeypatch.setattr(genai, name, Plain())
    assert repr(quick) == repr(list(traces(_documents_of([file]))))


def outcome(read, text):
    try:
        return repr(read(text))
    except ValueError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("text", [
    "[]", "[1,2]", '[{"a":1},2]', '[{"a":1}', '[{"a":1},]', '[{"a":1}]x', '[{"a":1},{"a":NaN,"b":1e999,"c":-0}]', '[{"c":01}]', "[{]",
])  # fmt: skip
def test_lists_are_parsed_as_ever(text):
    padded = text.replace('"a":1', '"a":"' + "x" * 600 + '"')
    for case in (text, padded, padded.replace("[", "[\n", 1)):
        lists = Lists()
        for _ in range(2):
            assert outcome(lists.parse, case) == outcome(parse, case)


def test_what_repeats_is_not_parsed_again():
    lists, items = Lists(), [{"role": "user", "parts": [{"content": f"{i} " * 50}]} for i in range(20)]
    before = lists.parse(json.dumps(items[:10]))
    after = lists.parse(json.dumps(items))
    edited = lists.parse(json.dumps([*items[:4], {"role": "user"}, *items[5:]]))
    assert after == items
    assert all(isinstance(item, Known) for item in after)
    assert [old is new for old, new in zip(before, after[:10], strict=True)] == [True] * 10
    assert [old is new for old, new in zip(after, edited, strict=True)] == [True] * 4 + [False] * 16


def in_parts(paths, count):
    """What the parts give, put in order; None where they hang together."""
    owners, placed = Owners(), []
    for index in range(count):
        try:
            told = list(CONNECTOR.read_part(paths, Part(index, count)))
        except Undivided:
            return None
        if not all(owners.agree(index, each) for each in told if isinstance(each, Names)):
            return None
        placed.append([each for each in told if not isinstance(each, Names)])
        assert [place for place, _ in placed[-1]] == sorted(place for place, _ in placed[-1])
    return [item for _, item in heapq.merge(*placed, key=lambda found: found[0])]


@pytest.mark.parametrize(("batch", "least"), [(None, 30), (1, 30), (2, 30), (9, 10)])
def test_parts_give_what_one_reader_gives(tmp_path, batch, least):
    divided = 0
    for seed in range(15):
        file = written(tmp_path / "log.jsonl", seed, batch=batch)
        whole = list(traces(_documents_of([file])))
        for count in (2, 3):
            found = in_parts([file], count)
            if found is not None:
                divided += 1
                assert repr(found) == repr(whole)
    assert divided >= least


def test_log_records_beside_go_to_the_part_of_their_trace(tmp_path):
    file = tmp_path / "log.jsonl"
    found = [{**span, "attributes": span["attributes"][:2]} for span in spans(1)]
    file.write_text("\n".join(json.dumps(export([span])) for span in found))
    said = [
        {"traceId": span["traceId"], "spanId": span["spanId"], "eventName": name, "body": {"kvlistValue": {"values": [told]}}}
        for span in found
        for name, told in (("gen_ai.user.message", attribute("content", "hi")), ("gen_ai.choice", attribute("message", '{"content":"ho"}')))
    ]
    (tmp_path / "log_logs.jsonl").write_text(json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": said}]}]}))
    whole = list(traces(_documents_of([file]), _documents_of([tmp_path / "log_logs.jsonl"])))
    assert repr(in_parts([file], 2)) == repr(whole)
    assert "hi" in repr(whole)


def test_log_records_of_several_traces_in_one_line(tmp_path):
    """Each goes to its trace and is counted once; those without a trace are named once."""
    found = [{**span, "attributes": span["attributes"][:2]} for span in spans(1)]
    said = [
        {"traceId": span["traceId"], "spanId": span["spanId"], "eventName": "gen_ai.user.message", "body": {"stringValue": "hi"}}
        for span in found
    ]
    said.append({"eventName": "gen_ai.user.message", "body": {"stringValue": "astray"}})
    file = tmp_path / "log.jsonl"
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": said}]}]}
    file.write_text("\n".join(json.dumps(each) for each in (logs, *(export([span]) for span in found))))
    whole = list(traces(_documents_of([file])))
    assert repr(in_parts([file], 2)) == repr(whole)
    assert sum("names no trace" in repr(item) for item in whole) == 1


def test_processes_give_what_this_process_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LARGE_BYTES", 0)
    file = written(tmp_path / "log.jsonl", 3, batch=1)
    assert list(Reading([file], processes=2)) == list(Reading([file], processes=0))
