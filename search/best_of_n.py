"""Best-of-N: play n lines to the end, keep the best.

Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (argmax); Li et al. 2023, "Making Large Language Models Better
Reasoners with Step-Aware Verifier" (weighted by answer).
"""

from __future__ import annotations

from counterplay.core.budget import Budget
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.bounds import check_bounds
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import play_out, score_lines
from counterplay.search.tree import Node, SearchTree


async def best_of_n(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    n: int = 8,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Play `n` independent lines from `state`; `tree.best()` is argmax_i s_i, `weighted_best(tree)` the weighted choice.

    Lines that begin alike share nodes: N of a node is the number of lines through it, W the sum of their scores.
    """
    check_bounds({"n": n})
    tree = SearchTree.start(state, "best_of_n", {"n": n, "max_steps": max_steps, "seed": seed})
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    ends = await play_out(engine, tree, [tree.root] * n)
    await score_lines(engine, [(tree.root, end) for end in ends])
    return engine.finish(tree, f"{n} lines ended")


def weighted_best(tree: SearchTree) -> Node | None:
    """The best leaf of the best answer, argmax_a sum_i 1[answer_i = a] s_i. None where no finished leaf is scored.

    An agent's answer is its last action that calls tools, apart from ids and key order; its last text where it calls none.
    """
    scored = [node for node in tree.finished() if node.score is not None]
    weights: dict[str, float] = {}
    for node in scored:
        weights[answer(node)] = weights.get(answer(node), 0.0) + _score(node) * max(1, node.visits)
    if not weights:
        return None
    elected = max(weights, key=lambda a: weights[a])
    return max((node for node in scored if answer(node) == elected), key=_score)


def answer(node: Node) -> str:
    """The signature of the last action with tool calls on the way to `node`; of the last action where none calls tools."""
    steps = node.state.steps
    acting = next((step for step in reversed(steps) if step.action.tool_calls), None)
    last = acting or (steps[-1] if steps else None)
    return "" if last is None else last.action.signature


def _score(node: Node) -> float:
    return 0.0 if node.score is None else node.score.value
