"""Step-level preference pairs: one shared prompt, two sibling actions, and how sure it is which one is better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

from counterplay.core.nouns import Grade
from counterplay.finetune.beta import probability_better
from counterplay.finetune.evidence import Action, ActionEvidence
from counterplay.finetune.gates.words import mixed
from counterplay.finetune.rows import DPORow, Drop, Harvest, Row, SourcedTree, too_low, well_formed
from counterplay.finetune.settling import Settled, mark_of, settled_at_once, surest
from counterplay.search.counts import mean
from counterplay.search.tree import Node

if TYPE_CHECKING:
    from counterplay.finetune.settling import Numbers


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


class PairMark(NamedTuple):
    """What pairs are compared by: their state, what chosen and rejected do there, and the task that a cap is counted over."""

    state: int
    chosen: int
    rejected: int
    unit: int
    probability: float

    @classmethod
    def of(cls, row: DPORow) -> PairMark:
        chosen, rejected = (mark_of(side[0].signature) for side in (row.chosen, row.rejected))
        return cls(mark_of(row.lineage.nodes[0]), chosen, rejected, mark_of(row.lineage.unit), float(row.probability))


def settle(marks: Mapping[str, Numbers], *, per_state: int = 2, per_task: int = 32) -> Settled:
    """No pair that another turns round, of equal ones the surest, and the caps."""
    import numpy as np

    state, chosen, rejected, sure = (marks[name] for name in ("state", "chosen", "rejected", "probability"))
    turned = np.isin(_directed(state, rejected, chosen), _directed(state, chosen, rejected))
    rules = (
        (1, "a duplicate", (state, chosen, rejected)),
        (per_state, f"over the cap of {per_state} pairs a state", (state,)),
        (per_task, f"over the cap of {per_task} pairs a task", (marks["unit"],)),
    )
    left, refused = np.flatnonzero(~turned), [(np.flatnonzero(turned), "another search has it the other way round")]
    for cap, reason, unit in rules:
        stays = surest(sure[left], cap, *(each[left] for each in unit))
        refused.append((left[~stays], reason))
        left = left[stays]
    return left.tolist(), ((int(number), reason) for numbers, reason in refused for number in numbers)


def _directed(state: Numbers, one: Numbers, other: Numbers) -> Numbers:
    """Three hashes as one, which tells `one` from `other`."""
    return mixed(mixed(mixed(state) + one) + other)


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
