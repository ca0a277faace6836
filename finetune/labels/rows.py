"""Labelled steps as training rows: every label in one row alone, however many lines share its step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Grade, Trajectory
from counterplay.finetune.labels.steps import StepLabel
from counterplay.finetune.portable import portable
from counterplay.finetune.rows import Drop, Lineage, SourcedTree, too_low
from counterplay.verifiers.learned.rendering import StepRenderer


@dataclass(frozen=True)
class StepwiseRow:
    """One line with labels at some of its steps. `labels` are of steps that no other row of the tree labels, by rising step."""

    trajectory: Trajectory
    labels: tuple[StepLabel, ...]
    lineage: Lineage = field(default_factory=Lineage)

    @cached_property
    def name(self) -> str:
        return f"{self.lineage.unit or 'row'}/{content_key(self.trajectory.key, *(label.key for label in self.labels))[:8]}"


def stepwise_rows(
    source: SourcedTree, labels: Iterable[StepLabel], *, min_grade: Grade = Grade.EXECUTED
) -> tuple[list[StepwiseRow], list[Drop]]:
    """The fewest lines of a tree that hold every label once, deepest first; steps whose grade is below `min_grade` are left out by name."""
    nodes = {node.state.key: node for node in source.tree.nodes}
    open_labels: dict[str, StepLabel] = {}
    drops = []
    for label in labels:
        reason = too_low(nodes[label.key].state.grade, min_grade) if label.key in nodes else "a label of another tree"
        if reason:
            drops.append(Drop(reason, f"{source.name}/step-{label.step}/{label.key[:8]}"))
        else:
            open_labels[label.key] = label
    rows = []
    for key in sorted(open_labels, key=lambda key: (-len(nodes[key].state), nodes[key].index)):
        if key not in open_labels:
            continue
        path = [open_labels.pop(node.state.key) for node in nodes[key].path() if node.state.key in open_labels]
        rows.append(StepwiseRow(nodes[key].state, tuple(path), path[-1].lineage))
    return rows, drops


def trl_records(rows: Iterable[StepwiseRow], *, hard: float | None = None, tokenizer: Any = None) -> list[dict[str, Any]]:
    """Rows in the shape of TRL's stepwise supervision: `prompt`, `completions`, `labels`, and the lineage beside them.

    `completions` are steps without a gap, as lists of messages (the action and what was observed); what comes before the first is in
    `prompt`, and a row whose labels leave a gap becomes several. With a `tokenizer` both are text, whose concatenation is the rendered
    conversation. `labels` are the values, or booleans, value >= `hard`, where that is given.
    """
    renderer = None if tokenizer is None else StepRenderer(tokenizer)
    return [_record(row, part, hard, renderer) for row in rows for part in without_gaps(row.labels)]


def without_gaps(labels: Sequence[StepLabel]) -> list[list[StepLabel]]:
    parts: list[list[StepLabel]] = []
    for label in labels:
        if parts and label.step - label.span == parts[-1][-1].step:
            parts[-1].append(label)
        else:
            parts.append([label])
    return parts


def _record(row: StepwiseRow, part: Sequence[StepLabel], hard: float | None, renderer: StepRenderer | None) -> dict[str, Any]:
    first = part[0].step - part[0].span + 1
    edges = [first, *(label.step + 1 for label in part)]
    state, lineage = row.trajectory, row.lineage
    if renderer is None:
        messages = portable(state.prefix(edges[-1]).messages)
        counts = [len(state.prefix(edge).messages) for edge in edges]
        prompt: Any = messages[: counts[0]]
        completions: list[Any] = [messages[a:b] for a, b in itertools.pairwise(counts)]
    else:
        texts = [renderer.tokenizer.decode(renderer.whole(state.prefix(edge))) for edge in edges]
        prompt, completions = texts[0], [b[len(a) :] for a, b in itertools.pairwise(texts)]
    return {
        "prompt": prompt,
        "completions": completions,
        "labels": [label.value if hard is None else label.value >= hard for label in part],
        "tools": [tool.to_openai() for tool in state.tools] or None,
        "low": [label.low for label in part],
        "high": [label.high for label in part],
        "lines": [label.n for label in part],
        "kind": part[0].kind,
        "name": row.name,
        "task": lineage.task,
        "traces": list(lineage.traces),
        "sessions": list(lineage.sessions),
        "search": lineage.search,
        "algorithm": lineage.algorithm,
        "steps": [label.step for label in part],
        "nodes": [label.key for label in part],
        "verifiers": sorted({name for label in part for name in label.lineage.verifiers}),
        "grade": min(label.lineage.grade for label in part).name.lower(),
    }


@dataclass(frozen=True)
class TokenRow:
    """Ready ids for a token-classification head: `targets` are (position, value) pairs, at the last token of each labelled step."""

    input_ids: tuple[int, ...]
    targets: tuple[tuple[int, float], ...]
    name: str = ""


def token_rows(rows: Iterable[StepwiseRow], renderer: StepRenderer) -> list[TokenRow]:
    """Rows as a verifier reads them. Tokens after the last label are left out; no loss depends on them.

    Under a template that rewrites earlier messages every label is a row of its own, since its state is a text of its own.
    """
    made: list[TokenRow] = []
    for row in rows:
        state = row.trajectory.prefix(row.labels[-1].step + 1)
        ids, ends = list(renderer.prompt(state)), []
        for step in state.steps:
            tokens = renderer.step(step)
            ends.append(len(ids) + tokens.end)
            ids += tokens.ids
        if renderer.check(state, ids, state.steps):
            stop = ends[row.labels[-1].step] + 1
            made.append(TokenRow(tuple(ids[:stop]), tuple((ends[label.step], label.value) for label in row.labels), row.name))
        else:
            made += [_alone(row, label, renderer) for label in row.labels]
    return made


def _alone(row: StepwiseRow, label: StepLabel, renderer: StepRenderer) -> TokenRow:
    ids = renderer.whole(row.trajectory.prefix(label.step + 1))
    end = renderer.last(ids)
    return TokenRow(tuple(ids[: end + 1]), ((end, label.value),), f"{row.name}/step-{label.step}")
