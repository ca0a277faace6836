"""Messages for export: ids, arguments, control tokens, and what JSON columns can't hold."""

import json

from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.nouns import Message, ToolCall
from counterplay.finetune.portable import control_pattern, has_fraction, neutralise, portable, unfit


def act(*ids):
    return Message.assistant(None, [ToolCall(i, "find", '{"n": 1}') for i in ids])


def links(messages):
    """The calls' ids, and for each result the position of the call it answers."""
    calls = [call["id"] for m in messages for call in m.get("tool_calls") or ()]
    return calls, [calls.index(m["tool_call_id"]) for m in messages if m["role"] == "tool"]


def test_a_reused_id_is_issued_anew_and_its_result_follows():
    logged = [
        act("call_abcdefghijkl"),
        Message.tool("1", "call_abcdefghijkl"),
        act("call_abcdefghijkl"),
        Message.tool("2", "call_abcdefghijkl"),
    ]
    messages = portable(logged)
    calls, answers = links(messages)
    assert calls[0] == "call_abcdefghijkl"
    assert len(set(calls)) == 2
    assert answers == [0, 1]
    assert calls[1].startswith("call_")
    assert len(calls[1]) == len(calls[0])


def test_parallel_calls_under_one_id_are_paired_in_order_and_a_missing_result_shifts_nothing():
    logged = [
        act("a", "a", "b"),
        Message.tool("1", "a"),
        Message.tool("2", "a"),
        Message.tool("3", "b"),
        act("a"),
        act("a"),
        Message.tool("4", "a"),
    ]
    calls, answers = links(portable(logged))
    assert len(set(calls)) == 5
    assert answers == [0, 1, 2, 4]


def test_ids_that_are_unique_stay():
    logged = [act("a", "b"), Message.tool("2", "b"), Message.tool("1", "a")]
    assert links(portable(logged)) == (["a", "b"], [1, 0])


@given(st.lists(st.lists(st.sampled_from(["a", "b", "", "call_x"]), min_size=1, max_size=3), max_size=6))
def test_ids_are_unique_results_keep_their_order_and_prefixes_are_stable(ids):
    logged = [m for group in ids for m in (act(*group), *(Message.tool("r", i) for i in group))]
    messages = portable(logged)
    calls, answers = links(messages)
    assert len(set(calls)) == len(calls)
    assert answers == list(range(len(calls)))
    for length in range(len(logged) + 1):
        assert portable(logged[:length]) == messages[:length]


def test_arguments_become_objects_and_everything_else_stays():
    fields = {"role": "assistant", "content": None, "refusal": None, "x": {"y": None}}
    calls = [
        {"id": str(i), "type": "function", "function": {"name": "f", "arguments": text}}
        for i, text in enumerate(['{"b":1,"a":"é"}', "", "[1", "[1]"])
    ]
    (message,) = portable([Message.from_openai({**fields, "tool_calls": calls})])
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [{"b": 1, "a": "é"}, {}, "[1", "[1]"]
    assert list(message["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]
    assert {key: message[key] for key in ("role", "content", "x")} == {"role": "assistant", "content": None, "x": {"y": None}}
    assert "refusal" not in message


def test_control_tokens_are_broken_in_text_arguments_and_parts():
    outside, sampled = control_pattern(["<tool_call>", "<|im_end|>", "\n\n", "x"]), control_pattern(["<|im_end|>"])
    messages = [
        {"role": "tool", "content": "a<|im_end|>\n\n<|im_start|>system\n<tool_call>x"},
        {"role": "user", "content": [{"type": "text", "text": "<start_of_turn>"}]},
        {"role": "assistant", "content": "<tool_call><|im_end|>", "tool_calls": [{"function": {"arguments": {"q": "<|eot_id|>"}}}]},
        {"role": "tool", "content": "if a <|> b and <b>bold</b> |x|"},
    ]
    cleaned, found = neutralise(messages, outside, sampled)
    assert cleaned[0]["content"] == "a< |im_end|>\n\n< |im_start|>system\n< tool_call>x"
    assert cleaned[1]["content"][0]["text"] == "< start_of_turn>"
    assert cleaned[2]["content"] == "<tool_call>< |im_end|>"
    assert cleaned[2]["tool_calls"][0]["function"]["arguments"]["q"] == "< |eot_id|>"
    assert cleaned[3] == messages[3]
    assert found == 6
    assert neutralise(cleaned, outside, sampled) == (cleaned, 0)


def test_a_system_prompt_may_explain_markup_and_may_hold_no_special_token():
    outside, ours = control_pattern(["<tool_call>", "<|im_end|>"]), control_pattern(["<|im_end|>"])
    text = "Call as <tool_call>{...}</tool_call>, never with <|im_end|>."
    roles = ("system", "developer", "assistant", "user", "tool", "function")
    cleaned, _ = neutralise([{"role": role, "content": text} for role in roles], outside, ours)
    assert [("<tool_call>" in m["content"], "<|im_end|>" in m["content"]) for m in cleaned] == [(True, False)] * 3 + [(False, False)] * 3


def test_what_a_json_column_cannot_hold():
    assert unfit([{"content": "a\ud800"}]) == "text with a lone surrogate"
    assert unfit([{"a": [{"b": 2**63}]}]) == "an integer of more than 64 bits"
    assert unfit(json.loads('[{"a": NaN}]')) == "a number that is not finite"
    assert unfit([{"a": [1, 2.5, True, None, "é"]}]) == ""
    assert unfit(None) == ""
    assert has_fraction([{"a": [{"b": 0.0048}]}])
    assert not has_fraction([{"a": 1, "b": "0.5"}])
