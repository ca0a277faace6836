"""Batch jobs and their units of work: who works on what until when, and what came of it.

A unit is pending, running under a lease, or settled for good (done, failed, skipped, parked). Every change is one transaction of the
store's one writer, so a unit is settled once, by the owner that holds it, whatever was killed or late in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from duckdb import DuckDBPyConnection

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import UserError
from counterplay.core.store.rows import SETTLED, UNIT_STATES, JobRow, NewUnit, Settled, UnitRow, UnitState
from counterplay.core.store.tables import Incoming, next_number, records, scalar, shelved, within

_BATCH = 8192
_COLUMNS = """u.number, u.id, u.traces, u.share, u.state, u.attempts, u.owner, u.lease_until_us, u.not_before_us, u.error_class,
    u.reason, u.result, u.at_us"""
_FREE = (
    ("state = 'pending' AND attempts = 0 AND not_before_us IS NULL", ()),
    ("state = 'pending' AND attempts > 0 AND coalesce(not_before_us, 0) <= ?", ("now",)),
    ("state = 'running' AND (lease_until_us <= ? OR owner <> ?)", ("now", "owner")),
)
"""What may be claimed, kind by kind: each is a look at a few columns, which stays quick however many units there are."""
_DUE = "least(min(not_before_us) FILTER (state = 'pending'), min(lease_until_us) FILTER (state = 'running'))"


def put_job(connection: DuckDBPyConnection, job_id: str, name: str, spec: str) -> JobRow:
    """Inside the caller's transaction, as everything here that writes."""
    known = connection.execute("SELECT number FROM job WHERE id = ?", [shelved(job_id)]).fetchall()
    if known:
        query = "UPDATE job SET name = ?, spec = ?, state = 'running', ended_us = NULL WHERE id = ?"
        connection.execute(query, [shelved(name), shelved(spec), shelved(job_id)])
    else:
        values = [next_number(connection, "job"), shelved(job_id), shelved(name), shelved(spec), "running", _now_us()]
        connection.execute("INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, NULL)", values)
    return job(connection, job_id)


def job(connection: DuckDBPyConnection, job_id: str) -> JobRow:
    found = records(connection, "SELECT * FROM job WHERE id = ?", [shelved(job_id)])
    if not found:
        held = [row.id for row in jobs(connection)]
        do = f"Held: {', '.join(held[-3:])}." if held else "Put it first."
        raise UserError(f"no job {job_id!r}", f"one of the {len(held)} held", do)
    return JobRow(**found[0])


def jobs(connection: DuckDBPyConnection) -> list[JobRow]:
    return [JobRow(**row) for row in records(connection, "SELECT * FROM job ORDER BY number")]


def end_job(connection: DuckDBPyConnection, job_id: str, state: str) -> None:
    number = job(connection, job_id).number
    connection.execute("UPDATE job SET state = ?, ended_us = ? WHERE number = ?", [shelved(state), _now_us(), number])


def add(connection: DuckDBPyConnection, job_id: str, units: Iterable[NewUnit]) -> int:
    """How many were new. Raises UserError on a state that a unit can't begin in."""
    number, remaining, added = job(connection, job_id).number, iter(units), 0
    first = next_number(connection, "unit")
    while batch := list(islice(remaining, _BATCH)):
        new = _add_batch(connection, number, first, batch)
        first, added = first + new, added + new
    return added


