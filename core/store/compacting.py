"""A store rewritten into a fresh file without the holes that deletions, updates and replaced searches left, and without what is too old.

The copy is checked against the store, row for row, before it takes its place by one rename; until then nothing is changed, and
whoever reads the old file goes on reading it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from counterplay.core.errors import StoreError, UserError
from counterplay.core.store.opening import BLOCK_BYTES, claim, refusal, release, remove, sweep
from counterplay.core.store.schema import bring_up
from counterplay.core.store.store import Store

_COUNTED = {"revisions": "trace", "traces": "trace WHERE current", "searches": "search"}
_UNDATED = "new.trace WHERE current AND ended_at_us IS NULL AND started_at_us IS NULL"
_MARK_OLD = """CREATE TEMP TABLE old_trace AS SELECT id, task FROM trace
    WHERE current AND coalesce(coalesce(ended_at_us, started_at_us) < $before_us, false)"""
_MARK_KEPT = """
CREATE TEMP TABLE kept_trace AS SELECT number FROM trace WHERE id NOT IN (SELECT id FROM old_trace) AND (current OR NOT $current);
CREATE TEMP TABLE gone_search AS SELECT number, id FROM search WHERE trace IN (SELECT id FROM old_trace)
    OR trace IS NULL AND task IN (SELECT task FROM old_trace);
CREATE TEMP TABLE kept_trajectory AS SELECT number, toolset FROM trajectory WHERE trace_number IN (SELECT number FROM kept_trace)
    OR trace_number IS NULL AND coalesce(search, '') NOT IN (SELECT id FROM gone_search);
CREATE TEMP TABLE kept_node AS SELECT DISTINCT node AS id FROM path WHERE trajectory IN (SELECT number FROM kept_trajectory)
    UNION SELECT unnest(messages) FROM search_node WHERE search NOT IN (SELECT number FROM gone_search);
CREATE TEMP TABLE kept_job AS SELECT number FROM job WHERE coalesce(ended_us >= (SELECT before_us FROM bounds), true);
CREATE TEMP TABLE gone_scope AS SELECT unnest(['search/' || id, 'localise/' || id]) AS scope FROM old_trace
    UNION ALL SELECT 'job/' || id FROM job WHERE number NOT IN (SELECT number FROM kept_job);
