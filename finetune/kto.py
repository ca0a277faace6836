"""KTO rows: single answers that are good or bad, from the same evidence as pairs, or whole ways to the end that were verified.

Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization, arXiv:2402.01306.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from counterplay.core.nouns import Grade, Message, ToolSpec
from counterplay.finetune.beta import incomplete_beta, probability_better
from counterplay.finetune.ends import ends
from counterplay.finetune.evidence import Action, ActionEvidence
from counterplay.finetune.rows import Drop, Harvest, Lineage, Row, SourcedTree, Valued, too_low, trained_flags, well_formed
from counterplay.finetune.settling import Settled, mark_of, settled_at_once, surest
from counterplay.finetune.trajectories import UNSEEN
from counterplay.search.tree import Node

if TYPE_CHECKING:
    from counterplay.finetune.settling import Numbers


@dataclass(frozen=True)
class KTORow(Row):
    """One answer to a prompt and whether it is desirable: a single action, or everything from there to the end.

    `probability` is how sure `label` is. `trained` aligns with `completion`: True where a model sampled the message. `visits` N
    and `value_sum` W are of the action, or of the one end.
    """

    kind = "kto"
    conversations = (("prompt", "completion"),)
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool
    tools: tuple[ToolSpec, ...] = ()
    probability: float = 1.0
    trained: tuple[bool, ...] = (True,)
    visits: int = 0
    value_sum: float = 0.0
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def parts(self) -> Mapping[str, tuple[Message, ...]]:
        return {"prompt": self.prompt, "completion": self.completion}

    @property
    def values(self) -> Mapping[str, Any]:
        return {
            "label": self.label,
            "probability": self.probability,
            "completion_trained": list(self.trained),
            "visits": self.visits,
            "value_sum": self.value_sum,
        }

    @classmethod
    def arrange(cls, rows: Sequence[Valued]) -> Sequence[int]:
        """Good and bad ones spread evenly among each other, because TRL's sampler for KTO takes rows as they come."""
        return interleaved([bool(row.values["label"]) for row in rows])


def kto_rows(
    trees: Iterable[SourcedTree],
    *,
    tau: float = 0.9,
    threshold: float | None = None,
    min_lines: int = 2,
    min_grade: Grade = Grade.EXECUTED,
    per_task: int = 32,
) -> Harvest[KTORow]:
    """Single actions of searched states: desirable where P(Q > `threshold`) >= `tau` under Beta(1 + W, 1 + N - W), undesirable where
    P(Q < `threshold`) >= `tau`; the others teach nothing.

    With `threshold` None an action is held against the other actions of its state taken together, and one without any is passed over;
    W / N must then differ in the same direction, so that two successes of two are not worse than a hundred of a hundred.
    An action needs `min_lines` played lines. At most `per_task` rows of each label come from a task, the surest first. What one
    search calls good and another bad is left out.
    """
    found = kto_candidates(trees, tau=tau, threshold=threshold, min_lines=min_lines, min_grade=min_grade)
    return settled_at_once(found, AnswerMark.of, partial(settle, per_task=per_task))


def kto_candidates(
    trees: Iterable[SourcedTree],
    *,
    tau: float = 0.9,
    threshold: float | None = None,
    min_lines: int = 2,
    min_grade: Grade = Grade.EXECUTED,
) -> Harvest[KTORow]:
    """The rows of `kto_rows` of each tree by itself; what compares rows of several trees (`settle`) is still to come."""
    if not 0.5 < tau <= 1.0:
        msg = f"got tau {tau}, wanted a probability above 0.5 and at most 1"
        raise ValueError(msg)
    rows, drops = [], []
    for tree in trees:
        for row, reason in _candidates(ActionEvidence(tree), tau, threshold, min_lines, min_grade):
            if reason:
                drops.append(Drop(reason, row.name))
            else:
                rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


def kto_trajectory_rows(
    trees: Iterable[SourcedTree],
    *,
    min_score: float = 1.0,
    max_score: float = 0.0,
    min_grade: Grade = Grade.EXECUTED,
    per_task: int = 32,
) -> Harvest[KTORow]:
    """Everything from the fork to an end: desirable where its score is at least `min_score`, undesirable where it is at most `max_score`.

    Ends in between are neither, and are named. What tools answered lies in `completion` too and is masked by `completion_trained`, which
    needs a trainer that reads masks.
    """
    found = kto_trajectory_candidates(trees, min_score=min_score, max_score=max_score, min_grade=min_grade)
    return settled_at_once(found, AnswerMark.of, partial(settle, per_task=per_task))


