"""Diverse verifier tree search: beams that never compete with each other.

Beeching, Tunstall & Rush 2024, "Scaling test-time compute with open models" (DVTS). A beam search that finds one good idea early
spends all of its width on it; here the budget is split into independent sub-trees from the start, and each is greedy in itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.aggregate import aggregate
from counterplay.search.beam import evaluate, values
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import Node, SearchTree


async def dvts(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_subtrees: int = 4,
    num_actions: int = 4,
    aggregation: str = "last",
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """`num_subtrees` lines; each step of a line draws `num_actions` and goes on with the best of its own: argmax_a s(a), no pruning across.

    The paper's n beams are num_subtrees x num_actions. Lines that draw the same action in the same state share its node, and may part
    again: of draws that score alike a line takes its own first, so that what the verifier can't tell apart the policy decides, for each
    line anew. A line ends with its episode; every scored child is one evaluation: N += 1, W += score up to the root.
    """
    if num_subtrees < 1 or num_actions < 1:
        raise UserError(f"got {num_subtrees=}, {num_actions=}", "at least 1 of each")
    config = {"num_subtrees": num_subtrees, "num_actions": num_actions, "aggregation": aggregation, "max_steps": max_steps, "seed": seed}
    tree = SearchTree.start(state, "dvts", config)
    aggregate([], aggregation)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    lines = [] if tree.root.finished else [tree.root] * num_subtrees
    while lines and engine.running(tree):
        before = len(tree.nodes)
        drawn = await advance(engine, tree, [(node, num_actions) for node in lines])
        await evaluate(engine, tree.nodes[before:])
        kept = [best for children in drawn if (best := first_best(children, aggregation)) is not None]
        lines = [node for node in kept if not node.finished]
        engine.after_wave(tree)
    return engine.finish(tree, "every line ended")


def first_best(drawn: Sequence[Node], aggregation: str) -> Node | None:
    """argmax_a s(a), the first drawn of equals; None where every draw failed."""
    return max(values(drawn, aggregation), key=lambda found: found[1], default=(None, 0.0))[0]
