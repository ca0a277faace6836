"""Rows read by their news are the rows that the strict parser reads."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.connectors.chat.growing import entries as by_news
from counterplay.connectors.chat.growing import in_full
from counterplay.connectors.chatlog import _items
from counterplay.connectors.lines import entries, parse_json, quick_json
from counterplay.connectors.normalise import KnownMessages

SPELLINGS = (
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    json.dumps,
    lambda value: json.dumps(value, ensure_ascii=False),
    lambda value: json.dumps(value, separators=(" , ", " : ")),
)
TOOLS = [{"type": "function", "function": {"name": "pay", "description": "é" * 40, "parameters": {"type": "object"}}}]


def rows(seed: int, *, nested: bool) -> list[dict]:
    """The calls of some agents, interleaved; now and then one is retried, edited, or goes on from an earlier point."""
    rng = random.Random(seed)
    agents = [[{"role": "system", "content": f"You are agent {i}. " * 20}, {"role": "user", "content": f"Go, {i} ☃"}] for i in range(3)]
    found = []
    for number in range(24):
        agent = rng.randrange(3)
        messages = agents[agent]
        if rng.random() < 0.15:
            messages = messages[: rng.randrange(2, len(messages) + 1)]
        if rng.random() < 0.1:
            messages = [*messages[:-1], {**messages[-1], "content": f"edited {number}"}]
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "pay", "arguments": json.dumps({"n": number})}}
        answer = {"role": "assistant", "content": rng.choice([None, "fine", 'he said "messages":[ and \\']), "tool_calls": [call]}
        request = {"model": "m", "messages": messages, "temperature": 0.5, **({"tools": TOOLS} if rng.random() < 0.9 else {})}
        response = {
            "id": f"c{number}",
            "choices": [{"index": 0, "finish_reason": "stop", "message": answer}],
            "usage": {"prompt_tokens": 3},
        }
        name = {"metadata": {"trace_id": f"t{agent}"}} if rng.random() < 0.8 else {}
        found.append({**name, "request": request, "response": response} if nested else {**name, **request, "response": response})
        agents[agent] = [
            *messages,
            answer,
            {"role": "tool", "tool_call_id": call["id"], "content": f"paid {number} " + "x" * rng.randrange(80)},
        ]
    return found


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
@pytest.mark.parametrize("seed", range(6))
def test_rows_and_traces_are_those_of_the_strict_parser(tmp_path, seed, spelling, nested):
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(SPELLINGS[spelling](row) for row in rows(seed, nested=nested)) + "\n")
    quick, strict = list(by_news(file)), list(entries(file))
    assert [(in_full(entry.value), entry.line, entry.offset) for entry in quick] == [(e.value, e.line, e.offset) for e in strict]
    assert list(_items(by_news(file))) == list(_items(entries(file)))
    assert any(isinstance((entry.value.get("request") or entry.value)["messages"], KnownMessages) for entry in quick)


@pytest.mark.parametrize("damage", [
    lambda text: text.replace('"model":"m"', '"model":"m","model":"n"', 1),
    lambda text: text.replace('"temperature":0.5', '"temperature":NaN', 1),
    lambda text: text[: len(text) // 2],
    lambda text: text.replace("Go, ", "Go, \\ud800", 1),
    lambda text: text.replace('"role":"user"', '"role":"clown"', 1),
    lambda text: text.replace('"role":"user","content"', '"role":"user","role":"user","content"', 1),
    lambda text: text.replace('"content":null', '"content":[{"type":"tool_use","id":"1","name":"pay","input":{}}]', 1),
    lambda text: text.replace('"model":"m"', '"model":"m","system":"hidden"', 1),
    lambda text: text.replace("paid", "redacted-by-litellm", 1),
    lambda text: text.replace('"temperature":0.5', '"temperature":1e5', 1),
    lambda text: text.replace('"n": ', '"n": 1e', 1),
])  # fmt: skip
def test_damaged_rows_are_named_as_by_the_strict_parser(tmp_path, damage):
    file = tmp_path / "log.jsonl"
    texts = [SPELLINGS[0](row) for row in rows(0, nested=True)]
    texts = [damage(text) if number % 3 == 1 else text for number, text in enumerate(texts)]
    file.write_text("\n".join(texts))
    assert list(_items(by_news(file))) == list(_items(entries(file)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.sampled_from('ab":\\{}[], é\ud800')),
    lambda kids: st.lists(kids) | st.dictionaries(st.text(alphabet='ab":\\'), kids),
)
FORMS = [{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (" , ", " : ")}]


def outcome(read, data):
    try:
        return repr(read(data))
    except ValueError as error:
        return f"refused: {error}"


@settings(max_examples=1500, deadline=None)
@given(JSON, st.sampled_from(FORMS), st.integers(0, 400), st.sampled_from(["", '"a":1,', "{", ",", "\\", '":', "1" * 20]))
def test_the_quick_parser_says_what_the_strict_one_says(value, form, place, inserted):
    text = json.dumps(value, **form)
    data = (text[:place] + inserted + text[place:]).encode(errors="surrogatepass")
    assert outcome(quick_json, data) == outcome(parse_json, data)
