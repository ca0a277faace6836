"""`Store`: one DuckDB file that holds logs, searches and scores as one tree. One process writes; many may read while none does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Self

import duckdb
from duckdb import DuckDBPyConnection

from counterplay.core import journal as core_journal
from counterplay.core.errors import StoreError, UserError
from counterplay.core.nouns import Grade, Trace, Trajectory
from counterplay.core.records import Rejected, SearchRecord
from counterplay.core.store import counting, marks, opening, searches, verifying
from counterplay.core.store.decoding import read_traces, read_trajectories
from counterplay.core.store.journal import JournalFile, StoreJournal
from counterplay.core.store.parquet import write_parquet
from counterplay.core.store.rows import IngestReport, Problem, ScoreRow, SearchRow, Stats, TraceRow, TrajectoryRow
from counterplay.core.store.tables import Incoming, hex_key, records, shelved, transaction
from counterplay.core.store.writing import Ingest

_TRACE_COLUMNS = """id, task, session, agent, format AS source, uri, trajectories, steps, messages, calls, reward, success, input_tokens,
    output_tokens, cost_usd, grade, inputs, started_at_us"""
_TRAJECTORY_COLUMNS = """id, kind, coalesce(trace, forked_from) AS trace, fork_step, search, search_node, steps, reward, grade,
    replace(tip::VARCHAR, '-', '') AS tip"""
_CLOSE = 3


class Store:
    """Open with `Store.open`, close with `close` or a `with` block. Every method may be called from any thread."""

    def __init__(self, connection: DuckDBPyConnection, path: str, *, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._connection, self._write_lock = connection, threading.RLock()
        side_file = None if path == opening.MEMORY else f"{path}.journal"
        self._journal = JournalFile(connection, side_file, read_only=read_only)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False) -> Self:
        """Open the store at `path`, or create it; `:memory:` is a store without a file. An older schema is migrated.

        Raises StoreError where another process has it, or it is damaged, newer, or no store; UserError where the path can't be one.
        """
        name = os.fspath(path)
        opening.claim(name, read_only=read_only)
        try:
            connection = opening.connect(name, read_only=read_only)
            try:
                return cls(connection, name, read_only=read_only)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            opening.release(name, read_only=read_only)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Fold the journal in and let go of the file. Closing twice is harmless."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._journal.close()
            finally:
                self._connection.close()
                opening.release(self.path, read_only=self.read_only)

    _closed = False

    def ingest(self, items: Iterable[Trace | Rejected], *, batch: int = 256, watermarks: Mapping[str, str] | None = None) -> IngestReport:
        """Take in traces and rejected input, `batch` at a time (fewer where they are large), each batch whole or not at all.

        Held already: nothing is added. A known id with other content is kept as a new revision, which becomes the current one
        unless it is only a beginning of what is held. `watermarks`, by source, are set in one transaction with the last batch, as
        they are once `items` has ended. Raises UserError on a trace with values that are not JSON.
        """
        self._check_writable()
        with self._write_lock:
            return Ingest(self._connection, batch).run(items, {} if watermarks is None else watermarks)

    @property
    def salt(self) -> bytes:
        """32 random bytes that are this store's own: made with it, kept by migrations and compaction."""
        return marks.salt(self._connection.cursor())

    def watermark(self, source: str) -> str | None:
        """How far the live source `source` was read, in its own words; None where it never was."""
        return marks.watermark(self._connection.cursor(), source)

    def set_watermark(self, source: str, value: str) -> None:
        self._check_writable()
        with self._write_lock, transaction(self._connection):
            marks.set_watermarks(self._connection, {source: value})

    def redactions(self) -> dict[str, int]:
        """How many values of each kind were replaced when traces were taken in; empty where none was."""
        return marks.redactions(self._connection.cursor())

    def count_redactions(self, counts: Mapping[str, int]) -> None:
        """Add to the numbers of secrets and personal data that were replaced, by kind."""
        self._check_writable()
        with self._write_lock, transaction(self._connection):
            marks.add_redactions(self._connection, counts)

    def traces(
        self,
        *,
        task: str | None = None,
        agent: str | None = None,
        success: bool | EllipsisType | None = ...,
        source: str | None = None,
        limit: int | None = None,
    ) -> list[TraceRow]:
        """Summaries in the order of ingest. `success` (`Outcome.succeeded`) is True, False, None (not known) or left out for all; `source`
        is a format name.
        """
        wanted = {"task": task, "agent": agent, "format": source}
        given = {name: shelved(value) for name, value in wanted.items() if value is not None}
        where = ["current", *(f"{name} = ?" for name in given)]
        parameters: list[Any] = list(given.values())
        if success is not ...:
            where.append(f"{counting.SUCCEEDED} IS NOT DISTINCT FROM ?")
            parameters.append(success)
        query = f"SELECT {_TRACE_COLUMNS} FROM trace WHERE {' AND '.join(where)} ORDER BY number"  # noqa: S608  names of our own
        if limit is not None:
            query += f" LIMIT {int(limit)}"
        return [TraceRow(**{**row, "grade": Grade(row["grade"])}) for row in self._records(query, parameters)]

    def trace(self, trace_id: str) -> Trace:
        """The trace as it was ingested (its current revision). Raises UserError with the closest ids where it is not held."""
        return next(self.load([trace_id]))

    def load(self, trace_ids: Iterable[str] | None = None, *, batch: int = 64) -> Iterator[Trace]:
        """Traces in the order asked for, None for all in the order of ingest; `batch` at a time in memory."""
        if trace_ids is None:
            found = [row["number"] for row in self._records("SELECT number FROM trace WHERE current ORDER BY number")]
        else:
            found = self._numbers(list(trace_ids))
        for start in range(0, len(found), batch):
            yield from read_traces(self._connection.cursor(), found[start : start + batch])

    def revisions(self, trace_id: str) -> list[Trace]:
        """Every content this trace id was ever ingested with, oldest first. Raises UserError where there is none."""
        rows = self._records("SELECT number FROM trace WHERE id = ? ORDER BY number", [shelved(trace_id)])
        if not rows:
            raise self._unknown("trace", trace_id)
        return list(read_traces(self._connection.cursor(), [row["number"] for row in rows]))

    def trajectory(self, trajectory_id: str) -> Trajectory:
        """A trajectory by id: a trace's id is its main one, `TRACE#1` its first sub-agent's, `SEARCH/17` that of a search's node 17.

        Raises UserError with the closest ids where it is not held.
        """
        query = """SELECT t.number FROM trajectory t LEFT JOIN trace c ON c.number = t.trace_number
            WHERE t.id = ? AND coalesce(c.current, true) ORDER BY t.number LIMIT 1"""
        rows = self._records(query, [shelved(trajectory_id)])
        if not rows:
            raise self._unknown("trajectory", trajectory_id)
        number = rows[0]["number"]
        return read_trajectories(self._connection.cursor(), [number])[number]

    def trajectories(self, *, kind: str | None = None, search: str | None = None, trace: str | None = None) -> list[TrajectoryRow]:
        """Summaries of single trajectories of a `kind`: logged, fork (root of a search), counterfactual; None for all.

        `trace` is the trace they belong to or forked from.
        """
        wanted = {"kind": kind, "search": search, "coalesce(trace, forked_from)": trace}
        given = {name: shelved(value) for name, value in wanted.items() if value is not None}
        where = " AND ".join(
            ["(trace_number IS NULL OR trace_number IN (SELECT number FROM trace WHERE current))", *(f"{n} = ?" for n in given)]
        )
        query = f"SELECT {_TRAJECTORY_COLUMNS} FROM trajectory WHERE {where} ORDER BY number"  # noqa: S608  names of our own
        return [TrajectoryRow(**{**row, "grade": Grade(row["grade"])}) for row in self._records(query, list(given.values()))]

    def rejected(self, *, limit: int | None = None) -> list[Rejected]:
        """The quarantine."""
        query = "SELECT uri, reason, line, byte_offset, raw FROM quarantine ORDER BY uri, byte_offset, line, reason"
        return [Rejected(**row) for row in self._records(query if limit is None else f"{query} LIMIT {int(limit)}")]

    def put_search(self, record: SearchRecord) -> bool:
        """Write a search, or replace in one transaction what was held under its id. False where exactly this is held already."""
        self._check_writable()
        with self._write_lock, transaction(self._connection):
            return searches.put_search(self._connection, record)

    def search(self, search_id: str) -> SearchRecord:
        """The search as it was put. Raises UserError with the closest ids where it is not held."""
        rows = self._records("SELECT number FROM search WHERE id = ?", [shelved(search_id)])
        if not rows:
            raise self._unknown("search", search_id)
        return searches.read_search(self._connection.cursor(), rows[0]["number"])

    def searches(self, *, trace: str | None = None, task: str | None = None, algorithm: str | None = None) -> list[SearchRow]:
        wanted = {"trace": trace, "task": task, "algorithm": algorithm}
        given = {name: shelved(value) for name, value in wanted.items() if value is not None}
        where = " AND ".join(["true", *(f"{name} = ?" for name in given)])
        columns = "id, algorithm, trace, task, fork_step, stopped, nodes, finished"
        query = f"SELECT {columns} FROM search WHERE {where} ORDER BY number"  # noqa: S608  names of our own
        return [SearchRow(**row) for row in self._records(query, list(given.values()))]

    def put_scores(self, scores: Iterable[ScoreRow]) -> int:
        """Write verifier opinions, one for each (key, verifier, version); a later one replaces an earlier. Returns how many."""
        self._check_writable()
        now = time.time_ns() // 1000
        rows = {(s.key, s.verifier, s.version): {**_fields(s), "at_us": now} for s in scores}
        if not rows:
            return 0
        same = "s.key = i.key::UUID AND s.verifier = i.verifier AND s.version = i.version"
        with self._write_lock, transaction(self._connection), Incoming(self._connection, list(rows.values())) as incoming:
            self._connection.execute(f"DELETE FROM score s USING {incoming} i WHERE {same}")  # noqa: S608
            self._connection.execute(f"INSERT INTO score BY NAME SELECT * FROM {incoming}")  # noqa: S608
        return len(rows)

    def scores(self, *, key: str | None = None, verifier: str | None = None, version: str | None = None) -> list[ScoreRow]:
        """Opinions of the state `key`, of one verifier, or of all."""
        wanted = {"key": key, "verifier": verifier, "version": version}
        given = {name: shelved(value) for name, value in wanted.items() if value is not None}
        where = " AND ".join(["true", *(f"{name} = ?" for name in given)])
        columns = f"{hex_key('key')} AS key, verifier, version, value, reason, error"
        query = f"SELECT {columns} FROM score WHERE {where} ORDER BY key, verifier, version"  # noqa: S608
        return [ScoreRow(**row) for row in self._records(query, list(given.values()))]

    def journal(self, scope: str = "") -> core_journal.Journal:
        """The persistent journal, by scope; equal scopes share entries. A `put` has outlived the process before it returns."""
        return StoreJournal(self._journal, scope)

    def stats(self) -> Stats:
        return counting.stats(self._connection.cursor(), self.path, len(self._journal))

    def write_parquet(self, folder: str | os.PathLike[str]) -> dict[str, int]:
        """The views for analysts as Parquet files in `folder`; rows by view. Raises StoreError where they can't be written."""
        try:
            return write_parquet(self._connection.cursor(), Path(folder))
        except (duckdb.Error, OSError) as error:
            raise StoreError(f"Parquet files can't be written to {os.fspath(folder)}: {str(error).splitlines()[0]}") from error

    def verify(self) -> list[Problem]:
        """Re-derive every key, check every path, call and search, re-assemble every trace. Empty where all is as it was written."""
        try:
            return list(verifying.verify(self._connection.cursor()))
        except duckdb.Error as error:
            return [Problem("store", self.path, f"can't be read: {str(error).splitlines()[0]}")]

    def content_digest(self) -> str:
        """32 hex digits that two stores share exactly if they hold the same traces, searches, scores and rejected input."""
        return counting.content_digest(self._connection.cursor())

    def _records(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return records(self._connection.cursor(), query, parameters)

    def _numbers(self, trace_ids: list[str]) -> list[int]:
        query = "SELECT id, number FROM trace WHERE current AND id IN (SELECT unnest(?))"
        found = {row["id"]: row["number"] for row in self._records(query, [[shelved(name) for name in trace_ids]])}
        missing = next((name for name in trace_ids if name not in found), None)
        if missing is not None:
            raise self._unknown("trace", missing)
        return [found[name] for name in trace_ids]

    def _unknown(self, table: str, name: str) -> UserError:
        ids = [row["id"] for row in self._records(f"SELECT DISTINCT id FROM {table} ORDER BY id LIMIT 100000")]  # noqa: S608
        close = get_close_matches(name, ids, _CLOSE, 0.5) or ids[:_CLOSE]
        wanted = f"one of the {len(ids)} held" if ids else f"a store that holds one; this one has no {table}"
        return UserError(f"no {table} {name!r} in {self.path}", wanted, f"Close: {', '.join(close)}." if close else "Ingest logs first.")

    def _check_writable(self) -> None:
        if self.read_only:
            raise StoreError(f"store {self.path} is open read-only", "one open for writing", "Open it without read_only.")


def _fields(score: ScoreRow) -> dict[str, Any]:
    return {name: getattr(score, name) for name in ScoreRow.__slots__}
