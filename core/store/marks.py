"""What a store remembers about how it is filled, beside the content: its salt, how far live sources were read, what was redacted.

None of it enters a digest: two stores with the same content are equal whatever their marks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence

from duckdb import DuckDBPyConnection

from counterplay.core.store.tables import Incoming, records, scalar, shelved

_SALT_BYTES = 32

READ = "read "
"""How the watermark of a single file or object begins, of which there may be very many."""


def make_salt(connection: DuckDBPyConnection) -> None:
    """Give the store its salt, once and for ever."""
    if not scalar(connection, "SELECT count(*) FROM meta WHERE name = 'salt'"):
        connection.execute("INSERT INTO meta VALUES ('salt', ?)", [secrets.token_hex(_SALT_BYTES)])


def salt(connection: DuckDBPyConnection) -> bytes:
    return bytes.fromhex(scalar(connection, "SELECT value FROM meta WHERE name = 'salt'"))


def watermark(connection: DuckDBPyConnection, source: str) -> str | None:
    found = records(connection, "SELECT value FROM watermark WHERE source = ?", [shelved(source)])
    return found[0]["value"] if found else None


def watermarks(connection: DuckDBPyConnection, sources: Sequence[str]) -> dict[str, str]:
    """How far each of `sources` was read; those that never were are left out."""
    query = "SELECT source, value FROM watermark WHERE source IN (SELECT unnest(?))"
    return {row["source"]: row["value"] for row in records(connection, query, [[shelved(source) for source in sources]])}


def set_watermarks(connection: DuckDBPyConnection, values: Mapping[str, str]) -> None:
    """Inside the caller's transaction; many at once."""
    if not values:
        return
    now = time.time_ns() // 1000
    rows = [{"source": source, "value": value, "at_us": now} for source, value in values.items()]
    with Incoming(connection, rows) as incoming:
        connection.execute(f"DELETE FROM watermark w USING {incoming} i WHERE w.source = i.source")  # noqa: S608  names of our own
        connection.execute(f"INSERT INTO watermark BY NAME SELECT * FROM {incoming}")  # noqa: S608


def add_redactions(connection: DuckDBPyConnection, counts: Mapping[str, int]) -> None:
    """Inside the caller's transaction."""
    for kind, count in counts.items():
        before = scalar(connection, "SELECT coalesce(sum(count), 0)::BIGINT FROM redaction WHERE kind = ?", [shelved(kind)])
        connection.execute("DELETE FROM redaction WHERE kind = ?", [shelved(kind)])
        connection.execute("INSERT INTO redaction VALUES (?, ?)", [shelved(kind), before + count])


def redactions(connection: DuckDBPyConnection) -> dict[str, int]:
    rows = records(connection, "SELECT kind, count FROM redaction WHERE count > 0 ORDER BY count DESC, kind")
    return {row["kind"]: row["count"] for row in rows}
