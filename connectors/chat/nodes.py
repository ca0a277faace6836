"""The tree that logged calls form: an answer is a node, what was sent between it and the answer before hangs on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from counterplay.connectors.chat.rows import LoggedCall
from counterplay.core.nouns import Message
from counterplay.core.records import Rejected


@dataclass(eq=False)
class Node:
    """One answer and the messages that led to it from its parent's; without `output` it is a request that nothing answered.

    `choice` counts the answers of one call from 0; `base` is the running hash of what stands before `delta`. `group` is that of the
    call when it came in.
    """

    logged: LoggedCall
    order: int
    group: Group
    delta: tuple[Message, ...]
    output: Message | None
    choice: int
    base: bytes
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def path(self) -> list[Node]:
        """From the root to this node."""
        nodes = [self]
        while nodes[-1].parent:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]


@dataclass(eq=False)
class Group:
    """The calls of one trace. `first` is the row that it began with; `repeated` counts rows that log a call a second time."""

    name: str | None
    first: tuple[Path, int]
    roots: list[Node] = field(default_factory=list)
    repeated: int = 0

    def nodes(self) -> Iterator[Node]:
        """Every node, parents first."""
        stack = self.roots[::-1]
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)

    def order_by_time(self) -> None:
        """Number the nodes by the times of their calls where all have one; else they stay in the order of the log."""
        starts = {node: node.logged.call.started_at_us for node in self.nodes()}
        if any(start is None for start in starts.values()):
            return
        for order, node in enumerate(sorted(starts, key=lambda node: (starts[node] or 0, node.order, node.choice))):
            node.order = order
        self.roots.sort(key=lambda node: node.order)

    def logged(self) -> list[LoggedCall]:
        """Every call once, in order."""
        nodes = sorted(self.nodes(), key=lambda node: node.order)
        return list({id(node.logged): node.logged for node in nodes}.values())

    def rejected(self) -> list[Rejected]:
        """The calls that nothing answered."""
        return [call.rejected for call in self.logged() if call.rejected]

    def paths(self) -> list[list[Node]]:
        """Every path from a root to a last answer: the main one first, the others in the order of their last calls.

        The main one is the longest that begins with the first request, the latest of equals.
        """
        leaves = sorted((leaf for root in self.roots for leaf in _leaves(root)), key=lambda leaf: leaf.order)
        paths = [path for path in (leaf.path for leaf in leaves) if path[0].output]
        if paths:
            first = min((path[0] for path in paths), key=lambda root: root.order).delta
            main = max((path for path in paths if path[0].delta == first), key=lambda path: (len(path), path[-1].order))
            paths.remove(main)
            paths.insert(0, main)
        return paths

    def answered_again(self, node: Node) -> Node | None:
        """The call that answered the very prompt that this one failed on; None where there is none."""
        siblings = node.parent.children if node.parent else self.roots
        return next((other for other in siblings if other.output and other.delta == node.delta), None)


def _leaves(root: Node) -> Iterator[Node]:
    """The ends of a tree. A request without an answer is one only where no other answered its like."""
    stack = [root]
    while stack:
        node = stack.pop()
        following = [child for child in node.children if child.output] or node.children[-1:]
        if not following:
            yield node
        stack += reversed(following)
