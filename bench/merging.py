"""Append-only calls as one row with a mask, against one row a call: tokens to train on, and whether the gradient is the same.

Traces of 60 calls, each with a tool result, are made into sequences both ways over chat templates that ship with TRL: merged, as datasets
are trained on, and one by one, every call a row of its own with the whole context before it and a loss on its answer alone. Both hold the
same masked tokens. The gradient of the summed loss over all of them, divided by their number, is taken of a tiny random model in float64
and compared: |merged - one by one| / |one by one| of the whole gradient.

Run it as `python bench/merging.py [--calls 60] [--traces 1] [--templates qwen2_5 ...] [--json]`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.finetune.masks import IGNORED, tokenised
from counterplay.finetune.portable import portable
from tests.finetune.chat_templates import TOOLS, acting, tokenizer_for, trl_templates

TEMPLATES = ("qwen2_5", "qwen3", "glm4moe", "gptoss", "llama3_1", "gemma4_v5")
WORDS = [
    "user",
    "system",
    "find",
    "pay",
    "order",
    "refund",
    "amount",
    "the",
    "of",
    "done",
    "17",
    "42",
    "not",
    "yet",
    "sent",
    "paid",
    "on",
    "account",
]


def trace(calls: int, chance: Random) -> Trajectory:
    """An agent that looks things up, with a little reasoning, and says at the end what it found."""

    def some(low: int, high: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))

    state = Trajectory(TOOLS, (Message.system(some(20, 30)), Message.user(some(10, 20))))
    for at in range(calls - 1):
        name = "find" if chance.random() < 0.7 else "pay"
        action = acting(name, f"c{at}", None, some(2, 6), q=some(1, 3), amount=chance.randint(1, 99))
        state = state.extend(Step(action, (Message.tool(some(8, 24), f"c{at}"),)))
    return state.extend(Step(Message.assistant(some(5, 10), reasoning=some(2, 6)), terminated=True))


def merged(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any) -> list[dict[str, Any]]:
    return tokenised(tokenizer, messages, tools, [fields["role"] == "assistant" for fields in messages])


def one_by_one(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any) -> Iterator[dict[str, Any]]:
    for at, fields in enumerate(messages):
        if fields["role"] == "assistant":
            yield from tokenised(tokenizer, messages[: at + 1], tools, [*(False for _ in range(at)), True])


def tiny_model(vocabulary: int) -> Any:
    """A random Qwen3 of 2 layers, 32 wide, in float64, so that what is compared is the mathematics and not the rounding."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = Qwen3Config(vocab_size=vocabulary, head_dim=16, max_position_embeddings=2**15, tie_word_embeddings=True, **sizes, **ids)
    return Qwen3ForCausalLM(config).to(torch.float64)


def gradient(model: Any, sequences: Sequence[Mapping[str, Sequence[int]]]) -> Any:
    """The gradient of the mean loss over all labelled tokens of all sequences, as one vector."""
    import torch

    count = sum(label != IGNORED for sequence in sequences for label in sequence["labels"])
    model.zero_grad()
    for sequence in sequences:
        labels = torch.tensor(sequence["labels"])[1:]
        places = labels.ne(IGNORED).nonzero()[:, 0]
        logits = model(input_ids=torch.tensor([sequence["input_ids"]]), logits_to_keep=places).logits[0]
        (torch.nn.functional.cross_entropy(logits, labels[places], reduction="sum") / count).backward()
    return torch.cat([weights.grad.flatten() for weights in model.parameters()])


def compare(template: str, calls: int, traces: int) -> dict[str, Any]:
    tokenizer = tokenizer_for(trl_templates()[template])
    tools = [tool.to_openai() for tool in TOOLS]
    together: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    for seed in range(traces):
        messages = portable(trace(calls, Random(seed)).messages)
        together += merged(tokenizer, messages, tools)
        apart += one_by_one(tokenizer, messages, tools)
    model = tiny_model(len(tokenizer))
    ours, theirs = gradient(model, together), gradient(model, apart)
    tokens = [sum(len(sequence["input_ids"]) for sequence in made) for made in (together, apart)]
    masked = [sum(label != IGNORED for sequence in made for label in sequence["labels"]) for made in (together, apart)]
    return {
        "template": template,
        "calls": calls,
        "traces": traces,
        "sequences": len(together),
        "rows_one_by_one": len(apart),
        "tokens": tokens[0],
        "tokens_one_by_one": tokens[1],
        "fewer": tokens[1] / tokens[0],
        "masked_tokens": masked[0],
        "masked_tokens_one_by_one": masked[1],
        "gradient_difference": float((ours - theirs).norm() / theirs.norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--traces", type=int, default=1)
    parser.add_argument("--templates", nargs="+", default=TEMPLATES)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = (compare(template, asked.calls, asked.traces) for template in asked.templates)
    if asked.json:
        print(json.dumps(list(found), indent=1))
        return
    print(f"{asked.traces} x {asked.calls} calls\n")
    print("| template | sequences | tokens | one row a call | fewer | tokens with loss | gradient differs by |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        print(
            f"| {row['template']} | {row['sequences']} | {row['tokens']:,} | {row['tokens_one_by_one']:,} | {row['fewer']:.1f} x "
            f"| {row['masked_tokens']:,} | {row['gradient_difference']:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
