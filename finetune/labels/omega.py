"""OmegaPRM: labels along failed lines by halving for the first error, and which line to halve next.

Luo et al. 2024, "Improve Mathematical Reasoning in Language Models by Automated Process Supervision".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from counterplay.finetune.labels.steps import SUCCESS, StepLabel, evidence, label
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import Node, SearchTree


def omega(source: SourcedTree, *, min_lines: int = 1, mass: float = 0.9) -> list[StepLabel]:
    """Monte Carlo values of the steps that halving looks at, on the way to the first error of every failed line.

    The first error is the first step after which MC = W / N is 0. Along each failed line the half is taken that holds it: the later one
    where a line from the middle succeeds, else the earlier. States with fewer than `min_lines` lines can't be asked; the nearest that can
    be stands in. Steps of lines that succeed are labelled where they have as many lines. Exact for agents that never recover (see
    `search.localise`).
    """
    known = evidence(source.tree)
    chosen: dict[int, Node] = {}
    for leaf in source.tree.finished():
        if leaf.score is None or (leaf.step is not None and leaf.step.error is not None):
            continue
        path = [node for node in leaf.path()[1:] if known[node.index].n >= max(1, min_lines)]
        asked = path if leaf.score.value >= SUCCESS else _halved(path, {node.index: known[node.index].succeeded for node in path})
        chosen |= {node.index: node for node in asked}
    return [label(source, node, known[index].mean, "omega", known=known[index], mass=mass) for index, node in sorted(chosen.items())]


def _halved(path: list[Node], succeeds: dict[int, bool]) -> list[Node]:
    """The states that halving asks: at the end the last good one and the first bad one are neighbours."""
    asked = path[-1:]
    good, bad = -1, len(path) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        asked.append(path[middle])
        good, bad = (middle, bad) if succeeds[path[middle].index] else (good, middle)
    return asked


@dataclass(frozen=True, slots=True)
class Candidate:
    """A state from which a line is known that failed, and how much it is worth to halve that line: `priority` = Q + U."""

    node: Node
    leaf: Node
    priority: float


def candidates(tree: SearchTree, *, alpha: float = 0.5, beta: float = 0.9, length: int = 500, c: float = 0.125) -> list[Candidate]:
    """Which failed line to halve next, from which state; best first.

        Q(s, r) = alpha^(1 - MC(s)) beta^(len(r) / L)        U(s) = c sqrt(sum_i N(s_i)) / (1 + N(s))

    A likely success that still failed is preferred, and a short line. `length` L counts characters of the actions. N is the number of
    played lines.
    """
    known = evidence(tree)
    total = math.sqrt(sum(found.n for found in known.values()))
    found = []
    for leaf in tree.finished():
        if leaf.score is None or leaf.score.value >= SUCCESS:
            continue
        written = 0
        for node in reversed(leaf.path()):
            here = known[node.index]
            if node is not leaf and here.n and here.succeeded:
                q = alpha ** (1 - here.mean) * beta ** (written / length)
                found.append(Candidate(node, leaf, q + c * total / (1 + here.n)))
            written += len(node.step.action.signature) if node.step is not None else 0
    return sorted(found, key=lambda one: (-one.priority, one.node.index, one.leaf.index))
