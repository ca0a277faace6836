"""A search tree for other programs: as a Graphviz digraph and as JSON."""

from __future__ import annotations

import json
from typing import Any

from counterplay.core.journal import step_to_json
from counterplay.search.reading import action_of, best_path, clipped, contested, numbers, visible
from counterplay.search.tree import Node, SearchTree


def to_dot(tree: SearchTree, *, max_depth: int | None = None, max_children: int | None = None, label_width: int = 40) -> str:
    """A Graphviz digraph: logged nodes bold, the best path blue, failed nodes red, contested forks dashed, ends as boxes.

    Labels are cut at `label_width` characters. `max_depth` counts steps below the root, `max_children` keeps the most visited
    children of a node, the logged and the best one always; None shows all.
    """
    best, open_forks = {node.index for node in best_path(tree)}, {made.parent.index for made in contested(tree)}
    lines = ["digraph search {", "  node [shape=ellipse fontsize=10];"]
    for node, _, hidden in visible(tree, max_depth, max_children):
        failed = node.step is not None and node.step.error is not None
        color = ' color="red"' if failed else ' color="blue"' if node.index in best else ""
        style = ",".join([*["bold"] * node.logged, *["dashed"] * (node.index in open_forks)])
        text = f"{clipped(action_of(node), label_width)}\n{numbers(node)}" + (f"\n+{hidden} nodes" if hidden else "")
        shape = "box" if node.finished else "ellipse"
        lines.append(f"  n{node.index} [label={_quoted(text)} shape={shape}{color}{f' style={_quoted(style)}' if style else ''}];")
        if node.parent is not None:
            lines.append(f"  n{node.parent.index} -> n{node.index}{f' [{color.strip()}]' if color else ''};")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    """A DOT string: backslashes and quotes escaped, line breaks as DOT writes them."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


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
    """`to_dict` as text."""
    return json.dumps(to_dict(tree), ensure_ascii=False, indent=indent)


def reading_of(tree: SearchTree) -> dict[str, Any]:
    """What a reader sees besides the nodes: `best`, the indices along the best path, and `contested` forks, the most visited first."""
    contests = [
        {"parent": made.parent.index, "leader": made.leader.index, "rival": made.rival.index, "probability": made.probability}
        for made in contested(tree)
    ]
    return {"best": [node.index for node in best_path(tree)], "contested": contests}


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
