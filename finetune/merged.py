"""Logged runs of one task as one tree: what they share is one path, and they fork where they first differ, by content."""

from __future__ import annotations

from collections.abc import Iterable

from counterplay.core.nouns import Score, Trace
from counterplay.finetune.rows import Drop, SourcedTree
from counterplay.finetune.trajectories import earned
from counterplay.search.tree import Node, SearchTree

LOGGED = "logged"


def merged_logs(traces: Iterable[Trace]) -> list[SourcedTree]:
    """A tree for every task and prompt. The score of an end is the mean of what the runs that reached it earned, its visits their number.

    Runs that can't be in their tree are named in its `drops`: those whose task or outcome is not known (runs without a task have a tree
    of nothing else), those without a step, those that went on after an end, and those that another run goes on from.
    """
    groups: dict[tuple[str | None, str], list[Trace]] = {}
    for trace in traces:
        groups.setdefault((trace.task, trace.trajectory.prefix_keys[0]), []).append(trace)
    return [_merged(task, runs) for (task, _), runs in groups.items()]


def _merged(task: str | None, traces: list[Trace]) -> SourcedTree:
    tree = SearchTree.start(traces[0].trajectory.prefix(0), LOGGED, {"verifier": "outcome"})
    kept, drops = [], []
    ends: dict[int, list[tuple[Trace, float]]] = {}
    for trace in traces:
        reason, value = _refusal(trace), earned(trace.outcome)
        if reason or value is None:
            drops.append(Drop(reason or "the outcome is unknown", trace.id))
            continue
        node = _placed(tree, trace)
        node.backup(value)
        ends.setdefault(node.index, []).append((trace, value))
        kept.append(trace)
    for index, runs in ends.items():
        node, values = tree.nodes[index], [value for _, value in runs]
        node.finished, node.score = True, Score(sum(values) / len(values), verifier="outcome")
        drops += [Drop("another run goes on from its end", run.id) for run, _ in runs if node.children]
    return SourcedTree(tree, task=task, traces=tuple(kept), drops=tuple(drops))


def _placed(tree: SearchTree, trace: Trace) -> Node:
    """The node of a run's end, after those on the way to it that were not there yet."""
    node: Node = tree.root
    steps, keys = trace.trajectory.steps, trace.trajectory.prefix_keys
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        same = (child for child in node.children if child.state.key == keys[index + 1] and (last or not child.state.finished))
        node = next(same, None) or tree.add(node, step, logged=True)
    return node


def _refusal(trace: Trace) -> str:
    """Why a run can't be merged with others; empty where it can."""
    steps = trace.trajectory.steps
    if trace.task is None:
        return "the task is not known"
    if not steps:
        return "the run has no step"
    return "the run went on after an end" if any(step.finished for step in steps[:-1]) else ""
