"""Answers about traces: the long list with its filters, and one trace whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.nouns import Completeness, Grade, Trace
from counterplay.core.store.viewing import SORTS, TraceIndex, Wanted
from counterplay.viewing.asking import Query
from counterplay.viewing.conversation import View, opinion_view, score_view, trajectory_view
from counterplay.viewing.searches import summaries

if TYPE_CHECKING:
    from counterplay.core.store import Store

WINDOW, LARGEST = 100, 500


def trace_list(index: TraceIndex, query: Query) -> View:
    offset, limit = query.window(WINDOW, LARGEST)
    total, rows, searched = index.page(wanted(query), offset, limit)
    progress = None if searched is None else {"done": searched.done, "searched": searched.searched, "of": searched.of}
    return {"total": total, "offset": offset, "rows": [summary(row) for row in rows], "text_search": progress}


def facets(index: TraceIndex, query: Query) -> View:
    asked = wanted(query, text=False)
    counted = {name: [{"value": value, "count": count} for value, count in found] for name, found in index.facets(asked).items()}
    total, _, _ = index.page(asked, 0, 0)
    costs = index.costs()
    return {"total": total, **counted, "cost": None if costs is None else {"min": costs[0], "max": costs[1]}}


def wanted(query: Query, *, text: bool = True) -> Wanted:
    """The filters of a question. Raises UserError where one can't be read."""
    failing = query.one_of("failing", ("yes", "no"))
    return Wanted(
        task=query.text("task"),
        agent=query.text("agent"),
        source=query.text("source"),
        tag=query.text("tag"),
        outcome=query.one_of("outcome", ("success", "failed", "unknown")),
        failing=None if failing is None else failing == "yes",
        min_cost=query.number("min_cost"),
        max_cost=query.number("max_cost"),
        begins=query.text("id") or "",
        text=(query.text("text") or "").strip() if text else "",
        sort=query.one_of("sort", tuple(SORTS)) or "ingested",
        descending=query.one_of("order", ("asc", "desc")) == "desc",
    )


def summary(row: Mapping[str, Any]) -> View:
    shown = {
        name: row[name] for name in ("id", "task", "session", "agent", "source", "outcome", "reward", "steps", "trajectories", "tokens")
    }
    also = {name: row[name] for name in ("cost_usd", "started_at_us", "duration_s", "failing_step", "searches", "tags")}
    return {**shown, **also, "reward": console.plain(row["reward"]), "grade": Grade(row["grade"]).name.lower()}


def trace_detail(store: Store, index: TraceIndex, row: Mapping[str, Any]) -> View:
    """Everything about the trace of a row of the list."""
    trace = store.trace(row["id"])
    contexts = [trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)]
    opinions = index.opinions([key for context in contexts for key in context.prefix_keys])
    views = [
        trajectory_view(
            context,
            index=number,
            agent=(trace.sub_trajectories[number - 1].agent if number else trace.agent) or "",
            parent_step=trace.sub_trajectories[number - 1].parent_step if number else None,
            continues=trace.sub_trajectories[number - 1].continues if number else None,
            calls=trace.calls,
            scores=trace.scores,
            opinions=opinions,
        )
        for number, context in enumerate(contexts)
    ]
    outcome = trace.outcome
    whole = [score_view(score) for score in trace.scores if score.step is None]
    whole += [] if trace.trajectory.steps else [opinion_view(each) for each in opinions[trace.trajectory.key]]
    return {
        "summary": summary(row),
        "trajectories": views,
        "outcome": {
            "reward": console.plain(outcome.reward),
            "success": outcome.success,
            "source": outcome.source,
            "details": console.plain(dict(outcome.details)),
        },
        "scores": whole,
        "searches": summaries(index, store.searches(trace=trace.id)),
        "provenance": _provenance(trace, index.revisions(trace.id)),
        "completeness": _completeness(trace.completeness),
    }


def _provenance(trace: Trace, revisions: int) -> View:
    source = trace.source
    return {
        "format": source.format,
        "dialect": source.dialect,
        "uri": source.uri,
        "line": source.line,
        "session": trace.session,
        "revisions": revisions,
        "metadata": console.plain(dict(trace.metadata)),
        "models": list(dict.fromkeys(call.model for call in trace.calls if call.model)),
    }


def _completeness(known: Completeness) -> View:
    fields: View = console.plain(known)
    fields["tools_known"], fields["system_prompt_known"] = fields.pop("tools"), fields.pop("system_prompt")
    return fields
