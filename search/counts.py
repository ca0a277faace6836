"""Which statistics are evidence: how many lines were played through a node, and what they scored.

Preference pairs treat N and W of siblings as counts of a Beta posterior. In some searches that is what visits and value_sum
are; in others they hold opinions on states that nobody played on from, or count one end each time it was selected.
"""

from __future__ import annotations

from collections.abc import Mapping

from counterplay.search.tree import SearchTree

COUNTS = frozenset(
    {
        "rollout",
        "greedy",
        "self_consistency",
        "best_of_n",
        "independent",
        "archive",
        "receding_horizon",
        "fork_best_of_n",
        "repair",
    }
)
"""The searches whose N and W are counts of played lines: each line is backed up once, by the score of its end."""

OPINIONS = frozenset(
    {
        "lookahead",
        "beam",
        "dvts",
        "rebase",
        "particle_filter",
        "best_first",
        "depth_first",
        "mcts",
        "mcts_star",
        "gumbel",
        "lats",
    }
)
"""The searches whose N and W may hold opinions on unfinished states, or one end several times."""


def mean(visits: int, value_sum: float) -> float:
    """The mean of Beta(1 + W, 1 + N - W)."""
    return (1 + value_sum) / (2 + visits)


def lines(tree: SearchTree) -> Mapping[int, tuple[int, float]]:
    """N and W of every node, by its index, as counts of played lines.

    They are the node's own, except in a tree of one of the `OPINIONS`: there each scored end at or below a node counts once. Trees that
    no search of this shelf made, such as merged logs, are taken at their word.
    """
    if tree.algorithm not in OPINIONS:
        return {node.index: (node.visits, node.value_sum) for node in tree.nodes}
    counted = {node.index: (0, 0.0) for node in tree.nodes}
    for node in reversed(tree.nodes):
        visits, value_sum = counted[node.index]
        if node.finished and not node.children and node.score is not None:
            visits, value_sum = counted[node.index] = visits + 1, value_sum + node.score.value
        if node.parent is not None:
            above = counted[node.parent.index]
            counted[node.parent.index] = (above[0] + visits, above[1] + value_sum)
    return counted
