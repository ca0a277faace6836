"""Scoring a tree with a process reward model: shared prefixes computed once, against a pass per trajectory and a call per prefix.

A random token-classification model of the example agent's tokenizer scores the steps of 8 branches of 10 steps that share a prefix of 60.
All ways are timed in one process, one after another, several rounds; what is printed are ratios of medians, tokens, and how far the scores
differ.

Run it as `python bench/tree_scoring.py [--rounds 3] [--json]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from counterplay.core.nouns import Message, Step, ToolCall, Trajectory
from counterplay.verifiers.learned import LearnedPRM

EXAMPLE = Path(__file__).parents[1] / "examples" / "ledger" / "model"
PREFIX, BRANCHES, STEPS = 60, 8, 10


def make_folder(folder: Path) -> Path:
    """A random model of 4 layers, 256 wide (3.3 million parameters), with a head of one label."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForTokenClassification
    from transformers.utils import logging

    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    model = LlamaForTokenClassification(config)
    for weights in model.parameters():  # random, yet so that what a token sees shows in its score
        if weights.ndim > 1:
            weights.data.mul_(2)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def step(number: int) -> Step:
    call = ToolCall(f"c{number}", "get_document", json.dumps({"document_id": f"d{number % 90 + 10}"}))
    return Step(Message.assistant(None, [call]), (Message.tool(f'{{"amount": {100 + number}}}', call.id),))


def branches() -> list[Trajectory]:
    stem = Trajectory((), (Message.system("Book the documents."), Message.user("Book ledger 7.")))
    for number in range(PREFIX):
        stem = stem.extend(step(number))
    made = []
    for branch in range(BRANCHES):
        state = stem
        for number in range(STEPS):
            state = state.extend(step(1000 * branch + 7 * number + 500))
        made.append(state)
    return made


def shared(prm: LearnedPRM, tree: Sequence[Trajectory]) -> list[list[float]]:
    """The whole tree in one go."""
    return [list(values[PREFIX:]) for values in prm.steps(tree)]


def by_level(prm: LearnedPRM, tree: Sequence[Trajectory]) -> list[list[float]]:
    """As a search asks: all branches, one step longer each time."""
    levels = [prm.batch([branch.prefix(length) for branch in tree]) for length in range(PREFIX + 1, PREFIX + STEPS + 1)]
    return [[level[at].value for level in levels] for at in range(len(tree))]  # type: ignore[union-attr]


def per_trajectory(prm: LearnedPRM, tree: Sequence[Trajectory]) -> list[list[float]]:
    """One plain pass of the model for each branch, scores read at every step's end."""
    made = []
    for branch in tree:
        prm.forget()
        made.append([*prm.steps([branch])[0][PREFIX:]])
    return made


def per_prefix(prm: LearnedPRM, tree: Sequence[Trajectory]) -> list[list[float]]:
    """One plain pass of the model for each prefix of each branch."""
    made = []
    for branch in tree:
        values = []
        for length in range(PREFIX + 1, PREFIX + STEPS + 1):
            prm.forget()
            values.append(prm(branch.prefix(length)).value)  # type: ignore[union-attr]
        made.append(values)
    return made


WAYS: dict[str, tuple[Callable[[LearnedPRM, Sequence[Trajectory]], list[list[float]]], bool]] = {
    "a call per prefix": (per_prefix, False),
    "one pass per trajectory": (per_trajectory, False),
    "level by level, shared": (by_level, True),
    "the tree at once, shared": (shared, True),
}
"""How, and whether prefixes are shared. The first two are plain passes of the model, without a pool."""


def measure(rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        prm, plain = LearnedPRM(made := make_folder(Path(folder))), LearnedPRM(made)
    plain.forwards[0].shares = False
    tree = branches()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    scores: dict[str, list[list[float]]] = {}
    tokens: dict[str, int] = {}
    for _ in range(rounds + 1):  # the first round warms up
        for name, (way, shares) in WAYS.items():
            verifier = prm if shares else plain
            verifier.forget()
            before, began = verifier.forwarded_tokens, time.perf_counter()
            scores[name] = way(verifier, tree)
            seconds[name].append(time.perf_counter() - began)
            tokens[name] = verifier.forwarded_tokens - before
    base = "a call per prefix"
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return [
        {
            "way": name,
            "tokens": tokens[name],
            "faster_than_per_prefix": middle[base] / middle[name],
            "faster_than_per_trajectory": middle["one pass per trajectory"] / middle[name],
            "largest_difference": max(
                abs(a - b) for x, y in zip(scores[base], scores[name], strict=True) for a, b in zip(x, y, strict=True)
            ),
            "spread_of_scores": max(map(max, scores[name])) - min(map(min, scores[name])),
            "seconds": middle[name],
        }
        for name in WAYS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = measure(asked.rounds)
    if asked.json:
        print(json.dumps(rows))
        return
    columns = ("tokens forwarded", "against a call per prefix", "against a pass per trajectory", "largest difference")
    print(f"| {PREFIX} steps, then {BRANCHES} branches of {STEPS} | {' | '.join(columns)} |")
    print("|---|---|---|---|---|")
    for row in rows:
        ratios = f"{row['faster_than_per_prefix']:.1f} times | {row['faster_than_per_trajectory']:.2f} times"
        print(f"| {row['way']} | {row['tokens']:,} | {ratios} | {row['largest_difference']:.1e} |")


if __name__ == "__main__":
    main()
