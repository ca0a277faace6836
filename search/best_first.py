"""Best-first search: always go on from the most promising state anywhere in the tree.

Koh et al. 2024, "Tree Search for Language Model Agents" (A*-like, a priority queue by value); Hao et al. 2023 use the same
frontier. It backtracks as far as it pays, which beams can't.
"""

from __future__ import annotations

import heapq

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.beam import evaluate
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import Node, SearchTree


async def best_first(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_actions: int = 5,
    num_expansions: int = 20,
    wave_size: int = 1,
    gate: float = 1.0,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Take the `wave_size` best states off the queue, draw `num_actions` in each, queue the children by v(s); stop at an end of v >= gate.

    The paper's branching b is `num_actions`, its depth d `max_steps` (5 there, for web tasks). Its budget c = 20 counts the states that
    are valued; `num_expansions` those that are expanded, for a child is valued when it is made. A child without an opinion is queued
    at its parent's value. Ties: the deeper, then the earlier. Every scored child is one evaluation: N += 1, W += score up to the root.
    """
    if num_expansions < 1 or wave_size < 1:
        raise UserError(f"got num_expansions={num_expansions}, wave_size={wave_size}", "at least 1 of each")
    config = {
        "num_actions": num_actions,
        "num_expansions": num_expansions,
        "wave_size": wave_size,
        "gate": gate,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "best_first", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    queue: list[tuple[float, int, int]] = [] if tree.root.finished else [(0.0, 0, 0)]
    expansions = 0
    while queue and expansions < num_expansions and engine.running(tree):
        taken = [heapq.heappop(queue) for _ in range(min(wave_size, num_expansions - expansions, len(queue)))]
        expansions += len(taken)
        before = len(tree.nodes)
        await advance(engine, tree, [(tree.nodes[index], num_actions) for _, _, index in taken])
        children = [node for node in tree.nodes[before:] if node.step is None or node.step.error is None]
        await evaluate(engine, children)
        for node in children:
            if not node.finished:
                heapq.heappush(queue, (-promise(node), -node.depth, node.index))
        engine.after_wave(tree)
        best = max((node.score.value for node in children if node.finished and node.score is not None), default=-1.0)
        if best >= gate:
            return engine.finish(tree, f"a line scored {best:g}")
    return engine.finish(tree, f"{expansions} expansions" if queue else "nothing is left to expand")


def promise(node: Node) -> float:
    """The score of the nearest scored state on the way up; 0 where there is none."""
    here: Node | None = node
    while here is not None:
        if here.score is not None:
            return here.score.value
        here = here.parent
    return 0.0
