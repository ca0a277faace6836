"""Train the example's tokenizer and model from scratch on flawed demonstrations: ten minutes on one CPU core.

First the model learns to copy, from repeated random tokens: without that it stays on a plateau for a long time. Then it
sees demonstrations, at first with pitfalls handled rightly more often than not, so that the tools they need are learnt as
well as the others, and in the end with the demonstrator's real skill, which is what the model keeps.

Run it as `python -m counterplay.examples.ledger.train_model`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from counterplay.examples.ledger.demonstrations import SKILL, demonstrate
from counterplay.examples.ledger.tokenizer import TOOL_DICTS, build_tokenizer

if TYPE_CHECKING:
    import torch

IGNORED = -100
PRACTICE = dict.fromkeys(SKILL, 0.6)

Batch: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""Token ids and labels, both (rows, tokens)."""


def build_model(tokenizer: Any) -> Any:
    """A Llama-architecture causal model of about 0.65 million parameters, initialised at random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and the labels: the ids of what the assistant says, IGNORED elsewhere."""
    encoded = tokenizer.apply_chat_template(messages, tools=TOOL_DICTS, return_dict=True, return_assistant_tokens_mask=True)
    ids = encoded["input_ids"]
    return ids, [token if said else IGNORED for token, said in zip(ids, encoded["assistant_masks"], strict=True)]


def copies(vocab_size: int, *, steps: int, rows: int = 16) -> Iterator[Batch]:
    """Random tokens said several times over; all but the first time is to be predicted."""
    import torch

    for _ in range(steps):
        length = int(torch.randint(8, 32, ()))
        ids = torch.randint(3, vocab_size, (rows, length)).repeat(1, 96 // length)
        labels = ids.clone()
        labels[:, :length] = IGNORED
        yield ids, labels


def lessons(tokenizer: Any, *, demonstrations: int, practised: int, rows: int = 8, seed: int = 0) -> Iterator[Batch]:
    """Fresh demonstrations in batches of like length, padded on the right; the first `practised` with the skill of PRACTICE."""
    import torch

    rng = Random(seed)
    for first in range(0, demonstrations, 32 * rows):
        skill = PRACTICE if first < practised else SKILL
        names = [f"demonstration-{i}" for i in range(first, min(first + 32 * rows, demonstrations))]
        pool = sorted((encode(tokenizer, demonstrate(name, rng, skill).messages) for name in names), key=lambda sample: len(sample[0]))
        groups = [pool[i : i + rows] for i in range(0, len(pool), rows)]
        rng.shuffle(groups)
        for group in groups:
            width = len(group[-1][0])
            ids = [sample + [tokenizer.pad_token_id] * (width - len(sample)) for sample, _ in group]
            labels = [sample + [IGNORED] * (width - len(sample)) for _, sample in group]
            yield torch.tensor(ids), torch.tensor(labels)


def loss_of(model: Any, ids: Any, labels: Any) -> Any:
    """Mean cross-entropy in nats of the labelled tokens; logits are computed only there."""
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        logits = model.lm_head(hidden[wanted != IGNORED]).float()
    return torch.nn.functional.cross_entropy(logits, wanted[wanted != IGNORED])


def learning_rate(done: float, peak: float) -> float:
    """A short warm-up, then a cosine down to a fiftieth. `done` is the share of steps behind us, in [0, 1]."""
    return peak * min(1.0, 0.01 + done / 0.04) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def fit(model: Any, batches: Iterable[Batch], *, steps: int, peak: float = 2e-3) -> None:
    """Train on `steps` batches with AdamW and print the loss now and then."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    start, mean, tokens = time.monotonic(), 0.0, 0
    for step, (ids, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps, peak)
        loss = loss_of(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += ids.numel()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 200 == 0:
            print(f"step {step:5d} of {steps}  loss {mean:.4f}  {tokens / (time.monotonic() - start):,.0f} tokens/s", flush=True)


def train(out: Path, *, copying_steps: int = 1_200, demonstrations: int = 24_000, seed: int = 0) -> None:
    """Train from random weights and write model, tokenizer and chat template to `out`."""
    import torch

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    fit(model, copies(len(tokenizer), steps=copying_steps), steps=copying_steps)
    rows = 8
    practised = demonstrations * 6 // 10
    fit(model, lessons(tokenizer, demonstrations=demonstrations, practised=practised, rows=rows, seed=seed), steps=demonstrations // rows)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.do_sample = True  # so that servers sample at the temperature they are asked for
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
