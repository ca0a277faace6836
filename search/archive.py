"""Archive branching: half of the lines start afresh, half branch from a rare state of the lines already played.

"SWE-Replay" (2026): no value model is needed, for novelty says where to branch; after Ecoffet et al. 2021, "First return, then
explore" (Go-Explore), whose archive returns to states that were seldom visited.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from counterplay.core.budget import Budget
from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import State, Step, Trajectory
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import play_out, score_lines
from counterplay.search.tree import Node, SearchTree


async def archive(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_lines: int = 16,
    wave_size: int = 4,
    explore: float = 0.5,
    min_score: float = 0.0,
    window: int = 2,
    max_steps: int = 100,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Play `num_lines` lines, `wave_size` at a time; each from the root with probability p = `explore`, else from a state of the archive.

    The archive holds the states before every step of the lines so far, without those that failed or scored below `min_score`. States
    are grouped by what was done last: the names of the tools of the last `window` actions. A group is drawn with a weight of
    1 / visits, the number of lines' states in it, a state in it evenly. N of a node counts the lines through it that began at or
    above it, W sums their scores.
    """
    if num_lines < 1 or wave_size < 1 or not 0 <= explore <= 1:
        raise UserError(f"got {num_lines=}, {wave_size=}, {explore=}", "at least 1 of each and a probability")
    config = {
        "num_lines": num_lines,
        "wave_size": wave_size,
        "explore": explore,
        "min_score": min_score,
        "window": window,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "archive", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    generator, known, begun = random.Random(seed), Archive(window), 0
    while begun < num_lines and engine.running(tree) and not tree.root.finished:
        starts = [
            tree.root if not known.groups or generator.random() < explore else known.rare(generator)
            for _ in range(min(wave_size, num_lines - begun))
        ]
        begun += len(starts)
        ends = await play_out(engine, tree, starts)
        await score_lines(engine, list(zip(starts, ends, strict=True)))
        engine.after_wave(tree)
        for end in ends:
            if worth_keeping(end, min_score):
                known.keep(end)
    return engine.finish(tree, f"{begun} lines ended")


def worth_keeping(end: Node, min_score: float) -> bool:
    """Whether a line has ended, did not fail and scored `min_score` at least; no opinion is not a bad opinion."""
    sound = end.finished and (end.step is None or end.step.error is None)
    return sound and (end.score is None or end.score.value >= min_score)


@dataclass
class Archive:
    """The states that lines have passed through, in groups of one abstraction, and how many lines have passed through each group."""

    window: int
    groups: dict[str, list[Node]] = field(default_factory=dict)
    visits: Counter[str] = field(default_factory=Counter)
    known: set[int] = field(default_factory=set)

    def keep(self, end: Node) -> None:
        """Take in the states of a line before its steps, but for the root, from which every fresh line starts."""
        for node in end.path()[1:-1]:
            group = abstraction(node.state, self.window)
            self.visits[group] += 1
            if node.index not in self.known:
                self.known.add(node.index)
                self.groups.setdefault(group, []).append(node)

    def rare(self, generator: random.Random) -> Node:
        """A state drawn by the rarity of its group: groups by 1 / visits, then evenly inside."""
        (group,) = generator.choices(list(self.groups), [1 / self.visits[group] for group in self.groups])
        return generator.choice(self.groups[group])


def abstraction(state: State, window: int) -> str:
    """What a state is taken for: the names of the tools that the last `window` actions called."""
    return _group(state.steps[-window:] if window else ())


def groups(trajectory: Trajectory, window: int) -> tuple[str, ...]:
    """The abstraction of the state before every step. Those of the runs that were asked about last are kept."""
    key = (trajectory.key, window)
    if key not in _GROUPS:
        while len(_GROUPS) >= _KEPT:
            del _GROUPS[next(iter(_GROUPS))]
        _GROUPS[key] = tuple(_group(trajectory.steps[max(0, t - window) : t]) for t in range(len(trajectory)))
    return _GROUPS[key]


def _group(last: Sequence[Step]) -> str:
    return content_key(*("+".join(call.name for call in step.action.tool_calls) or "say" for step in last))


_KEPT = 1 << 14
_GROUPS: dict[tuple[str, int], tuple[str, ...]] = {}
