"""Receding horizon: plan ahead in a world model, take the first action in the real world, look again.

Liu et al. 2023, "Reason for Future, Act for Now" (RAFA); Hao et al. 2023, "Reasoning with Language Model is Planning with World
Model" (RAP). What a world model imagines is graded `simulated` and stays in the plan; the tree holds what really happened.
"""

from __future__ import annotations

from dataclasses import replace

from counterplay.core.budget import Amounts, Budget
from counterplay.core.errors import UserError
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
    `environment` itself, which must then be one that can be restored. What planning cost counts in the tree's `used`.
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
    tree = SearchTree.start(state, "receding_horizon", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    node, planned = tree.root, Amounts()
    while engine.running(tree) and not node.finished:
        plan = await mcts(
            node.state,
            policy,
            world_model or environment,
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
        planned = planned + plan.used
        chosen = elected(plan)
        if chosen is None or chosen.step is None:
            break
        proposal = Proposal(chosen.step.action, chosen.prior, chosen.logprob)
        steps = await engine.step([(node, proposal)])
        if not steps or steps[0] is None:
            break
        node = tree.add(node, steps[0], proposal)
        node.draws = chosen.draws
        engine.after_wave(tree)
    await score_lines(engine, [(tree.root, node)])
    engine.finish(tree, "the line ended")
    tree.used = replace(tree.used + planned, seconds=tree.used.seconds)
    return tree


def elected(plan: SearchTree) -> Node | None:
    """The root's child with the most visits; ties: the higher value, then the earlier. None where nothing could be tried."""
    return max(plan.root.children, key=lambda child: (child.visits, child.value or 0.0, -child.index), default=None)
