"""Taking traces in. A batch is one transaction: all of it is in, or none of it.

A trace that is held already adds nothing, wherever it was read: of several places it has the first by name. One with a known id and
other content becomes a new revision; the earlier ones are kept. The last revision taken in is the current one, unless it says less
than the one that was current, which then stays: only its beginning (an older snapshot of the same run, its last message perhaps half
written), or the same without what its calls cost or used (the log of another tool).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple

from duckdb import DuckDBPyConnection

from counterplay.core.collecting import uncollected
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected
from counterplay.core.store.content import Content, trajectory_parts
from counterplay.core.store.counting import SUCCEEDED
from counterplay.core.store.encoding import TraceDraft, score_row, sub_row, summary_row
from counterplay.core.store.marks import set_watermarks
from counterplay.core.store.rows import IngestReport
from counterplay.core.store.tables import Columns, Incoming, hex_key, insert, merged, next_number, records, scalar, shelved, single

_BATCH_BYTES = 32 << 20
_NONE: Mapping[str, str] = MappingProxyType({})


class Ingest:
    """One run of `Store.ingest`: collects a batch, writes it, counts."""

    def __init__(self, connection: DuckDBPyConnection, batch: int, transaction: Callable[[], AbstractContextManager[None]]) -> None:
        self._connection, self._batch, self._transaction = connection, batch, transaction
        self._drafts: dict[str, TraceDraft] = {}
        self._rejected: dict[tuple[Any, ...], Rejected] = {}
        self._bytes = 0
        self._counts: Counter[str] = Counter()
        self._first: int | None = None
        self._tasks: set[str] = set()

    def run(self, items: Iterable[Trace | Rejected], watermarks: Mapping[str, str]) -> IngestReport:
        for item in items:
            if isinstance(item, Rejected):
                self._reject(item)
            else:
                self._take(item)
            if len(self._drafts) + len(self._rejected) >= self._batch or self._bytes > _BATCH_BYTES:
                self._flush()
        self._flush(watermarks)
        return IngestReport(tasks=len(self._tasks), **self._counts)

    def _take(self, trace: Trace) -> None:
        if trace.id in self._drafts:
            self._flush()
        with uncollected():
            self._drafts[trace.id] = draft = TraceDraft.of(trace)
        self._bytes += sum(sum(map(len, context.wires)) for context in draft.trajectories)
        if trace.task is not None:
            self._tasks.add(trace.task)

    def _reject(self, item: Rejected) -> None:
        key = _identity(item)
        self._counts["rejected_known"] += key in self._rejected
        self._rejected.setdefault(key, item)

    def _flush(self, watermarks: Mapping[str, str] = _NONE) -> None:
        drafts, rejected = list(self._drafts.values()), list(self._rejected.values())
        self._drafts, self._rejected, self._bytes = {}, {}, 0
        if not (drafts or rejected or watermarks):
            return
        with uncollected(), self._transaction():
            if self._first is None:
                self._first = next_number(self._connection, "trace")
            counts = write_drafts(self._connection, drafts, self._first)
            counts.update(write_rejected(self._connection, rejected))
            set_watermarks(self._connection, watermarks)
        self._counts.update(counts)


def write_drafts(connection: DuckDBPyConnection, drafts: list[TraceDraft], first: int) -> Counter[str]:
    """Write traces of distinct ids inside the caller's transaction. Trace `first` was the first of the run that this batch is of."""
    held = _held(connection, [draft.trace.id for draft in drafts])
    counts, fresh, current = _told_apart(connection, drafts, held, first)
    _move(connection, drafts, held)
    if not fresh:
        return counts
    superseded = [before.number for name in current for before in held[name].values() if before.current]
    if superseded:
        connection.execute("UPDATE trace SET current = false WHERE number IN (SELECT unnest(?))", [superseded])
    content = Content()
    for draft in fresh:
        for trajectory in draft.trajectories:
            content.add(trajectory)
    content.store(connection)
    parts: dict[str, list[Columns]] = defaultdict(list)
    numbers = _numbers(connection)
    for draft in fresh:
        numbers = _draw(draft, content, parts, numbers, current=draft.trace.id in current)
    for table, batch in parts.items():
        insert(connection, table, merged(batch))
    counts["nodes_added"] = content.added
    return counts


