"""Tree of thoughts, depth first: follow the best idea, prune what falls below a value, come back.

Yao et al. 2023, "Tree of Thoughts: Deliberate Problem Solving with Large Language Models" (its DFS; its BFS is `beam`).
"""

from __future__ import annotations

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.beam import evaluate
from counterplay.search.best_first import promise
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import SearchTree


async def depth_first(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_actions: int = 3,
    num_expansions: int = 100,
    threshold: float = 0.1,
    gate: float = 0.9,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Expand the best child first; a child with v(s) <= `threshold` is pruned with all below it; stop at an end of v >= `gate`.

    Where nothing is left below a state, the search goes back to its next best sibling. A child without an opinion counts as its
    parent. At most `num_expansions` states are expanded. Every scored child is one evaluation: N += 1, W += score up to the root.
    """
    if num_expansions < 1 or num_actions < 1:
        raise UserError(f"got {num_expansions=}, {num_actions=}", "at least 1 of each")
    config = {
        "num_actions": num_actions,
        "num_expansions": num_expansions,
        "threshold": threshold,
        "gate": gate,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "depth_first", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    stack = [] if tree.root.finished else [tree.root]
    expansions = 0
    while stack and expansions < num_expansions and engine.running(tree):
        before, expansions = len(tree.nodes), expansions + 1
        await advance(engine, tree, [(stack.pop(), num_actions)])
        children = [node for node in tree.nodes[before:] if node.step is None or node.step.error is None]
        await evaluate(engine, children)
        engine.after_wave(tree)
        found = max((node.score.value for node in children if node.finished and node.score is not None), default=-1.0)
        if found >= gate:
            return engine.finish(tree, f"a line scored {found:g}")
        going_on = [node for node in children if not node.finished and (node.score is None or node.score.value > threshold)]
        stack += sorted(going_on, key=lambda node: (promise(node), node.prior, -node.index))
    return engine.finish(tree, f"{expansions} expansions" if stack else "everything is played or pruned")
