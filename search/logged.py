"""A logged trajectory as a tree: its own path as logged nodes, to which searches add branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterplay.core.errors import UserError
from counterplay.core.nouns import Score, Trajectory
from counterplay.search.engine import Engine
from counterplay.search.tree import Node, SearchTree


@dataclass(frozen=True)
class LoggedPath:
    """`nodes[t]` is the state before step t, `nodes[-1]` the end of the log."""

    tree: SearchTree
    nodes: tuple[Node, ...]

    @property
    def end(self) -> Node:
        return self.nodes[-1]


def logged_path(trajectory: Trajectory, algorithm: str, config: Mapping[str, Any] | None = None) -> LoggedPath:
    """The tree of one logged trajectory, rooted at its bare prompt. Raises UserError where it has no steps."""
    if not trajectory.steps:
        raise UserError("got a trajectory without steps", "a logged run to fork")
    tree = SearchTree.start(trajectory.prefix(0), algorithm, config)
    nodes = [tree.root]
    for step in trajectory.steps:
        nodes.append(tree.add(nodes[-1], step, logged=True))
    return LoggedPath(tree, tuple(nodes))


def logged_reward(trajectory: Trajectory) -> float | None:
    """What the log says the run earned; None where it does not. Raises UserError outside [0, 1]."""
    reward = trajectory.steps[-1].reward if trajectory.steps else None
    if reward is not None and not 0 <= reward <= 1:
        raise UserError(f"got a logged reward of {reward}", "a reward in [0, 1]", "Scale rewards before searching.")
    return reward


async def score_log(engine: Engine, path: LoggedPath) -> None:
    """Score the logged end as any other end and back it up, for the log is one line. Without an opinion its logged reward counts."""
    if path.end.finished:
        await engine.score([path.end])
    reward = logged_reward(path.end.state)
    if path.end.score is None and reward is not None:
        path.end.score = Score(reward, "logged outcome", "logged_reward", "1")
    if path.end.score is not None:
        path.end.backup(path.end.score.value)


def horizon(trajectory: Trajectory, max_steps: int | None) -> int:
    """How many steps a branch of a logged run may have, counted from the prompt; by default twice the log, at least 20."""
    return max_steps if max_steps is not None else max(20, 2 * len(trajectory))