def _add_batch(connection: DuckDBPyConnection, job_number: int, first: int, batch: Sequence[NewUnit]) -> int:
    """Numbers run on over all jobs, in the order of `batch`; ids that the job has already are left as they are."""
    rows = {unit.id: unit for unit in reversed(batch)}
    odd = next((unit for unit in batch if unit.state not in ("pending", "skipped")), None)
    if odd is not None:
        raise UserError(f"got unit {odd.id!r} in state {odd.state!r}", "a new one: pending or skipped")
    with Incoming(connection, {"id": list(rows)}) as incoming:
        query = f"SELECT u.id FROM unit u JOIN {incoming} i ON u.id = i.id WHERE u.job = ?"  # noqa: S608  names of our own
        for row in records(connection, query, [job_number]):
            del rows[row["id"]]
    fresh = [unit for unit in batch if rows.pop(unit.id, None) is not None]
    if not fresh:
        return 0
    columns: dict[str, Sequence[Any]] = {
        "number": range(first, first + len(fresh)),
        "job": [job_number] * len(fresh),
        "id": [unit.id for unit in fresh],
        "traces": [list(unit.traces) for unit in fresh],
        "share": [dumps(dict(unit.share)) for unit in fresh],
        "state": [unit.state for unit in fresh],
        "reason": [unit.reason for unit in fresh],
        "at_us": [_now_us()] * len(fresh),
    }
    with Incoming(connection, columns) as incoming:
        connection.execute(f"INSERT INTO unit BY NAME SELECT * FROM {incoming}")  # noqa: S608
    return len(fresh)


def claim(connection: DuckDBPyConnection, job_id: str, owner: str, count: int, *, lease_s: float, now_us: int | None) -> list[UnitRow]:
    now = _now_us() if now_us is None else now_us
    numbers = _free(connection, job(connection, job_id).number, count, now=now, owner=shelved(owner))
    if not numbers:
        return []
    query = f"SELECT {_COLUMNS} FROM unit u WHERE {within('number', numbers)} ORDER BY number"  # noqa: S608  names of our own
    found = records(connection, query, [numbers])
    until = now + round(lease_s * 1e6)
    statement = f"""UPDATE unit SET state = 'running', attempts = attempts + 1, owner = ?, lease_until_us = ?, not_before_us = NULL,
        at_us = CASE WHEN state = 'running' THEN at_us ELSE ? END WHERE {within("number", numbers)}"""  # noqa: S608
    connection.execute(statement, [shelved(owner), until, now, numbers])
    changed = {"state": "running", "owner": owner, "lease_until_us": until, "not_before_us": None}
    since = [row["at_us"] if row["state"] == "running" else now for row in found]
    return [_unit(job_id, {**row, **changed, "at_us": at, "attempts": row["attempts"] + 1}) for row, at in zip(found, since, strict=True)]


def _free(connection: DuckDBPyConnection, job_number: int, count: int, **values: Any) -> list[int]:
    """The first `count` numbers of what may be claimed."""
    found: list[int] = []
    for condition, names in _FREE:
        query = f"SELECT number FROM unit WHERE job = ? AND {condition} ORDER BY number LIMIT ?"  # noqa: S608  names of our own
        rows = connection.execute(query, [job_number, *(values[name] for name in names), count]).fetchall()
        found += [number for (number,) in rows]
    return sorted(found)[:count]


def renew(connection: DuckDBPyConnection, job_id: str, ids: Sequence[str], owner: str, lease_s: float) -> list[str]:
    """The ids that `owner` does not hold any more."""
    held = _held(connection, job(connection, job_id).number, ids, owner)
    if held:
        until = _now_us() + round(lease_s * 1e6)
        numbers = list(held.values())
        connection.execute(f"UPDATE unit SET lease_until_us = ? WHERE {within('number', numbers)}", [until, numbers])  # noqa: S608
    return [one for one in ids if one not in held]


def settle(connection: DuckDBPyConnection, job_id: str, settled: Sequence[Settled], owner: str) -> list[str]:
    """The ids that `owner` does not hold, about which nothing was changed. Raises UserError on a state that nothing is settled in."""
    odd = next((one for one in settled if one.state not in (*SETTLED, "pending")), None)
    if odd is not None:
        raise UserError(f"got unit {odd.id!r} settled as {odd.state!r}", f"one of {', '.join(SETTLED)}, or pending to be tried again")
    held = _held(connection, job(connection, job_id).number, [one.id for one in settled], owner)
    kept, refused = [], []
    for one in settled:
        number = held.pop(one.id, None)
        if number is None:
            refused.append(one.id)
        else:
            kept.append((number, one))
    if kept:
        _write_settled(connection, kept)
    return refused


