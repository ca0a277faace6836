"""Step-level beam search under a process verifier.

Chen et al. 2024, "AlphaMath Almost Zero" (step-level beam search); Yao et al. 2023, "Tree of Thoughts" (breadth-first).
"""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.aggregate import aggregate
from counterplay.search.bounds import check_bounds
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import Node, SearchTree


async def beam(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    width: int = 4,
    num_actions: int = 4,
    aggregation: str = "last",
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Expand each beam `num_actions` ways, keep the best `width` of all children by aggregated score along the path.

    A beam that ends leaves the pool and takes its place with it, so at most `width` finished beams come out and width 1 with
    exact values plays the best line. A child that is worse than the best is kept in the tree, not expanded. Every scored child
    is one evaluation: N += 1, W += score up to the root.
    """
    config = {"width": width, "num_actions": num_actions, "aggregation": aggregation, "max_steps": max_steps, "seed": seed}
    check_bounds({"width": width, "num_actions": num_actions})
    tree = SearchTree.start(state, "beam", config)
    aggregate([], aggregation)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    beams = [] if tree.root.finished else [tree.root]
    while beams and engine.running(tree):
        before = len(tree.nodes)
        await advance(engine, tree, [(node, num_actions) for node in beams])
        children = tree.nodes[before:]
        await evaluate(engine, children)
        kept = select(children, width, aggregation)
        width -= sum(node.finished for node in kept)
        beams = [node for node in kept if not node.finished]
        engine.after_wave(tree)
    return engine.finish(tree, "every beam ended")


async def evaluate(engine: Engine, children: Sequence[Node]) -> None:
    await engine.score(children)
    for node in children:
        if node.score is not None:
            node.backup(node.score.value)


def select(children: Sequence[Node], width: int, aggregation: str) -> list[Node]:
    """The best `width` children, best first. Ties: the likelier, then the earlier. A branch that failed is never kept."""
    valued = sorted(values(children, aggregation), key=lambda found: (found[1], found[0].prior, -found[0].index), reverse=True)
    return [node for node, _ in valued[:width]]


def values(children: Sequence[Node], aggregation: str) -> list[tuple[Node, float]]:
    """The aggregated score along the path of each child that did not fail, in order.

    A child on whose path nothing is scored counts as the mean of the others: no opinion is not a bad opinion.
    """
    alive = [node for node in children if node.step is None or node.step.error is None]
    scores = [aggregate([n.score.value if n.score else None for n in node.path()], aggregation) for node in alive]
    known = [score for score in scores if score is not None]
    middle = sum(known) / len(known) if known else 0.0
    return [(node, middle if score is None else score) for node, score in zip(alive, scores, strict=True)]