def _told_apart(
    connection: DuckDBPyConnection, drafts: list[TraceDraft], held: Mapping[str, Mapping[str, Revision]], first: int
) -> tuple[Counter[str], list[TraceDraft], set[str]]:
    """What is counted, the drafts that are not held, and the ids of those that become current. An outcome counts of a current one only."""
    counts: Counter[str] = Counter()
    fresh, current = [], set[str]()
    for draft in drafts:
        known, outcome = held[draft.trace.id], _told(draft.trace.outcome.succeeded)
        same = _same(draft, known)
        if same is not None:
            counts["traces_known"] += 1
            counts[outcome] += same.current and same.number < first
            continue
        fresh.append(draft)
        counts["traces_updated" if known else "traces_added"] += 1
        if not (known and _says_less(connection, draft)):
            current.add(draft.trace.id)
            counts[outcome] += 1
            counts.subtract(_told(before.succeeded) for before in known.values() if before.current and before.number >= first)
    return counts, fresh, current


def write_rejected(connection: DuckDBPyConnection, rejected: list[Rejected]) -> Counter[str]:
    if not rejected:
        return Counter()
    now = time.time_ns() // 1000
    rows = [{"uri": r.uri, "line": r.line, "byte_offset": r.byte_offset, "reason": r.reason, "raw": r.raw, "at_us": now} for r in rejected]
    with Incoming(connection, rows) as incoming:
        query = f"""INSERT INTO quarantine BY NAME SELECT i.* FROM {incoming} i ANTI JOIN quarantine q ON q.uri = i.uri
            AND q.line IS NOT DISTINCT FROM i.line AND q.byte_offset = i.byte_offset AND q.reason = i.reason"""  # noqa: S608
        added = scalar(connection, query)
    return Counter(rejected_added=added, rejected_known=len(rejected) - added)


def _identity(item: Rejected) -> tuple[Any, ...]:
    return item.uri, item.line, item.byte_offset, item.reason


class Revision(NamedTuple):
    """What is held of a trace, and where it was read. `succeeded` is `Outcome.succeeded`."""

    number: int
    current: bool
    succeeded: bool | None
    uri: str
    line: int | None


def _held(connection: DuckDBPyConnection, ids: list[str]) -> dict[str, dict[str, Revision]]:
    """Every revision held by its digest, by trace id."""
    held: dict[str, dict[str, Revision]] = {name: {} for name in ids}
    if ids:
        with Incoming(connection, {"id": ids}) as incoming:
            query = f"""SELECT id, {hex_key("digest")} AS digest, number, current, {SUCCEEDED} AS succeeded, uri, line
                FROM trace t SEMI JOIN {incoming} USING (id)"""  # noqa: S608  names of our own
            for row in records(connection, query):
                name, digest = row.pop("id"), row.pop("digest")
                held[name][digest] = Revision(**row)
    return held


def _same(draft: TraceDraft, known: Mapping[str, Revision]) -> Revision | None:
    """The revision that says the same, be it of another place: a file that was moved or renamed holds nothing new."""
    at_once = known.get(draft.digest)
    if at_once is not None:
        return at_once
    return next((held for digest, held in known.items() if draft.digest_at(held.uri, held.line) == digest), None)