"""
_KEPT = {
    "trace": "number IN (SELECT number FROM kept_trace)",
    "call": "trace_number IN (SELECT number FROM kept_trace)",
    "trace_score": "trace_number IN (SELECT number FROM kept_trace)",
    "search": "number NOT IN (SELECT number FROM gone_search)",
    "search_node": "search NOT IN (SELECT number FROM gone_search)",
    "trajectory": "number IN (SELECT number FROM kept_trajectory)",
    "path": "trajectory IN (SELECT number FROM kept_trajectory)",
    "step": "trajectory IN (SELECT number FROM kept_trajectory)",
    "node": "id IN (SELECT id FROM kept_node)",
    "toolset": """id IN (SELECT toolset FROM kept_trajectory UNION ALL
        SELECT parent FROM old.node WHERE id IN (SELECT id FROM kept_node))""",
    "score": "key NOT IN (SELECT key FROM old.node WHERE id NOT IN (SELECT id FROM kept_node))",
    "journal": "scope NOT IN (SELECT scope FROM gone_scope)",
    "journal_range": "scope NOT IN (SELECT scope FROM gone_scope)",
    "job": "number IN (SELECT number FROM kept_job)",
    "unit": "job IN (SELECT number FROM kept_job) AND NOT list_has_any(traces, (SELECT coalesce(list(id), []) FROM old_trace))",
    "quarantine": "at_us >= (SELECT before_us FROM bounds)",
}
"""Which rows are copied where something is left out; all of the tables that are not named. Nothing kept refers to something that is not."""


@dataclass(frozen=True)
class Compacted:
    """What compaction did: the size of the file before and after, and what was left out.

    `revisions_dropped` are trace revisions, those of the `traces_dropped` among them. `traces_undated` have no time and so are never old.
    """

    bytes_before: int
    bytes_after: int
    revisions_dropped: int = 0
    traces_dropped: int = 0
    searches_dropped: int = 0
    traces_undated: int = 0


def compact(path: str, *, drop_old_revisions: bool = False, before_us: int | None = None) -> Compacted:
    """Rewrite the store at `path`; an older schema is migrated. `drop_old_revisions` leaves out what later revisions superseded.

    `before_us` (microseconds since 1970, UTC) leaves out the traces that ended before it, in all revisions, with everything that was made
    of them: searches, their branches, journals, scores, units of jobs, and stitched trees of their tasks; and jobs that ended before it,
    and quarantined input of that age.

    A kill at any time leaves a good store. Raises StoreError where another process writes to it, or the copy is not equal to it.
    """
    if not Path(path).exists():
        raise UserError(f"got store {path}, which does not exist", "a store", f"Make one: counterplay ingest LOGS --store {path}")
    path = os.path.realpath(path)
    before = Path(path).stat().st_size
    Store.open(path).close()  # folds the journal in and migrates
    claim(path, read_only=False)
    try:
        with _draft_of(path) as draft:
            counts = _copied(path, draft, current=drop_old_revisions, before_us=before_us)
    except duckdb.Error as error:
        raise StoreError(f"store {path} can't be compacted: {str(error).splitlines()[0]}", do="It is as it was.") from error
    finally:
        release(path, read_only=False)
    return Compacted(before, Path(path).stat().st_size, **counts)


def _copied(path: str, draft: str, *, current: bool, before_us: int | None) -> dict[str, int]:
    """Put a copy of the store in its place, by way of `draft`. As long as the store is attached, no other process can write to it."""
    with duckdb.connect(config={"temp_directory": f"{draft}.tmp"}) as connection:
        _attach_old(connection, path)
        identity = Path(path).stat().st_ino
        connection.execute(f"ATTACH {_quoted(draft)} AS new (BLOCK_SIZE {BLOCK_BYTES})")
        connection.execute("USE new")
        bring_up(connection, 0)
        connection.execute("DELETE FROM meta; DELETE FROM migration; USE old")
        kept = _marked(connection, current=current, before_us=before_us)
        tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'old'").fetchall()]
        for table in tables:
            where = kept.get(table, "true")
            connection.execute(f"INSERT INTO new.{table} BY NAME SELECT * FROM old.{table} WHERE {where}")  # noqa: S608  names of our own
        connection.execute("DETACH new")
        connection.execute(f"ATTACH {_quoted(draft)} AS new (READ_ONLY)")
        for table in tables:
            _compare(connection, table, kept.get(table, "true"))
        counts = {f"{name}_dropped": _count(connection, f"old.{of}") - _count(connection, f"new.{of}") for name, of in _COUNTED.items()}
        counts["traces_undated"] = _count(connection, _UNDATED)
        connection.execute("DETACH new")
        if Path(path).stat().st_ino != identity:
            raise StoreError(f"store {path} was replaced while it was compacted", do="Run it again.")
        _place(draft, path)
    return counts


def _marked(connection: DuckDBPyConnection, *, current: bool, before_us: int | None) -> Mapping[str, str]:
    """Note what is kept in tables of this connection alone; the condition by table, none where everything is."""
    if not current and before_us is None:
        return {}
    connection.execute("CREATE TEMP TABLE bounds AS SELECT $before_us::BIGINT AS before_us", {"before_us": before_us or 0})
    connection.execute(_MARK_OLD, {"before_us": before_us or 0})
    for statement in filter(str.strip, _MARK_KEPT.split(";")):
        connection.execute(statement, {"current": current} if "$current" in statement else None)
    return _KEPT


def _attach_old(connection: DuckDBPyConnection, path: str) -> None:
    try:
        connection.execute(f"ATTACH {_quoted(path)} AS old (READ_ONLY)")
    except duckdb.Error as error:
        raise refusal(path, str(error), read_only=False) from error
    if Path(f"{path}.wal").exists():
        raise StoreError(f"store {path} was written to while it was compacted", do="Nothing was changed: run it again.")


def _compare(connection: DuckDBPyConnection, table: str, where: str) -> None:
    """Raises StoreError where the rows of the two tables are not the same, in whatever order."""
    query = "SELECT column_name FROM duckdb_columns() WHERE database_name = 'old' AND table_name = ? AND data_type <> 'VARIANT'"
    columns = ", ".join(f'"{name}"' for (name,) in connection.execute(query, [table]).fetchall())
    sums = [
        connection.execute(f"SELECT count(*), bit_xor(hash({columns})), sum(hash({columns})) FROM {rows}").fetchall()  # noqa: S608
        for rows in (f"old.{table} WHERE {where}", f"new.{table}")
    ]
    if sums[0] != sums[1]:
        raise StoreError(f"the copy of table {table} is not equal to it", do="The store is as it was: run it again.")


def _count(connection: DuckDBPyConnection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])  # noqa: S608


def _place(draft: str, path: str) -> None:
    """All of the draft is on disk before its name changes, and the new name is before this returns."""
    with Path(draft).open("rb+") as file:
        os.fsync(file.fileno())
    Path(draft).chmod(Path(path).stat().st_mode & 0o7777)
    Path(draft).replace(path)
    folder = os.open(Path(path).resolve().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"


@contextmanager
def _draft_of(path: str) -> Iterator[str]:
    """A name beside `path` for the copy. What compactions that were killed left behind is removed."""
    sweep(path)
    draft = f"{path}.{os.getpid()}.compact"
    try:
        yield draft
    finally:
        for leftover in (Path(draft), Path(f"{draft}.wal"), Path(f"{draft}.tmp")):
            remove(leftover)
