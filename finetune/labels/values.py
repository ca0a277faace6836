"""Labels that weigh a step by what it changes: advantages under a prover, ReST-MCTS* values, temporal-difference targets."""

from __future__ import annotations

from collections.abc import Callable

from counterplay.finetune.labels.steps import SUCCESS, StepLabel, evidence, label, labelled_nodes
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import Node, SearchTree


def advantages(
    source: SourcedTree, *, prover: SearchTree | None = None, best_of: int = 4, alpha: float | None = None, min_lines: int = 1
) -> list[StepLabel]:
    """A(s, a) = Q_mu(s, a) - V_mu(s) in [-1, 1]: what a step adds to the chances of a prover mu that is not the policy.

    Setlur et al. 2024, "Rewarding Progress" (PAV). `prover` is a tree of lines that mu played, whose states are found by their keys.
    Without one mu is the best of `best_of` lines of the agent itself, V_mu = 1 - (1 - V)^K. With `alpha` the label is what a search is
    steered by, Q + alpha A, brought to [0, 1] as (Q + alpha (1 + A)) / (1 + 2 alpha). Steps are left out where one of the two states has
    fewer than `min_lines` lines.
    """
    known = evidence(source.tree)
    if prover is None:
        values = {
            node.state.key: 1 - (1 - known[node.index].mean) ** best_of for node in source.tree.nodes if known[node.index].n >= min_lines
        }
    else:
        played = evidence(prover)
        values = {node.state.key: played[node.index].mean for node in prover.nodes if played[node.index].n >= min_lines}
    made = []
    for node in labelled_nodes(source.tree):
        above = node.parent.state.key if node.parent is not None else ""
        own = known[node.index]
        if node.state.key not in values or above not in values or (alpha is not None and not own.n):
            continue
        value = values[node.state.key] - values[above]
        if alpha is not None:
            value = (own.mean + alpha * (1 + value)) / (1 + 2 * alpha)
        made.append(label(source, node, value, "advantage", known=own))
    return made


def rest_values(source: SourcedTree) -> list[StepLabel]:
    """v_k = max(0, v_{k-1} + (1 - v_{k-1}) r_k / m_k): how far along the way to a correct end a step is, in [0, 1].

    Zhang et al. 2024, "ReST-MCTS*". v is 0 at the root; r_k is 1 where a correct end is below the step, else -1; m_k is the least number of
    steps from the state before it to a correct end (where there is none below it, the distance at the last state that had one). So every
    step of the shortest correct line of K steps gets k / K. Empty for a tree without a correct end, from which no distance is known.
    """
    distance = _distances(source.tree)
    known = evidence(source.tree)
    root = distance.get(source.tree.root.index)
    if root is None:
        return []
    values = {source.tree.root.index: 0.0}
    left = {source.tree.root.index: root}
    made = []
    for node in labelled_nodes(source.tree):
        above = node.parent.index if node.parent is not None else 0
        if above not in values:
            continue
        right = node.index in distance
        before = left[above]
        values[node.index] = max(0.0, values[above] + (1 - values[above]) * (1 if right else -1) / max(1, before))
        left[node.index] = distance.get(node.index, before)
        made.append(label(source, node, values[node.index], "rest", known=known[node.index]))
    return made


def _distances(tree: SearchTree) -> dict[int, int]:
    """The least number of steps to a correct end, for the nodes that have one at or below them."""
    found: dict[int, int] = {}
    for node in reversed(tree.nodes):
        below = [found[child.index] + 1 for child in node.children if child.index in found]
        if node.finished and not node.children and node.score is not None and node.score.value >= SUCCESS:
            below.append(0)
        if below:
            found[node.index] = min(below)
    return found


def td_targets(
    source: SourcedTree, *, gamma: float = 1.0, lam: float = 0.9, value: Callable[[Node], float | None] | None = None
) -> list[StepLabel]:
    """TD(lambda) targets: G(s) = gamma sum_a pi(a) ((1 - lambda) V(s') + lambda G(s')), G at an end its score.

    Sutton 1988; for agents' reward models as in ReARTeR (Sun et al. 2025), against the bias of early steps. V is the present verifier's
    opinion, `value`, or the score the search left at the node; where it has none, G stands in. pi is the share of the draws. Steps below
    which nothing ended in a score and nothing has an opinion are left out.
    """
    opinion = value or _score
    known = evidence(source.tree)
    target: dict[int, float] = {}
    for node in reversed(source.tree.nodes):
        if node.finished or not node.children:
            end = node.score.value if node.finished and node.score is not None else opinion(node)
            if end is not None:
                target[node.index] = end
            continue
        backed: list[tuple[int, float]] = []
        for child in node.children:
            if child.index in target:
                guess = opinion(child)
                bootstrap = target[child.index] if guess is None else (1 - lam) * guess + lam * target[child.index]
                backed.append((max(1, child.draws), bootstrap))
        if backed:
            target[node.index] = gamma * sum(draws * far for draws, far in backed) / sum(draws for draws, _ in backed)
    nodes = (node for node in labelled_nodes(source.tree) if node.index in target)
    return [label(source, node, target[node.index], "td", known=known[node.index]) for node in nodes]


def _score(node: Node) -> float | None:
    return None if node.score is None else node.score.value
