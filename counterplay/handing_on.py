"""From the store to other viewers: logged traces, and the counterfactual branches of searches as traces of their own, linked to the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import UserError
from counterplay.core.nouns import LoggedScore, Outcome, Source, Trace

if TYPE_CHECKING:
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store
    from counterplay.search.tree import Node

FORMATS = ("otlp", "langsmith")


@dataclass(frozen=True)
class HandedOn:
    """What was handed on, and to which file or URL. `without_calls` names traces in which no model call is known: tracing has no words
    for them.
    """

    to: str
    format: str
    traces: int
    branches: int
    without_calls: tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """A branch of a search as a trace, and the logged trace it left: `first` is the first step that is its own."""

    trace: Trace
    logged: Trace | None
    first: int


def hand_on(
    store: Store,
    to: Path | str,
    *,
    format: str = "otlp",  # noqa: A002  the user's word
    trace_ids: Sequence[str] | None = None,
    agent: str | None = None,
    limit: int | None = None,
    branches: bool = True,
    on_trace: Callable[[], None] = lambda: None,
) -> HandedOn:
    """Give traces, and the finished branches of their searches, to a file as JSON lines, or to the URL of a collector or viewer.

    Raises UserError where the file can't be written, or the URL does not take them.
    """
    from counterplay.loop import select

    if format not in FORMATS:
        raise UserError(f"got --format {format!r}", f"one of {', '.join(FORMATS)}")
    written, grown, silent = 0, 0, []
    with _into(to, format) as give:
        for trace in select(store, trace_ids=trace_ids, agent=agent, limit=limit):
            if not _calls(trace):
                silent.append(trace.id)
                continue
            give(trace, None)
            written += 1
            for branch in branches_of(store, trace) if branches else ():
                give(branch.trace, branch)
                grown += 1
            on_trace()
    return HandedOn(str(to), format, written, grown, tuple(silent))


@contextmanager
def _into(to: Path | str, format: str) -> Iterator[Callable[[Trace, Branch | None], None]]:  # noqa: A002  the user's word
    if isinstance(to, str):
        from counterplay.otlp_send import Sender

        if format != "otlp":
            raise UserError(f"got --to with --format {format}", "--format otlp", "LangSmith takes OTLP too; a file may have either.")
        with Sender(to) as sender:

            def send(trace: Trace, branch: Branch | None) -> None:
                for row in _rows(format, trace, branch):
                    sender.send(row)

            yield send
        return
    try:
        with to.open("w", encoding="ascii") as out:

            def write(trace: Trace, branch: Branch | None) -> None:
                out.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in _rows(format, trace, branch))

            yield write
    except OSError as error:
        raise UserError(f"{to} can't be written: {error.strerror or error}", "a file in an existing folder") from error


def _calls(trace: Trace) -> bool:
    contexts = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
    return bool(trace.calls) or any(step.sampled for context in contexts for step in context.steps)


def _rows(format: str, trace: Trace, branch: Branch | None) -> Iterator[Mapping[str, Any]]:  # noqa: A002  the user's word
    from counterplay.langsmith_out import langsmith_rows
    from counterplay.spans_out import otlp_document

    first = branch.first if branch is not None else 0
    if format == "otlp":
        yield otlp_document(trace, links=_links(branch), first=first)
    else:
        yield from langsmith_rows(trace, first=first)


def _links(branch: Branch | None) -> list[dict[str, Any]]:
    """To the root of the logged trace, and to the call that the branch makes otherwise."""
    from counterplay.span_plan import span_id, trace_id

    if branch is None or branch.logged is None:
        return []
    logged = branch.logged
    own = trace_id(logged)
    links = [{"traceId": own, "spanId": span_id(logged, 0), "attributes": []}]
    if branch.first < len(logged.trajectory):
        links.append({"traceId": own, "spanId": span_id(logged, 0, branch.first), "attributes": []})
    return links


def branches_of(store: Store, trace: Trace) -> Iterator[Branch]:
    """The finished counterfactual branches of all searches that forked a trace."""
    for row in store.searches(trace=trace.id):
        yield from branches_in(store.search(row.id), trace)


def branches_in(record: SearchRecord, logged: Trace | None = None) -> Iterator[Branch]:
    """The finished branches of a search that left the log, each as a trace whose id is SEARCH/NODE."""
    from counterplay.search.tree import SearchTree

    for node in SearchTree.from_record(record).finished():
        if node.step is not None and not node.logged and node.parent is not None:
            yield Branch(_branch(record, node, logged), logged, _first(record, node))


def _first(record: SearchRecord, node: Node) -> int:
    """The first step at which a branch is not the log."""
    return len(record.root) + next(place for place, each in enumerate(node.path()[1:]) if not each.logged)


def _branch(record: SearchRecord, node: Node, logged: Trace | None) -> Trace:
    last, score = node.state.steps[-1], node.score
    about = {
        "kind": "counterfactual",
        "search": record.id,
        "node": node.index,
        "algorithm": record.algorithm,
        "fork_step": record.fork_step,
        "logged_trace": record.trace,
        "grade": node.state.grade.name.lower(),
        "visits": node.visits,
        "value": node.value,
    }
    said = () if score is None else (LoggedScore(score.verifier or "verifier", score.value, score.value, "unknown", comment=score.reason),)
    return Trace(
        f"{record.id}/{node.index}",
        node.state,
        Source("counterplay"),
        task=record.task if logged is None else logged.task,
        session=None if logged is None else logged.session,
        agent=None if logged is None else logged.agent,
        outcome=Outcome(last.reward) if last.reward is not None else Outcome(),
        scores=said,
        tags=("counterfactual",),
        metadata={"counterplay": about},
        started_at_us=None if logged is None else logged.started_at_us,
    )
