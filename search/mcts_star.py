"""MCTS*: tree search whose values come from a process verifier and a short greedy look further, not from whole rollouts.

Zhang et al. 2024, "ReST-MCTS*: LLM Self-Training via Process Reward Guided Tree Search".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    c: float = 0.7,
    alpha: float = 0.5,
    gate: float = 0.9,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Repeat: select by V + c sqrt(2 ln N_p / N), expand b = `num_actions`, look m = `rollout_steps` further, back up; stop at V >= `gate`.

    The look goes on greedily from the best new child, `num_actions` draws a step; the child's value becomes (1 - a) V + a V_best.
    Backup: N_p += 1 and V_p = sum N_i V_i / sum N_i over its children. Q of a node is its V. A child without an opinion starts at its
    parent's value. The search stops at an end of score `gate`.
    """
    if num_iterations < 1 or num_actions < 1 or rollout_steps < 0:
        raise UserError(f"got {num_iterations=}, {num_actions=}, {rollout_steps=}", "at least 1, 1 and 0")
    config = {
        "num_iterations": num_iterations,
        "num_actions": num_actions,
        "rollout_steps": rollout_steps,
        "c": c,
        "alpha": alpha,
        "gate": gate,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "mcts_star", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    await engine.score([tree.root] if not tree.root.finished else [])
    done: set[int] = set()
    for _ in range(num_iterations):
        leaf = select(tree.root, c, done)
        if leaf is None or not engine.running(tree) or not engine.admit(1):
            break
        children = await expand(engine, tree, leaf, num_actions)
        if not children:
            done.add(leaf.index)
            continue
        best = max(children, key=lambda node: (worth(node), -node.index))
        highest = max([worth(best), *[worth(node) for node in await look(engine, tree, best, num_actions, rollout_steps)]])
        best.value_sum = best.visits * ((1 - alpha) * worth(best) + alpha * highest)
        backup(leaf)
        engine.after_wave(tree)
        found = max((node.score.value for node in tree.finished() if node.score is not None), default=-1.0)
        if found >= gate:
            return engine.finish(tree, f"a line scored {found:g}")
    return engine.finish(tree, f"{tree.root.visits} iterations")


def select(root: Node, c: float, done: set[int]) -> Node | None:
    """The leaf that argmax V + c sqrt(2 ln N_p / N) leads to, past ends and what has no action; None where all is played."""
    node = root
    while node.children:
        open_children = [child for child in node.children if _open(child, done)]
        if not open_children:
            done.add(node.index)
            if node is root:
                return None
            node = root
            continue
        log = 2 * math.log(max(node.visits, 1))
        node = max(open_children, key=lambda child: worth(child) + c * math.sqrt(log / max(child.visits, 1)))
    return None if node.finished or node.index in done else node


async def expand(engine: Engine, tree: SearchTree, leaf: Node, num_actions: int) -> list[Node]:
    """New children of a leaf, each with one visit of its own value."""
    before = len(tree.nodes)
    await advance(engine, tree, [(leaf, num_actions)])
    children = [node for node in tree.nodes[before:] if node.step is None or node.step.error is None]
    await engine.score(children)
    for node in children:
        _settle(node, leaf)
    return children


async def look(engine: Engine, tree: SearchTree, start: Node, num_actions: int, steps: int) -> list[Node]:
    """What a greedy look of up to `steps` steps sees from `start`: every state on the way, the best child of each step followed."""
    seen: list[Node] = []
    node = start
    for _ in range(steps):
        if node.finished or not engine.running(tree):
            break
        children = await expand(engine, tree, node, num_actions)
        if not children:
            break
        node = max(children, key=lambda child: (worth(child), -child.index))
        seen.append(node)
    return seen


def backup(node: Node) -> None:
    """From the expanded node to the root: N += 1, V = sum N_i V_i / sum N_i over the children."""
    here: Node | None = node
    while here is not None:
        here.visits += 1
        here.value_sum = here.visits * _mean(here.children)
        here = here.parent


def worth(node: Node) -> float:
    """V of a node, 0 before it has one."""
    return node.value or 0.0


def _settle(node: Node, parent: Node) -> None:
    node.visits = 1
    own = parent.score.value if parent.score is not None else 0.0
    node.value_sum = node.score.value if node.score is not None else worth(parent) or own


def _mean(children: Sequence[Node]) -> float:
    count = sum(child.visits for child in children)
    return sum(child.value_sum for child in children) / count if count else 0.0


def _open(node: Node, done: set[int]) -> bool:
    return not node.finished and node.index not in done
