"""From stored traces to a proposed table of effects: the front door to `replay.suggest`, and how a person reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from counterplay import console
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace
from counterplay.replay.evidence import Run
from counterplay.replay.suggest import Suggested, Suggestion, suggest


def suggest_effects(traces: Iterable[Trace], *, on_trace: Callable[[], None] = lambda: None) -> Suggestion:
    """Propose what each tool of these traces does to the world, with the evidence. Raises UserError where no tool was called.

    Attempts at one task count as having begun in the same world, as they do for `RecordedEnvironment`. What was gathered of a trace
    is kept, its text is not.
    """

    def runs() -> Iterator[Run]:
        for trace in traces:
            yield from runs_of(trace)
            on_trace()

    found = suggest(runs())
    if not found.rows:
        raise UserError(f"got {found.runs} trajectories without a tool", "at least one tool call to learn from")
    return found


def runs_of(trace: Trace) -> Iterator[Run]:
    """The main trajectory as a run of its task, and those of its sub-agents, whose worlds were in use when they began, by themselves."""
    others = frozenset(sub.parent_step for sub in trace.sub_trajectories if sub.parent_step is not None)
    yield Run(trace.trajectory, trace.task, f"trace {trace.id[:12]}", others)
    for sub in trace.sub_trajectories:
        yield Run(sub.trajectory, name=f"trace {trace.id[:12]} {sub.agent}".rstrip())


def write_table(found: Suggestion, out: Path) -> Path:
    """Write the table as TOML with its evidence in comments. Raises UserError where the file exists or can't be written."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(found.to_toml())
    except FileExistsError:
        raise UserError(f"{out} exists", "a new file", "A table that was put right by hand is not overwritten.") from None
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror}", "a path to write to") from error
    return out


def as_json(found: Suggestion) -> dict[str, Any]:
    """The table for machines: one row a tool, with its evidence."""
    return {"runs": found.runs, "users_act": found.users_act, "notes": list(found.notes), "tools": [_fields(row) for row in found.rows]}


def shown(found: Suggestion) -> list[Any]:
    """The proposed effects, then what would settle those that are open."""
    rows = [(row.tool, row.calls, _effect(row), "; ".join(row.evidence) or "-") for row in found.rows]
    tables: list[Any] = [console.table(f"effects proposed from {found.runs} runs", ["tool", "calls", "effect", "evidence"], rows)]
    doubts = [(row.tool, row.doubts) for row in found.rows if row.doubts]
    if doubts:
        tables.append(console.table("declarations that the logs contradict", ["tool", "why"], doubts))
    unsettled = [(row.tool, row.settle) for row in found.rows if row.settle]
    if unsettled:
        tables.append(console.table("external until more is known", ["tool", "what would tell"], unsettled))
    return [*tables, *found.notes]


def _effect(row: Suggested) -> str:
    return f"{row.effect} (by its name)" if row.by_name else str(row.effect)


def _fields(row: Suggested) -> dict[str, Any]:
    return {
        "tool": row.tool,
        "effect": row.effect.kind,
        "resource": row.effect.resource,
        "calls": row.calls,
        "evidence": list(row.evidence),
        "settle": row.settle,
        "by_name": row.by_name,
        "declared": None if row.declared is None else str(row.declared),
        "doubts": row.doubts,
    }
