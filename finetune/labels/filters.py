"""Labels put right or thinned out: agreement with a judge, errors that were made good, merged steps.

Zhang et al. 2025, "The Lessons of Developing Process Reward Models" (consensus); Yang et al. 2025, "Beyond the First Error" (reflection);
Wang et al. 2025, "Towards Hierarchical Multi-Step Reward Models" (hierarchical node compression).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from counterplay.core.beta import probability_better
from counterplay.finetune.labels.steps import StepLabel, evidence, label
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import Node


@dataclass(frozen=True)
class Consensus:
    """The labels that a judge confirms. Of `judged` lines, `agreed` have the same first error by both."""

    labels: tuple[StepLabel, ...]
    judged: int
    agreed: int

    @property
    def agreement(self) -> float | None:
        """The share of lines on which both agree; None where none was judged."""
        return self.agreed / self.judged if self.judged else None


def first_error(path: Sequence[Node], values: Mapping[str, float], *, boundary: float = 0.5) -> int | None:
    """The step index of the first label below `boundary` on a line, -1 where there is none; None for a line without labels."""
    labelled = [(len(node.state) - 1, values[node.state.key]) for node in path if node.state.key in values]
    if not labelled:
        return None
    return next((step for step, value in labelled if value < boundary), -1)


def consensus(source: SourcedTree, labels: Sequence[StepLabel], judged: Mapping[str, int], *, boundary: float = 0.5) -> Consensus:
    """Keep the labels of lines on which Monte Carlo and a judge find the same first error.

    `judged` gives the judge's for the end of a line, by its state key: a step index, or -1 for none. A label that lines share is kept where
    one of them agrees and none disagrees. Lines that were not judged, or have no label, tell nothing.
    """
    values = {one.key: one.value for one in labels}
    confirmed: set[str] = set()
    refuted: set[str] = set()
    asked = agreed = 0
    for leaf in source.tree.leaves():
        verdict = judged.get(leaf.state.key)
        found = first_error(leaf.path()[1:], values, boundary=boundary)
        if verdict is None or found is None:
            continue
        asked += 1
        agreed += verdict == found
        (confirmed if verdict == found else refuted).update(node.state.key for node in leaf.path())
    return Consensus(tuple(one for one in labels if one.key in confirmed and one.key not in refuted), asked, agreed)


def reflection(source: SourcedTree, *, tau: float = 0.9, min_lines: int = 4) -> list[StepLabel]:
    """0 from a step that surely lowers the chances until one that surely restores them, 1 elsewhere: an error that is made good ends.

    A step is an error where P(V_before > V_after) >= `tau` under Beta(1 + W, 1 + N - W), and a correction where P(V_after > V_error) >=
    `tau` and not P(V_before > V_after) >= `tau` any more, V_before being the value before the error. "Everything after the first error is
    wrong" would punish the correction, and a Monte Carlo label above 0 would excuse the error. States with fewer than `min_lines` lines are
    left out, and leave open what holds.
    """
    known = evidence(source.tree)
    made: list[StepLabel] = []
    reference: dict[int, tuple[Node, Node | None]] = {source.tree.root.index: (source.tree.root, None)}

    def surer(up: Node, down: Node) -> bool:
        a, b = known[up.index], known[down.index]
        return probability_better(a.w, a.n, b.w, b.n) >= tau

    for node in source.tree.nodes[1:]:
        if node.parent is None or node.parent.index not in reference or (node.step is not None and node.step.error is not None):
            continue
        good, error = reference[node.parent.index]
        if known[node.index].n < min_lines:
            reference[node.index] = good, error
            continue
        if error is None:
            error = node if surer(good, node) else None
        elif surer(node, error) and not surer(good, node):
            error = None
        elif surer(error, node):
            error = node
        reference[node.index] = (good, error) if error is not None else (node, None)
        made.append(label(source, node, float(error is None), "reflection", known=known[node.index], mass=0.9))
    return made


def compress(source: SourcedTree, labels: Iterable[StepLabel], *, share: float = 0.3, seed: int = 0) -> list[StepLabel]:
    """Merge a `share` of neighbouring labelled steps into one, which has the value of the later: a coarser view of the same lines.

    A merged label stands for the steps of both (`span`), and replaces them; no step is merged twice. Which ones follows from `seed` and the
    key of the state. The earlier step of a merge keeps its label where other lines go through it too.
    """
    by_key = {one.key: one for one in labels}
    merged: set[str] = set()
    gone: set[str] = set()
    for node in source.tree.nodes:
        above = node.parent
        if above is None or node.state.key not in by_key or above.state.key not in by_key or above.state.key in merged | gone:
            continue
        if Random(f"{seed}/{node.state.key}").random() >= share:
            continue
        early, late = by_key[above.state.key], by_key[node.state.key]
        by_key[late.key] = replace(late, span=late.span + early.span)
        merged.add(late.key)
        if len(above.children) == 1:
            gone.add(early.key)
    return [one for key, one in by_key.items() if key not in gone]
