"""Particle filtering and particle Gibbs: lines of play as samples from the policy weighted by a process verifier.

Puri et al. 2025, "Rollout Roulette: A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based
Monte Carlo Methods"; Andrieu, Doucet & Holenstein 2010 (particle Gibbs). Sampling keeps what a beam throws away too early: a
line is dropped with a probability, not for a small difference of noisy scores.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.beam import evaluate
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import Node, SearchTree

_LEAST = 1e-4


async def particle_filter(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_particles: int = 8,
    weighting: Literal["incremental", "absolute"] = "incremental",
    temperature: float = 1.0,
    entropic: bool = False,
    iterations: int = 1,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Play `num_particles` lines a step at a time; after each step weigh them, w_t = logit(v_t), and resample by softmax(w / T).

    `incremental` weighs by w_t - w_{t-1}, as sequential Monte Carlo asks for a potential exp(w_t) of the whole prefix; `absolute`, the
    paper's code, counts every earlier score again. Resampling is systematic. An ended line stays a particle. `entropic` raises T
    to (1 - progress) N / ESS while fewer than half of the particles count and less than half of `max_steps` is played.
    `iterations` above 1 is particle Gibbs: each further one keeps a line of the one before, any of its final particles, as a reference
    particle that is never resampled away. A score of None weighs as the line's last one did. Every scored child is one evaluation:
    N += 1, W += score up to the root.
    """
    if num_particles < 1 or iterations < 1 or temperature <= 0:
        raise UserError(f"got num_particles={num_particles}, iterations={iterations}, temperature={temperature}", "all of them above 0")
    if weighting not in ("incremental", "absolute"):
        raise UserError(f"got weighting {weighting!r}", "incremental or absolute")
    config = {
        "num_particles": num_particles,
        "weighting": weighting,
        "temperature": temperature,
        "entropic": entropic,
        "iterations": iterations,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "particle_filter", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    generator = random.Random(seed)
    reference: list[Node] = []
    for _ in range(iterations):
        ends, _evidence = await sweep(
            engine, tree, generator, reference, count=num_particles, weighting=weighting, temperature=temperature, entropic=entropic
        )
        sound = [end for end in ends if not failed(end)]
        if not sound or not engine.running(tree):
            break
        reference = generator.choice(sound).path()  # the last resampling has made them equally likely
    return engine.finish(tree, f"{num_particles} particles ended" + (f", {iterations} times" if iterations > 1 else ""))


async def sweep(
    engine: Engine,
    tree: SearchTree,
    generator: random.Random,
    reference: Sequence[Node],
    *,
    count: int,
    weighting: str = "incremental",
    temperature: float = 1.0,
    entropic: bool = False,
) -> tuple[list[Node], float]:
    """One pass from the root to the ends. Particle 0 follows `reference` where there is one.

    Returns the particles that ended and sum_t ln (1/N sum_i exp(log-weight_i)): with incremental weights and temperature 1 the
    estimate of ln E[v / (1 - v)] over the policy's lines, whose exponential is unbiased.
    """
    particles, t, evidence = [tree.root] * count, 0, 0.0
    while engine.running(tree) and any(not node.finished for node in particles):
        t += 1
        before, parents = len(tree.nodes), particles
        particles = await move(engine, tree, parents, reference[t : t + 1])
        if particles == parents:
            break
        await evaluate(engine, tree.nodes[before:])
        logs = [weigh(old, new, weighting) for old, new in zip(parents, particles, strict=True)]
        heat = temperature
        if entropic and engine.max_steps:
            heat *= annealed(softmax(logs), t / engine.max_steps)
        logs = [log / heat for log in logs]
        evidence += log_mean(logs)
        particles = [particles[i] for i in resample(softmax(logs), generator, conditional=bool(reference))]
        engine.after_wave(tree)
    return [node for node in particles if node.finished], evidence


async def move(engine: Engine, tree: SearchTree, particles: Sequence[Node], reference: Sequence[Node]) -> list[Node]:
    """One step of each particle; one whose policy has no action, or whom the budget no longer moves, stays where it is."""
    start = 1 if reference else 0
    live: dict[int, list[int]] = {}
    for i, node in enumerate(particles):
        if i >= start and not node.finished:
            live.setdefault(node.index, []).append(i)
    drawn = await advance(engine, tree, [(tree.nodes[index], len(here)) for index, here in live.items()])
    moved = [*reference, *particles[start:]]
    for here, children in zip(live.values(), drawn, strict=True):
        for i, child in zip(here, children, strict=False):
            moved[i] = child
    return moved


def weigh(old: Node, new: Node, weighting: str) -> float:
    """The log-weight of a move: w_t - w_{t-1}, or w_t itself where `weighting` is absolute. A branch that just failed weighs nothing."""
    if new is not old and failed(new):
        return -math.inf
    return log_weight(new) - (log_weight(old) if weighting == "incremental" else 0.0)


def failed(node: Node) -> bool:
    return node.step is not None and node.step.error is not None


def log_weight(node: Node) -> float:
    """The logit of the nearest score on the way up, clipped to [1e-4, 1 - 1e-4]; 0, an even chance, where there is none."""
    here: Node | None = node
    while here is not None:
        if here.score is not None:
            value = min(max(here.score.value, _LEAST), 1 - _LEAST)
            return math.log(value / (1 - value))
        here = here.parent
    return 0.0


def softmax(logs: Sequence[float]) -> list[float]:
    """Shares that sum to 1; equal ones where every log-weight is minus infinity."""
    top = max(logs)
    if top == -math.inf:
        return [1 / len(logs)] * len(logs)
    masses = [math.exp(log - top) for log in logs]
    total = sum(masses)
    return [mass / total for mass in masses]


def log_mean(logs: Sequence[float]) -> float:
    """The logarithm of 1/N sum_i exp(log_i); minus infinity where all are."""
    top = max(logs)
    return top if top == -math.inf else top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))


def annealed(weights: Sequence[float], progress: float) -> float:
    """The factor on the temperature: max(1, (1 - progress) N / ESS) early on while ESS / N < 1/2, else 1; ESS = 1 / sum w^2."""
    ess = 1 / sum(weight * weight for weight in weights)
    if ess / len(weights) >= 0.5 or progress >= 0.5:
        return 1.0
    return max(1.0, (1 - progress) * len(weights) / ess)


def resample(weights: Sequence[float], generator: random.Random, *, conditional: bool = False) -> list[int]:
    """As many indices as there are weights. Conditional on a reference, 0 stays 0 and the others are drawn independently.

    Systematic resampling with one index simply put back would no longer be the conditional law that particle Gibbs needs.
    """
    if conditional:
        return [0, *generator.choices(range(len(weights)), weights, k=len(weights) - 1)]
    return systematic(weights, len(weights), generator)


def systematic(weights: Sequence[float], count: int, generator: random.Random) -> list[int]:
    """`count` indices, each drawn count x weight times up to rounding: one random offset, then even strides."""
    offset, chosen, reached, i = generator.random(), list[int](), weights[0], 0
    for k in range(count):
        while (k + offset) / count > reached and i < len(weights) - 1:
            i += 1
            reached += weights[i]
        chosen.append(i)
    return chosen
