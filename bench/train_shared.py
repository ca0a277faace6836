"""Training on what begins alike: a pair's prompt, and what siblings share, computed once against once a sequence.

A random model of 4 layers, 256 wide, takes forward and backward passes over one step-level pair and over one comparison of four
siblings, after a prefix of so many tokens. Both ways are timed in one process, one after another, several rounds; what is printed are
medians' ratios and how far losses and gradients differ.

Run it as `python bench/train_shared.py [--rounds 3] [--json]`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from counterplay.finetune.prm_trainer import Example, collate, collate_siblings, pairwise_loss
from counterplay.finetune.shared_prompt import bias, share_prompts
from counterplay.finetune.training.sides import joined

PREFIXES, ANSWER, SIBLINGS, WORDS = (500, 2000), 40, 4, 512


def model(auto: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        num_labels=1,
        classifier_dropout=0.0,
        attn_implementation="sdpa",
    )
    return getattr(transformers, auto)(config).eval()


def ids(count: int, seed: str) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(WORDS) for _ in range(count)]


def pair(prefix: int) -> tuple[Callable[[], Any], Callable[[], Any], list[Any]]:
    """A pair's loss (plain DPO against a reference of zero) with the prompt apart and shared."""
    import torch

    prompt, answers = ids(prefix, "prompt"), [ids(ANSWER, side) for side in ("chosen", "rejected")]
    batch = joined([prompt, prompt], answers, [[1] * ANSWER] * 2, 0)
    models = [model("LlamaForCausalLM") for _ in range(2)]
    share_prompts(models[1])

    def loss(which: Any) -> Any:
        hidden = which.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
        scores = which.lm_head(hidden[:, prefix - 1 : -1]).log_softmax(-1)
        logps = scores.gather(2, batch["input_ids"][:, prefix:, None]).sum((1, 2))
        return -torch.nn.functional.logsigmoid(0.1 * (logps[0] - logps[1]))

    return (lambda: loss(models[0])), (lambda: loss(models[1])), models


def siblings(prefix: int) -> tuple[Callable[[], Any], Callable[[], Any], list[Any]]:
    shared = ids(prefix, "prefix")
    sequences = tuple((*shared, *ids(ANSWER, f"sibling {k}")) for k in range(SIBLINGS))
    points = tuple((k, prefix + ANSWER - 1, float(k < SIBLINGS // 2)) for k in range(SIBLINGS))
    rows = [{"example": Example(sequences, points)}]
    apart, together = collate(rows, 0), collate_siblings(rows, 0)
    scorer = model("LlamaForTokenClassification")

    def plain() -> Any:
        return pairwise_loss(scorer(input_ids=apart["input_ids"], use_cache=False).logits, apart)

    def packed() -> Any:
        seen = bias(together["visible"], scorer.dtype)
        options = {"position_ids": together["position_ids"], "attention_mask": seen, "use_cache": False}
        return pairwise_loss(scorer(input_ids=together["input_ids"], **options).logits, together)

    return plain, packed, [scorer, scorer]


def measured(what: str, prefix: int, tokens: tuple[int, int], rounds: int) -> dict[str, Any]:
    import torch

    plain, shared, models = (pair if what == "pair" else siblings)(prefix)
    seconds: dict[str, list[float]] = {"plain": [], "shared": []}
    seen: dict[str, Any] = {}
    for _ in range(rounds):
        for name, loss, which in (("plain", plain, models[0]), ("shared", shared, models[1])):
            which.zero_grad()
            began = time.perf_counter()
            value = loss()
            value.backward()
            seconds[name].append(time.perf_counter() - began)
            grads = torch.cat([weights.grad.flatten() for weights in which.parameters() if weights.grad is not None])
            seen[name] = SimpleNamespace(loss=value.item(), grads=grads)
    off = (seen["plain"].grads - seen["shared"].grads).norm() / seen["plain"].grads.norm()
    return {
        "what": what,
        "prefix": prefix,
        "tokens_apart": tokens[0],
        "tokens_shared": tokens[1],
        "times_faster": statistics.median(seconds["plain"]) / statistics.median(seconds["shared"]),
        "loss_off": abs(seen["plain"].loss - seen["shared"].loss),
        "gradient_off": off.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found = []
    for prefix in PREFIXES:
        for what, sides in (("pair", 2), ("siblings", SIBLINGS)):
            found.append(measured(what, prefix, (sides * (prefix + ANSWER), prefix + sides * ANSWER), given.rounds))
    if given.json:
        print(json.dumps(found))
        return
    print("| | prefix | tokens apart | shared | times faster | loss differs by | gradient by |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        print(
            f"| {row['what']} | {row['prefix']:,} | {row['tokens_apart']:,} | {row['tokens_shared']:,} | {row['times_faster']:.1f} "
            f"| {row['loss_off']:.0e} | {row['gradient_off']:.0e} |"
        )


if __name__ == "__main__":
    main()
