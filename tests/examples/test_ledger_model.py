"""The example's model: small, with a template that TRL and servers can use, and wrong in the way it was meant to be."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from counterplay.examples.ledger import Ledger, tasks
from counterplay.examples.ledger.demonstrations import PERFECT, demonstrate
from counterplay.examples.ledger.tasks import expected_postings, make_task
from counterplay.examples.ledger.tokenizer import TOOL_DICTS
from counterplay.replay.world import ToolError

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LEDGER = Path(__file__).parents[2] / "examples" / "ledger"
MODEL = LEDGER / "model"


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL)


def conversation(name="heldout-0001"):
    return demonstrate(name, Random(0), PERFECT).messages


def ids_of(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tools=TOOL_DICTS, return_dict=False, **options)


def test_sizes():
    assert (MODEL / "model.safetensors").stat().st_size <= 6_000_000
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert model.config.vocab_size <= 1536


def test_every_prefix_renders_to_a_prefix(tokenizer):
    messages = conversation()
    whole = ids_of(tokenizer, messages)
    for t, message in enumerate(messages):
        opened = message["role"] == "assistant"
        part = ids_of(tokenizer, messages[:t], add_generation_prompt=opened) if t else []
        assert whole[: len(part)] == part


def test_rendering_is_what_the_tokens_say(tokenizer):
    text = tokenizer.apply_chat_template(conversation(), tools=TOOL_DICTS, tokenize=False)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    odd = "Zürich \u20ac 12345 <tool_call>\n\t{}"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd


def test_tokens_of_a_trajectory_are_few(tokenizer):
    lengths = [len(ids_of(tokenizer, conversation(name))) for name in tasks("heldout", 100)]
    assert sum(lengths) / len(lengths) < 400
    assert max(lengths) < 700


def test_arguments_as_text_render_as_arguments_as_objects(tokenizer):
    messages = conversation()
    texts = json.loads(json.dumps(messages))
    for message in texts:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    assert ids_of(tokenizer, texts) == ids_of(tokenizer, messages)


def test_assistant_mask_covers_the_actions_and_their_end(tokenizer):
    messages = conversation()
    encoded = tokenizer.apply_chat_template(messages, tools=TOOL_DICTS, return_dict=True, return_assistant_tokens_mask=True)
    said = tokenizer.decode([token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask])
    calls = [message["tool_calls"][0]["function"] for message in messages if message["role"] == "assistant"]
    assert said == "".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>" for call in calls)


def played_again(record):
    """The world after all calls of a record."""
    world = Ledger(record["task"])
    for message in record["messages"]:
        for call in message.get("tool_calls", ()):
            with contextlib.suppress(ToolError):
                world.call(call["function"]["name"], json.loads(call["function"]["arguments"]))
    return world


@pytest.fixture(scope="module")
def greedy(tmp_path_factory):
    """What the model does on held-out tasks at temperature 0: task to (reward, postings)."""
    from counterplay.examples.ledger.record_logs import record_logs

    path = tmp_path_factory.mktemp("greedy") / "heldout.jsonl"
    record_logs(path, n=60, temperature=0.0, split="heldout")
    return {record["task"]: record for record in map(json.loads, path.read_text().splitlines())}


def test_greedy_success_is_in_the_band(greedy):
    rewards = {name: record["outcome"]["reward"] for name, record in greedy.items()}
    assert len(rewards) == 60
    assert 0.25 <= sum(rewards.values()) / len(rewards) <= 0.65
    easy = [reward for name, reward in rewards.items() if not make_task(name).pitfalls]
    assert sum(easy) / len(easy) >= 0.9
    hard = [reward for name, reward in rewards.items() if make_task(name).pitfalls]
    assert sum(hard) / len(hard) <= 0.1


def test_greedy_failures_are_at_pitfalls(greedy):
    wrong = Counter()
    for name, record in greedy.items():
        world = played_again(record)
        assert world.reward == record["outcome"]["reward"]
        booked, expected = Counter(world.snapshot().postings), Counter(expected_postings(make_task(name)))
        amiss = {posting.document for posting in (booked - expected) + (expected - booked)}
        wrong.update("pitfall" if document in make_task(name).pitfalls else "other" for document in amiss)
    assert wrong["pitfall"] > 20
    assert wrong["other"] <= 0.1 * wrong["pitfall"]


def test_logs_are_the_recorders_and_of_training_tasks():
    with gzip.open(LEDGER / "logs.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    assert len({record["task"] for record in records}) >= 300
    assert all(record["task"].startswith("train-") for record in records)
    assert (LEDGER / "logs.jsonl.gz").stat().st_size < 1_500_000
    success = sum(bool(record["outcome"]["success"]) for record in records) / len(records)
    assert 0.3 <= success <= 0.65
    for record in records:
        assert len(record["calls"]) == sum(message["role"] == "assistant" for message in record["messages"])
        assert all(call["usage"]["completion_tokens"] > 0 for call in record["calls"])
        assert record["metadata"]["effects"]["post_entry"] == "write(books)"


def test_logged_rewards_are_those_of_the_world():
    with gzip.open(LEDGER / "logs.jsonl.gz", "rt") as lines:
        for record in map(json.loads, list(lines)[:50]):
            assert record["messages"][: record["prompt_messages"]] == [message.to_openai() for message in Ledger(record["task"]).prompt]
            assert played_again(record).reward == record["outcome"]["reward"]
