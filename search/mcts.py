"""Monte Carlo tree search in waves: PUCT by default, UCT as an argument.

Silver et al. 2018, "A general reinforcement learning algorithm that masters chess, shogi, and Go through self-play" (AlphaZero:
the rule, its constants, root noise); Kocsis & Szepesvari 2006, "Bandit based Monte-Carlo Planning" (UCT); Chaslot et al. 2008,
"Parallel Monte-Carlo Tree Search" (virtual loss).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Proposal, State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.draws import Draw, merge_as
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import play_out
from counterplay.search.tree import Node, SearchTree


async def mcts(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_simulations: int = 64,
    num_actions: int = 4,
    wave_size: int = 8,
    selection: Literal["puct", "uct"] = "puct",
    c_base: float = 19652.0,
    c_init: float = 1.25,
    c_uct: float = math.sqrt(2),
    root_dirichlet_alpha: float = 0.3,
    root_exploration_fraction: float = 0.25,
    rollouts: Literal["unscored", "always"] = "unscored",
    confidence: float = 0.0,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Repeat select, expand, evaluate, backup, `wave_size` simulations at a time, each wave spread by virtual losses.

    A node is expanded (`num_actions` draws of the policy) when it is selected, and only the action then selected in it is
    executed. A new node's value is the verifier's; where the verifier has none on an unfinished trajectory, or `rollouts` is
    "always", it is that of the end of one line of play. N(parent) = sum N(children) + evaluations of the parent itself.
    `confidence` is RAP's a: a value counts as v^(1 - a) P^a, P being the prior of the new node's action.
    """
    if selection not in _RULES:
        raise UserError(f"got selection {selection!r}", "puct or uct")
    if not 0 <= confidence <= 1:
        raise UserError(f"got confidence {confidence}", "a number in [0, 1]")
    if rollouts not in ("unscored", "always"):
        raise UserError(f"got rollouts {rollouts!r}", "unscored or always")
    config = {
        "num_simulations": num_simulations,
        "num_actions": num_actions,
        "wave_size": wave_size,
        "selection": selection,
        "c_base": c_base,
        "c_init": c_init,
        "c_uct": c_uct,
        "root_dirichlet_alpha": root_dirichlet_alpha,
        "root_exploration_fraction": root_exploration_fraction,
        "rollouts": rollouts,
        **({"confidence": confidence} if confidence else {}),
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "mcts", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    rule = puct(c_base, c_init) if selection == "puct" else uct(c_uct)
    noise = _Noise(random.Random(seed), root_dirichlet_alpha, root_exploration_fraction)
    edges: Edges = {}
    simulations = 0
    while simulations < num_simulations and engine.running(tree) and not _dead(tree.root, edges):
        wave = select_wave(tree.root, edges, rule, min(wave_size, num_simulations - simulations))
        wave = wave[: engine.admit(len(wave))]
        simulations += len(wave)
        await expand(engine, tree, edges, wave, num_actions=num_actions, rule=rule, noise=noise)
        await evaluate(engine, tree, wave, rollouts)
        for simulation in wave:
            backup(simulation, confidence)
        engine.after_wave(tree)
    return engine.finish(tree, f"{simulations} simulations")


@dataclass(slots=True)
class Edge(Draw):
    """An action at a node: P, the child it leads to once executed, and the simulations that are under way below it (`virtual`)."""

    child: Node | None = None
    virtual: int = 0


@dataclass(slots=True)
class Simulation:
    """`path` are the edges from the root on; `node` is where selection stopped, `end` where the value was found."""

    path: list[Edge]
    node: Node
    end: Node | None = None


Edges: TypeAlias = "dict[int, list[Edge]]"
Rule: TypeAlias = "Callable[[Sequence[Edge], int], Edge]"


def puct(c_base: float, c_init: float) -> Rule:
    """argmax_a Q + [ln((N_p + c_base + 1) / c_base) + c_init] P sqrt(N_p) / (1 + N); Q = W / N, and 0 before the first visit."""
    scales: dict[int, float] = {}

    def rule(edges: Sequence[Edge], parent_visits: int) -> Edge:
        scale = scales.get(parent_visits)
        if scale is None:
            scale = (math.log((parent_visits + c_base + 1) / c_base) + c_init) * math.sqrt(parent_visits or 1)
            scales[parent_visits] = scale
        best, highest = edges[0], -1.0
        for edge in edges:
            child, visits = edge.child, edge.virtual
            if child is None:
                value = scale * edge.prior / (1 + visits)
            else:
                visits += child.visits
                value = (child.value_sum / visits if visits else 0.0) + scale * edge.prior / (1 + visits)
            if value > highest:
                best, highest = edge, value
        return best

    return rule


def uct(c: float) -> Rule:
    """argmax_a Q + c sqrt(ln N_p / N); unvisited actions first, the likeliest of them first."""

    def rule(edges: Sequence[Edge], parent_visits: int) -> Edge:
        log = math.log(parent_visits or 1)

        def value(edge: Edge) -> tuple[float, float]:
            visits = edge.virtual + (edge.child.visits if edge.child else 0)
            if not visits:
                return math.inf, edge.prior
            return (edge.child.value_sum if edge.child else 0.0) / visits + c * math.sqrt(log / visits), edge.prior

        return max(edges, key=value)

    return rule


_RULES = ("puct", "uct")


def select_wave(root: Node, edges: Edges, rule: Rule, size: int) -> list[Simulation]:
    """Up to `size` simulations, each spread from those before it by their virtual losses; fewer where two would meet in one place."""
    wave: list[Simulation] = []
    taken: set[int] = set()
    for _ in range(size):
        simulation, place = select(root, edges, rule, len(wave))
        if place in taken:
            for edge in simulation.path:
                edge.virtual -= 1
            break
        wave.append(simulation)
        if not simulation.node.finished:
            taken.add(place)
    return wave


def select(root: Node, edges: Edges, rule: Rule, virtual: int = 0) -> tuple[Simulation, int]:
    """Follow the rule down to an action not yet executed, a node not yet expanded, or an end; lay a virtual loss on the way.

    A virtual loss counts as a visit of value 0; `virtual` of them are under way at the root. Also returns the identity of the
    place, by which two simulations meet.
    """
    node, path = root, list[Edge]()
    while True:
        here = edges.get(node.index)
        if not here:
            return Simulation(path, node), id(node)
        edge = rule(here, node.visits + virtual)
        virtual = edge.virtual
        edge.virtual = virtual + 1
        path.append(edge)
        child = edge.child
        if child is None:
            return Simulation(path, node), id(edge)
        node = child


async def expand(
    engine: Engine, tree: SearchTree, edges: Edges, wave: Sequence[Simulation], *, num_actions: int, rule: Rule, noise: _Noise | None
) -> None:
    """Draw actions at the nodes not yet expanded, then execute, for each simulation, the action it has selected."""
    opening = [s for s in wave if s.node.index not in edges and not s.node.finished]
    proposals = await engine.propose([(s.node, num_actions) for s in opening])
    for s, answer in zip(opening, proposals, strict=True):
        if not answer and engine.exhausted:
            continue
        edges[s.node.index] = here = merge_edges(s.node, answer)
        if noise is not None and s.node is tree.root:
            noise.mix(here)
        if here:
            edge = rule(here, s.node.visits)
            edge.virtual += 1
            s.path.append(edge)
    executing = [s for s in wave if s.path and s.path[-1].child is None]
    steps = await engine.step([(s.node, s.path[-1].proposal) for s in executing])
    for s, step in zip(executing, steps, strict=True):
        if step is not None:
            edge = s.path[-1]
            edge.child = s.end = tree.add(s.node, step, edge.proposal)
            edge.child.prior, edge.child.draws = edge.prior, edge.count
    for s in wave:
        if s.path and s.end is None:
            s.end = s.path[-1].child


def _dead(root: Node, edges: Edges) -> bool:
    """Whether there is nothing to do at the root: it has ended, or the policy has no action for it."""
    return root.finished or edges.get(root.index) == []


def merge_edges(node: Node, proposals: Sequence[Proposal]) -> list[Edge]:
    """One edge for each distinct action, those that a line of play has executed before among them."""
    edges = merge_as(Edge, proposals)
    if not node.children:
        return edges
    known = {edge.signature: edge for edge in edges}
    for child in node.children:
        if child.step is None:
            continue
        edge = known.get(child.step.action.signature)
        if edge is None:
            edge = Edge(Proposal(child.step.action), child.draws / (len(proposals) + child.draws), 0)
            edges.append(edge)
        edge.child = child
        edge.count = child.draws = child.draws + edge.count
    total = sum(edge.prior for edge in edges)
    for edge in edges:
        edge.prior /= total
        if edge.child is not None:
            edge.child.prior = edge.prior
    return edges


async def evaluate(engine: Engine, tree: SearchTree, wave: Sequence[Simulation], rollouts: str) -> None:
    """Score the new nodes; where that gives no value, play one line to its end and score that."""
    reached = [s for s in wave if s.end is not None]
    asked = [s.end for s in reached if s.end and not s.end.visits and s.end.score is None and (s.end.finished or rollouts == "unscored")]
    await engine.score(asked)
    playing = [s for s in reached if s.end and not s.end.finished and (rollouts == "always" or s.end.score is None)]
    if not playing:
        return
    ends = await play_out(engine, tree, [s.end for s in playing if s.end])
    await engine.score([end for end in dict.fromkeys(ends) if end.score is None and end.finished])
    for s, end in zip(playing, ends, strict=True):
        s.end = end


def backup(simulation: Simulation, confidence: float = 0.0) -> None:
    """N += 1, W += v^(1 - a) P^a from the end to the root, and the virtual losses of the path taken back.

    Where no value was found the visit is not counted, and the virtual losses stay, so that selection moves on.
    """
    if simulation.end is None or simulation.end.score is None:
        return
    for edge in simulation.path:
        edge.virtual -= 1
    value = simulation.end.score.value
    if confidence and simulation.path:
        value = value ** (1 - confidence) * simulation.path[-1].prior ** confidence
    simulation.end.backup(value)


@dataclass(slots=True)
class _Noise:
    """P <- (1 - eps) P + eps Dir(alpha) at the root, from a seeded generator."""

    generator: random.Random
    alpha: float
    fraction: float

    def mix(self, edges: Sequence[Edge]) -> None:
        if not self.fraction or len(edges) < 2:
            return
        gammas = [self.generator.gammavariate(self.alpha, 1.0) for _ in edges]
        total = sum(gammas) or 1.0
        for edge, gamma in zip(edges, gammas, strict=True):
            edge.prior = (1 - self.fraction) * edge.prior + self.fraction * gamma / total
