"""Labels from play-outs: what share of the lines from a state succeed, or whether any does.

Wang et al. 2024, "Math-Shepherd" (hard and soft estimation); Havrilla et al. 2024, "GLoRe" (SORM: the value of the best policy).
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from counterplay.core.beta import probability_better
from counterplay.finetune.labels.steps import Evidence, StepLabel, evidence, label, labelled_nodes
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import Node, SearchTree


def monte_carlo(source: SourcedTree, *, hard: bool = False, min_lines: int = 1, mass: float = 0.9) -> list[StepLabel]:
    """A label for every step with at least `min_lines` played lines through it.

    Soft: W / N, their mean value. Hard: 1 where any of them succeeds, else 0. The interval is of Beta(1 + W, 1 + N - W) either way.
    """
    known = evidence(source.tree)
    made = []
    for node in labelled_nodes(source.tree):
        found = known[node.index]
        if found.n >= max(1, min_lines):
            value = float(found.succeeded) if hard else found.mean
            made.append(label(source, node, value, "mc_hard" if hard else "mc_soft", known=found, mass=mass))
    return made


def sorm(source: SourcedTree, *, lines: int = 8, tau: float = 0.0, balance: bool = True, mass: float = 0.9) -> list[StepLabel]:
    """1 where any continuation succeeds, 0 where none of at least `lines` does; steps with fewer failures are left out.

    Where success is rare anyway a few failures prove little: with `tau` a 0 also needs P(V_before > V) >= `tau` under
    Beta(1 + W, 1 + N - W), V_before being that of the last state before it that succeeded.

    A step before one that can succeed can succeed, so labels never rise along a line (consistency). `balance` keeps as many steps of the
    commoner value as there are of the rarer one, those with the most lines, then the earlier.
    """
    known = evidence(source.tree)
    right, wrong = [], []
    doomed: set[int] = set()
    good = {source.tree.root.index: known[source.tree.root.index]}
    for node in labelled_nodes(source.tree):
        found, above = known[node.index], 0 if node.parent is None else node.parent.index
        hopeless = above in doomed
        good[node.index] = found if found.succeeded else good.get(above, found)
        before = good[node.index]
        if found.succeeded:
            right.append(label(source, node, 1.0, "sorm", known=found, mass=mass))
        elif (hopeless and found.n) or (found.n >= lines and probability_better(before.w, before.n, found.w, found.n) >= tau):
            doomed.add(node.index)
            wrong.append(label(source, node, 0.0, "sorm", known=found, mass=mass))
    if balance:
        kept = min(len(right), len(wrong))
        right, wrong = ([*sorted(side, key=lambda one: -one.n)[:kept]] for side in (right, wrong))
    order = {node.state.key: node.index for node in source.tree.nodes}
    return sorted([*right, *wrong], key=lambda one: order[one.key])


@dataclass(frozen=True, slots=True)
class Probe:
    """Play `lines` more lines from this node; `width` is how wide its credible interval is now."""

    node: Node
    lines: int
    width: float


def undecided(tree: SearchTree, *, width: float = 0.3, boundary: float = 0.5, budget: int = 64, mass: float = 0.9) -> list[Probe]:
    """Which states deserve further lines, and how many of `budget` each: adaptive k in place of a fixed one.

    A state deserves a line while the interval of its value is wider than `width` and holds `boundary`, which parts right from wrong. Lines
    go one by one to the widest interval, as it would be if further lines came out as those so far. Most lines first; empty where all is
    decided.
    """
    known = evidence(tree)
    open_nodes = {node.index: node for node in tree.nodes if not node.finished and (node.step is None or node.step.error is None)}
    spent = dict.fromkeys(open_nodes, 0)
    first = {index: _width(known[index], 0, boundary, mass) for index in open_nodes}
    heap = [(-wide, index) for index, wide in first.items() if wide > width]
    heapify(heap)
    for _ in range(budget):
        if not heap:
            break
        _, index = heappop(heap)
        spent[index] += 1
        wide = _width(known[index], spent[index], boundary, mass)
        if wide > width:
            heappush(heap, (-wide, index))
    chosen = [Probe(open_nodes[index], count, first[index]) for index, count in spent.items() if count]
    return sorted(chosen, key=lambda probe: (-probe.lines, probe.node.index))


def _width(found: Evidence, more: int, boundary: float, mass: float) -> float:
    """How wide the interval is after `more` lines like those before; 0 where it does not hold the boundary."""
    mean = found.mean if found.n else 0.5
    low, high = Evidence(found.n + more, found.w + more * mean, None).interval(mass)
    return high - low if low < boundary < high else 0.0
