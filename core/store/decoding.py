"""Rows back into nouns, many traces at a time. Messages that traces share are one object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from duckdb import DuckDBPyConnection

from counterplay.core.canonical import loads
from counterplay.core.effects import Effect
from counterplay.core.nouns import (
    Call,
    Completeness,
    Grade,
    LoggedScore,
    Message,
    Outcome,
    Source,
    Step,
    SubTrajectory,
    ToolSpec,
    Trace,
    Trajectory,
    Usage,
)
from counterplay.core.store.tables import VARIANT, records, unshelved, within

Fields = Mapping[str, Any]
_GRADES = tuple(Grade)


def read_traces(connection: DuckDBPyConnection, numbers: Sequence[int]) -> Iterator[Trace]:
    """The traces with these row numbers, in that order."""
    contexts = _grouped(read_within(connection, "trajectory", "trace_number", numbers, "ordinal"), "trace_number")
    yield from _read(
        connection, numbers, contexts, read_trajectories(connection, [row["number"] for rows in contexts.values() for row in rows])
    )


def read_digested(connection: DuckDBPyConnection, numbers: Sequence[int]) -> Iterator[tuple[Trace, list[str]]]:
    """The traces with empty trajectories, and the digests of these: what the digest of a trace is made of."""
    contexts = _grouped(read_within(connection, "trajectory", "trace_number", numbers, "ordinal"), "trace_number")
    empty = dict.fromkeys((row["number"] for rows in contexts.values() for row in rows), Trajectory())
    for number, trace in zip(numbers, _read(connection, numbers, contexts, empty), strict=True):
        yield trace, [row["digest"].hex for row in contexts[number]]


def _read(
    connection: DuckDBPyConnection, numbers: Sequence[int], contexts: Mapping[int, Sequence[Fields]], trajectories: Mapping[int, Trajectory]
) -> Iterator[Trace]:
    headers = {row["number"]: row for row in read_within(connection, "trace", "number", numbers)}
    calls = _grouped(read_within(connection, "call", "trace_number", numbers, "ordinal"), "trace_number")
    scores = _grouped(read_within(connection, "trace_score", "trace_number", numbers, "ordinal"), "trace_number")
    for number in numbers:
        parts = [(row, trajectories[row["number"]]) for row in contexts[number]]
        yield _trace(headers[number], parts, calls[number], scores[number])


def read_trajectories(connection: DuckDBPyConnection, numbers: Sequence[int]) -> dict[int, Trajectory]:
    """The trajectories with these row numbers."""
    rows = read_within(connection, "trajectory", "number", numbers)
    toolsets = read_toolsets(connection, {row["toolset"] for row in rows})
    steps = _grouped(read_within(connection, "step", "trajectory", numbers, "step"), "trajectory")
    messages = _messages(connection, numbers)
    return {n: _trajectory(toolsets[row["toolset"]], messages[n], steps[n]) for row in rows for n in [row["number"]]}


def read_toolsets(connection: DuckDBPyConnection, ids: set[int]) -> dict[int, tuple[ToolSpec, ...]]:
    return {row["id"]: toolset_of(row) for row in read_within(connection, "toolset", "id", sorted(ids))}


def toolset_of(row: Fields) -> tuple[ToolSpec, ...]:
    effects = [Effect(kind, resource) for kind, resource in loads(row["effects"])]
    return tuple(ToolSpec(wire, effect) for wire, effect in zip(loads(row["tools"]), effects, strict=True))


def step_of(row: Fields, messages: Sequence[Message]) -> Step:
    return Step(
        action=messages[0],
        observations=tuple(messages[1:]),
        sampled=row["sampled"],
        terminated=row["terminated"],
        truncated=row["truncated"],
        error=row["error"],
        reward=row["reward"],
        grades=tuple([_GRADES[grade] for grade in row["grades"]]),
    )


def read_within(connection: DuckDBPyConnection, table: str, column: str, values: Sequence[int], order: str = "") -> list[dict[str, Any]]:
    """Rows of `table` whose `column` is one of `values`, but for what is there only to be asked by SQL."""
    if not values:
        return []
    columns = f"* EXCLUDE ({VARIANT[table]})" if table in VARIANT else "*"
    query = f"SELECT {columns} FROM {table} WHERE {within(column, values)}"  # noqa: S608  names of our own
    query += f" ORDER BY {column}, {order}" if order else ""
    return records(connection, query, [list(values)])


def _messages(connection: DuckDBPyConnection, numbers: Sequence[int]) -> dict[int, list[tuple[int | None, Message]]]:
    """Step and message of every path row in order, by trajectory."""
    found: dict[int, list[tuple[int | None, Message]]] = defaultdict(list)
    if not numbers:
        return found
    query = f"SELECT trajectory, step, node FROM path WHERE {within('trajectory', numbers)} ORDER BY trajectory, depth"  # noqa: S608
    spots = connection.execute(query, [list(numbers)]).fetchall()
    wires = read_messages(connection, {node for _, _, node in spots})
    for trajectory, step, node in spots:
        found[trajectory].append((step, wires[node]))
    return found


def read_messages(connection: DuckDBPyConnection, ids: set[int]) -> dict[int, Message]:
    if not ids:
        return {}
    query = f"SELECT id, wire FROM node WHERE {within('id', ids)}"  # noqa: S608  names of our own
    return {node: Message(unshelved(wire)) for node, wire in connection.execute(query, [list(ids)]).fetchall()}


def _trajectory(tools: tuple[ToolSpec, ...], messages: Sequence[tuple[int | None, Message]], steps: Sequence[Fields]) -> Trajectory:
    by_step: dict[int | None, list[Message]] = defaultdict(list)
    for step, message in messages:
        by_step[step].append(message)
    return Trajectory(tools, tuple(by_step[None]), tuple(step_of(row, by_step[row["step"]]) for row in steps))


def _trace(row: Fields, parts: Sequence[tuple[Fields, Trajectory]], calls: Sequence[Fields], scores: Sequence[Fields]) -> Trace:
    return Trace(
        id=row["id"],
        trajectory=parts[0][1],
        source=Source(row["format"], row["uri"], row["line"], row["dialect"]),
        sub_trajectories=tuple(
            SubTrajectory(context, about["agent"], about["parent_step"], about["continues"]) for about, context in parts[1:]
        ),
        task=row["task"],
        session=row["session"],
        agent=row["agent"],
        outcome=Outcome(row["reward"], row["success"], row["outcome_source"], loads(row["details"])),
        calls=tuple(map(_call, calls)),
        scores=tuple(map(_score, scores)),
        tags=tuple(row["tags"]),
        metadata=loads(row["metadata"]),
        completeness=_completeness(row),
        started_at_us=row["started_at_us"],
        ended_at_us=row["ended_at_us"],
    )


def _call(row: Fields) -> Call:
    return Call(
        step=row["step"],
        trajectory=row["trajectory"],
        model=row["model"],
        params=loads(row["params"]),
        usage=Usage(row["input_tokens"], row["output_tokens"], row["cached_tokens"], row["reasoning_tokens"], row["cost_usd"]),
        latency_s=row["latency_s"],
        started_at_us=row["started_at_us"],
        finish_reason=row["finish_reason"],
        response_id=row["response_id"],
        provider=row["provider"],
        streamed=row["streamed"],
        first_token_s=row["first_token_s"],
        completeness=_completeness(row),
        token_ids=None if row["token_ids"] is None else tuple(row["token_ids"]),
    )


def _score(row: Fields) -> LoggedScore:
    value = loads(row["value"])
    return LoggedScore(row["name"], value, row["scaled"], row["source"], row["trajectory"], row["step"], row["comment"])


def _completeness(row: Fields) -> Completeness:
    return Completeness(
        inputs=row["inputs"],
        tools=row["tools_known"],
        system_prompt=row["system_prompt"],
        dropped_attributes=row["dropped_attributes"],
        truncated=row["truncated"],
        redacted=row["redacted"],
        outputs=row["outputs"],
        open_spans=row["open_spans"],
        notes=tuple(row["notes"]),
    )


def _grouped(rows: Sequence[dict[str, Any]], column: str) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row)
    return groups
