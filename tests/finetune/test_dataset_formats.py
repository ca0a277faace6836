"""Files for services and other trainers: their documented shape, and what they can't say counted by reason."""

import json
from dataclasses import replace

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Step, ToolCall
from counterplay.finetune.kto import KTORow, kto_rows
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import Lineage, SFTRow
from counterplay.finetune.trajectories import logged_rows
from counterplay.finetune.trajectory_pairs import trajectory_rows
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.forks import fork

ALL = {"train": 1.0}


def lines(folder, name, split="train"):
    return [json.loads(line) for line in (folder / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def row(trajectory, task="t", trained=None):
    flags = tuple(m.role == "assistant" for m in trajectory.messages) if trained is None else trained
    return SFTRow(trajectory.messages, flags, trajectory.tools, 1.0, Lineage(task))


def test_services_get_arguments_as_text_and_a_weight_of_zero_where_nothing_is_to_be_learned(kit, tmp_path):
    trajectory = kit.trajectory()
    flags = tuple(i > 2 and m.role == "assistant" for i, m in enumerate(trajectory.messages))
    write_dataset([row(trajectory, trained=flags)], tmp_path / "d", split=ALL, formats=("openai",))
    (line,) = lines(tmp_path / "d", "openai")
    assert list(line) == ["messages", "tools", "parallel_tool_calls"]
    assert [m["role"] for m in line["messages"]] == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert [m.get("weight") for m in line["messages"]] == [None, None, 0, None, None, None, None]
    assert line["messages"][2]["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"order":7}'}}]
    assert line["tools"] == [tool.to_openai() for tool in kit.tools]
    header = (tmp_path / "d" / "README.md").read_text()
    assert "path: openai/train.jsonl" in header


def test_a_step_level_pair_is_a_preference_of_one_message_a_side(kit, tmp_path):
    report = write_dataset(dpo_rows([kit.tree()]), tmp_path / "d", split=ALL, formats=("parquet", "openai"))
    (line,) = lines(tmp_path / "d", "openai")
    assert list(line) == ["input", "preferred_output", "non_preferred_output"]
    assert list(line["input"]) == ["messages", "tools", "parallel_tool_calls"]
    assert line["input"]["messages"][-1]["role"] == "tool"
    (good,), (bad,) = line["preferred_output"], line["non_preferred_output"]
    assert json.loads(good["tool_calls"][0]["function"]["arguments"])["amount"] == 5
    assert json.loads(bad["tool_calls"][0]["function"]["arguments"])["amount"] == 50
    assert report.unsayable == {"openai": {}}


def test_whole_branches_are_no_preference_for_services(kit, tmp_path):
    with pytest.raises(UserError, match="1 with more than one message a side"):
        write_dataset(trajectory_rows([fork(kit)]), tmp_path / "d", split=ALL, formats=("parquet", "openai"))
    assert not (tmp_path / "d").exists()
    mixed = [*trajectory_rows([fork(kit)]).rows, *dpo_rows([kit.tree(task="t2")]).rows]
    report = write_dataset(mixed, tmp_path / "d", split=ALL, formats=("parquet", "openai"))
    assert report.unsayable == {"openai": {"more than one message a side": 1}}
    assert len(lines(tmp_path / "d", "openai")) == 1
    assert len(read_dataset(tmp_path / "d")[1]) == 2
    assert "- openai: all but 1 with more than one message a side" in (tmp_path / "d" / "README.md").read_text()


def test_sharegpt_alternates_and_holds_tool_calls_as_json(kit, tmp_path):
    write_dataset(logged_rows([kit.trace()]), tmp_path / "d", split=ALL, formats=("sharegpt",))
    (line,) = lines(tmp_path / "d", "sharegpt")
    turns = line["conversations"]
    assert [turn["from"] for turn in turns] == ["human", "function_call", "observation", "function_call", "observation", "gpt"]
    assert json.loads(turns[1]["value"]) == {"name": "find", "arguments": {"order": 7}}
    assert (line["system"], turns[-1]["value"]) == ("You refund orders.", "Done.")
    assert [tool["name"] for tool in json.loads(line["tools"])] == ["find", "refund"]


def test_what_follows_the_last_answer_is_not_needed(kit, tmp_path):
    stopped = kit.state().extend(Step(kit.say("Anything else?"), (Message.user("###STOP###"),), terminated=True))
    write_dataset([row(stopped)], tmp_path / "d", split=ALL, formats=("sharegpt",))
    assert [turn["from"] for turn in lines(tmp_path / "d", "sharegpt")[0]["conversations"]] == ["human", "gpt"]


def test_sharegpt_preferences_and_labels(kit, tmp_path):
    write_dataset(dpo_rows([kit.tree()]), tmp_path / "dpo", split=ALL, formats=("sharegpt",))
    (pair,) = lines(tmp_path / "dpo", "sharegpt")
    assert pair["conversations"][-1]["from"] == "observation"
    assert [json.loads(pair[side]["value"])["arguments"]["amount"] for side in ("chosen", "rejected")] == [5, 50]
    write_dataset(kto_rows([kit.tree()]), tmp_path / "kto", split=ALL, formats=("sharegpt",))
    found = lines(tmp_path / "kto", "sharegpt")
    assert {line["kto_tag"] for line in found} == {True, False}
    assert all(line["conversations"][-1]["from"] == "function_call" for line in found)


def test_what_sharegpt_can_t_say_is_counted_by_reason(kit, tmp_path):
    good = kit.trajectory("good")
    calls = [ToolCall("a", "find", '{"order": 1}'), ToolCall("b", "find", '{"order": 2}')]
    both = kit.state("both").extend(
        Step(Message.assistant(None, calls), (Message.tool("one", "a"), Message.tool("two", "b")), terminated=False)
    )
    both = both.extend(Step(kit.say("Done."), terminated=True))
    chatty = Message.assistant("Let me see.", [calls[0]])
    beside = kit.state("beside").extend(kit.step(chatty, "one", call_id="a")).extend(Step(kit.say("Done."), terminated=True))
    twice = kit.state("twice").extend(Step(kit.say("Hm."))).extend(Step(kit.say("Done."), terminated=True))
    picture = Message.from_openai({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]})
    seen = replace(good, prompt=(picture,))
    rows = [
        row(good, "good"),
        row(both, "both"),
        row(beside, "beside"),
        row(twice, "twice"),
        row(seen, "seen"),
        row(kit.trajectory("masked", amount=9), "masked", trained=(False,) * 6 + (True,)),
    ]
    report = write_dataset(rows, tmp_path / "d", split=ALL, formats=("parquet", "sharegpt"))
    assert report.unsayable["sharegpt"] == {
        "text beside a tool call": 1,
        "turns that do not alternate": 1,
        "content that is not text": 1,
        "an answer that is not to be trained on": 1,
    }
    _, parallel = lines(tmp_path / "d", "sharegpt")
    assert json.loads(parallel["conversations"][1]["value"]) == [{"name": "find", "arguments": {"order": i}} for i in (1, 2)]
    assert parallel["conversations"][2] == {"from": "observation", "value": "one\ntwo"}


def test_sharegpt_has_no_mask_for_labels_and_no_place_for_reasoning(kit, tmp_path):
    def label(*completion, trained):
        return KTORow(kit.state().messages, completion, True, kit.tools, trained=trained, lineage=Lineage("t"))

    answer = kit.say("Done.")
    ways = [
        label(kit.call("find", order=7), Message.tool("found", "c1"), answer, trained=(True, False, True)),
        label(answer, trained=(True,)),
        label(kit.say("Not mine."), trained=(False,)),
        label(Message.assistant("Thought out.", reasoning="Let me think."), trained=(True,)),
    ]
    report = write_dataset(ways, tmp_path / "kto", split=ALL, formats=("parquet", "sharegpt"))
    assert report.unsayable["sharegpt"] == {
        "more than one message in the completion": 1,
        "an answer that is not to be trained on": 1,
        "reasoning": 1,
    }
    (line,) = lines(tmp_path / "kto", "sharegpt")
    assert line["conversations"][-1] == {"from": "gpt", "value": "Done."}
    thinking = kit.state().extend(Step(Message.assistant("Thought out.", reasoning="Let me think."), terminated=True))
    report = write_dataset([row(thinking), row(kit.trajectory())], tmp_path / "sft", split=ALL, formats=("parquet", "sharegpt"))
    assert report.unsayable["sharegpt"] == {"reasoning": 1}
    pair = dpo_rows([kit.tree()]).rows[0]
    report = write_dataset(
        [pair, replace(pair, rejected=(ways[3].completion[0],))], tmp_path / "dpo", split=ALL, formats=("parquet", "sharegpt")
    )
    assert report.unsayable["sharegpt"] == {"reasoning": 1}


def test_an_unknown_format_is_refused(kit, tmp_path):
    with pytest.raises(UserError, match=r"got formats csv"):
        write_dataset(logged_rows([kit.trace()]), tmp_path / "d", formats=("csv",))
