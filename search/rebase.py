"""Reward-balanced search: the budget of each depth is shared out among the nodes by a softmax of their scores.

Wu et al. 2024, "Inference Scaling Laws" (REBASE); Wang et al. 2025, "Every Rollout Counts" (DORA: many copies of one idea
must not take the budget of the others, so that what points in one direction shares one portion).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.beam import evaluate
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import Node, SearchTree


async def rebase(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    width: int = 16,
    temperature: float = 0.1,
    directions: bool = True,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """At depth i share B_i = `width` - finished draws out: W_j = B_i softmax(R_j / T_b), rounded so that all of B_i is spent.

    With `directions`, R_j's portion is divided by the number of nodes whose last action is the same call (by name and arguments,
    whatever came before). A node that gets no draw is left where it is. A node without a score counts as the mean of the others.
    Every draw that ends the episode is one finished line, equal draws too; every scored child is one evaluation: N += 1, W += score
    up to the root.
    """
    if width < 1 or temperature <= 0:
        raise UserError(f"got width={width}, temperature={temperature}", "a width of at least 1 and a temperature above 0")
    config = {"width": width, "temperature": temperature, "directions": directions, "max_steps": max_steps, "seed": seed}
    tree = SearchTree.start(state, "rebase", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    nodes, finished = ([] if tree.root.finished else [tree.root]), 0
    while nodes and finished < width and engine.running(tree):
        shares = share(nodes, width - finished, temperature, directions=directions)
        before = len(tree.nodes)
        await advance(engine, tree, [(node, n) for node, n in zip(nodes, shares, strict=True) if n])
        children = [node for node in tree.nodes[before:] if node.step is None or node.step.error is None]
        await evaluate(engine, children)
        finished += sum(node.draws for node in children if node.finished)
        nodes = [node for node in children if not node.finished]
        engine.after_wave(tree)
    return engine.finish(tree, f"{finished} lines ended")


def share(nodes: Sequence[Node], draws: int, temperature: float, *, directions: bool) -> list[int]:
    """How many draws each node gets, in order: exactly `draws` in all, by largest remainder (ties: the earlier node)."""
    known = [node.score.value for node in nodes if node.score is not None]
    middle = sum(known) / len(known) if known else 0.0
    rewards = [middle if node.score is None else node.score.value for node in nodes]
    alike = Counter(_direction(node) for node in nodes)
    top = max(rewards)
    weights = [
        math.exp((r - top) / temperature) / (alike[_direction(node)] if directions else 1) for r, node in zip(rewards, nodes, strict=True)
    ]
    portions = [draws * weight / sum(weights) for weight in weights]
    whole = [math.floor(portion) for portion in portions]
    order = sorted(range(len(nodes)), key=lambda i: (whole[i] - portions[i], i))
    for i in order[: draws - sum(whole)]:
        whole[i] += 1
    return whole


def _direction(node: Node) -> str:
    return "" if node.step is None else node.step.action.signature
