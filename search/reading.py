"""What a reader wants from a search tree: the best path, which siblings are contested, and short words for a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from counterplay.core.beta import probability_better
from counterplay.core.canonical import canonical
from counterplay.core.nouns import ToolCall
from counterplay.search.counts import lines, mean
from counterplay.search.tree import Node, SearchTree

CONTESTED = 0.9
"""Below this probability of being better an action is contested: what pairs ask for by default."""


@dataclass(frozen=True, slots=True)
class Contest:
    """Two siblings of which it is not known which is better: `leader` has the higher Q, with `probability` = P(Q_leader > Q_rival).

    `counts` are N and W of the two as counts of played lines, which is what the probability comes from.
    """

    parent: Node
    leader: Node
    rival: Node
    probability: float
    counts: tuple[tuple[int, float], tuple[int, float]]


def best_path(tree: SearchTree) -> list[Node]:
    """The nodes from the root to the best end; empty where no end is scored."""
    best = tree.best()
    return best.path() if best is not None else []


def contest(parent: Node, known: Mapping[int, tuple[int, float]]) -> Contest | None:
    """The two best children of a node by the mean of Beta(1 + W, 1 + N - W); None where lines were played through fewer than two.

    `known` is `counts.lines` of the tree.
    """
    played = [child for child in parent.children if known[child.index][0]]
    ranked = sorted(played, key=lambda child: (-mean(*known[child.index]), child.index))[:2]
    if len(ranked) < 2:
        return None
    leader, rival = ranked
    (n, w), (rival_n, rival_w) = counts = known[leader.index], known[rival.index]
    return Contest(parent, leader, rival, probability_better(w, n, rival_w, rival_n), counts)


def contested(tree: SearchTree, *, tau: float = CONTESTED) -> list[Contest]:
    """Forks whose best child is better than the next with a probability below `tau`, under which no preference pair is made.

    Those with the most lines come first, then the earlier node.
    """
    known = lines(tree)
    found = [made for node in tree.nodes if len(node.children) > 1 and (made := contest(node, known)) and made.probability < tau]
    return sorted(found, key=lambda made: (-sum(n for n, _ in made.counts), made.parent.index))


def visible(tree: SearchTree, max_depth: int | None, max_children: int | None) -> Iterator[tuple[Node, list[Node], int]]:
    """Nodes from the root down, children by visits, each with the children that are shown and the number of nodes below that are not.

    `max_depth` counts steps below the root; `max_children` keeps the most visited children, the logged and the best one always.
    """
    kept = {node.index for node in best_path(tree)}
    stack = [tree.root]
    while stack:
        node = stack.pop()
        ranked = sorted(node.children, key=lambda child: (-child.visits, child.index))
        if max_depth is not None and node.depth >= max_depth:
            ranked = []
        elif max_children is not None and len(ranked) > max_children:
            always = [child for child in ranked if child.logged or child.index in kept]
            most = [child for child in ranked if child not in always][: max(0, max_children - len(always))]
            ranked = [child for child in ranked if child in always or child in most]
        yield node, ranked, sum(1 + size(child) for child in node.children if child not in ranked)
        stack.extend(reversed(ranked))


def size(node: Node) -> int:
    """How many nodes there are below a node."""
    below = list(node.children)
    for child in below:
        below.extend(child.children)
    return len(below)


def action_of(node: Node) -> str:
    """What led to a node, for a person: its calls as `name(key=value, ...)`, else what was said, or the error of the machinery."""
    if node.step is None:
        return "root"
    if node.step.error:
        return f"[{node.step.error}]"
    action = node.step.action
    return "; ".join(map(_call, action.tool_calls)) if action.tool_calls else f'"{action.content_text}"'


def _call(call: ToolCall) -> str:
    args = call.args
    if args is None:
        return f"{call.name}({call.arguments})"
    said = (f"{name}={value if isinstance(value, str) else canonical(value)}" for name, value in args.items())
    return f"{call.name}({', '.join(said)})"


def name_of(node: Node) -> str:
    """`action_of` in a word or two: the names of the tools that were called."""
    if node.step is None or node.step.error or not node.step.action.tool_calls:
        return clipped(action_of(node), 24)
    return "+".join(call.name for call in node.step.action.tool_calls)


def numbers(node: Node) -> str:
    """N, Q (where visited), the prior and the score (where there is one)."""
    parts = [f"N={node.visits}"]
    if node.value is not None:
        parts.append(f"Q={node.value:.2f}")
    if node.parent is not None:
        parts.append(f"P={node.prior:.2f}")
    if node.score is not None:
        parts.append(f"score={node.score.value:.2f}")
    return " ".join(parts)


def clipped(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)] + "…"
