"""Logs of calls read by their news, and in parts, give the very traces that the strict parser and one reader give."""

from __future__ import annotations

import copy
import heapq
import json
import random
import tracemalloc

import pytest

from counterplay import readers, reading
from counterplay.connectors.chat.growing import entries as by_news
from counterplay.connectors.chat.growing import entries_of
from counterplay.connectors.chatlog import CONNECTOR, _items
from counterplay.connectors.lines import entries, lines, parse_json, quick_json
from counterplay.connectors.normalise import KnownMessages
from counterplay.connectors.parts import Names, Owners, Part, Undivided
from counterplay.connectors.redaction import rules_of
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Trace
from counterplay.reading import Door, Reading

SPELLINGS = (
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    lambda value: json.dumps(value, separators=(",", ":")),
    json.dumps,
    lambda value: json.dumps(value, ensure_ascii=False),
    lambda value: json.dumps(value, separators=(" , ", " : ")),
    lambda value: json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("/", "\\/"),
)
TOOLSETS = [
    [{"type": "function", "function": {"name": name, "description": f"{name} é <b> " * 9, "parameters": {"type": "object"}}}]
    for name in ("pay", "look")
]
TEXTS = ["fine", "é☃𝄞", 'a/b <c> \\ " \n\t\x7f\x1f', 'he said "messages":[{"role":"user"}] and \\', '{"role": "user"}', "", "x" * 300]
DAMAGES = [
    lambda text: text[: len(text) // 2],
    lambda text: text.replace('"role"', '"role":"user","role"', 1),
    lambda text: text.replace("fine", "\\ud800"),
    lambda text: text.replace('"model"', '"limit":NaN,"model"', 1),
    lambda text: text.replace('"user"', '"clown"', 1),
    lambda text: text.replace("fine", "redacted-by-litellm"),
    lambda text: "",
    lambda text: "[1,2]",
]


class Log:
    """Some agents whose calls are logged in turn, in the ways in which logs of real agents are irregular."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.names = rng.choice(["trace", "session", "both", "none", "some", "litellm"])
        self.nested = rng.choice(["request", "body", ""])
        self.at_end = rng.random() < 0.5
        self.spellings = rng.sample(SPELLINGS, rng.choice([1, 1, 2]))
        self.harm = rng.choice([0, 0, 0.1])
        policy = "You are an agent. " * rng.choice([1, 150, 150, 150])
        self.agents = [[{"role": "system", "content": policy}, {"role": "user", "content": f"Go, {i} ☃" * 9}] for i in range(4)]
        self.rows: list[dict] = []

    def lines(self, count: int = 40) -> list[str]:
        found = []
        while len(found) < count:
            row = self.row(len(found))
            text = self.rng.choice(self.spellings)(row)
            found.append(self.rng.choice(DAMAGES)(text) if self.rng.random() < self.harm else text)
            self.rows.append(row)
        return found

    def row(self, number: int) -> dict:
        rng = self.rng
        if self.rows and rng.random() < 0.05:
            return copy.deepcopy(rng.choice(self.rows))
        agent = rng.randrange(len(self.agents))
        messages = self.edited(copy.deepcopy(self.agents[agent]), number)
        answers = [self.answer(number, choice) for choice in range(rng.choice([1, 1, 1, 2]))]
        self.agents[agent] = [*messages, answers[0], *self.results(answers[0], number)]
        request = {"model": "m", "messages": messages, "temperature": rng.choice([0, 1, 0.5, 1e-05, True])}
        if rng.random() < 0.9:
            request["tools"] = rng.choice(TOOLSETS) if rng.random() < 0.2 else TOOLSETS[agent % 2]
        choices = [{"index": i, "finish_reason": "stop", "message": answer} for i, answer in enumerate(answers)]
        usage = {"prompt_tokens": number, "completion_tokens": 2}
        response = {"id": f"c{number}", "created": 1_700_000_000 + number, "choices": choices, "usage": usage}
        if rng.random() < 0.05:
            response = rng.choice([{"error": {"message": "overloaded"}}, None])
        return self.put_together(request, response, agent, number)

    def edited(self, messages: list[dict], number: int) -> list[dict]:
        """Now and then a prompt is cut back, edited in the middle, spelled in another order, or begins anew."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.08:
            return messages[: rng.randrange(1, len(messages) + 1)]
        place = rng.randrange(len(messages))
        if kind < 0.16:
            messages[place]["content"] = f"edited {number}"
        elif kind < 0.24:
            messages[place] = dict(reversed(messages[place].items()))
        elif kind < 0.28:
            messages[place] = {**messages[place], "name": "x", "weight": rng.choice([1, 1.0, 1e-05, None])}
        elif kind < 0.31:
            messages[place]["content"] = [{"type": "text", "text": "in parts"}, {"type": rng.choice(["image_url", "tool_use"])}]
        elif kind < 0.34:
            del messages[place]
        return messages or [{"role": "user", "content": "again"}]

    def answer(self, number: int, choice: int) -> dict:
        rng = self.rng
        arguments = rng.choice([json.dumps({"n": number, "a": "é"}), '{"b":1, "a":2.50}', "no JSON", {"n": number}])
        call = {"id": f"call_{number}_{choice}", "type": "function", "function": {"name": "pay", "arguments": arguments}}
        said = {"role": "assistant", "content": rng.choice([None, *TEXTS]), "tool_calls": [call]}
        return {**said, "refusal": None, "annotations": []} if rng.random() < 0.2 else said

    def results(self, answer: dict, number: int) -> list[dict]:
        text = f"paid {number} {self.rng.choice(TEXTS)}"
        return [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in answer["tool_calls"]]

    def put_together(self, request: dict, response: object, agent: int, number: int) -> dict:
        metadata = {
            "trace": {"trace_id": f"t{agent}"},
            "session": {"Session-Id": f"s{agent}", "b": 1},
            "both": {"b": 1, "session_id": f"s{agent}", "trace_id": f"t{number}"},
            "none": {},
            "some": {"run_id": f"r{agent}"} if self.rng.random() < 0.7 else {},
            "litellm": {"trace_id": f"t{number}"},
        }[self.names]
        about = {"metadata": metadata} if metadata else {}
        if self.names == "litellm":
            about["call_type"] = "acompletion"
        asked = {self.nested: request} if self.nested else request
        return {**asked, "response": response, **about} if self.at_end else {**about, **asked, "response": response}


def written(path, seed):
    path.write_text("\n".join(Log(seed).lines()) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("seed", range(60))
def test_news_alone_give_what_the_strict_parser_gives(tmp_path, seed):
    file = written(tmp_path / "log.jsonl", seed)
    quick, strict = list(_items(by_news(file))), list(_items(entries(file)))
    assert quick == strict
    assert repr(quick) == repr(strict)  # 1 and True and 1.0 are equal


def test_the_logs_of_this_test_are_read_by_their_news(tmp_path):
    """Of three rows in five at least the prompt is taken as known, or else these tests compare the strict parser with itself."""
    known = total = 0
    for seed in range(40):
        for row in by_news(written(tmp_path / "log.jsonl", seed)):
            request = row.value.get("request") or row.value.get("body") or row.value if hasattr(row, "value") else {}
            total += 1
            known += isinstance(request.get("messages"), KnownMessages)
    assert known > total * 0.6


def in_parts(paths, count):
    """What the parts of a log give, put in order; None where they hang together."""
    owners, told = Owners(), [list(part_of(paths, Part(index, count))) for index in range(count)]
    if any(found and found[-1] is None for found in told):
        return None
    steps = [sum(isinstance(each, Names) for each in found) for found in told]
    assert len(set(steps)) == 1
    for index, found in enumerate(told):
        assert [each.last for each in found if isinstance(each, Names)] == [False] * (steps[index] - 1) + [True]
        if not all(owners.agree(index, each) for each in found if isinstance(each, Names)):
            return None
    placed = [[each for each in found if not isinstance(each, Names)] for found in told]
    assert all([place for place, _ in each] == sorted(place for place, _ in each) for each in placed)
    return [item for _, item in heapq.merge(*placed, key=lambda found: found[0])]


def part_of(paths, part):
    try:
        yield from CONNECTOR.read_part(paths, part)
    except Undivided:
        yield None


def test_parts_give_what_one_reader_gives(tmp_path):
    divided = 0
    for seed in range(80):
        file = written(tmp_path / "log.jsonl", seed)
        whole = list(_items(by_news(file)))
        for count in (2, 3):
            found = in_parts([file], count)
            if found is not None:
                divided += 1
                assert found == whole
                assert repr(found) == repr(whole)
    assert divided > 50


def test_parts_of_several_files_give_what_one_reader_gives(tmp_path):
    divided = 0
    for seed in range(40):
        lines = Log(seed).lines()
        files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
        for file, part in zip(files, (lines[:25], lines[25:]), strict=True):
            file.write_text("\n".join(part) + "\n", encoding="utf-8")
        found = in_parts(files, 2)
        if found is not None:
            divided += 1
            assert found == list(_items(entries_of(files)))
    assert divided > 10


def call(number, messages, **about):
    answer = {"role": "assistant", "content": f"answer {number}"}
    return {"request": {"messages": messages}, "response": {"id": f"c{number}", "choices": [{"message": answer}]}, **about}


USERS = [[{"role": "system", "content": "You help."}, {"role": "user", "content": f"task {i}"}] for i in range(20)]


SAME = {"id": "same", "choices": [{"message": {"role": "assistant", "content": "a"}}]}
RESPONSE = {"object": "response", "output": []}


@pytest.mark.parametrize("rows", [
    [call(i, USERS[0], trace_id=f"t{i}") | {"response": SAME} for i in range(20)],
    [call(i, USERS[i], trace_id="t", session_id=f"s{i}") for i in range(20)],
    [{"messages": [*USERS[i], {"role": "assistant", "content": "whole run"}]} for i in range(20)],
    [call(i, [{"role": "system", "content": f"alone {i}"}]) for i in range(20)],
    [{"request": {"input": "hi", "previous_response_id": f"r{i}"}, "response": RESPONSE, "trace_id": f"t{i}"} for i in range(20)],
    [{"request": {"input": [{"type": "item_reference", "id": "x"}]}, "response": RESPONSE, "trace_id": f"t{i}"} for i in range(20)],
    [{"custom_id": f"{i}", "body": {"messages": USERS[i]}} for i in range(20)],
    [{"neither": i} for i in range(6000)],
])  # fmt: skip
def test_what_may_hang_together_is_not_divided(tmp_path, rows):
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert in_parts([file], 2) is None


def test_calls_that_go_on_from_one_another_are_of_one_part(tmp_path):
    """Without any id, and with the same system prompt."""
    rows, prompts = [], [list(prompt) for prompt in USERS]
    for number in range(200):
        prompt = prompts[number % 20]
        rows.append(call(number, list(prompt)))
        prompt += [rows[-1]["response"]["choices"][0]["message"], {"role": "user", "content": "more"}]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = in_parts([file], 2)
    assert found == list(_items(entries(file)))
    assert len(found) == 20
    sizes = [len([each for each in part_of([file], Part(i, 2)) if not isinstance(each, Names)]) for i in range(2)]
    assert min(sizes) > 3


LONG = [{"role": "system", "content": "Policy. " * 400}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize("row", [
    {"call_type": "aresponses", "messages": LONG, "response": {"id": "r1", **RESPONSE}, "id": "r1"},
    {"metadata": {"messages": [*LONG, {"role": "user", "content": "more"}]}, "messages": [*LONG[1:], {"role": "user", "content": "more"}],
     "response": SAME},
    {"metadata": {"tools": TOOLSETS[0]}, "request": {"messages": LONG, "tools": TOOLSETS[1]}, "response": SAME},
    {"request": {"messages": LONG, "tools": [{"name": "x", "input_schema": {"type": "object"}}]}, "response": SAME},
    {"request": {"messages": LONG, "system": "hidden"}, "response": SAME},
    {"request": {"messages": LONG}, "response": {"error": "no answer"}},
    {"request": {"messages": []}, "response": SAME, "padding": "x" * 3000},
    {"request": {"messages": [*LONG, 7]}, "response": SAME},
])  # fmt: skip
def test_rows_of_other_shapes(tmp_path, row):
    """Behind rows that made the prompt and the tools known."""
    file = tmp_path / "log.jsonl"
    known = [call(0, LONG), call(1, LONG) | {"request": {"messages": LONG, "tools": TOOLSETS[0]}}]
    known.append({"metadata": {"messages": LONG}, "messages": LONG, "response": SAME})
    file.write_text("\n".join(SPELLINGS[0](each) for each in [*known, row, row]))
    assert repr(list(_items(by_news(file)))) == repr(list(_items(entries(file))))


@pytest.mark.parametrize("text", [
    '{"a\\\\":1,"b":1,"b":2}', '{"a\\\\" :1,"b":1,"b":2}', '{"a" :1,"b":1,"b":2}', '{"a":18446744073709551616}', '{"a":"\\\\\\":"}',
    '{"a\\\\\\\\":1,"b":1,"b":2}', '{"a": "\\":", "b": 1}', '{"' + "\\\\" * 40 + '":1}', '{"a":-0.0,"b":1e400}',
])  # fmt: skip
def test_keys_are_counted_right(text):
    outcomes = []
    for read in (quick_json, parse_json):
        try:
            outcomes.append(repr(read(text.encode())))
        except ValueError as error:
            outcomes.append(f"refused: {error}")
    assert outcomes[0] == outcomes[1]


def test_a_line_that_is_too_long_is_not_held(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"a":"' + b"x" * (24 << 20) + b'"}\n{"b":1}\n')
    tracemalloc.start()
    first, second = list(lines(file, max_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first.reason == f"a line of {(24 << 20) + 9} bytes, wanted at most {1 << 20}"
    assert (second.data, second.number, second.offset) == (b'{"b":1}', 2, (24 << 20) + 9)
    assert peak < 8 << 20


SECRET = "sk-ant-" + "a1B2c3D4e5" * 4


def test_processes_give_what_this_process_gives(tmp_path, monkeypatch):
    """Divided, not divisible, and in one process: the same items in the same order, and as many redactions."""
    monkeypatch.setattr(reading, "_LARGE_BYTES", 0)
    rows = [
        call(
            i, [{"role": "system", "content": f"The key is {SECRET}."}, {"role": "user", "content": f"task {i % 9}"}], trace_id=f"t{i % 9}"
        )
        for i in range(60)
    ]
    divisible, hanging = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    divisible.write_text("\n".join([*map(json.dumps, rows), "{broken", '{"messages": 1}']))
    hanging.write_text("\n".join(json.dumps({**row, "trace_id": f"t{i}", "session_id": f"s{i % 2}"}) for i, row in enumerate(rows * 2)))
    started = []
    begin = readers.Process.begin

    def counted(process, unit, door, part=None):
        started.append(part)
        begin(process, unit, door, part)

    monkeypatch.setattr(readers.Process, "begin", counted)
    door = Door(rules=rules_of(), salt=b"salt")
    for file, parts in ((divisible, [Part(0, 2), Part(1, 2)]), (hanging, [Part(0, 2), Part(1, 2), None])):
        here, apart = Reading([file], door=door, processes=0), Reading([file], door=door, processes=2)
        started.clear()
        assert list(apart) == list(here)
        assert started in (parts, parts[:2])
        assert apart.redacted == here.redacted
        assert here.redacted.total() > 0


def test_an_error_of_a_part_is_that_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LARGE_BYTES", 0)
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(call(1, USERS[0])).encode() + b"\n")
    traces = Reading([file], processes=2)
    assert [type(item) for item in traces] == [Trace]
    file.unlink()
    with pytest.raises(SourceError):
        list(Reading([file], format="chatlog", processes=2))
