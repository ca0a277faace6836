"""One-step look-ahead: weigh several actions before any of them is executed, and execute the best.

Zainullina et al. 2025, "Guided Search Strategies in Non-Serializable Environments with Applications to Software Engineering
Agents" (1-step lookahead); Zhai et al. 2024, "Enhancing Decision-Making for LLM Agents via Step-Level Q-Value Models".
"""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.nouns import State, Step
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.bounds import check_bounds
from counterplay.search.draws import Draw, FailedProposal, merge
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import score_lines
from counterplay.search.tree import Node, SearchTree


async def lookahead(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_actions: int = 4,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """One line of play: a_t = argmax_a Q(s_t, a) over `num_actions` merged draws, where Q is the process verifier's score of the
    state with the action, before anything followed it. Nothing is gone back to, so the environment need restore nothing.

    The actions that were passed over are leaves without observations, not finished, and were never executed. Each scored action
    is one evaluation of itself: N += 1, W += Q. The end of the line is scored as the line it is: N += 1, W += score up to the root.
    """
    check_bounds({"num_actions": num_actions})
    tree = SearchTree.start(state, "lookahead", {"num_actions": num_actions, "max_steps": max_steps, "seed": seed})
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    node = tree.root
    while engine.running(tree) and not node.finished:
        (proposals,) = await engine.propose([(node, num_actions)])
        draws = merge(proposals)
        if not draws:
            break
        candidates = expand(tree, node, draws)
        await evaluate(engine, candidates)
        chosen = select(candidates)
        (step,) = await engine.step([(node, draws[candidates.index(chosen)].proposal)])
        if step is None:
            break
        follow(chosen, step)
        node = chosen
        engine.after_wave(tree)
    await score_lines(engine, [(tree.root, node)])
    return engine.finish(tree, "the line ended")


def expand(tree: SearchTree, node: Node, draws: Sequence[Draw]) -> list[Node]:
    """A child for every distinct action, none of which is executed. A proposal that failed is a branch that failed."""
    children = []
    for draw in draws:
        proposal = draw.proposal
        failed = proposal.error if isinstance(proposal, FailedProposal) else None
        child = tree.add(node, Step(proposal.action, sampled=failed is None, error=failed), proposal)
        child.prior, child.draws = draw.prior, draw.count
        children.append(child)
    return children


async def evaluate(engine: Engine, candidates: Sequence[Node]) -> None:
    """Q(s, a). A single candidate is not asked about: there is nothing to choose."""
    if len(candidates) > 1:
        await engine.score(candidates)
    for node in candidates:
        if node.score is not None:
            node.backup(node.score.value, until=node)


def select(candidates: Sequence[Node]) -> Node:
    """argmax_a Q(s, a). Ties: the likelier, then the earlier. Without an opinion: as the others' mean. What failed is last."""
    known = [node.score.value for node in candidates if node.score is not None]
    middle = sum(known) / len(known) if known else 0.0

    def rank(node: Node) -> tuple[bool, float, float, int]:
        value = middle if node.score is None else node.score.value
        failed = node.step is not None and node.step.error is not None
        return (not failed, value, node.prior, -node.index)

    return max(candidates, key=rank)


def follow(chosen: Node, step: Step) -> None:
    """What followed the chosen action becomes part of its node. An end is scored anew, for now it is known how it ended."""
    parent = chosen.parent
    assert parent is not None
    chosen.step, chosen.state, chosen.finished = step, parent.state.extend(step), step.finished
    if step.finished:
        chosen.score = None