def _write_settled(connection: DuckDBPyConnection, kept: Sequence[tuple[int, Settled]]) -> None:
    numbers = [number for number, _ in kept]
    columns: dict[str, Sequence[Any]] = {
        "number": numbers,
        "state": [one.state for _, one in kept],
        "reason": [one.reason for _, one in kept],
        "error_class": [one.error_class for _, one in kept],
        "result": [dumps(dict(one.result)) for _, one in kept],
        "not_before_us": [one.not_before_us if one.state == "pending" else None for _, one in kept],
    }
    with Incoming(connection, columns) as incoming:
        statement = f"""UPDATE unit SET state = i.state::unit_state, reason = i.reason, error_class = i.error_class, result = i.result,
            not_before_us = i.not_before_us, owner = NULL, lease_until_us = NULL, at_us = ? FROM {incoming} i
            WHERE {within("unit.number", numbers)} AND unit.number = i.number"""  # noqa: S608
        connection.execute(statement, [_now_us(), numbers])


def reopen(connection: DuckDBPyConnection, job_id: str, states: Sequence[UnitState]) -> int:
    """Give settled units of these states another start, their attempts and tries forgotten; returns how many."""
    number = job(connection, job_id).number
    statement = """UPDATE unit SET state = 'pending', attempts = 0, not_before_us = NULL, at_us = ?,
        result = regexp_replace(result, '"tries":[0-9]+,?|,"tries":[0-9]+', '')
        WHERE job = ? AND state IN (SELECT unnest(?)::unit_state)"""
    return int(scalar(connection, statement, [_now_us(), number, [state for state in states if state in SETTLED]]))


def counts(connection: DuckDBPyConnection, job_id: str) -> dict[UnitState, int]:
    query = "SELECT state::VARCHAR AS state, count(*) AS count FROM unit WHERE job = ? GROUP BY ALL"
    found = {row["state"]: row["count"] for row in records(connection, query, [job(connection, job_id).number])}
    return {state: found.get(state, 0) for state in UNIT_STATES}


def due_us(connection: DuckDBPyConnection, job_id: str) -> int | None:
    found: int | None = scalar(connection, f"SELECT {_DUE} FROM unit WHERE job = ?", [job(connection, job_id).number])  # noqa: S608
    return found


def page(connection: DuckDBPyConnection, job_id: str, state: UnitState | None, limit: int | None, after: int | None) -> list[UnitRow]:
    query = f"SELECT {_COLUMNS} FROM unit u WHERE job = ? AND number > ?"  # noqa: S608  names of our own
    parameters: list[Any] = [job(connection, job_id).number, after or 0]
    if state is not None:
        query += " AND state = ?::unit_state"
        parameters.append(state)
    query += " ORDER BY number" + ("" if limit is None else f" LIMIT {int(limit)}")
    return [_unit(job_id, row) for row in records(connection, query, parameters)]


def searches_by(connection: DuckDBPyConnection, jobs: Sequence[str], traces: Sequence[str]) -> set[str]:
    query = """SELECT result FROM unit WHERE number IN (SELECT number FROM (
        SELECT u.number, unnest(u.traces) AS trace FROM unit u JOIN job j ON u.job = j.number WHERE j.id IN (SELECT unnest(?))
    ) WHERE trace IN (SELECT unnest(?)))"""
    rows = records(connection, query, [list(map(shelved, jobs)), list(map(shelved, traces))])
    return {search for row in rows for search in loads(row["result"]).get("searches", ())}


def _held(connection: DuckDBPyConnection, job_number: int, ids: Sequence[str], owner: str) -> dict[str, int]:
    """The numbers of those of the units that are running under `owner`."""
    query = "SELECT id, number FROM unit WHERE job = ? AND state = 'running' AND owner = ? AND id IN (SELECT unnest(?))"
    rows = records(connection, query, [job_number, shelved(owner), [shelved(one) for one in ids]])
    return {row["id"]: row["number"] for row in rows}


def _unit(job_id: str, row: Mapping[str, Any]) -> UnitRow:
    fields = {**row, "traces": tuple(row["traces"]), "share": loads(row["share"]), "result": loads(row["result"])}
    return UnitRow(job=job_id, **fields)


def _now_us() -> int:
    return time.time_ns() // 1000
