"""Self-consistency at every step: draw until one action has clearly won the vote, and do what it says.

Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning in Language Models"; Aggarwal et al. 2023, "Let's Sample Step
by Step: Adaptive-Consistency" (the Beta stop). An agent's answer at a step is its tool calls, so that is what is voted on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

from counterplay.core.budget import Budget
from counterplay.core.canonical import canonical
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Proposal, State, ToolCall
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.draws import FailedProposal
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import score_lines
from counterplay.search.tree import Node, SearchTree

Ballot: TypeAlias = Callable[[Message], str]


async def self_consistency(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    batches: Sequence[int] = (2, 2, 4),
    confidence: float = 0.95,
    vote_on: Literal["signature", "name", "arguments", "hierarchical"] = "hierarchical",
    exclude_args: Sequence[str] = (),
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """One line of play. At each step draw the `batches` one after another until the leader's lead is safe, then execute its first draw.

    Safe: 1 - sum_{k <= v2} C(v1 + v2 + 1, k) / 2^(v1 + v2 + 1) >= `confidence`, for v1 votes against v2 of the runner-up: the posterior
    under Beta(1, 1) that the leader is the majority (4 to 0 stops at 0.969, 3 to 0 goes on). `hierarchical` votes on the tools' names first
    and then on the arguments among those, and is safe when both are; `exclude_args` names arguments that differ without meaning, such as
    ids and times. The default batches make 2, 4 or 8 draws a step.
    """
    ballots = _BALLOTS.get(vote_on)
    if ballots is None or not batches or min(batches) < 1:
        raise UserError(f"got vote_on={vote_on!r}, batches={list(batches)}", f"one of {', '.join(_BALLOTS)}, and batches of at least 1")
    config = {
        "batches": list(batches),
        "confidence": confidence,
        "vote_on": vote_on,
        "exclude_args": list(exclude_args),
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "self_consistency", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    node, voted = tree.root, [ballot(frozenset(exclude_args)) for ballot in ballots]
    while engine.running(tree) and not node.finished:
        drawn = await draw(engine, node, batches, confidence, voted)
        if not drawn:
            break
        chosen, _ = elect(drawn, voted)
        (step,) = await engine.step([(node, chosen)])
        if step is None:
            break
        votes = sum(proposal.action.signature == chosen.action.signature for proposal in drawn)
        node = tree.add(node, step, chosen)
        node.draws, node.prior = votes, votes / len(drawn)
        engine.after_wave(tree)
    await score_lines(engine, [(tree.root, node)])
    return engine.finish(tree, "the line ended")


async def draw(engine: Engine, node: Node, batches: Sequence[int], confidence: float, ballots: Sequence[Ballot]) -> list[Proposal]:
    """Proposals in batches until the leader is safe; without those that failed, unless all did."""
    drawn: list[Proposal] = []
    for batch in batches:
        answers = await engine.propose([(node, batch)])
        drawn += answers[0] if answers else ()
        sound = [proposal for proposal in drawn if not isinstance(proposal, FailedProposal)]
        if engine.exhausted or (sound and elect(sound, ballots)[1] >= confidence):
            break
    return [proposal for proposal in drawn if not isinstance(proposal, FailedProposal)] or drawn


def certainty(first: int, second: int) -> float:
    """P(p > 1/2) under Beta(first + 1, second + 1): how sure it is that the leader is the majority, in [0, 1]."""
    n = first + second + 1
    return 1.0 - float(sum(math.comb(n, k) for k in range(second + 1))) / 2.0**n


def elect(drawn: Sequence[Proposal], ballots: Sequence[Ballot]) -> tuple[Proposal, float]:
    """The first draw of the action that wins every ballot in turn, each among those that won the one before. Ties: the earlier.

    Also how sure its least sure ballot is, in [0, 1].
    """
    left, sure = list(drawn), 1.0
    for ballot in ballots:
        votes = Counter(ballot(proposal.action) for proposal in left).most_common(2)
        sure = min(sure, certainty(votes[0][1], votes[1][1] if len(votes) > 1 else 0))
        left = [proposal for proposal in left if ballot(proposal.action) == votes[0][0]]
    return left[0], sure


def _names(_excluded: Collection[str]) -> Ballot:
    return lambda action: canonical([call.name for call in action.tool_calls]) if action.tool_calls else action.signature


def _arguments(excluded: Collection[str]) -> Ballot:
    return lambda action: canonical([_kept(call, excluded) for call in action.tool_calls]) if action.tool_calls else action.signature


def _signature(excluded: Collection[str]) -> Ballot:
    def ballot(action: Message) -> str:
        return canonical([[call.name, _kept(call, excluded)] for call in action.tool_calls]) if action.tool_calls else action.signature

    return ballot


def _kept(call: ToolCall, excluded: Collection[str]) -> object:
    args = call.args
    return call.arguments if args is None else {name: value for name, value in args.items() if name not in excluded}


_BALLOTS: Mapping[str, Sequence[Callable[[Collection[str]], Ballot]]] = MappingProxyType(
    {"signature": (_signature,), "name": (_names,), "arguments": (_arguments,), "hierarchical": (_names, _arguments)}
)
