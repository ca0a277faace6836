"""Receding horizon: plan ahead in a world model, take the first action in the real world, look again.

Liu et al. 2023, "Reason for Future, Act for Now" (RAFA); Hao et al. 2023, "Reasoning with Language Model is Planning with World
Model" (RAP). What a world model imagines is graded `simulated` and stays in the plan; the tree holds what really happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from counterplay.core.budget import Amounts, Budget
from counterplay.core.errors import PolicyError, UserError, VerifierError
from counterplay.core.nouns import Proposal, State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.mcts import mcts
from counterplay.search.rollout import score_lines
from counterplay.search.tree import Node, SearchTree


async def receding_horizon(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_simulations: int = 16,
    num_actions: int = 8,
    horizon: int = 8,
    confidence: float = 0.5,
    world_model: Environment | None = None,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """One line. Before each step plan by UCT in `world_model`, `horizon` steps ahead; the action with the most visits is executed.

    The plan's values are RAP's r = v^(1 - a) P^a with a = `confidence`: v the verifier's opinion of the imagined state, P the share of
    `num_actions` draws that proposed the action (the paper's confidence samples). Without a `world_model` the plan is made in
    `environment` itself, which must then be one that can be restored. What planning cost counts in the tree's `used`. A plan that
    fails altogether ends the line, and the search where it is the first.
    """
    if num_simulations < 1 or horizon < 1:
        raise UserError(f"got {num_simulations=}, {horizon=}", "at least 1 of each")
    config = {
        "num_simulations": num_simulations,
        "num_actions": num_actions,
        "horizon": horizon,
        "confidence": confidence,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree, planned = SearchTree.start(state, "receding_horizon", config), Amounts()

    def shown(grown: SearchTree) -> None:
        grown.used = replace(grown.used + planned, seconds=grown.used.seconds)
        if on_wave is not None:
            on_wave(grown)

    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=shown)
    node = tree.root
    while engine.running(tree) and not node.finished:
        try:
            plan = await mcts(
                node.state,
                policy,
                environment if world_model is None else world_model,
                verifier,
                budget,
                num_simulations=num_simulations,
                num_actions=num_actions,
                wave_size=1,
                selection="uct",
                root_exploration_fraction=0.0,
                confidence=confidence,
                max_steps=min(horizon, max_steps - node.depth),
                concurrency=concurrency,
                seed=seed + node.depth,
            )
        except (PolicyError, VerifierError) as error:
            if node is tree.root:
                raise  # nothing worked even once
            note(engine, {"plan": {"count": 1, "first": str(error)}})
            tree.stop("the plan failed")
            break
        planned = planned + plan.used
        note(engine, plan.failures)
        chosen = elected(plan)
        if chosen is None or chosen.step is None:
            tree.stop(plan.stopped if plan.stopped.startswith("budget") else "the plan has no action")
            break
        proposal = Proposal(chosen.step.action, chosen.prior, chosen.logprob)
        (step,) = await engine.step([(node, proposal)])
        if step is None:
            break
        node = tree.add(node, step, proposal)
        node.draws = chosen.draws
        engine.after_wave(tree)
    await score_lines(engine, [(tree.root, node)])
    return engine.finish(tree, "the line ended")


def note(engine: Engine, failures: Mapping[str, Any]) -> None:
    """Count the failures of a plan with those of the line."""
    for kind, failed in failures.items():
        known = engine.failures.setdefault(kind, {"count": 0, "first": failed["first"]})
        known["count"] += failed["count"]


def elected(plan: SearchTree) -> Node | None:
    """The root's child with the most visits; ties: the higher value, the likelier, the earlier. None where nothing could be tried."""
    return max(plan.root.children, key=lambda child: (child.visits, child.value or 0.0, child.prior, -child.index), default=None)
