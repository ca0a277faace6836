"""Labelled steps in files, one JSON object a line, in splits that share no task; and the ends of lines, for models of outcomes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Trajectory
from counterplay.finetune.labels.filters import reflection
from counterplay.finetune.labels.monte_carlo import monte_carlo, sorm
from counterplay.finetune.labels.omega import omega
from counterplay.finetune.labels.rows import StepwiseRow, stepwise_rows, trl_records
from counterplay.finetune.labels.steps import StepLabel
from counterplay.finetune.labels.values import advantages, rest_values, td_targets
from counterplay.finetune.rows import Drop, SourcedTree, too_low
from counterplay.finetune.splits import assign

REPORT = "report.json"
LABELS: Mapping[str, Callable[[SourcedTree], list[StepLabel]]] = MappingProxyType(
    {
        "mc-soft": monte_carlo,
        "mc-hard": lambda source: monte_carlo(source, hard=True),
        "omega": omega,
        "sorm": sorm,
        "advantage": lambda source: advantages(source, alpha=0.5),
        "rest": rest_values,
        "td": td_targets,
        "reflection": reflection,
    }
)
"""The labels that follow from a tree alone, with their defaults; all values in [0, 1]."""


def label_rows(kind: str, sources: Iterable[SourcedTree], *, min_grade: Grade = Grade.EXECUTED) -> tuple[list[StepwiseRow], list[Drop]]:
    """The rows of many trees, labelled in one of the ways of `LABELS`. Raises UserError for another, and where no step has a label."""
    rows, drops = label_candidates(kind, sources, min_grade=min_grade)
    if not rows:
        raise no_label(kind, drops)
    return rows, drops


def label_candidates(
    kind: str, sources: Iterable[SourcedTree], *, min_grade: Grade = Grade.EXECUTED
) -> tuple[list[StepwiseRow], list[Drop]]:
    """`label_rows`, or none."""
    if kind not in LABELS:
        raise UserError(f"got labels {kind!r}", f"one of {', '.join(LABELS)}")
    rows: list[StepwiseRow] = []
    drops: list[Drop] = []
    for source in sources:
        made, left_out = stepwise_rows(source, LABELS[kind](source), min_grade=min_grade)
        rows += made
        drops += left_out
    return rows, drops


def no_label(kind: str, dropped: Sized) -> UserError:
    """What is wrong where no step has a label, after `dropped` were left out."""
    do = "Search with lines that are played to their ends, such as fork_best_of_n."
    return UserError(f"no step of {'these searches' if not dropped else 'sufficient grade'} has a {kind} label", "at least one", do)


def outcomes(sources: Iterable[SourcedTree], *, min_grade: Grade = Grade.EXECUTED) -> list[tuple[Trajectory, float]]:
    """Every finished line of the trees once, with the score of its end. Lines whose machinery failed tell nothing and are left out."""
    found: dict[str, tuple[Trajectory, float]] = {}
    for source in sources:
        for leaf in source.tree.finished():
            failed = leaf.step is not None and leaf.step.error is not None
            if leaf.score is not None and not failed and not too_low(leaf.state.grade, min_grade):
                found.setdefault(leaf.state.key, (leaf.state, leaf.score.value))
    return list(found.values())


@dataclass(frozen=True)
class LabelReport:
    """What was written. `mean` is the mean label, `lines` the mean number of played lines under one; `left_out` counts by reason."""

    out_dir: Path
    kind: str
    splits: Mapping[str, int]
    labels: int
    mean: float
    lines: float
    left_out: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "out_dir": str(self.out_dir), "splits": dict(self.splits), "left_out": dict(self.left_out)}


def write_labels(
    rows: Sequence[StepwiseRow],
    out_dir: str | Path,
    *,
    drops: Sequence[Drop] = (),
    hard: float | None = None,
    tokenizer: Any = None,
    held_out: float = 0.0,
    seed: int = 0,
) -> LabelReport:
    """Write `train.jsonl` (and `test.jsonl` with a `held_out` share of the tasks) in TRL's shape, see `trl_records`, and a report.

    Rows tied by a task, a session or a trace are in one split. Raises UserError where `out_dir` holds anything.
    """
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists", "a new or empty folder", "Give another folder.")
    shares = {"train": 1 - held_out, "test": held_out} if held_out else {"train": 1.0}
    chosen = assign([row.lineage for row in rows], shares, seed)
    out.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split in shares:
        records = trl_records([row for row, where in zip(rows, chosen, strict=True) if where == split], hard=hard, tokenizer=tokenizer)
        (out / f"{split}.jsonl").write_text("".join(dumps(record) + "\n" for record in records), encoding="utf-8")
        splits[split] = len(records)
    labels = [label for row in rows for label in row.labels]
    report = LabelReport(
        out_dir=out,
        kind=labels[0].kind if labels else "",
        splits=splits,
        labels=len(labels),
        mean=sum(label.value for label in labels) / max(1, len(labels)),
        lines=sum(label.n for label in labels) / max(1, len(labels)),
        left_out=dict(Counter(drop.reason for drop in drops)),
    )
    (out / REPORT).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    return report
