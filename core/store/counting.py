"""What a store holds, in numbers; and one digest for all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from counterplay.core.canonical import canonical, content_key
from counterplay.core.nouns import Grade
from counterplay.core.store.rows import Stats
from counterplay.core.store.tables import hex_key, records, scalar

_TOTALS = """SELECT count(*) AS traces, count(DISTINCT task) AS tasks, coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens,
    coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens, sum(cost_usd) AS cost_usd, coalesce(sum(calls), 0)::BIGINT AS calls
    FROM trace WHERE current"""

_LOGGED = """SELECT c.id AS trace, p.trajectory, p.depth, p.role_in_step, n.bytes, n.tool_calls
    FROM trace c JOIN trajectory t ON t.trace_number = c.number JOIN path p ON p.trajectory = t.number JOIN node n ON n.id = p.node
    WHERE c.current"""

# A log that keeps whole prompts repeats a message once for every step that begins at or after it.
_SIZES = f"""SELECT count(*) AS messages, count(*) FILTER (role_in_step = 'action') AS steps,
    coalesce(sum(bytes), 0)::BIGINT AS message_bytes, coalesce(sum(bytes * asked), 0)::BIGINT AS logged_bytes
    FROM (SELECT *, count(*) FILTER (role_in_step = 'action') OVER (PARTITION BY trajectory ORDER BY depth DESC) AS asked
    FROM ({_LOGGED}))"""  # noqa: S608

_REUSED = f"""SELECT count(DISTINCT trace) FROM (SELECT trace, trajectory, id
    FROM (SELECT trace, trajectory, unnest(tool_calls).id AS id FROM ({_LOGGED}) WHERE tool_calls IS NOT NULL)
    WHERE id <> '' GROUP BY trace, trajectory, id HAVING count(*) > 1)"""  # noqa: S608

_COUNTS = """SELECT (SELECT count(*) FROM trace) AS revisions, (SELECT count(*) FROM node) AS nodes,
    (SELECT count(*) FROM toolset) AS toolsets, (SELECT count(*) FROM search) AS searches,
    (SELECT coalesce(sum(bytes), 0)::BIGINT FROM (SELECT bytes FROM node UNION ALL SELECT bytes FROM toolset)) AS content_bytes,
    (SELECT count(*) FROM search_node) AS search_nodes, (SELECT count(*) FROM score) AS scores,
    (SELECT count(*) FROM trajectory WHERE kind = 'counterfactual') AS counterfactuals"""

_OUTCOME = "CASE WHEN success THEN 'success' WHEN NOT success THEN 'failed' ELSE 'unknown' END"


def stats(connection: DuckDBPyConnection, path: str, journal: int) -> Stats:
    numbers: dict[str, Any] = {}
    for query in (_TOTALS, _SIZES, _COUNTS):
        numbers |= records(connection, query)[0]
    traces = "trace WHERE current"
    outcomes = {"success": 0, "failed": 0, "unknown": 0, **_tally(connection, _OUTCOME, traces)}
    graded = {Grade(grade).name.lower(): count for grade, count in _tally(connection, "grade", "trajectory WHERE kind <> 'fork'").items()}
    files = [file for file in (Path(path), Path(f"{path}.wal"), Path(f"{path}.journal")) if file.exists()]
    return Stats(
        **numbers,
        outcomes=outcomes,
        inputs=_tally(connection, "inputs", traces),
        grades=graded,
        sources=_tally(connection, "format", traces),
        quarantine=_tally(connection, "reason", "quarantine"),
        reused_call_ids=scalar(connection, _REUSED),
        file_bytes=sum(file.stat().st_size for file in files),
        journal=journal,
    )


def content_digest(connection: DuckDBPyConnection) -> str:
    """32 hex digits over every trace revision, search, score and rejected input, whatever the order they came in."""
    parts = [f"SELECT {hex_key('digest')} AS digest FROM {table} ORDER BY digest" for table in ("trace", "search")]  # noqa: S608
    digests = [[row["digest"] for row in records(connection, query)] for query in parts]
    scores = f"SELECT {hex_key('key')}, verifier, version, value, reason, error FROM score"  # noqa: S608
    rejected = "SELECT uri, line, byte_offset, reason, raw FROM quarantine"
    digests += [sorted(canonical(list(row)) for row in connection.execute(query).fetchall()) for query in (scores, rejected)]
    return content_key(*map(canonical, digests))


def _tally(connection: DuckDBPyConnection, expression: str, rows: str) -> dict[Any, int]:
    query = f"SELECT {expression} AS name, count(*) AS count FROM {rows} GROUP BY name ORDER BY count DESC, name"  # noqa: S608
    return {row["name"]: row["count"] for row in records(connection, query)}
