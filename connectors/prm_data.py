"""Step-labelled solutions: PRM800K, ProcessBench, AgentProcessBench, TRL PRM rows, math-shepherd and OpenR's OmegaPRM prefixes and trees.

The problem is the user message and every step of a solution an assistant message: one completion, cut where it was labelled. A
label is a score of its step. Rows that hold several continuations of one prefix are trees, one trace each (`prm_trees`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item, trace_id
from counterplay.connectors.branching import step_of
from counterplay.connectors.lines import Entry, entries, leading_objects
from counterplay.connectors.normalise import has_system, messages_of
from counterplay.connectors.prm_agents import agent_row, is_agent_row
from counterplay.connectors.prm_trees import NAME, NOTES, answer, openr_prefixes, openr_tree, prm800k
from counterplay.core.nouns import Completeness, LoggedScore, Message, Outcome, OutcomeSource, Source, Trace, Trajectory
from counterplay.core.records import Rejected

_MARK = "ки"
_STEP = re.compile(r"(?=\bStep \d+:)")


@dataclass(frozen=True)
class PrmData:
    """The `prm-data` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  the protocol's shape
        row = next(iter(leading_objects(sample, 1)), {})
        return 0.9 if reader_of(row) is not None else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every row of a file, each by its own shape. A row that is of none of them is a Rejected."""
        for entry in entries(path):
            yield entry if isinstance(entry, Rejected) else _item(entry)


def reader_of(row: Mapping[str, Any]) -> Callable[[Entry], Trace] | None:
    """What reads a row of this shape; None where it is of none that is known here."""
    label, steps = row.get("label"), row.get("reasoning_steps")
    shapes: list[tuple[bool, Callable[[Entry], Trace]]] = [
        (isinstance(row.get("question"), dict) and isinstance(facts.record(label).get("steps"), list), prm800k),
        (isinstance(row.get("question"), str) and "children" in facts.record(steps), openr_tree),
        (isinstance(row.get("question"), str) and _is_prefixes(steps), openr_prefixes),
        (isinstance(row.get("problem"), str) and isinstance(row.get("steps"), list) and facts.number(label) is not None, _process_bench),
        (isinstance(label, str) and isinstance(row.get("input"), str) and _MARK in row["input"], _math_shepherd),
        (is_agent_row(row), agent_row),
        ("prompt" in row and isinstance(row.get("completions"), list) and isinstance(row.get("labels"), list), _trl),
    ]
    return next((reader for fits, reader in shapes if fits), None)


def _is_prefixes(steps: Any) -> bool:
    return isinstance(steps, list) and bool(steps) and "solution_prefix" in facts.record(steps[0])


def _item(entry: Entry) -> Item:
    reader = reader_of(entry.value)
    if reader is None:
        fields = ", ".join(map(str, list(entry.value)[:8])) or "none"
        return entry.reject(f"a row of no known step-labelled shape (fields: {fields})")
    try:
        return reader(entry)
    except (ValueError, RecursionError) as error:
        return entry.reject(str(error))


def _process_bench(entry: Entry) -> Trace:
    """`label` is the first step that is wrong, -1 where none is; what comes after that step was not looked at."""
    row = entry.value
    wrong = facts.whole_number(row["label"])
    looked_at = len(row["steps"]) if wrong is None or wrong < 0 else wrong + 1
    if looked_at > len(row["steps"]):
        msg = f"the label {wrong} names no step of {len(row['steps'])}"
        raise ValueError(msg)
    labels = [i != wrong for i in range(looked_at)]
    right = row.get("final_answer_correct")
    outcome = Outcome(None, right, "harness", {"final_answer_correct": right}) if isinstance(right, bool) else Outcome()
    known = ("problem", "steps", "label", "final_answer_correct")
    solution = _Solution("processbench", [Message.user(row["problem"])], row["steps"], labels)
    return _flat(entry, solution, known, source="human", outcome=outcome)


def _math_shepherd(entry: Entry) -> Trace:
    """Marks in `input` stand where `label` has + or -: whether the right answer was reached from there in automatic trials."""
    row = entry.value
    parts = row["input"].split(_MARK)
    problem, *opening = _STEP.split(parts[0], maxsplit=1)
    if not opening:
        msg = "a solution in which nothing says where the problem ends (no `Step 1:` before the first mark)"
        raise ValueError(msg)
    if parts[-1].strip():
        msg = f"a solution that goes on after its last mark: {parts[-1].strip()[:40]!r}"
        raise ValueError(msg)
    texts = [step.strip() for step in (*opening, *parts[1:-1])]
    solution = _Solution("math-shepherd", [Message.user(problem.strip())], texts, _signs(row["label"], parts))
    return _flat(entry, solution, ("input", "label"), source="harness")


def _signs(label: str, parts: Sequence[str]) -> list[bool]:
    """The sign that stands in `label` for each mark of the input, found by the text between the marks."""
    signs: list[bool] = []
    position = 0
    for part in parts[:-1]:
        position += len(part)
        if label[position : position + 1] not in ("+", "-"):
            msg = f"the label has {label[position : position + 1]!r} where the input's step {len(signs)} ends, wanted + or -"
            raise ValueError(msg)
        signs.append(label[position] == "+")
        position += 1
    return signs


def _trl(entry: Entry) -> Trace:
    row = entry.value
    prompt = messages_of(row["prompt"]) if isinstance(row["prompt"], list) else (Message.user(_text(row["prompt"])),)
    if len(row["completions"]) != len(row["labels"]):
        msg = f"{len(row['labels'])} labels for {len(row['completions'])} completions"
        raise ValueError(msg)
    solution = _Solution("trl", prompt, row["completions"], row["labels"])
    return _flat(entry, solution, ("prompt", "completions", "labels"))


@dataclass(frozen=True, slots=True)
class _Solution:
    """Texts and labels of the steps, in order. Fewer labels than steps: the last steps have none."""

    dialect: str
    prompt: Sequence[Message]
    texts: Sequence[Any]
    labels: Sequence[Any]


def _flat(
    entry: Entry, solution: _Solution, known: Sequence[str], *, source: OutcomeSource = "unknown", outcome: Outcome | None = None
) -> Trace:
    """The trace of one solution; the row's fields other than `known` are kept. Raises ValueError where there is no step."""
    row, dialect, texts = entry.value, solution.dialect, solution.texts
    if not texts:
        msg = "a solution without a step"
        raise ValueError(msg)
    steps = [step_of(answer(_text(text)), terminated=i == len(texts) - 1) for i, text in enumerate(texts)]
    trajectory = Trajectory((), tuple(solution.prompt), tuple(steps))
    source_id = facts.first_word(("id", "question_id"), (row,))
    as_trained = dialect == "trl"
    return Trace(
        id=trace_id(NAME, trajectory, dialect, source_id),
        trajectory=trajectory,
        source=Source(NAME, str(entry.path), entry.line, dialect),
        task=source_id,
        outcome=outcome or Outcome(),
        scores=tuple(LoggedScore.of("label", _label(label), source=source, step=i) for i, label in enumerate(solution.labels)),
        metadata={key: value for key, value in row.items() if key not in known},
        completeness=Completeness(
            inputs="full" if as_trained else "stitched",
            system_prompt=as_trained or has_system(solution.prompt),
            notes=NOTES[:1] if as_trained else NOTES,
        ),
    )


def _label(value: Any) -> bool | float | None:
    if isinstance(value, bool) or value is None:
        return value
    found = facts.number(value)
    if found is None:
        msg = f"a label is {type(value).__name__}, wanted true, false or a number"
        raise ValueError(msg)
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        msg = f"a step or prompt is {type(value).__name__}, wanted text"
        raise ValueError(msg)
    return value


CONNECTOR = PrmData()
