"""Labelled steps as a dataset of rows: the steps of one line, each with a value, after the prompt they follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any

from counterplay.core.nouns import Grade, Message, ToolSpec
from counterplay.finetune.labels.rows import StepwiseRow, without_gaps
from counterplay.finetune.labels.steps import StepLabel
from counterplay.finetune.labels.write import label_candidates, no_label
from counterplay.finetune.rows import Harvest, Lineage, Row, SourcedTree


@dataclass(frozen=True)
class PRMRow(Row):
    """Steps without a gap: each of `completions` is one labelled step, an action and what was observed, or a few merged.

    `labels` are values in [0, 1] of `label_kind`, with their intervals from `low` to `high` and the number of played `lines` under each;
    `steps` are the indices of the last step of each. All align with `completions`.
    """

    kind = "prm"
    conversations = (("prompt", "completions"),)
    prompt: tuple[Message, ...]
    completions: tuple[tuple[Message, ...], ...]
    labels: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    lines: tuple[int, ...]
    steps: tuple[int, ...]
    label_kind: str = ""
    tools: tuple[ToolSpec, ...] = ()
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def parts(self) -> Mapping[str, tuple[Message, ...]]:
        return {"prompt": self.prompt, "completions": tuple(chain(*self.completions))}

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        return {"completions": tuple(map(len, self.completions))}

    @property
    def values(self) -> Mapping[str, Any]:
        columns = {name: list(getattr(self, name)) for name in ("labels", "low", "high", "lines", "steps")}
        return {**columns, "kind": self.label_kind}


def prm_rows(
    trees: Iterable[SourcedTree], *, labels: str = "mc-soft", hard: float | None = None, min_grade: Grade = Grade.EXECUTED
) -> Harvest[PRMRow]:
    """The steps of trees labelled in one of the ways of `labels.write.LABELS`, every label in one row alone.

    With `hard` given, a label is 1 where its value is at least that, else 0. Raises UserError where no step has a label.
    """
    found = prm_candidates(trees, labels=labels, hard=hard, min_grade=min_grade)
    if not found.rows:
        raise no_label(labels, found.drops)
    return found


def prm_candidates(
    trees: Iterable[SourcedTree], *, labels: str = "mc-soft", hard: float | None = None, min_grade: Grade = Grade.EXECUTED
) -> Harvest[PRMRow]:
    """`prm_rows`, or none."""
    rows, drops = label_candidates(labels, trees, min_grade=min_grade)
    return Harvest(tuple(_row(row, part, hard) for row in rows for part in without_gaps(row.labels)), tuple(drops))


def _row(row: StepwiseRow, part: list[StepLabel], hard: float | None) -> PRMRow:
    state = row.trajectory
    edges = [part[0].step - part[0].span + 1, *(label.step + 1 for label in part)]
    messages, counts = state.prefix(edges[-1]).messages, [len(state.prefix(edge).messages) for edge in edges]
    lineage = replace(
        row.lineage,
        nodes=tuple(label.key for label in part),
        verifiers=tuple(sorted({name for label in part for name in label.lineage.verifiers})),
        grade=min(label.lineage.grade for label in part),
    )
    return PRMRow(
        prompt=messages[: counts[0]],
        completions=tuple(messages[a:b] for a, b in pairwise(counts)),
        labels=tuple(label.value if hard is None else float(label.value >= hard) for label in part),
        low=tuple(label.low for label in part),
        high=tuple(label.high for label in part),
        lines=tuple(label.n for label in part),
        steps=tuple(label.step for label in part),
        label_kind=part[0].kind,
        tools=state.tools,
        lineage=lineage,
    )
