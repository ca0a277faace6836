"""Gumbel search with sequential halving: the budget is planned, so that more of it is never worse.

Danihelka et al. 2022, "Policy improvement by planning with Gumbel" (the rule, its constants, completed values); Karnin et al. 2013
(sequential halving). Plain PUCT spends its first simulations on the likeliest action whatever comes of it; here the root's
candidates are drawn without replacement and halved in rounds of equal visits, which improves on the policy even with very few.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.mcts import Edge, Edges, Rule, Simulation, backup, evaluate, expand, merge_edges, select
from counterplay.search.tree import SearchTree


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
    """Consider the top m = `num_considered` of g + log P at the root, g ~ Gumbel(0), of at least as many draws; halve them log2 m times.

    A round gives each candidate n / (m' log2 m) simulations, one of each at a time, so a wave never meets itself; the better half
    by g + log P + s(Q) stays, s(q) = (c_visit + max_b N_b) c_scale q. Below the root a = argmax pi'(a) - N_a / (1 + sum N), with
    pi' = softmax(log P + s(completed Q)) and v_mix for actions not visited. Below the root `num_actions` are drawn in a node.
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
    noise = {id(edge): _gumbel(generator) + math.log(edge.prior) for edge in edges[0]}
    candidates = sorted(edges[0], key=lambda edge: -noise[id(edge)])[:num_considered]
    turns, left = max(1, math.ceil(math.log2(max(len(candidates), 1)))), num_simulations
    for turn in range(turns if candidates else 0):
        for _ in range(max(1, left // ((turns - turn) * len(candidates)))):
            wave = _wave(candidates[:left], tree, edges, scale.inner)
            wave = wave[: engine.admit(len(wave))]
            if not wave or not engine.running(tree):
                break
            left -= len(wave)
            await expand(engine, tree, edges, wave, num_actions=num_actions, rule=scale.inner, noise=None)
            await evaluate(engine, tree, wave, "unscored")
            for simulation in wave:
                backup(simulation)
            engine.after_wave(tree)
        ranked = sorted(candidates, key=lambda edge: -(noise[id(edge)] + scale(_value(edge), candidates)))
        candidates = ranked[: math.ceil(len(ranked) / 2)]
    return engine.finish(tree, f"{num_simulations - left} simulations")


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
            logits = [math.log(max(edge.prior, 1e-12)) + self(q, edges) for edge, q in zip(edges, filled, strict=True)]
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


def _gumbel(generator: random.Random) -> float:
    return -math.log(-math.log(generator.random() or 1e-300))


def _wave(candidates: Sequence[Edge], tree: SearchTree, edges: Edges, rule: Rule) -> list[Simulation]:
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
