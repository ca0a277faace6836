"""The search tree. A node is a state; its statistics carry the papers' names (visits N, value_sum W, value Q, prior P).

A tree is what every search returns, what the store keeps and what datasets are made of: siblings are preference pairs,
root-to-leaf paths are trajectories. A child's state is always its parent's extended by its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.budget import Amounts
from counterplay.core.nouns import Proposal, Score, State, Step
from counterplay.core.records import NodeRecord, SearchRecord


@dataclass(slots=True, eq=False)
class Node:
    """`step` led here from `parent` (both None at the root). `score` is the verifier's opinion of this prefix, None without one.

    `draws` counts how often the policy proposed this action at the parent; `logged` marks the recorded branch; `depth` is the
    number of steps below the root, `finished` says that the trajectory ends here.
    """

    index: int
    state: State
    parent: Node | None = None
    step: Step | None = None
    prior: float = 1.0
    logprob: float | None = None
    visits: int = 0
    value_sum: float = 0.0
    draws: int = 1
    logged: bool = False
    score: Score | None = None
    children: list[Node] = field(default_factory=list)
    depth: int = 0
    finished: bool = False

    @property
    def value(self) -> float | None:
        """Q = W / N in [0, 1]; None before the first visit, which is not zero."""
        return self.value_sum / self.visits if self.visits else None

    @property
    def root(self) -> Node:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def path(self) -> list[Node]:
        """The nodes from the root to this one, both included."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    def child(self, signature: str) -> Node | None:
        """The child whose action has this signature; None where there is none."""
        return next((node for node in self.children if node.step is not None and node.step.action.signature == signature), None)

    def backup(self, value: float, until: Node | None = None) -> None:
        """Add one visit of `value` to this node and all above it up to `until` (None: up to the root): N += 1, W += value."""
        node: Node | None = self
        while node is not None:
            node.visits += 1
            node.value_sum += value
            if node is until:
                return
            node = node.parent


@dataclass
class SearchTree:
    """All nodes in the order of their creation (`nodes[0]` is the root), and what made them.

    `stopped` says why the search ended ("" while it runs). `failures` counts calls that failed, by kind, with the first message
    of each; empty where none did.
    """

    root: Node
    algorithm: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    used: Amounts = field(default_factory=Amounts)
    nodes: list[Node] = field(default_factory=list)
    failures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, state: State, algorithm: str = "", config: Mapping[str, Any] | None = None) -> SearchTree:
        state.key  # noqa: B018  computed once here, incrementally below
        root = Node(0, state, finished=state.finished)
        return cls(root, algorithm, config or {}, nodes=[root])

    def add(self, parent: Node, step: Step, proposal: Proposal | None = None, *, logged: bool = False) -> Node:
        """A new child. Its prior and log-probability come from `proposal` where there is one."""
        prior = 1.0 if proposal is None or proposal.prior is None else proposal.prior
        logprob = None if proposal is None else proposal.logprob
        state, depth = parent.state.extend(step), parent.depth + 1
        node = Node(len(self.nodes), state, parent, step, prior, logprob, 0, 0.0, 1, logged, None, [], depth, step.finished)
        parent.children.append(node)
        self.nodes.append(node)
        return node

    def stop(self, reason: str) -> None:
        """Ask the search to end after the wave under way; callable from `on_wave` or a signal handler. The first reason stays."""
        self.stopped = self.stopped or reason

    def leaves(self) -> Iterator[Node]:
        return (node for node in self.nodes if not node.children)

    def finished(self) -> list[Node]:
        """Leaves whose trajectory has ended."""
        return [node for node in self.leaves() if node.finished]

    def best(self) -> Node | None:
        """The finished leaf with the highest score (ties: higher value, then earlier); None where none is finished and scored."""
        scored = [node for node in self.finished() if node.score is not None]
        return max(scored, key=lambda node: (node.score.value if node.score else 0.0, node.value or 0.0, -node.index), default=None)

    def to_record(self, search_id: str, **provenance: Any) -> SearchRecord:
        """Plain rows for the store. `provenance` fills trace, task and fork_step; `failures` travel inside `config`."""
        rows = tuple(
            NodeRecord(
                node.index,
                None if node.parent is None else node.parent.index,
                node.step,
                node.prior,
                node.logprob,
                node.visits,
                node.value_sum,
                node.draws,
                node.logged,
                node.score,
            )
            for node in self.nodes
        )
        config = {**self.config, "failures": dict(self.failures)} if self.failures else dict(self.config)
        return SearchRecord(
            search_id, self.algorithm, self.root.state, rows, config=config, stopped=self.stopped, used=self.used, **provenance
        )

    @classmethod
    def from_record(cls, record: SearchRecord) -> SearchTree:
        config = dict(record.config)
        failures = config.pop("failures", {})
        tree = cls.start(record.root, record.algorithm, config)
        tree.failures = failures
        tree.stopped, tree.used = record.stopped, record.used
        for row in record.nodes:
            if row.parent is None or row.step is None:
                node = tree.root
            else:
                node = tree.add(tree.nodes[row.parent], row.step, logged=row.logged)
            node.prior, node.logprob, node.visits, node.value_sum = row.prior, row.logprob, row.visits, row.value_sum
            node.draws, node.logged, node.score = row.draws, row.logged, row.score
        return tree
