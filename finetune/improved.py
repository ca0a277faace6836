"""SFT rows that train on the steps a search surely made better, with the rest of the line as context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from counterplay.core.nouns import Grade
from counterplay.finetune.beta import probability_better
from counterplay.finetune.evidence import Action, ActionEvidence
from counterplay.finetune.rows import Drop, Harvest, SFTRow, SourcedTree, too_low
from counterplay.finetune.trajectories import leaf_row, only_steps, passing
from counterplay.search.tree import Node


def improved_rows(
    trees: Iterable[SourcedTree],
    *,
    tau: float = 0.9,
    min_score: float = 1.0,
    min_grade: Grade = Grade.EXECUTED,
    per_tree: int = 1,
) -> Harvest[SFTRow]:
    """Good ends whose only trained steps are those that are surely better than what was done instead.

    A step is one where P(Q > Q_other) >= `tau` under Beta(1 + W, 1 + N - W), N and W being counts of played lines (`search.counts.lines`),
    and W / N is higher: Q_other is of the logged action where the state has one, else of all other actions of the state taken together.
    What the evidence rests on must be graded `min_grade` or better too. Steps without alternatives, and those before the root of the
    tree, are context. The `per_tree` best ends with such a step are taken; the rest is as in `sft_rows`.
    """
    if not 0.5 < tau <= 1.0:
        msg = f"got tau {tau}, wanted a probability above 0.5 and at most 1"
        raise ValueError(msg)
    rows: list[SFTRow] = []
    drops: list[Drop] = []
    for source in trees:
        leaves, reason = passing(source.tree, min_score, min_grade)
        known = ActionEvidence(source)
        made = (only_steps(leaf_row(source, leaf), leaf.state, improvements(known, leaf, tau, min_grade)) for leaf in leaves)
        taken = [row for row in made if any(row.trained)][:per_tree]
        rows += taken
        if not taken:
            drops.append(Drop(reason or "no step is surely better than what was done instead", source.name))
    return Harvest(tuple(rows), tuple(drops))


def improvements(known: ActionEvidence, leaf: Node, tau: float, min_grade: Grade = Grade.EXECUTED) -> list[int]:
    """The steps of the line to `leaf` that are surely better than what was done instead, by their index in the trajectory."""
    path = leaf.path()
    return [len(parent.state) for parent, node in pairwise(path) if _is_better(known.actions(parent), node, tau, min_grade)]


def _is_better(actions: Sequence[Action], node: Node, tau: float, min_grade: Grade) -> bool:
    own = next((action for action in actions if any(node is one for one in action.nodes)), None)
    others = [action for action in actions if action is not own and not too_low(action.grade, min_grade)]
    rivals = [action for action in others if any(one.logged for one in action.nodes)] or others
    if own is None or not rivals or too_low(own.grade, min_grade):
        return False
    visits, value_sum = sum(rival.visits for rival in rivals), sum(rival.value_sum for rival in rivals)
    return surely_higher((own.visits, own.value_sum), (visits, value_sum), tau)


def surely_higher(up: tuple[int, float], down: tuple[int, float], tau: float) -> bool:
    """Of two (N, W) with lines: is the first's value higher with a probability of at least `tau`, and higher in what was seen?

    Where all lines succeeded, a state that was played less is no worse for it: only the uniform prior puts it lower.
    """
    return up[1] * down[0] > down[1] * up[0] and probability_better(up[1], up[0], down[1], down[0]) >= tau