def kto_trajectory_candidates(
    trees: Iterable[SourcedTree], *, min_score: float = 1.0, max_score: float = 0.0, min_grade: Grade = Grade.EXECUTED
) -> Harvest[KTORow]:
    """The rows of `kto_trajectory_rows` of each tree by itself; what compares rows of several trees (`settle`) is still to come."""
    rows: list[KTORow] = []
    drops: list[Drop] = []
    for source in trees:
        drops += source.drops
        root = len(source.tree.root.state.messages)
        for end in ends(source):
            state = end.node.state
            lineage = replace(
                source.lineage,
                nodes=(source.tree.root.state.key, state.key),
                verifiers=end.verifiers,
                grade=state.grade,
                logged=end.logged,
            )
            flags = trained_flags(state, source.trainable(state))[root:]
            tools, label = state.tools, end.score >= min_score
            row = KTORow(
                state.messages[:root], state.messages[root:], label, tools, 1.0, flags, end.visits, end.score * end.visits, lineage
            )
            between = "an end that is neither good nor bad" if max_score < end.score < min_score else ""
            reason = too_low(lineage.grade, min_grade) or between or ("" if any(flags) else UNSEEN)
            if reason:
                drops.append(Drop(reason, row.name))
            else:
                rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


def weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """`desirable_weight` and `undesirable_weight` for KTOConfig: the rarer label is raised until both weigh alike, the other stays 1.

    The paper wants their ratio in [1, 4/3] (equation 8), and TRL warns outside it. Without rows of a label both are 1.
    """
    if not desirable or not undesirable:
        return 1.0, 1.0
    if desirable < undesirable:
        return round(undesirable / desirable, 2), 1.0
    return 1.0, round(desirable / undesirable, 2)


def interleaved(labels: Sequence[bool]) -> list[int]:
    """Indices in an order that spreads the rarer label evenly: consecutive batches of any size hold both as often as can be."""
    sides = [[i for i, label in enumerate(labels) if label is wanted] for wanted in (True, False)]
    rare, common = sorted(sides, key=len)
    places = {int((k + 0.5) * len(labels) / len(rare)) for k in range(len(rare))}
    left, right = iter(rare), iter(common)
    return [next(left) if place in places else next(right) for place in range(len(labels))]


def _candidates(
    evidence: ActionEvidence, tau: float, threshold: float | None, min_lines: int, min_grade: Grade
) -> Iterator[tuple[KTORow, str]]:
    """Every action whose label is sure enough, and why it may not leave; an empty reason where it may."""
    for parent, actions in evidence.states():
        for action in actions:
            others = [other for other in actions if other is not action]
            better = _better(action, others, threshold)
            if action.visits < min_lines or better is None or max(better, 1 - better) < tau:
                continue
            grade = min([parent.state.grade, action.grade, *(other.grade for other in others if threshold is None)])
            row = _row(evidence.source, parent, action, better, grade)
            malformed = "the action's arguments are not a JSON object" if row.label and not well_formed(action.message) else ""
            unknown = evidence.unseen(parent) or evidence.source.cut(action.nodes[0].state)
            yield row, action.refusal or too_low(grade, min_grade) or malformed or unknown


def _better(action: Action, others: Sequence[Action], threshold: float | None) -> float | None:
    """The probability that an action is better than `threshold`, or than the others together; None where that can't be said."""
    if threshold is not None:
        return 1 - incomplete_beta(1 + action.value_sum, 1 + action.visits - action.value_sum, threshold)
    value_sum, visits = sum(other.value_sum for other in others), sum(other.visits for other in others)
    if not visits:
        return None
    better = probability_better(action.value_sum, action.visits, value_sum, visits)
    return better if (action.rate > value_sum / visits) == (better > 0.5) and action.rate != value_sum / visits else None


def _row(source: SourcedTree, parent: Node, action: Action, better: float, grade: Grade) -> KTORow:
    lineage = replace(
        source.lineage,
        fork_step=len(parent.state),
        nodes=(parent.state.key, action.nodes[0].state.key),
        verifiers=tuple(sorted(action.verifiers)),
        grade=grade,
        logged=all(node.logged for node in action.nodes),
    )
    prompt, completion, tools, sure = parent.state.messages, (action.message,), parent.state.tools, max(better, 1 - better)
    return KTORow(prompt, completion, better > 0.5, tools, sure, (True,), action.visits, action.value_sum, lineage)


class AnswerMark(NamedTuple):
    """What rows are compared by: what is done in which state, its label (0 or 1), and the task that a cap is counted over."""

    what: int
    label: int
    unit: int
    probability: float

    @classmethod
    def of(cls, row: KTORow) -> AnswerMark:
        said = [message.signature if message.role == "assistant" else message.content_text for message in row.completion]
        return cls(mark_of(row.lineage.nodes[0], *said), int(row.label), mark_of(row.lineage.unit), float(row.probability))


def settle(marks: Mapping[str, Numbers], *, per_task: int = 32) -> Settled:
    """No answer that is good here and bad there, each once, and the cap."""
    import numpy as np

    what, label, sure = marks["what"], marks["label"], marks["probability"]
    both = np.isin(what, np.intersect1d(what[label == 1], what[label == 0]))
    single, refused = np.flatnonzero(~both), [(np.flatnonzero(both), "another search has it the other way round")]
    rules = ((1, "a duplicate", (what,)), (per_task, f"over the cap of {per_task} rows of a label a task", (marks["unit"], label)))
    for cap, reason, unit in rules:
        stays = surest(sure[single], cap, *(each[single] for each in unit))
        refused.append((single[~stays], reason))
        single = single[stays]
    return single.tolist(), ((int(number), reason) for numbers, reason in refused for number in numbers)
