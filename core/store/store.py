"""`Store`: one DuckDB file that holds logs, searches and scores as one tree. One process writes; many may read while none does."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import EllipsisType, MappingProxyType
from typing import Any

import duckdb

from counterplay.core import journal as core_journal
from counterplay.core.errors import StoreError
from counterplay.core.nouns import Grade, Trace, Trajectory
from counterplay.core.records import Rejected
from counterplay.core.store import counting, marks, verifying
from counterplay.core.store.decoding import read_traces, read_trajectories
from counterplay.core.store.jobs import StoreJobs
from counterplay.core.store.journal import StoreJournal
from counterplay.core.store.ledger import StoreLedger
from counterplay.core.store.parquet import Partition, write_parquet, write_partitions
from counterplay.core.store.rows import IngestReport, Problem, ScoreRow, Stats, TraceRow, TrajectoryRow
from counterplay.core.store.searching import StoreSearches
from counterplay.core.store.selecting import StoreSelecting
from counterplay.core.store.tables import Incoming, hex_key, shelved
from counterplay.core.store.writing import Ingest

_PAGE = 65536
_TRACE_COLUMNS = """id, task, session, agent, format AS source, uri, trajectories, steps, messages, calls, reward, success, input_tokens,
    output_tokens, cost_usd, grade, inputs, started_at_us"""
_TRAJECTORY_COLUMNS = """id, kind, coalesce(trace, forked_from) AS trace, fork_step, search, search_node, steps, reward, grade,
    replace(tip::VARCHAR, '-', '') AS tip"""


class Store(StoreJobs, StoreLedger, StoreSearches, StoreSelecting):
    """Open with `Store.open`, close with `close` or a `with` block. Every method may be called from any thread."""

    def ingest(self, items: Iterable[Trace | Rejected], *, batch: int = 256, watermarks: Mapping[str, str] | None = None) -> IngestReport:
        """Take in traces and rejected input, `batch` at a time (fewer where they are large), each batch whole or not at all.

        Held already: nothing is added. A known id with other content is kept as a new revision, which becomes the current one
        unless it is only a beginning of what is held. `watermarks`, by source, are set in one transaction with the last batch, as
        they are once `items` has ended. Raises UserError on a trace with values that are not JSON.
        """
        self._check_writable()
        with self._write_lock:
            return Ingest(self._connection, batch, self.transaction).run(items, {} if watermarks is None else watermarks)

    @property
    def salt(self) -> bytes:
        """32 random bytes that are this store's own: made with it, kept by migrations and compaction."""
        return marks.salt(self._connection.cursor())

    def watermark(self, source: str) -> str | None:
        """How far the live source `source` was read, in its own words; None where it never was."""
        return marks.watermark(self._connection.cursor(), source)

    def watermarks(self, sources: Sequence[str]) -> dict[str, str]:
        """How far each of `sources` was read; those that never were are left out."""
        return marks.watermarks(self._connection.cursor(), sources)

    def set_watermark(self, source: str, value: str) -> None:
        self.set_watermarks({source: value})

    def set_watermarks(self, values: Mapping[str, str]) -> None:
        """How far each of many live sources was read, all in one transaction."""
        with self.transaction():
            marks.set_watermarks(self._connection, values)

    def redactions(self) -> dict[str, int]:
        """How many values of each kind were replaced when traces were taken in; empty where none was."""
        return marks.redactions(self._connection.cursor())

    def count_redactions(self, counts: Mapping[str, int]) -> None:
        """Add to the numbers of secrets and personal data that were replaced, by kind."""
        with self.transaction():
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

    def load(self, trace_ids: Iterable[str] | None = None, *, batch: int = 128) -> Iterator[Trace]:
        """Traces in the order asked for, None for all that are held now in the order of ingest; `batch` at a time in memory.

        Raises UserError with the closest ids where one is not held: before the first, but at its batch where `trace_ids` is an iterator.
        """
        if trace_ids is None:
            yield from self._read_traces(self._current(), batch)
        elif isinstance(trace_ids, Collection):
            yield from self._read_traces(self._numbers("trace", list(trace_ids)), batch)
        else:
            remaining = iter(trace_ids)
            while ids := list(islice(remaining, batch)):
                yield from self._read_traces(self._numbers("trace", ids), batch)

    def _read_traces(self, numbers: Sequence[int], batch: int) -> Iterator[Trace]:
        for start in range(0, len(numbers), batch):
            with self._room.working():
                found = list(read_traces(self._connection.cursor(), numbers[start : start + batch]))
            yield from found

    def _current(self) -> array[int]:
        """The numbers of all traces, eight bytes each."""
        found = array("q")
        rows = self._connection.cursor().execute("SELECT number FROM trace WHERE current ORDER BY number")
        while page := rows.fetchmany(_PAGE):
            found.extend(number for (number,) in page)
        return found

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

    def rejected_files(self, *, since_us: int = 0, limit: int) -> tuple[list[tuple[Rejected, int]], int]:
        """Of the first `limit` files (in order of `uri`) with something in quarantine the first of it, and how much it is; and how many
        files there are. `since_us`, in microseconds since 1970: only what came in since then.
        """
        query = f"""SELECT uri, min_by(reason, byte_offset) AS reason, min_by(line, byte_offset) AS line, min(byte_offset) AS byte_offset,
            count(*) AS inputs, count(*) OVER () AS files FROM quarantine WHERE at_us >= ? GROUP BY uri ORDER BY uri LIMIT {int(limit)}"""  # noqa: S608
        rows = self._records(query, [since_us])
        found = [(Rejected(row["uri"], row["reason"], row["line"], row["byte_offset"]), row["inputs"]) for row in rows]
        return found, rows[0]["files"] if rows else 0

    def put_scores(self, scores: Iterable[ScoreRow]) -> int:
        """Write verifier opinions, one for each (key, verifier, version); a later one replaces an earlier. Returns how many."""
        self._check_writable()
        now = time.time_ns() // 1000
        rows = {(s.key, s.verifier, s.version): {**_fields(s), "at_us": now} for s in scores}
        if not rows:
            return 0
        same = "s.key = i.key::UUID AND s.verifier = i.verifier AND s.version = i.version"
        with self.transaction(), Incoming(self._connection, list(rows.values())) as incoming:
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

    def journal_entries(self, scopes: Collection[str]) -> Iterator[tuple[str, str, str, str]]:
        """Everything that the journal knows in these scopes: scope, key, kind, answer. One question for many scopes is one look."""
        return self._journal.entries(scopes)

    def fold_spool(self, path: str | os.PathLike[str]) -> int:
        """Take in the journal entries that another process wrote to a file of its own; returns how many said something new.

        A line is what the journal's own file has: [scope, key, kind, answer, microseconds]. Of two answers to one question the later given
        counts, so that a file may be taken in again, and in any order. A last line without its end is left for the next time. On return
        the entries outlive the process; the file is left as it is. Raises StoreError where it can't be read.
        """
        self._check_writable()
        return self._journal.take_in(os.fspath(path))

    def stats(self) -> Stats:
        return counting.stats(self._connection.cursor(), self.path, len(self._journal))

    def write_parquet(self, folder: str | os.PathLike[str]) -> dict[str, int]:
        """The views for analysts as Parquet files in `folder`; rows by view. Raises StoreError where they can't be written."""
        try:
            return write_parquet(self._connection.cursor(), Path(folder))
        except (duckdb.Error, OSError) as error:
            raise StoreError(f"Parquet files can't be written to {os.fspath(folder)}: {str(error).splitlines()[0]}") from error

    def write_partitions(
        self, drafts: str | os.PathLike[str], by: str, *, held: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[list[Partition]]:
        """The views in partitions by date, month or bucket (of tasks), some at a time, as drafts that go when the next are asked for.

        `held` names digests of partitions that are not written again. Raises UserError on another `by`, StoreError where it can't write.
        """
        try:
            yield from write_partitions(self._connection.cursor(), Path(drafts), by, held=held)
        except (duckdb.Error, OSError) as error:
            raise StoreError(f"Parquet files can't be written to {os.fspath(drafts)}: {str(error).splitlines()[0]}") from error

    def verify(self) -> list[Problem]:
        """Re-derive every key, check every path, call and search, re-assemble every trace. Empty where all is as it was written."""
        try:
            return list(verifying.verify(self._connection.cursor()))
        except duckdb.Error as error:
            return [Problem("store", self.path, f"can't be read: {str(error).splitlines()[0]}")]

    def content_digest(self) -> str:
        """32 hex digits that two stores share exactly if they hold the same traces, searches, scores and rejected input."""
        return counting.content_digest(self._connection.cursor())


def _fields(score: ScoreRow) -> dict[str, Any]:
    return {name: getattr(score, name) for name in ScoreRow.__slots__}
