"""A labelled step, and the evidence of a tree that labels are made of: played lines, each counted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from counterplay.core.beta import incomplete_beta
from counterplay.finetune.rows import Lineage, SourcedTree, verifiers_of
from counterplay.search.counts import lines
from counterplay.search.tree import Node, SearchTree

LabelKind: TypeAlias = Literal["mc_soft", "mc_hard", "omega", "advantage", "rest", "sorm", "td", "reflection", "mutation", "ablation"]

SUCCESS = 0.5
"""The score from which a line counts as a success."""


@dataclass(frozen=True, slots=True)
class StepLabel:
    """What a step is worth. `key` is the key of the state that ends with it, `step` its index in the trajectory.

    `value` lies in [0, 1] (advantages in [-1, 1]) with a credible interval `low`..`high` around it; `n` is the number of played lines
    it rests on, 0 where it rests on other values. `span` counts the steps it stands for: the last `span` up to this one.
    """

    key: str
    step: int
    value: float
    low: float
    high: float
    n: int
    kind: LabelKind
    span: int = 1
    lineage: Lineage = field(default_factory=Lineage)

    def revalued(self, value: float, kind: LabelKind) -> StepLabel:
        """The same step with another value, which is taken for certain."""
        return replace(self, value=value, low=value, high=value, kind=kind)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of a node: `n` played lines through it, the sum `w` of their values, the `best` of them (None without a line)."""

    n: int
    w: float
    best: float | None

    @property
    def mean(self) -> float:
        """W / n in [0, 1]. Raises ZeroDivisionError without a line."""
        return min(1.0, max(0.0, self.w / self.n))

    @property
    def succeeded(self) -> bool:
        """Whether any line did. Where the tree holds no end (only counts of lines), whether they earned as much as one that did."""
        return (self.w if self.best is None else self.best) >= SUCCESS

    def interval(self, mass: float) -> tuple[float, float]:
        """The equal-tailed interval of Beta(1 + w, 1 + n - w) that holds `mass`."""
        won = min(max(self.w, 0.0), float(self.n))
        a, b = 1.0 + won, 1.0 + self.n - won
        return beta_quantile(a, b, (1 - mass) / 2), beta_quantile(a, b, (1 + mass) / 2)


def evidence(tree: SearchTree) -> Mapping[int, Evidence]:
    """The played lines under every node, by its index, as `search.counts` counts them."""
    counted = lines(tree)
    best: dict[int, float | None] = {}
    for node in reversed(tree.nodes):
        own = node.score.value if node.finished and not node.children and node.score is not None else None
        below = [best[child.index] for child in node.children]
        best[node.index] = max((value for value in (own, *below) if value is not None), default=None)
    return {index: Evidence(n, w, best[index]) for index, (n, w) in counted.items()}


def beta_quantile(a: float, b: float, mass: float) -> float:
    """X with P(Beta(a, b) <= x) = mass, to 1e-9, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if incomplete_beta(a, b, middle) < mass else (low, middle)
    return (low + high) / 2


def lineage_of(source: SourcedTree, node: Node) -> Lineage:
    """Where a label of this node comes from; its grade is that of the state, its verifiers those of every score below."""
    names: set[str] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        names |= verifiers_of(one)
        stack.extend(one.children)
    step = len(node.state) - 1
    return replace(
        source.lineage, fork_step=step, nodes=(node.state.key,), verifiers=tuple(sorted(names)), grade=node.state.grade, logged=node.logged
    )


def label(source: SourcedTree, node: Node, value: float, kind: LabelKind, *, known: Evidence, mass: float | None = None) -> StepLabel:
    """The label of a node; its interval is that of `known` where a `mass` is given, else `value` alone."""
    low, high = (value, value) if mass is None else known.interval(mass)
    return StepLabel(node.state.key, len(node.state) - 1, value, low, high, known.n, kind, lineage=lineage_of(source, node))


def labelled_nodes(tree: SearchTree) -> list[Node]:
    """The nodes that may be labelled: all but the root and branches whose machinery failed."""
    return [node for node in tree.nodes if node.step is not None and node.step.error is None]