def _move(connection: DuckDBPyConnection, drafts: list[TraceDraft], held: Mapping[str, Mapping[str, Revision]]) -> None:
    """Let what was read at several places be of the first of them by name, in whatever order they were read."""
    moved: list[dict[str, Any]] = []
    for draft in drafts:
        known, source = held[draft.trace.id], draft.trace.source
        same = None if draft.digest in known else _same(draft, known)
        if same is not None and (source.uri, source.line or 0) < (same.uri, same.line or 0):
            moved.append({"number": same.number, "uri": source.uri, "line": source.line, "digest": draft.digest})
    if moved:
        with Incoming(connection, {name: [row[name] for row in moved] for name in moved[0]}) as incoming:
            query = f"UPDATE trace SET uri = i.uri, line = i.line, digest = i.digest::UUID FROM {incoming} i WHERE trace.number = i.number"  # noqa: S608
            connection.execute(query)


def _told(succeeded: bool | None) -> str:
    return {True: "succeeded", False: "failed", None: "unknown"}[succeeded]


def _numbers(connection: DuckDBPyConnection) -> tuple[int, int]:
    return next_number(connection, "trace"), next_number(connection, "trajectory")


def _says_less(connection: DuckDBPyConnection, draft: TraceDraft) -> bool:
    """Whether the current revision says all this one says in its main trajectory, and more there or about its calls.

    The last message of an older snapshot may have been half written, so it need not be among those of the current one.
    """
    query = f"""SELECT t.id, c.calls, c.cost_usd, c.input_tokens + c.output_tokens AS tokens, c.ended_at_us,
        {hex_key("s.key")} AS root, {hex_key("n.key")} AS key FROM trace c
        JOIN trajectory t ON t.trace_number = c.number AND t.ordinal = 0 JOIN toolset s ON s.id = t.toolset
        LEFT JOIN path p ON p.trajectory = t.number LEFT JOIN node n ON n.id = p.node
        WHERE c.current AND c.id = ? ORDER BY p.depth"""  # noqa: S608
    rows = records(connection, query, [shelved(draft.trace.id)])
    main, new = draft.trajectories[0], summary_row(draft.trace)
    held = [row["key"] for row in rows if row["key"] is not None]
    if rows[0]["root"] != main.trajectory.root_key or held[: max(len(main.keys) - 1, 0)] != main.keys[:-1]:
        return False
    if len(held) != len(main.keys):
        return len(held) > len(main.keys)
    if held != main.keys:
        return (rows[0]["ended_at_us"] or 0) > (draft.trace.ended_at_us or 0)
    known = (rows[0]["calls"], rows[0]["cost_usd"] is not None, rows[0]["tokens"])
    return (new["calls"], new["cost_usd"] is not None, new["input_tokens"] + new["output_tokens"]) < known


def _draw(
    draft: TraceDraft, content: Content, parts: dict[str, list[Columns]], numbers: tuple[int, int], *, current: bool
) -> tuple[int, int]:
    """Add all rows of one trace; returns the next free numbers of a trace and a trajectory."""
    trace, (number, trajectory_number) = draft.trace, numbers
    row = {"number": number, "current": current, "digest": draft.digest, **draft.header, **summary_row(trace)}
    parts["trace"].append(single(row))
    calls = len(trace.calls)
    parts["call"].append({"trace_number": [number] * calls, "ordinal": range(calls), **draft.calls})
    parts["trace_score"] += [single({"trace_number": number, "ordinal": i, **score_row(score)}) for i, score in enumerate(trace.scores)]
    about: list[dict[str, Any]] = [{"agent": trace.agent or ""}, *map(sub_row, trace.sub_trajectories)]
    for ordinal, (context, fields) in enumerate(zip(draft.trajectories, about, strict=True)):
        name = f"{trace.id}#{ordinal}" if ordinal else trace.id
        belongs = {"id": name, "kind": "logged", "trace": trace.id, "trace_number": number, "ordinal": ordinal, **fields}
        for table, part in trajectory_parts(context, content, trajectory_number, **belongs).items():
            parts[table].append(part)
        trajectory_number += 1
    return number + 1, trajectory_number
