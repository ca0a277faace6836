"""Reading a tree: as indented text, as Graphviz DOT, as JSON."""

from __future__ import annotations

import json
from typing import Any

from counterplay.core.journal import step_to_json
from counterplay.search.tree import Node, SearchTree


def to_text(tree: SearchTree, *, max_depth: int | None = None, width: int = 120) -> str:
    """One line a node: its action, then N, Q, prior and score. `*` marks the logged branch, `.` an end, `!` a failed branch.

    Children come most visited first. `max_depth` cuts deeper nodes off (None: nothing), `width` is the longest line in characters.
    """
    lines = [f"{tree.algorithm or 'tree'}: {len(tree.nodes)} nodes, {tree.stopped or 'running'}"]
    stack = [(tree.root, "")]
    while stack:
        node, indent = stack.pop()
        lines.append(_line(node, indent, width))
        if max_depth is None or node.depth < max_depth:
            children = sorted(node.children, key=lambda child: (-child.visits, child.index))
            stack.extend((child, indent + "  ") for child in reversed(children))
        elif node.children:
            lines.append(f"{indent}  ... {sum(1 for _ in _below(node))} nodes below")
    return "\n".join(lines)


def to_dot(tree: SearchTree, *, label_width: int = 40) -> str:
    """A Graphviz digraph; logged nodes are drawn bold, ends as boxes, labels cut at `label_width` characters."""
    lines = ["digraph search {", "  node [shape=ellipse fontsize=10];"]
    for node in tree.nodes:
        shape = "box" if node.finished else "ellipse"
        style = " style=bold" if node.logged else ""
        label = json.dumps(f"{_clip(_action(node), label_width)}\n{_numbers(node)}", ensure_ascii=False)
        lines.append(f"  n{node.index} [label={label} shape={shape}{style}];")
        if node.parent is not None:
            lines.append(f"  n{node.parent.index} -> n{node.index};")
    return "\n".join([*lines, "}"])


def to_dict(tree: SearchTree) -> dict[str, Any]:
    """The tree as plain JSON values, without wall time, so that equal searches give equal values."""
    used = {kind: getattr(tree.used, kind) for kind in ("simulations", "model_calls", "tokens", "usd", "tool_calls")}
    root = tree.root.state
    return {
        "algorithm": tree.algorithm,
        "config": dict(tree.config),
        "stopped": tree.stopped,
        "failures": dict(tree.failures),
        "used": used,
        "root": {"key": root.key, "steps": len(root), "messages": [message.to_openai() for message in root.messages]},
        "nodes": [_node(node) for node in tree.nodes],
    }


def to_json(tree: SearchTree, *, indent: int | None = None) -> str:
    return json.dumps(to_dict(tree), ensure_ascii=False, indent=indent)


def _node(node: Node) -> dict[str, Any]:
    return {
        "index": node.index,
        "parent": None if node.parent is None else node.parent.index,
        "key": node.state.key,
        "step": None if node.step is None else step_to_json(node.step),
        "prior": node.prior,
        "logprob": node.logprob,
        "visits": node.visits,
        "value_sum": node.value_sum,
        "value": node.value,
        "draws": node.draws,
        "logged": node.logged,
        "score": None if node.score is None else node.score.value,
        "reason": None if node.score is None else node.score.reason,
    }


def _line(node: Node, indent: str, width: int) -> str:
    error = node.step is not None and node.step.error is not None
    mark = "!" if error else "." if node.finished else " "
    left = f"{indent}{'*' if node.logged else ' '}{mark}"
    numbers = _numbers(node)
    return f"{left} {_clip(_action(node), max(8, width - len(left) - len(numbers) - 3))}  {numbers}"


def _numbers(node: Node) -> str:
    parts = [f"N={node.visits}"]
    if node.value is not None:
        parts.append(f"Q={node.value:.2f}")
    if node.parent is not None:
        parts.append(f"P={node.prior:.2f}")
    if node.score is not None:
        parts.append(f"score={node.score.value:.2f}")
    return " ".join(parts)


def _action(node: Node) -> str:
    if node.step is None:
        return "root"
    return node.step.error or node.step.action.signature


def _clip(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _below(node: Node) -> list[Node]:
    found = list(node.children)
    for child in found:
        found.extend(child.children)
    return found
