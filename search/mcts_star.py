"""MCTS*: tree search whose values come from a process verifier and a short greedy look further, not from whole rollouts.

Zhang et al. 2024, "ReST-MCTS*: LLM Self-Training via Process Reward Guided Tree Search".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import Node, SearchTree


async def mcts_star(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_iterations: int = 16,
    num_actions: int = 3,
    rollout_steps: int = 3,
    rollout_actions: int = 1,
    c: float = 0.7,
    alpha: float = 0.5,
    gate: float = 0.9,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Repeat: select by V + c sqrt(2 ln N_p / N), expand b = `num_actions`, look m = `rollout_steps` further, back up; stop at `gate`.

    The look goes on greedily from the best new child, the best of `rollout_actions` a step; the child's value becomes
    (1 - a) V + a V_best, V_best the highest value seen on the look. Backup: N_p += 1 and V_p = sum N_i V_i / sum N_i over its children.
    A child starts with N = 0 and the verifier's opinion, or its parent's value where there is none. W of a node is N V, so N and W
    are no counts of lines. The search stops at an end of score `gate`.
    """
    if num_iterations < 1 or num_actions < 1 or rollout_steps < 0 or rollout_actions < 1:
        raise UserError(f"got {num_iterations=}, {num_actions=}, {rollout_steps=}, {rollout_actions=}", "at least 1, 1, 0 and 1")
    config = {
        "num_iterations": num_iterations,
        "num_actions": num_actions,
        "rollout_steps": rollout_steps,
        "rollout_actions": rollout_actions,
        "c": c,
        "alpha": alpha,
        "gate": gate,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "mcts_star", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    await engine.score([] if tree.root.finished else [tree.root])
    known = Known({0: tree.root.score.value if tree.root.score else 0.0})
    while tree.root.visits < num_iterations and engine.running(tree):
        before, leaf = len(tree.nodes), select(tree.root, known, c)
        if leaf is None:
            return engine.finish(tree, "nothing is left to play")
        if not engine.admit(1):
            break
        children = await expand(engine, tree, leaf, known, num_actions)
        if children:
            best = highest(children, known)
            seen = await look(engine, tree, best, known, (rollout_actions, rollout_steps))
            simulate(best, seen, known, alpha)
        backup(leaf, known)
        engine.after_wave(tree)
        found = max((node.score.value for node in tree.nodes[before:] if node.finished and node.score is not None), default=-1.0)
        if found >= gate:
            return engine.finish(tree, f"a line scored {found:g}")
    return engine.finish(tree, f"{tree.root.visits} iterations")


@dataclass(slots=True)
class Known:
    """V by node index; the nodes that were expanded; those at and below which nothing is left to play."""

    value: dict[int, float]
    expanded: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)


def select(root: Node, known: Known, c: float) -> Node | None:
    """The leaf that argmax V + c sqrt(2 ln N_p / N) leads to, unvisited children first; None where all is played.

    Ends, and states without an action, are passed over.
    """
    node = root
    while node.index in known.expanded:
        playable = [child for child in node.children if not child.finished and child.index not in known.done]
        if playable:
            log = 2 * math.log(max(node.visits, 1))

            def rank(child: Node, log: float = log) -> tuple[float, float]:
                bonus = c * math.sqrt(log / child.visits) if child.visits else math.inf
                return known.value[child.index] + bonus, known.value[child.index]

            node = max(playable, key=rank)
        elif node is root:
            return None
        else:
            known.done.add(node.index)
            node = root
    return None if node.finished else node


async def expand(engine: Engine, tree: SearchTree, leaf: Node, known: Known, num_actions: int) -> list[Node]:
    """The children of a leaf, with their values; those that a look has met before are among them."""
    known.expanded.add(leaf.index)
    return await grow(engine, tree, leaf, known, num_actions)


async def look(engine: Engine, tree: SearchTree, start: Node, known: Known, size: tuple[int, int]) -> list[Node]:
    """The states that greedy steps from `start` lead through, `size` (actions a step, most steps). They stay in the tree, unexpanded."""
    seen: list[Node] = []
    (num_actions, steps), node = size, start
    while len(seen) < steps and not node.finished and engine.running(tree):
        children = await grow(engine, tree, node, known, num_actions)
        if not children:
            break
        node = highest(children, known)
        seen.append(node)
    return seen


async def grow(engine: Engine, tree: SearchTree, node: Node, known: Known, num_actions: int) -> list[Node]:
    """Draw actions and value the children that are new. Without those that failed."""
    before = len(tree.nodes)
    await advance(engine, tree, [(node, num_actions)])
    await engine.score(tree.nodes[before:])
    for child in tree.nodes[before:]:
        known.value[child.index] = known.value[node.index] if child.score is None else child.score.value
    return [child for child in node.children if child.step is None or child.step.error is None]


def highest(children: Sequence[Node], known: Known) -> Node:
    return max(children, key=lambda child: (known.value[child.index], -child.index))


def simulate(best: Node, seen: Sequence[Node], known: Known, alpha: float) -> None:
    """V <- (1 - a) V + a V_best, N += 1 for the child whose look has `seen` states; where it saw none, V_best is V."""
    value = known.value[best.index]
    top = max((known.value[node.index] for node in seen), default=value)
    known.value[best.index] = (1 - alpha) * value + alpha * top
    best.visits += 1
    best.value_sum = best.visits * known.value[best.index]


def backup(node: Node, known: Known) -> None:
    """From the expanded node to the root: N += 1, V = sum N_i V_i / sum N_i over the children; V stays where none was visited."""
    here: Node | None = node
    while here is not None:
        count = sum(child.visits for child in here.children)
        if count:
            known.value[here.index] = sum(child.visits * known.value[child.index] for child in here.children) / count
        here.visits += 1
        here.value_sum = here.visits * known.value[here.index]
        here = here.parent
