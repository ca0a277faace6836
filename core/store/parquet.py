"""The views for analysts as Parquet files, zstd-compressed: for pandas, polars, Spark and whatever else reads columns.

Whole, or in partitions by the day or month in which a trace ended or by its task, in folders as Hive names them. A partition is known
by a digest of what it holds, so that later only those are written that are new or changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from duckdb import DuckDBPyConnection

from counterplay.core.errors import UserError
from counterplay.core.store.tables import records, scalar
from counterplay.core.store.views import VIEWS

# Written as the JSON text beside it; few readers know Parquet's VARIANT yet.
_VARIANT = {"traces": "attributes", "calls": "attributes"}

REST = "__HIVE_DEFAULT_PARTITION__"
"""The partition of what has no time, and of scores and branches that are of no trace that is held."""

_ENDED = "make_timestamp(coalesce(c.ended_at_us, c.started_at_us))"
_KEYS = {
    "date": f"strftime({_ENDED}, '%Y-%m-%d')",
    "month": f"strftime({_ENDED}, '%Y-%m')",
    "bucket": "substr(md5(coalesce(c.task, c.id)), 1, 1)",
}
_PARTS = """CREATE OR REPLACE TEMP TABLE part_of AS SELECT readable(c.id) AS shown, c.id, c.digest, coalesce({key}, '{rest}') AS part
    FROM trace c WHERE c.current"""
_DIGESTS = f"""
SELECT part, bit_xor(known)::VARCHAR || ' ' || count(*) AS digest FROM (
    SELECT part, hash('trace', id, digest) AS known FROM part_of
    UNION ALL SELECT coalesce(p.part, '{REST}'), hash('search', s.id, s.digest) FROM search s LEFT JOIN part_of p ON p.id = s.trace
    UNION ALL SELECT '{REST}', hash('score', key, verifier, version, value, error, reason) FROM score)
GROUP BY part ORDER BY part
"""  # noqa: S608  names of our own
_AT_ONCE = 16
_ROW_GROUP = 4096


@dataclass(frozen=True)
class Partition:
    """One partition, written: `files` are the drafts by the name that each is to have, `VIEW/KEY=VALUE/data_0.parquet`."""

    name: str
    digest: str
    files: Mapping[str, Path]


def write_parquet(connection: DuckDBPyConnection, folder: Path) -> dict[str, int]:
    """Write one file a view into `folder`, and give the rows of each.

    A file appears under its name when it is whole, and all of them when the last is: what was there before is replaced then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drafts = {view: folder / f".{view}.{os.getpid()}.parquet" for view in VIEWS}
    rows = {}
    try:
        for view, draft in drafts.items():
            query = f"COPY (SELECT {_columns(view)} FROM {view}) TO {_quoted(draft)} (FORMAT parquet, COMPRESSION zstd)"  # noqa: S608
            rows[view] = int(scalar(connection, query))
        for view, draft in drafts.items():
            draft.replace(folder / f"{view}.parquet")
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return rows


def partition_digests(connection: DuckDBPyConnection, by: str) -> dict[str, str]:
    """The partitions of a store and the digest of each. Raises UserError where `by` is not date, month or bucket."""
    if by not in _KEYS:
        raise UserError(f"got partitions by {by!r}", f"one of {', '.join(_KEYS)}")
    connection.execute(_PARTS.format(key=_KEYS[by], rest=REST))
    return {row["part"]: row["digest"] for row in records(connection, _DIGESTS)}


def write_partitions(
    connection: DuckDBPyConnection, drafts: Path, by: str, *, held: Mapping[str, str], at_once: int = _AT_ONCE
) -> Iterator[list[Partition]]:
    """Write the partitions whose digest is not the one in `held`, and give them `at_once`; their drafts go when the next are asked for.

    Memory holds a row group of each of those. Raises UserError where `by` is not date, month or bucket.
    """
    found = partition_digests(connection, by)
    wanted = iter([name for name, digest in found.items() if held.get(name) != digest])
    threshold = scalar(connection, "SELECT current_setting('partitioned_write_flush_threshold')")
    connection.execute(f"SET partitioned_write_flush_threshold = {_ROW_GROUP}")
    try:
        while names := list(islice(wanted, at_once)):
            for view in VIEWS:
                _write_view(connection, view, drafts / view, by, names)
            yield [Partition(name, found[name], _files_of(drafts, by, name)) for name in names]
            shutil.rmtree(drafts)
    finally:
        shutil.rmtree(drafts, ignore_errors=True)
        connection.execute(f"SET partitioned_write_flush_threshold = {int(threshold)}")


def _write_view(connection: DuckDBPyConnection, view: str, folder: Path, by: str, names: list[str]) -> None:
    """The rows of one view that are of some partitions."""
    folder.mkdir(parents=True, exist_ok=True)
    form = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP}"
    connection.execute("CREATE OR REPLACE TEMP TABLE part_now AS SELECT shown, part FROM part_of WHERE part IN (SELECT unnest(?))", [names])
    key = f"nullif(p.part, '{REST}') AS {by}"  # NULL is what DuckDB names so
    chosen = f"SELECT v.{_columns(view)}, {key} FROM {view} v JOIN part_now p ON p.shown = v.trace"  # noqa: S608
    connection.execute(f"COPY ({chosen}) TO {_quoted(folder)} ({form}, PARTITION_BY ({by}), OVERWRITE_OR_IGNORE)")
    if REST in names:
        lost = f"SELECT v.{_columns(view)} FROM {view} v ANTI JOIN part_of p ON p.shown = v.trace"  # noqa: S608
        inside = folder / f"{by}={REST}"
        inside.mkdir(exist_ok=True)
        draft = inside / "rest.parquet"
        if not scalar(connection, f"COPY ({lost}) TO {_quoted(draft)} ({form})"):
            draft.unlink()


def _files_of(drafts: Path, by: str, name: str) -> dict[str, Path]:
    found = {view: sorted((drafts / view / f"{by}={name}").glob("*.parquet")) for view in VIEWS}
    return {f"{view}/{by}={name}/{file.name}": file for view, files in found.items() for file in files}


def _columns(view: str) -> str:
    return f"* EXCLUDE ({_VARIANT[view]})" if view in _VARIANT else "*"


def _quoted(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"
