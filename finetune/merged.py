"""Logged runs of one task as one tree: what they share is one path, and they fork where they first differ, by content."""

from __future__ import annotations

from collections.abc import Iterable

from counterplay.core.nouns import Score, Trace
from counterplay.finetune.rows import SourcedTree
from counterplay.search.tree import Node, SearchTree

LOGGED = "logged"


def merged_logs(traces: Iterable[Trace]) -> list[SourcedTree]:
    """A tree for every task and prompt, with the logged outcome of each run as the score of its end.

    Runs whose task or outcome is not known are left out, and so is a run that another one goes on from.
    """
    groups: dict[tuple[str, str], list[Trace]] = {}
    for trace in traces:
        if trace.task is not None and trace.trajectory.steps and _worth(trace) is not None:
            groups.setdefault((trace.task, trace.trajectory.prefix_keys[0]), []).append(trace)
    return [_merged(task, runs) for (task, _), runs in groups.items()]


def _merged(task: str, traces: list[Trace]) -> SourcedTree:
    tree = SearchTree.start(traces[0].trajectory.prefix(0), LOGGED, {"verifier": "outcome"})
    for trace in traces:
        node: Node = tree.root
        steps, keys = trace.trajectory.steps, trace.trajectory.prefix_keys
        for index, step in enumerate(steps):
            last = index == len(steps) - 1
            same = (child for child in node.children if child.state.key == keys[index + 1] and (last or not child.state.finished))
            node = next(same, None) or tree.add(node, step, logged=True)
        value = _worth(trace)
        if value is not None:
            node.finished, node.score = True, Score(value, verifier="outcome")
            node.backup(value)
    return SourcedTree(tree, task=task, traces=tuple(traces))


def _worth(trace: Trace) -> float | None:
    """What a run earned, in [0, 1]; None where nobody said so."""
    reward, success = trace.outcome.reward, trace.outcome.success
    if reward is None:
        return None if success is None else float(success)
    return 0.0 if success is False else min(1.0, max(0.0, reward))
