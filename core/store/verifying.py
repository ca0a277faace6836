"""Re-deriving everything: keys from texts, paths from parents, traces and searches from their rows. Nothing is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from duckdb import DuckDBPyConnection

from counterplay.core.canonical import chain_key
from counterplay.core.nouns import Trajectory
from counterplay.core.store.checks import CHECKS
from counterplay.core.store.content import Facts, reuses_call_ids
from counterplay.core.store.decoding import read_traces, read_trajectories, toolset_of
from counterplay.core.store.encoding import Draft, TraceDraft, effects_text, summary_row
from counterplay.core.store.reading_searches import read_searches
from counterplay.core.store.rows import Problem
from counterplay.core.store.searches import search_digest
from counterplay.core.store.tables import hex_key, records

T = TypeVar("T")
_CHUNK = 4096
_BATCH = 128
_SEARCHES = 32


def verify(connection: DuckDBPyConnection) -> Iterator[Problem]:
    """Every problem found; none is a store exactly as it was written."""
    yield from _toolsets(connection)
    yield from _nodes(connection)
    for table, query in CHECKS:
        yield from (Problem(table, row["id"], row["what"]) for row in records(connection, query))
    yield from _each(connection, "trajectory", _BATCH, _trajectories)
    yield from _each(connection, "trace", _BATCH, _traces)
    yield from _each(connection, "search", _SEARCHES, _searches)


def _toolsets(connection: DuckDBPyConnection) -> Iterator[Problem]:
    for row in records(connection, f"SELECT id, {hex_key('key')} AS key, tools, effects, bytes FROM toolset ORDER BY id"):  # noqa: S608
        try:
            tools = toolset_of(row)
        except (ValueError, TypeError) as error:
            yield Problem("toolset", row["key"], f"can't be read: {error}")
            continue
        if Trajectory(tools).root_key != row["key"]:
            yield Problem("toolset", row["key"], "its text does not give its key")
        if effects_text(tools) != row["effects"] or sum(len(tool.wire.encode()) for tool in tools) != row["bytes"]:
            yield Problem("toolset", row["key"], "its effects or its size do not fit its text")


def _nodes(connection: DuckDBPyConnection) -> Iterator[Problem]:
    query = f"""SELECT {hex_key("n.key")} AS key, {hex_key("coalesce(up.key, root.key)")} AS above, n.wire, n.role, n.tools, n.bytes
        FROM node n LEFT JOIN node up ON up.id = n.parent LEFT JOIN toolset root ON root.id = n.parent WHERE n.id BETWEEN ? AND ?"""  # noqa: S608
    for low, high in _ranges(connection, "node", "id", _CHUNK):
        for row in records(connection, query, [low, high]):
            if row["above"] is None:
                yield Problem("node", row["key"], "its parent is missing")
            elif chain_key(row["above"], row["wire"]) != row["key"]:
                yield Problem("node", row["key"], f"its text does not give its key: {row['wire'][:60]!r}")
            elif Facts.of(row["wire"]).row != {"role": row["role"], "tools": row["tools"]} or len(row["wire"].encode()) != row["bytes"]:
                yield Problem("node", row["key"], "role, tools or bytes do not fit its text")


def _trajectories(connection: DuckDBPyConnection, rows: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    found = _bulk(lambda numbers: read_trajectories(connection, numbers), [row["number"] for row in rows])
    for row in rows:
        trajectory = found(row["number"])
        if isinstance(trajectory, Exception):
            yield Problem("trajectory", row["id"], f"can't be re-assembled: {_said(trajectory)}")
            continue
        draft = Draft.of(trajectory)
        wanted = (draft.digest, draft.tip, len(trajectory.prompt), len(trajectory), int(trajectory.grade))
        if (row["digest"], row["tip"], row["prompt"], row["steps"], row["grade"]) != wanted:
            yield Problem("trajectory", row["id"], "re-assembled, it is not what was written")
        elif row["reused_call_ids"] != reuses_call_ids(Facts.of(message.wire) for message in trajectory.messages):
            yield Problem("trajectory", row["id"], "reused_call_ids does not fit its tool calls")


def _traces(connection: DuckDBPyConnection, rows: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    found = _bulk(lambda numbers: dict(zip(numbers, read_traces(connection, numbers), strict=True)), [row["number"] for row in rows])
    for row in rows:
        trace = found(row["number"])
        if isinstance(trace, Exception):
            yield Problem("trace", row["id"], f"can't be re-assembled: {_said(trace)}")
        elif TraceDraft.of(trace).digest != row["digest"]:
            yield Problem("trace", row["id"], "re-assembled, it is not what was written")
        elif any(row[name] != value for name, value in summary_row(trace).items()):
            yield Problem("trace", row["id"], "its summary columns do not fit its content")


def _searches(connection: DuckDBPyConnection, rows: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    found = _bulk(lambda numbers: dict(zip(numbers, read_searches(connection, numbers), strict=True)), [row["number"] for row in rows])
    for row in rows:
        try:
            record = found(row["number"])
            same = not isinstance(record, Exception) and search_digest(record) == row["digest"]
        except (LookupError, ValueError, TypeError) as error:
            record = error
        if isinstance(record, Exception):
            yield Problem("search", row["id"], f"can't be re-assembled: {_said(record)}")
        elif not same:
            yield Problem("search", row["id"], "re-assembled, it is not what was written")


def _each(
    connection: DuckDBPyConnection,
    table: str,
    batch: int,
    check: Callable[[DuckDBPyConnection, Sequence[dict[str, Any]]], Iterator[Problem]],
) -> Iterator[Problem]:
    hexed = {"trace": "digest", "search": "digest", "trajectory": "digest, tip"}[table].split(", ")
    columns = ", ".join(f"{hex_key(name)} AS {name}" for name in hexed)
    for low, high in _ranges(connection, table, "number", batch):
        query = f"SELECT * REPLACE ({columns}) FROM {table} WHERE number BETWEEN ? AND ? ORDER BY number"  # noqa: S608
        yield from check(connection, records(connection, query, [low, high]))


def _ranges(connection: DuckDBPyConnection, table: str, column: str, size: int) -> Iterator[tuple[int, int]]:
    (ends,) = connection.execute(f"SELECT coalesce(min({column}), 0), coalesce(max({column}), -1) FROM {table}").fetchall()  # noqa: S608
    for low in range(ends[0], ends[1] + 1, size):
        yield low, low + size - 1


def _bulk(read: Callable[[Sequence[int]], dict[int, T]], numbers: Sequence[int]) -> Callable[[int], T | Exception]:
    """Read all at once, or one by one where one of them is broken, so that the broken one is named."""
    try:
        together = read(numbers)
    except (LookupError, ValueError, TypeError):
        together = {}

    def one(number: int) -> T | Exception:
        if number in together:
            return together[number]
        try:
            return read([number])[number]
        except (LookupError, ValueError, TypeError) as error:
            return error

    return one


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
