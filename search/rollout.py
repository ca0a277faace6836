"""Lines of play: from a state to the end of the episode, many at once in lockstep waves.

The building blocks `advance` (propose, merge, execute) and `play_out` are what every other search is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Proposal, State, Step, Trajectory
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.bounds import check_bounds
from counterplay.search.draws import merge
from counterplay.search.engine import Engine, OnWave
from counterplay.search.tree import Node, SearchTree


async def rollout(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """One line of play, as the policy would play it, scored at its end."""
    tree = SearchTree.start(state, "rollout", {"max_steps": max_steps, "seed": seed})
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    ends = await play_out(engine, tree, [tree.root])
    await score_lines(engine, [(tree.root, ends[0])])
    return engine.finish(tree, "the line ended")


async def greedy(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_samples: int = 8,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """One line of play that takes the likeliest action at each step: a_t = argmax_a P(a | s_t) over `num_samples` merged draws.

    Without priors from the policy this is a vote on the signature of the tool calls (self-consistency, Wang et al. 2023).
    Only the elected action is executed.
    """
    check_bounds({"num_samples": num_samples})
    tree = SearchTree.start(state, "greedy", {"num_samples": num_samples, "max_steps": max_steps, "seed": seed})
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    node = tree.root
    while engine.running(tree) and not node.finished:
        (proposals,) = await engine.propose([(node, num_samples)])
        draws = merge(proposals)
        if not draws:
            break
        elected = max(draws, key=lambda draw: draw.prior)
        (step,) = await engine.step([(node, elected.proposal)])
        if step is None:
            break
        node = tree.add(node, step, elected.proposal)
        node.prior, node.draws = elected.prior, elected.count
        engine.after_wave(tree)
    await score_lines(engine, [(tree.root, node)])
    return engine.finish(tree, "the line ended")


async def play(
    states: Sequence[State],
    policy: Policy,
    environments: Sequence[Environment],
    budget: Budget,
    *,
    max_steps: int = 100,
    concurrency: int = 64,
) -> list[Trajectory]:
    """One line of play from each state in its own environment, step by step together, so that a local model can batch.

    Unscored; aligned with `states`. A line that the budget cut short, or for which the policy had no action, is not finished.
    """
    if len(states) != len(environments):
        raise UserError(f"got {len(states)} states and {len(environments)} environments", "one environment for each state")
    engine = Engine(policy, None, None, budget, concurrency=concurrency, max_steps=max_steps)
    ends = [SearchTree.start(state).root for state in states]
    live = [i for i, node in enumerate(ends) if not node.finished]
    while live and not engine.exhausted:
        proposals = await engine.propose([(ends[i], 1) for i in live])
        moves = [(i, answer[0]) for i, answer in zip(live, proposals, strict=True) if answer]
        steps = await engine.step([(ends[i], proposal) for i, proposal in moves], [environments[i] for i, _ in moves])
        for (i, _), step in zip(moves, steps, strict=True):
            if step is not None:
                ends[i] = Node(0, ends[i].state.extend(step), depth=ends[i].depth + 1, finished=step.finished)
        live = [i for (i, _), step in zip(moves, steps, strict=True) if step is not None and not ends[i].finished]
    return [node.state for node in ends]


async def play_out(engine: Engine, tree: SearchTree, starts: Sequence[Node]) -> list[Node]:
    """Play one line from each start to its end, together. Lines that draw the same action in the same node share its child.

    Returns the last node of each line, aligned with `starts`; it is not finished where budget, caller or policy ended the line.
    """
    ends = list(starts)
    live = [i for i, node in enumerate(ends) if not node.finished]
    while live and engine.running(tree):
        lines: dict[int, list[int]] = {}
        for i in live:
            lines.setdefault(ends[i].index, []).append(i)
        children = await advance(engine, tree, [(tree.nodes[index], len(here)) for index, here in lines.items()])
        moved = [(i, child) for here, drawn in zip(lines.values(), children, strict=True) for i, child in zip(here, drawn, strict=False)]
        for i, child in moved:
            ends[i] = child
        live = sorted(i for i, child in moved if not child.finished)
        engine.after_wave(tree)
    return ends


async def advance(engine: Engine, tree: SearchTree, wave: Sequence[tuple[Node, int]]) -> list[list[Node]]:
    """Draw n actions in each node and execute those that are new there. Returns the children reached, one for each draw, in draw order.

    An action that is a child already (drawn before, or logged) is not executed again; its draws are counted up.
    """
    proposals = await engine.propose(wave)
    fresh: dict[tuple[int, str], tuple[Node, Proposal]] = {}
    for (node, _), answer in zip(wave, proposals, strict=True):
        for proposal in answer:
            signature = proposal.action.signature
            if node.child(signature) is None:
                fresh.setdefault((node.index, signature), (node, proposal))
    steps = await engine.step(list(fresh.values()))
    for (node, proposal), step in zip(fresh.values(), steps, strict=True):
        if step is not None:
            _add(tree, node, step, proposal)
    return [_reached(node, answer) for (node, _), answer in zip(wave, proposals, strict=True)]


async def score_lines(engine: Engine, lines: Sequence[tuple[Node, Node]]) -> None:
    """Score the end of each finished line (start, end) once and back its value up to the start: N += 1, W += value for every line."""
    lines = [(start, end) for start, end in lines if end.finished]
    ends = {end.index: end for _, end in lines if end.score is None}
    await engine.score(list(ends.values()))
    for start, end in lines:
        if end.score is not None:
            end.backup(end.score.value, until=start)


def _add(tree: SearchTree, node: Node, step: Step, proposal: Proposal) -> None:
    child = tree.add(node, step, proposal)
    child.draws = 0  # counted by _reached


def _reached(node: Node, answer: Sequence[Proposal]) -> list[Node]:
    children = []
    for proposal in answer:
        child = node.child(proposal.action.signature)
        if child is not None:
            child.draws += 1
            children.append(child)
    given = {draw.signature: draw.prior for draw in merge(answer)}
    frequency = any(proposal.prior is None for proposal in answer)
    total = sum(child.draws for child in node.children)
    for child in node.children:
        if frequency:
            child.prior = child.draws / total
        elif child.step is not None and child.step.action.signature in given:
            child.prior = given[child.step.action.signature]
    return children
