"""Answers about searches: the list, a tree in columns so that thousands of nodes are one compact answer, and nodes in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.nouns import Grade
from counterplay.core.store.viewing import TraceIndex
from counterplay.viewing.asking import MissingError, Query
from counterplay.viewing.conversation import View, message_view, step_view, tool_view

if TYPE_CHECKING:
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import SearchRow, Store
    from counterplay.search.tree import Node, SearchTree

WINDOW, LARGEST = 100, 500
ACTION, LABEL = 160, 24
FORKS = 60
LOGGED, TERMINATED, TRUNCATED, ERROR, BEST, CONTESTED, SAMPLED = 1, 2, 4, 8, 16, 32, 64
_GRADES = tuple(grade.name.lower() for grade in reversed(Grade))


def search_list(store: Store, index: TraceIndex, query: Query) -> View:
    """The latest searches first."""
    offset, limit = query.window(WINDOW, LARGEST)
    rows = store.searches(trace=query.text("trace"), task=query.text("task"), algorithm=query.text("algorithm"))[::-1]
    return {"total": len(rows), "offset": offset, "rows": summaries(index, rows[offset : offset + limit])}


def summaries(index: TraceIndex, rows: Sequence[SearchRow]) -> list[View]:
    best = index.best_scores([row.id for row in rows])
    return [{**console.plain(row), "best": best.get(row.id)} for row in rows]


def tree_view(record: SearchRecord, tree: SearchTree, summary: View) -> View:
    """The whole tree, entry i of every column being node i."""
    from counterplay.search.reading import best_path

    verifiers: dict[str, int] = {}
    best, open_forks = {node.index for node in best_path(tree)}, _contested(tree)
    logged = [node for node in tree.nodes if node.logged and node.parent is not None]
    leaf = tree.best()
    return {
        "search": summary,
        "config": console.plain(dict(tree.config)),
        "used": console.plain(record.used),
        "failures": console.plain(dict(tree.failures)),
        "root_steps": len(record.root),
        "nodes": {
            **_columns(tree),
            "verifier": [_verifier(node, verifiers) for node in tree.nodes],
            "flags": [_flags(node, node.index in best, node.index in open_forks) for node in tree.nodes],
        },
        "verifiers": list(verifiers),
        "grades": list(_GRADES),
        "reasons": {str(node.index): node.score.reason for node in tree.nodes if node.score is not None and node.score.reason},
        "logged_tip": max(logged, key=lambda node: node.depth).index if logged else None,
        "best": None if leaf is None else leaf.index,
    }


def _contested(tree: SearchTree) -> set[int]:
    """Of the forks with the most played lines, those whose best child is not known: to ask about all of a large tree takes seconds."""
    from counterplay.search.counts import lines
    from counterplay.search.reading import CONTESTED as SURE
    from counterplay.search.reading import contest

    known = lines(tree)
    forks = sorted((node for node in tree.nodes if len(node.children) > 1), key=lambda node: (-known[node.index][0], node.index))
    made = (contest(node, known) for node in forks[:FORKS])
    return {each.parent.index for each in made if each is not None and each.probability < SURE}


def _columns(tree: SearchTree) -> View:
    from counterplay.search.reading import action_of, clipped, name_of

    nodes, exact = tree.nodes, Grade.EXACT
    return {
        "parent": [-1 if node.parent is None else node.parent.index for node in nodes],
        "depth": [node.depth for node in nodes],
        "action": [clipped(action_of(node), ACTION) for node in nodes],
        "label": [clipped(name_of(node), LABEL) for node in nodes],
        "visits": [node.visits for node in nodes],
        "value": [node.value for node in nodes],
        "score": [None if node.score is None else node.score.value for node in nodes],
        "prior": [node.prior for node in nodes],
        "grade": [exact - (exact if node.step is None else node.step.grade) for node in nodes],
        "reward": [None if node.step is None else console.plain(node.step.reward) for node in nodes],
        "best_below": _best_below(tree),
    }


def _best_below(tree: SearchTree) -> list[float | None]:
    found: list[float | None] = [None] * len(tree.nodes)
    for node in reversed(tree.nodes):
        own = found[node.index]
        if node.finished and not node.children:
            own = found[node.index] = node.value if node.score is None else node.score.value
        if own is not None and node.parent is not None:
            above = found[node.parent.index]
            found[node.parent.index] = own if above is None else max(own, above)
    return found


def _verifier(node: Node, known: dict[str, int]) -> int:
    if node.score is None:
        return -1
    return known.setdefault(f"{node.score.verifier}@{node.score.version}" if node.score.verifier else "", len(known))


def _flags(node: Node, best: bool, contested: bool) -> int:
    step = node.step
    flags = LOGGED * node.logged + BEST * best + CONTESTED * contested
    if step is not None:
        flags += TERMINATED * step.terminated + TRUNCATED * step.truncated + ERROR * (step.error is not None) + SAMPLED * step.sampled
    return flags


def node_details(record: SearchRecord, tree: SearchTree, indices: Sequence[int]) -> View:
    """Some nodes whole. Raises MissingError where the tree has no such node."""
    beyond = next((index for index in indices if index >= len(tree.nodes)), None)
    if beyond is not None:
        raise MissingError(f"no node {beyond} in search {record.id}", f"one below {len(tree.nodes)}")
    return {"nodes": [_node(tree.nodes[index], len(record.root)) for index in indices]}


def _node(node: Node, root_steps: int) -> View:
    score = node.score
    said: list[View] = []
    if score is not None:
        told = {"name": score.verifier or "verifier", "version": score.version, "source": "verifier"}
        said = [{**told, "value": score.value, "scaled": score.value, "comment": score.reason}]
    return {
        "index": node.index,
        "key": node.state.key,
        "step": None if node.step is None else step_view(node.step, root_steps + node.depth - 1, scores=said),
        "root": _root(node) if node.step is None else None,
        "logprob": console.plain(node.logprob),
        "draws": node.draws,
    }


def _root(node: Node) -> dict[str, Any]:
    return {
        "tools": [tool_view(tool) for tool in node.state.tools],
        "prompt": [message_view(message) for message in node.state.prompt],
        "steps": [step_view(step, number) for number, step in enumerate(node.state.steps)],
    }
