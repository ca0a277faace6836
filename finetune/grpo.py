"""Prompts for reinforcement learning: states worth playing on from, with what an environment needs to stand in them.

The states come from logs (where each task begins) and from searches (where some lines succeeded and others did not, since a
group of equal rewards has no gradient; Yu et al. 2025, DAPO, arXiv:2503.14476).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from counterplay.core.nouns import Grade, Message, State, ToolSpec, Trace
from counterplay.finetune.evidence import ActionEvidence
from counterplay.finetune.rows import Drop, Harvest, Lineage, Row, SourcedTree, too_low, users_of, whole_prompts
from counterplay.finetune.settling import Settled, mark_of, settled_at_once

if TYPE_CHECKING:
    from counterplay.finetune.settling import Numbers


@dataclass(frozen=True)
class GRPORow(Row):
    """A prompt that ends where the model is to act. Its last messages, `played` of them, came after the world's own prompt.

    `visits` N and `value_sum` W count the lines that were played from here and what they scored; zero where none were.
    """

    kind = "grpo"
    conversations = (("prompt",),)
    prompt: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    played: int = 0
    visits: int = 0
    value_sum: float = 0.0
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def parts(self) -> Mapping[str, tuple[Message, ...]]:
        """TRL's GRPOTrainer asks every message for its `content`: where a log has none, it is null."""
        return {"prompt": tuple(m if "content" in m.fields else Message.from_openai({**m.fields, "content": None}) for m in self.prompt)}

    @property
    def values(self) -> Mapping[str, Any]:
        exact = [message.wire for message in self.prompt]
        return {"state": exact, "played": self.played, "visits": self.visits, "value_sum": self.value_sum}


def grpo_rows(
    trees: Iterable[SourcedTree],
    *,
    low: float = 0.1,
    high: float = 0.9,
    min_lines: int = 2,
    min_grade: Grade = Grade.EXECUTED,
    per_task: int = 8,
) -> Harvest[GRPORow]:
    """The states of searches from which between `low` and `high` of at least `min_lines` played lines succeeded (W / N).

    At most `per_task` come from a task, those nearest to one half first. States of a task that is not known are left out, because
    no environment could be made for them.
    """
    found = grpo_candidates(trees, low=low, high=high, min_lines=min_lines, min_grade=min_grade)
    return settled_at_once(found, PromptMark.of, partial(settle, per_task=per_task))


def grpo_candidates(
    trees: Iterable[SourcedTree], *, low: float = 0.1, high: float = 0.9, min_lines: int = 2, min_grade: Grade = Grade.EXECUTED
) -> Harvest[GRPORow]:
    """The rows of `grpo_rows` of each tree by itself; what compares rows of several trees (`settle`) is still to come."""
    rows, drops = [], []
    for source in trees:
        evidence = ActionEvidence(source)
        for node in source.tree.nodes:
            visits, value_sum = evidence.lines[node.index]
            if node.finished or visits < min_lines or not low <= value_sum / visits <= high:
                continue
            lineage = replace(source.lineage, fork_step=len(node.state), nodes=(node.state.key,), grade=node.state.grade)
            row = _row(node.state, lineage, visits, value_sum)
            reason = _refusal(row, min_grade) or evidence.unseen(node)
            if reason:
                drops.append(Drop(reason, row.name))
            else:
                rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


def logged_prompts(traces: Iterable[Trace], *, per_task: int = 1) -> Harvest[GRPORow]:
    """Where logged runs began: one prompt a task, whatever became of the runs."""
    return settled_at_once(prompt_candidates(traces), PromptMark.of, partial(settle, per_task=per_task))


def prompt_candidates(traces: Iterable[Trace]) -> Harvest[GRPORow]:
    """The rows of `logged_prompts`, one a run."""
    rows, drops = [], []
    for trace in traces:
        start = trace.trajectory.prefix(0)
        sessions = () if trace.session is None else (trace.session,)
        lineage = Lineage(
            trace.task,
            (trace.id,),
            sessions,
            fork_step=0,
            nodes=(start.key,),
            logged=True,
            agent=trace.agent,
            users=users_of(trace),
        )
        row = _row(start, lineage, 0, 0.0)
        reason = _refusal(row, Grade.EXACT) or ("" if whole_prompts(trace)[0] else "the prompt is not known whole")
        if reason:
            drops.append(Drop(reason, row.name))
        else:
            rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


def _row(state: State, lineage: Lineage, visits: int, value_sum: float) -> GRPORow:
    return GRPORow(state.messages, state.tools, sum(len(step.messages) for step in state.steps), visits, value_sum, lineage)


def _refusal(row: GRPORow, min_grade: Grade) -> str:
    return too_low(row.lineage.grade, min_grade) or ("" if row.lineage.task is not None else "the task is not known")


class PromptMark(NamedTuple):
    """What prompts are compared by: their state, the task that a cap is counted over, and how far from one half their value is."""

    state: int
    unit: int
    one_sided: float

    @classmethod
    def of(cls, row: GRPORow) -> PromptMark:
        return cls(mark_of(row.lineage.nodes[0]), mark_of(row.lineage.unit), float(_one_sided(row)))


def settle(marks: Mapping[str, Numbers], *, per_task: int = 8) -> Settled:
    """Each state once, and the cap, nearest to one half first."""
    import numpy as np

    states, units = marks["state"].tolist(), marks["unit"].tolist()
    taken, seen = Counter[int](), set[int]()
    kept, refused = list[int](), list[tuple[int, str]]()
    for number in np.argsort(marks["one_sided"], kind="stable").tolist():
        if states[number] in seen:
            refused.append((number, "a duplicate"))
        elif taken[units[number]] >= per_task:
            refused.append((number, f"over the cap of {per_task} prompts a task"))
        else:
            seen.add(states[number])
            taken[units[number]] += 1
            kept.append(number)
    return kept, refused


def _one_sided(row: GRPORow) -> float:
    return abs(row.value_sum / row.visits - 0.5) if row.visits else 0.0
