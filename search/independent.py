"""Whole-trajectory selection: n lines that share nothing while they are played, of which the best is kept.

Zainullina et al. 2025, "Guided Search Strategies in Non-Serializable Environments with Applications to Software Engineering
Agents" (trajectory selection). Best-of-N shares what lines have in common, which needs an environment that can be in one
state twice; here every line is executed for itself from its first step.
"""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.nouns import Proposal, State, Step
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.bounds import check_bounds
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import score_lines
from counterplay.search.tree import Node, SearchTree


async def independent(
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
    """Play `n` lines from `state`, which has to be where an environment that restores nothing begins; `tree.best()` is argmax_i s_i.

    In each wave every line draws one action and executes it, also where another line drew the same. Lines that are equal so far,
    actions and answers to the byte, are one path in the tree: N of a node is the number of lines through it, W the sum of their
    scores. Siblings may therefore do the same, where their call ids or what followed differ.
    """
    check_bounds({"n": n})
    tree = SearchTree.start(state, "independent", {"n": n, "max_steps": max_steps, "seed": seed})
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    ends = [tree.root] * n
    live = [] if tree.root.finished else list(range(n))
    while live and engine.running(tree):
        moves = await draw(engine, [(i, ends[i]) for i in live])
        steps = await engine.step([(ends[i], proposal) for i, proposal in moves])
        for (i, proposal), step in zip(moves, steps, strict=True):
            if step is not None:
                ends[i] = joined(tree, ends[i], step, proposal)
        live = [i for (i, _), step in zip(moves, steps, strict=True) if step is not None and not ends[i].finished]
        engine.after_wave(tree)
    await score_lines(engine, [(tree.root, end) for end in ends])
    return engine.finish(tree, f"{n} lines ended")


async def draw(engine: Engine, lines: Sequence[tuple[int, Node]]) -> list[tuple[int, Proposal]]:
    """One action for each line. Lines in one node are drawn for together; those for which the policy has none end here."""
    here: dict[int, list[int]] = {}
    nodes = {}
    for i, node in lines:
        here.setdefault(node.index, []).append(i)
        nodes[node.index] = node
    answers = await engine.propose([(nodes[index], len(standing)) for index, standing in here.items()])
    return sorted(
        (
            (i, proposal)
            for standing, answer in zip(here.values(), answers, strict=True)
            for i, proposal in zip(standing, answer, strict=False)
        ),
        key=lambda move: move[0],
    )


def joined(tree: SearchTree, node: Node, step: Step, proposal: Proposal) -> Node:
    """The child that this step leads to: one that is there where it is equal to the byte, else a new one."""
    key = node.state.extend(step).key
    child = next((child for child in node.children if child.state.key == key and _end(child.step) == _end(step)), None)
    if child is None:
        child = tree.add(node, step, proposal)
    else:
        child.draws += 1
    total = sum(other.draws for other in node.children)
    for other in node.children:
        other.prior = other.draws / total
    return child


def _end(step: Step | None) -> tuple[object, ...]:
    return () if step is None else (step.terminated, step.truncated, step.error, step.reward)
