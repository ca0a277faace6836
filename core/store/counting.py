"""What a store holds, in numbers; and one digest for all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from counterplay.core.canonical import canonical, content_key
from counterplay.core.nouns import Grade
from counterplay.core.store import marks
from counterplay.core.store.rows import Held, LoggedScores, Quarantined, Stats
from counterplay.core.store.tables import hex_key, records, scalar

_TOTALS = """SELECT count(*) AS traces, count(DISTINCT task) AS tasks, coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens,
    coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens, sum(cost_usd) AS cost_usd, coalesce(sum(calls), 0)::BIGINT AS calls
    FROM trace WHERE current"""

# A log that keeps whole prompts repeats a message once for every step that begins at or after it.
_SIZES = """SELECT count(*) AS messages, count(*) FILTER (role_in_step = 'action') AS steps,
    coalesce(sum(bytes), 0)::BIGINT AS message_bytes, coalesce(sum(bytes * asked), 0)::BIGINT AS logged_bytes
    FROM (SELECT p.*, n.bytes, count(*) FILTER (role_in_step = 'action') OVER (PARTITION BY trajectory ORDER BY depth DESC) AS asked
    FROM trace c JOIN trajectory t ON t.trace_number = c.number JOIN path p ON p.trajectory = t.number JOIN node n ON n.id = p.node
    WHERE c.current)"""

_REUSED = """SELECT count(DISTINCT t.trace_number) FROM trajectory t JOIN trace c ON c.number = t.trace_number
    WHERE c.current AND t.reused_call_ids"""

_COUNTS = """SELECT (SELECT count(*) FROM trace) AS revisions, (SELECT count(*) FROM node) AS nodes,
    (SELECT count(*) FROM toolset) AS toolsets, (SELECT count(*) FROM search) AS searches,
    (SELECT coalesce(sum(bytes), 0)::BIGINT FROM (SELECT bytes FROM node UNION ALL SELECT bytes FROM toolset)) AS content_bytes,
    (SELECT count(*) FROM search_node) AS search_nodes, (SELECT count(*) FROM score) AS scores,
    (SELECT count(*) FROM trajectory WHERE kind = 'counterfactual') AS counterfactuals"""

_WATERMARKS = f"SELECT source, value FROM watermark WHERE NOT starts_with(source, '{marks.READ}') ORDER BY source"  # noqa: S608  a word of our own

_COVERAGE = ("full", "stitched", "partial", "none")
_HELD = {"traces": "c.* FROM trace c", "calls": "k.* FROM call k JOIN trace c ON c.number = k.trace_number"}
_COVERED = ", ".join(f"count(*) FILTER ({side} = '{word}') AS {side}_{word}" for side in ("inputs", "outputs") for word in _COVERAGE)
_COMPLETENESS = f"""SELECT of_format AS format, of_dialect AS dialect, count(*) AS count,
    {_COVERED},
    count(*) FILTER (tools_known) AS tools_known, count(*) FILTER (system_prompt) AS system_prompt_known,
    sum(dropped_attributes)::BIGINT AS dropped_attributes, count(*) FILTER (truncated) AS truncated,
    count(*) FILTER (redacted) AS redacted, sum(open_spans)::BIGINT AS open_spans
    FROM (SELECT c.format AS of_format, c.dialect AS of_dialect, {{}} WHERE c.current)
    GROUP BY of_format, of_dialect ORDER BY count DESC, format, dialect"""  # noqa: S608

_LOGGED_SCORES = """SELECT name, source, count(DISTINCT trace_number) AS traces, count(step) AS steps, count(scaled) AS scaled,
    avg(scaled) AS mean FROM trace_score WHERE trace_number IN (SELECT number FROM trace WHERE current)
    GROUP BY name, source ORDER BY count(*) DESC, name, source"""

_REASONS = "SELECT reason, count(*) AS count, min(uri) AS uri, min_by(line, uri) AS line FROM quarantine GROUP BY reason ORDER BY reason"
_PLACES = (
    (re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`"), "…"),
    (re.compile(r"\S*[/\\]\S+"), "…"),
    (re.compile(r"\b(?:0x)?[0-9a-fA-F]*\d[0-9a-fA-F]*(?:[.,]\d+)*\b"), "N"),
)

SUCCEEDED = "coalesce(success, reward >= 1)"
"""SQL for `Outcome.succeeded`."""
OUTCOME = f"CASE WHEN {SUCCEEDED} THEN 'success' WHEN NOT {SUCCEEDED} THEN 'failed' ELSE 'unknown' END"
"""SQL for success, failed or unknown."""


def stats(connection: DuckDBPyConnection, path: str, journal: int) -> Stats:
    numbers: dict[str, Any] = {}
    for query in (_TOTALS, _SIZES, _COUNTS):
        numbers |= records(connection, query)[0]
    traces = "trace WHERE current"
    outcomes = {"success": 0, "failed": 0, "unknown": 0, **_tally(connection, OUTCOME, traces)}
    graded = {Grade(grade).name.lower(): count for grade, count in _tally(connection, "grade", "trajectory WHERE kind <> 'fork'").items()}
    quarantined = _quarantined(connection)
    files = [file for file in (Path(path), Path(f"{path}.wal"), Path(f"{path}.journal")) if file.exists()]
    return Stats(
        **numbers,
        outcomes=outcomes,
        inputs=_tally(connection, "inputs", traces),
        grades=graded,
        sources=_tally(connection, "format", traces),
        quarantine={row.reason: row.count for row in quarantined},
        quarantined=quarantined,
        reused_call_ids=scalar(connection, _REUSED),
        file_bytes=sum(file.stat().st_size for file in files),
        journal=journal,
        completeness=tuple(_completeness(connection)),
        notes=_tally(connection, "note", "(SELECT unnest(notes) AS note FROM trace WHERE current)"),
        logged_scores=tuple(LoggedScores(**row) for row in records(connection, _LOGGED_SCORES)),
        redactions=marks.redactions(connection),
        watermarks={row["source"]: row["value"] for row in records(connection, _WATERMARKS)},
    )


def _completeness(connection: DuckDBPyConnection) -> Iterator[Held]:
    for of, rows in _HELD.items():
        for row in records(connection, _COMPLETENESS.format(rows)):
            covered = {side: {word: row.pop(f"{side}_{word}") for word in _COVERAGE} for side in ("inputs", "outputs")}
            yield Held(of, inputs=covered["inputs"], outputs=covered["outputs"], **row)


def _quarantined(connection: DuckDBPyConnection) -> tuple[Quarantined, ...]:
    """Reasons that differ only in a quoted text, a path or a figure are one."""
    found: dict[str, Quarantined] = {}
    for row in records(connection, _REASONS):
        reason = row["reason"]
        for pattern, word in _PLACES:
            reason = pattern.sub(word, reason)
        before = found.get(reason)
        count = row["count"] + (before.count if before else 0)
        place = row["uri"] if row["line"] is None else f"{row['uri']}:{row['line']}"
        found[reason] = Quarantined(reason, count, before.where if before else place)
    return tuple(sorted(found.values(), key=lambda group: (-group.count, group.reason)))


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
