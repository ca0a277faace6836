"""Step-level preference pairs: one shared prompt, two sibling actions, and how sure it is which one is better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Grade
from counterplay.finetune.beta import probability_better
from counterplay.finetune.evidence import Action, ActionEvidence, surest
from counterplay.finetune.rows import DPORow, Drop, Harvest, Row, SourcedTree, too_low, well_formed
from counterplay.finetune.settling import settled_at_once
from counterplay.search.counts import mean
from counterplay.search.tree import Node


def dpo_rows(
    trees: Iterable[SourcedTree],
    *,
    tau: float = 0.9,
    min_grade: Grade = Grade.EXECUTED,
    per_state: int = 2,
    per_task: int = 32,
) -> Harvest[DPORow]:
    """Step-level pairs: two sampled actions of one state, where P(Q_chosen > Q_rejected) >= `tau` under Beta(1 + W, 1 + N - W).

    `tau` lies in (0.5, 1]. W / N of chosen must be higher, too: four failures of four are no better than a hundred of a hundred,
    though the prior leaves them more hope. N and W are counts of played lines (`search.counts.lines`). Children with one signature are
    one action and pool their W and N; actions without a line are no evidence. A pair's grade is the worst of its prompt and of
    everything below its two actions, because their values rest on that. Its margin is the difference of the two posterior means. Pairs
    that another search has the other way round are left out, and so are all but the surest of equal ones. Then the surest are kept:
    `per_state` of a state, `per_task` of a task (of a trace where no task is known).
    """
    found = dpo_candidates(trees, tau=tau, min_grade=min_grade)
    return settled_at_once(found, PairMark.of, partial(settle, per_state=per_state, per_task=per_task))


def dpo_candidates(trees: Iterable[SourcedTree], *, tau: float = 0.9, min_grade: Grade = Grade.EXECUTED) -> Harvest[DPORow]:
    """The pairs of `dpo_rows` of each tree by itself; what compares pairs of several trees (`settle`) is still to come."""
    if not 0.5 < tau <= 1.0:
        msg = f"got tau {tau}, wanted a probability above 0.5 and at most 1"
        raise ValueError(msg)
    pairs, drops = [], []
    for tree in trees:
        for row, reason in _candidates(ActionEvidence(tree), tau, min_grade):
            if reason:
                drops.append(Drop(reason, row.name))
            else:
                pairs.append(row)
    return Harvest(tuple(pairs), tuple(drops))


@dataclass(frozen=True, slots=True)
class PairMark:
    """What pairs are compared by: their state, what chosen and rejected do there, and the task that a cap is counted over."""

    number: int
    name: str
    unit: str
    state: bytes
    sides: tuple[bytes, bytes]
    probability: float

    @classmethod
    def of(cls, number: int, row: DPORow) -> PairMark:
        sides = _digest(row.chosen[0].signature), _digest(row.rejected[0].signature)
        return cls(number, row.name, row.lineage.unit, bytes.fromhex(row.lineage.nodes[0]), sides, row.probability)


def settle(marks: Sequence[PairMark], *, per_state: int = 2, per_task: int = 32) -> tuple[list[PairMark], list[Drop]]:
    """No pair that another turns round, of equal ones the surest, and the caps."""
    rows, refused = _without_contradictions(marks)
    rows, repeated = surest(rows, lambda row: (row.state, *row.sides), 1, "a duplicate")
    rows, over = surest(rows, lambda row: row.state, per_state, f"over the cap of {per_state} pairs a state")
    rows, more = surest(rows, lambda row: row.unit, per_task, f"over the cap of {per_task} pairs a task")
    return rows, [*refused, *repeated, *over, *more]


def label_noise(rows: Iterable[Row]) -> float:
    """The expected share of labels that are wrong: the mean of 1 - `probability` over the rows that have one. 0.0 for no rows."""
    noise = [1.0 - row.values["probability"] for row in rows if "probability" in row.values]
    return sum(noise) / len(noise) if noise else 0.0


def _candidates(evidence: ActionEvidence, tau: float, min_grade: Grade) -> Iterator[tuple[DPORow, str]]:
    """Every pair that is sure enough, and why it may not leave; an empty reason where it may."""
    for parent, actions in evidence.states():
        for chosen, rejected in permutations(actions, 2):
            sure = probability_better(chosen.value_sum, chosen.visits, rejected.value_sum, rejected.visits)
            if sure >= tau and chosen.rate > rejected.rate:
                row = _pair(evidence.source, parent, chosen, rejected, sure)
                cut = next(filter(None, (evidence.source.cut(action.nodes[0].state) for action in (chosen, rejected))), "")
                yield row, _refusal(row, chosen, rejected, min_grade) or evidence.unseen(parent) or cut


def _pair(source: SourcedTree, parent: Node, chosen: Action, rejected: Action, sure: float) -> DPORow:
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
        margin=mean(chosen.visits, chosen.value_sum) - mean(rejected.visits, rejected.value_sum),
    )


def _refusal(row: DPORow, chosen: Action, rejected: Action, min_grade: Grade) -> str:
    if chosen.refusal or rejected.refusal:
        return chosen.refusal or rejected.refusal
    malformed = "" if all(map(well_formed, row.chosen)) else "the chosen action's arguments are not a JSON object"
    return too_low(row.lineage.grade, min_grade) or malformed


def _without_contradictions(marks: Sequence[PairMark]) -> tuple[list[PairMark], list[Drop]]:
    directions = {(mark.state, *mark.sides) for mark in marks}
    kept, drops = [], []
    for mark in marks:
        if (mark.state, *reversed(mark.sides)) in directions:
            drops.append(Drop("another search has it the other way round", mark.name))
        else:
            kept.append(mark)
    return kept, drops


def _digest(text: str) -> bytes:
    return bytes.fromhex(content_key(text))
