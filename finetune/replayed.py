"""Changed lines: what the rest of a line does after one of its actions was changed, executed by an environment. No model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from counterplay.core.nouns import Message, Proposal
from counterplay.search.engine import Engine
from counterplay.search.tree import Node, SearchTree


async def play_actions(engine: Engine, tree: SearchTree, branches: Sequence[tuple[Node, Sequence[Message]]]) -> list[Node]:
    """Execute the actions of each branch from its node on, all branches a step at a time; the node where each came to a stop.

    A branch stops where it ends, and where its actions or the budget do. Its first action was written by nobody in that state, and is not
    `sampled`.
    """
    ends = [node for node, _ in branches]
    rest = [list(actions) for _, actions in branches]
    live = [at for at, actions in enumerate(rest) if actions]
    while live:
        done = await engine.step([(ends[at], Proposal(rest[at].pop(0))) for at in live])
        for at, step in zip(live, done, strict=True):
            if step is not None:
                ends[at] = tree.add(ends[at], replace(step, sampled=False) if ends[at] is branches[at][0] else step)
        live = [at for at, step in zip(live, done, strict=True) if step is not None and not step.finished and rest[at]]
    return ends


async def score_ends(engine: Engine, ends: Sequence[Node]) -> None:
    """Ask about the ends of lines, and back each that has ended and was scored up to the root: it is one line."""
    await engine.score(ends)
    for end in ends:
        if end.finished and end.score is not None:
            end.backup(end.score.value)
