"""Gumbel search with sequential halving: the budget is planned, so that more of it is never worse.

Danihelka et al. 2022, "Policy improvement by planning with Gumbel" (the rule, its constants, completed values); Karnin et al. 2013
(sequential halving). Plain PUCT spends its first simulations on the likeliest action whatever comes of it; here the root's
candidates are drawn without replacement and halved in rounds of equal visits, which improves on the policy even with very few.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.mcts import Edge, Edges, Rule, Simulation, backup, evaluate, expand, merge_edges, select
from counterplay.search.tree import SearchTree

LEAST_PRIOR = 1e-12
"""What a prior of 0 counts as in a logarithm."""


async def gumbel(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_simulations: int = 64,
    num_actions: int = 4,
    num_considered: int = 16,
    c_visit: float = 50.0,
    c_scale: float = 1.0,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Consider the top m = min(`num_considered`, n) of g + log P at the root, g ~ Gumbel(0); halve them log2 m times.

    A round gives each of m' candidates n / (m' log2 m) of the n = `num_simulations`, one of each at a time, so a wave never meets
    itself; the better half by g + log P + s(Q) stays, s(q) = (c_visit + max_b N_b) c_scale q. What rounding leaves over goes to the
    last two. Below the root a = argmax pi'(a) - N_a / (1 + sum N), with pi' = softmax(log P + s(completed Q)) and v_mix for actions
    not visited. The root draws `num_actions` or `num_considered` times, whichever is more, a node below it `num_actions` times.
    """
    if num_simulations < 1 or num_considered < 1 or num_actions < 1:
        raise UserError(f"got {num_simulations=}, {num_considered=}, {num_actions=}", "at least 1 of each")
    config = {
        "num_simulations": num_simulations,
        "num_actions": num_actions,
        "num_considered": num_considered,
        "c_visit": c_visit,
        "c_scale": c_scale,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "gumbel", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    if tree.root.finished:
        return engine.finish(tree, "the episode is over")
    (answer,) = await engine.propose([(tree.root, max(num_actions, num_considered))]) or [()]
    edges: Edges = {0: merge_edges(tree.root, answer)}
    generator, scale = random.Random(seed), Scale(c_visit, c_scale)
    noise = {id(edge): _gumbel(generator) + math.log(max(edge.prior, LEAST_PRIOR)) for edge in edges[0]}
    considered = sorted(edges[0], key=lambda edge: -noise[id(edge)])[: min(num_considered, num_simulations)]
    turns, left = max(1, math.ceil(math.log2(max(len(considered), 1)))), num_simulations
    for turn in range(turns if considered else 0):
        for size in waves(left, turns - turn, len(considered)):
            admitted = engine.admit(size) if engine.running(tree) else 0
            if not admitted:
                break
            left -= admitted
            wave = select_wave(considered[:admitted], tree, edges, scale.inner)
            await expand(engine, tree, edges, wave, num_actions=num_actions, rule=scale.inner, noise=None)
            await evaluate(engine, tree, wave, "unscored")
            for simulation in wave:
                backup(simulation)
            engine.after_wave(tree)
        considered = halve(considered, noise, scale)
    return engine.finish(tree, f"{num_simulations - left} simulations")


def waves(left: int, turns: int, candidates: int) -> list[int]:
    """The sizes of the waves of a turn of `turns` still to play: left / (turns x candidates) visits each, at least one; all in the last."""
    spent = left if turns == 1 else min(left, max(1, left // (turns * candidates)) * candidates)
    return [min(candidates, spent - start) for start in range(0, spent, candidates)]


def halve(considered: Sequence[Edge], noise: Mapping[int, float], scale: Scale) -> list[Edge]:
    """The better half by g + log P + s(Q), best first. An action whose machinery failed is never among the better ones."""

    def rank(edge: Edge, q: float) -> float:
        failed = edge.child is not None and edge.child.step is not None and edge.child.step.error is not None
        return -math.inf if failed else noise[id(edge)] + scale(q, considered)

    ranked = sorted(zip(considered, completed(considered), strict=True), key=lambda pair: -rank(*pair))
    return [edge for edge, _ in ranked[: math.ceil(len(ranked) / 2)]]


@dataclass(frozen=True, slots=True)
class Scale:
    """s(q) = (c_visit + max_b N_b) c_scale q."""

    c_visit: float
    c_scale: float

    def __call__(self, value: float, edges: Sequence[Edge]) -> float:
        return (self.c_visit + max(map(visits, edges), default=0)) * self.c_scale * value

    @property
    def inner(self) -> Rule:
        """argmax_a pi'(a) - N_a / (1 + sum N): the visits below the root follow the improved policy."""

        def rule(edges: Sequence[Edge], _parent_visits: int) -> Edge:
            filled = completed(edges)
            logits = [math.log(max(edge.prior, LEAST_PRIOR)) + self(q, edges) for edge, q in zip(edges, filled, strict=True)]
            top = max(logits)
            masses = [math.exp(logit - top) for logit in logits]
            total, taken = sum(masses), 1 + sum(map(visits, edges))
            gaps = [mass / total - visits(edge) / taken for mass, edge in zip(masses, edges, strict=True)]
            return edges[max(range(len(edges)), key=lambda i: gaps[i])]

        return rule


def completed(edges: Sequence[Edge]) -> list[float]:
    """Q of each action; where it was not visited v_mix = (v + sum N (sum P Q) / (sum P)) / (1 + sum N), sums over visited ones."""
    seen = [edge for edge in edges if edge.child is not None and edge.child.visits]
    if not seen:
        return [0.0] * len(edges)
    node = seen[0].child.parent if seen[0].child else None
    count = sum(edge.child.visits for edge in seen if edge.child)
    mass = sum(edge.prior for edge in seen) or 1.0
    mean = sum(edge.prior * _value(edge) for edge in seen) / mass
    own = mean if node is None or node.score is None else node.score.value
    mixed = (own + count * mean) / (1 + count)
    return [_value(edge) if edge.child is not None and edge.child.visits else mixed for edge in edges]


def visits(edge: Edge) -> int:
    """N_a, simulations under way among them."""
    return edge.virtual + (edge.child.visits if edge.child else 0)


def _value(edge: Edge) -> float:
    return 0.0 if edge.child is None else edge.child.value or 0.0


def select_wave(candidates: Sequence[Edge], tree: SearchTree, edges: Edges, rule: Rule) -> list[Simulation]:
    """One simulation below each candidate; their paths have nothing in common but the root."""
    wave = []
    for edge in candidates:
        simulation = Simulation([], tree.root)
        if edge.child is not None:
            simulation, _ = select(edge.child, edges, rule)
        edge.virtual += 1
        simulation.path.insert(0, edge)
        wave.append(simulation)
    return wave


def _gumbel(generator: random.Random) -> float:
    return -math.log(-math.log(generator.random() or 1e-300))
