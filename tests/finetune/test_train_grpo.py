"""GRPO by TRL's own trainer in an environment: rows reach it, its tools are played, its reward is what is learnt from."""

import json
from importlib.resources import files
from typing import ClassVar

import pytest

from counterplay.core.errors import UserError
from counterplay.finetune.grpo import logged_prompts
from counterplay.finetune.train import train_grpo
from counterplay.finetune.write import write_dataset
from tests.finetune.trainings import ALL, KilledError, killing_at, same_weights

QUICK = {"batch_size": 4, "generations": 4, "max_completion": 8}


class Shop:
    """A world of one tool. It pays for nothing but being there; what was said is judged by `vowels`."""

    rows: ClassVar[list] = []

    def reset(self, **row):
        Shop.rows.append(row)

    def find(self, order: int) -> str:
        """Look an order up.

        Args:
            order: its number
        """
        return f"order {order}"

    def get_reward(self) -> float:
        return 0.25


def vowels(completions, **_):
    said = [message[-1]["content"] or "" for message in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in said]


@pytest.fixture(scope="module")
def player(model_dir, tmp_path_factory):
    """The tiny model with a chat template whose tool calls TRL can read."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("grpo") / "player"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = files("trl").joinpath("chat_templates", "qwen3.jinja").read_text()
    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "grpo"
    write_dataset(logged_prompts([kit.trace(f"t{i}") for i in range(3)]), folder, split=ALL)
    return folder


def test_what_is_rewarded_becomes_likelier(player, prompts, tmp_path):
    seen = []
    Shop.rows.clear()
    options = {**QUICK, "batch_size": 8, "generations": 8, "learning_rate": 5e-2, "steps": 10}
    report = train_grpo(player, prompts, tmp_path / "out", environment=Shop, rewards=[vowels], on_step=seen.append, **options)
    assert report.steps == 10
    assert (report.rows, report.trained_tokens) == (3, 0)
    assert seen[0].metrics["rewards/Shop/mean"] == 0.25
    first, last = ([step.metrics["reward"] for step in part] for part in (seen[:3], seen[-3:]))
    assert sum(last) / 3 > sum(first) / 3 + 0.05
    assert len(Shop.rows) == 10 * 8
    row = Shop.rows[0]
    assert row["task"] in {"t0", "t1", "t2"}
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert set(row["prompt"][0]) == {"role", "content"}, "messages keep their form on the way through Arrow"
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_a_killed_training_resumes_to_the_same_weights(player, prompts, tmp_path):
    options = {**QUICK, "steps": 4, "learning_rate": 1e-2, "checkpoint_steps": 2, "rewards": [vowels]}
    straight = train_grpo(player, prompts, tmp_path / "straight", **options)
    with pytest.raises(KilledError):
        train_grpo(player, prompts, tmp_path / "out", on_step=killing_at(3), **options)
    resumed = train_grpo(player, prompts, tmp_path / "out", resume=True, **options)
    assert same_weights(straight.out_dir, resumed.out_dir)
    lines = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_bad_input_is_refused(player, model_dir, prompts, tmp_path):
    with pytest.raises(UserError, match="neither an environment nor rewards"):
        train_grpo(player, prompts, tmp_path / "out")
    with pytest.raises(UserError, match="3 generations for batches of 4"):
        train_grpo(player, prompts, tmp_path / "out", environment=Shop, batch_size=4, generations=3)
    with pytest.raises(UserError, match="nothing is truncated"):
        train_grpo(player, prompts, tmp_path / "out", environment=Shop, max_length=40, **QUICK)
    with pytest.raises(UserError, match="TRL refuses this training"):
        train_grpo(player, prompts, tmp_path / "out", environment=object, **QUICK)


def test_calls_are_read_as_the_model_s_own_template_writes_them(tokenizer):
    """The tiny tokenizer's template is none of TRL's, but writes calls as Qwen does; one that writes them its own way can't be read."""
    from copy import deepcopy

    from counterplay.finetune.training.calls import read_calls

    known = deepcopy(tokenizer)
    assert read_calls(known)
    sent = known.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True, return_dict=False)
    ids = known('<tool_call>\n{"name": "find", "arguments": {"order": 3}}\n</tool_call><|im_end|>', add_special_tokens=False)["input_ids"]
    assert known.parse_response(ids, prefix=sent)["tool_calls"][0]["function"] == {"name": "find", "arguments": {"order": 3}}
    unknown = deepcopy(tokenizer)
    unknown.chat_template = unknown.chat_template.replace("<tool_call>", "CALL ").replace("</tool_call>", " END")
    assert not read_calls(unknown)
