"""Step-level preference pairs: one shared prompt, two sibling actions, and how sure it is which one is better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations

from counterplay.core.nouns import Grade, Message
from counterplay.finetune.beta import probability_better
from counterplay.finetune.rows import DPORow, Drop, Harvest, SourcedTree, too_low, verifiers_of, well_formed
from counterplay.search.counts import lines
from counterplay.search.tree import Node, SearchTree


def dpo_rows(
    trees: Iterable[SourcedTree],
    *,
    tau: float = 0.9,
    min_grade: Grade = Grade.EXECUTED,
    per_state: int = 2,
    per_task: int = 32,
) -> Harvest[DPORow]:
    """Step-level pairs: two sampled actions of one state, where P(Q_chosen > Q_rejected) >= `tau` under Beta(1 + W, 1 + N - W).

    `tau` lies in (0.5, 1]. N and W are counts of played lines (`search.counts.lines`). Children with one signature are one action and
    pool their W and N; actions without a line are no evidence. A pair's grade is the worst of its prompt and of everything below
    its two actions, because their values rest on that. Pairs that another search has the other way round are left out. The
    surest are kept: `per_state` of a state, `per_task` of a task (of a trace where no task is known).
    """
    if not 0.5 < tau <= 1.0:
        msg = f"got tau {tau}, wanted a probability above 0.5 and at most 1"
        raise ValueError(msg)
    pairs, drops = [], []
    for tree in trees:
        for row, reason in _candidates(tree, tau, min_grade):
            if reason:
                drops.append(Drop(reason, row.name))
            else:
                pairs.append(row)
    rows, refused = _without_contradictions(pairs)
    rows, over = _capped(rows, lambda row: row.lineage.nodes[0], per_state, f"over the cap of {per_state} pairs a state")
    rows, more = _capped(rows, lambda row: row.lineage.unit, per_task, f"over the cap of {per_task} pairs a task")
    return Harvest(tuple(rows), (*drops, *refused, *over, *more))


def label_noise(rows: Iterable[DPORow]) -> float:
    """The expected share of pairs that are the wrong way round: the mean of 1 - P. 0.0 for no rows."""
    noise = [1.0 - row.probability for row in rows]
    return sum(noise) / len(noise) if noise else 0.0


@dataclass(frozen=True)
class _Action:
    """One action of a state, with the evidence of all children that carry it out: statistics, worst grade, verifiers."""

    nodes: tuple[Node, ...]
    visits: int
    value_sum: float
    grade: Grade
    verifiers: frozenset[str]

    @property
    def message(self) -> Message:
        return self.nodes[0].state.steps[-1].action

    @property
    def refusal(self) -> str:
        steps = [node.step for node in self.nodes if node.step is not None]
        if any(step.error is not None for step in steps):
            return "the machinery failed on an action"
        return "" if all(step.sampled for step in steps) else "an action was not sampled"


def _candidates(source: SourcedTree, tau: float, min_grade: Grade) -> Iterator[tuple[DPORow, str]]:
    """Every pair that is sure enough, and why it may not leave; an empty reason where it may."""
    evidence, counts = _evidence(source.tree), lines(source.tree)
    for parent in source.tree.nodes:
        for chosen, rejected in permutations(_actions(parent, evidence, counts), 2):
            sure = probability_better(chosen.value_sum, chosen.visits, rejected.value_sum, rejected.visits)
            if sure >= tau:
                row = _pair(source, parent, chosen, rejected, sure)
                yield row, _refusal(row, chosen, rejected, min_grade) or _unseen(source, parent)


def _evidence(tree: SearchTree) -> Mapping[int, tuple[Grade, frozenset[str]]]:
    """What each node's value rests on: the worst grade and all verifiers at or below it, by node index."""
    rests: dict[int, tuple[Grade, frozenset[str]]] = {}
    for node in reversed(tree.nodes):
        below = [rests[child.index] for child in node.children]
        own = Grade.EXACT if node.step is None else node.step.grade
        verifiers = frozenset(verifiers_of(node)).union(*(names for _, names in below))
        rests[node.index] = min([own, *(grade for grade, _ in below)]), verifiers
    return rests


def _actions(parent: Node, evidence: Mapping[int, tuple[Grade, frozenset[str]]], counts: Mapping[int, tuple[int, float]]) -> list[_Action]:
    groups: dict[str, list[Node]] = defaultdict(list)
    for child in parent.children:
        if child.step is not None and counts[child.index][0]:
            groups[child.step.action.signature].append(child)
    actions = []
    for nodes in groups.values():
        grades, verifiers = zip(*(evidence[node.index] for node in nodes), strict=True)
        visits, value_sum = sum(counts[node.index][0] for node in nodes), sum(counts[node.index][1] for node in nodes)
        actions.append(_Action(tuple(nodes), visits, value_sum, min(grades), frozenset[str]().union(*verifiers)))
    return actions


def _pair(source: SourcedTree, parent: Node, chosen: _Action, rejected: _Action, sure: float) -> DPORow:
    lineage = replace(
        source.lineage,
        fork_step=len(parent.state),
        nodes=(parent.state.key, chosen.nodes[0].state.key, rejected.nodes[0].state.key),
        verifiers=tuple(sorted(chosen.verifiers | rejected.verifiers)),
        grade=min(parent.state.grade, chosen.grade, rejected.grade),
        logged=all(node.logged for node in (*chosen.nodes, *rejected.nodes)),
    )
    return DPORow(
        prompt=parent.state.messages,
        chosen=(chosen.message,),
        rejected=(rejected.message,),
        tools=parent.state.tools,
        probability=sure,
        visits=(chosen.visits, rejected.visits),
        value_sums=(chosen.value_sum, rejected.value_sum),
        lineage=lineage,
    )


def _refusal(row: DPORow, chosen: _Action, rejected: _Action, min_grade: Grade) -> str:
    if chosen.refusal or rejected.refusal:
        return chosen.refusal or rejected.refusal
    malformed = "" if all(map(well_formed, row.chosen)) else "the chosen action's arguments are not a JSON object"
    return too_low(row.lineage.grade, min_grade) or malformed


def _unseen(source: SourcedTree, parent: Node) -> str:
    return "" if source.whole(parent.state)[-1] else "the prompt is not known whole"


def _without_contradictions(rows: list[DPORow]) -> tuple[list[DPORow], list[Drop]]:
    directions = {(row.lineage.nodes[0], *_sides(row)) for row in rows}
    kept, drops = [], []
    for row in rows:
        if (row.lineage.nodes[0], *reversed(_sides(row))) in directions:
            drops.append(Drop("another search has it the other way round", row.name))
        else:
            kept.append(row)
    return kept, drops


def _sides(row: DPORow) -> tuple[str, str]:
    return row.chosen[0].signature, row.rejected[0].signature


def _capped(rows: list[DPORow], unit: Callable[[DPORow], str], cap: int, reason: str) -> tuple[list[DPORow], list[Drop]]:
    """At most `cap` rows of a unit, the surest first; otherwise in the order given."""
    taken: dict[str, int] = defaultdict(int)
    kept = set()
    for index in sorted(range(len(rows)), key=lambda i: -rows[i].probability):
        taken[unit(rows[index])] += 1
        if taken[unit(rows[index])] <= cap:
            kept.add(index)
    return [row for i, row in enumerate(rows) if i in kept], [Drop(reason, row.name) for i, row in enumerate(rows) if i not in kept]
