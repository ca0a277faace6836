"""The journal's table, and beside it where the entries of each scope lie: a scope is found without a look at all the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from duckdb import DuckDBPyConnection

from counterplay.core.store.journal_lines import Entry
from counterplay.core.store.tables import Incoming, next_number, records, scalar, shelved, spans, unshelved

_PAGE = 1024

Answer = tuple[str, str, str, str]
"""scope, key, kind, answer."""


def write(connection: DuckDBPyConnection, entries: Sequence[Entry]) -> None:
    """Write entries of distinct questions inside the caller's transaction, each in place of what was answered before."""
    first = next_number(connection, "journal")
    scope, key, kind, answer, at_us = zip(*entries, strict=True)
    known = within_scopes(connection, set(scope))
    columns = {"number": range(first, first + len(entries)), "scope": scope, "key": key, "kind": kind, "answer": answer, "at_us": at_us}
    with Incoming(connection, columns) as incoming:
        connection.execute(f"DELETE FROM journal j USING {incoming} i WHERE {known} AND j.key = i.key AND j.scope = i.scope")  # noqa: S608
        connection.execute(f"INSERT INTO journal BY NAME SELECT * FROM {incoming}")  # noqa: S608
        connection.execute(f"""CREATE OR REPLACE TEMP TABLE reached AS SELECT scope, min(low) AS low, max(high) AS high FROM (
            SELECT scope, number AS low, number AS high FROM {incoming}
            UNION ALL SELECT * FROM journal_range WHERE scope IN (SELECT scope FROM {incoming})) GROUP BY scope""")  # noqa: S608
    connection.execute("DELETE FROM journal_range WHERE scope IN (SELECT scope FROM reached)")
    connection.execute("INSERT INTO journal_range SELECT * FROM reached")
    connection.execute("DROP TABLE reached")


def numbers(connection: DuckDBPyConnection, scope: str) -> dict[str, int]:
    """The row number of every question of a scope."""
    query = f"SELECT j.key, j.number FROM journal j WHERE {within_scopes(connection, {scope})} AND j.scope = ?"  # noqa: S608  names of our own
    return {unshelved(key): number for key, number in connection.execute(query, [shelved(scope)]).fetchall()}


def answers_between(connection: DuckDBPyConnection, low: int, high: int) -> dict[int, str]:
    rows = records(connection, "SELECT number, answer FROM journal WHERE number BETWEEN ? AND ?", [low, high])
    return {row["number"]: row["answer"] for row in rows}


def answers(connection: DuckDBPyConnection, scopes: Collection[str]) -> Iterator[Answer]:
    """Everything in these scopes, in the order it was folded in."""
    query = f"""SELECT j.scope, j.key, j.kind, j.answer FROM journal j WHERE {within_scopes(connection, scopes)}
        AND j.scope IN (SELECT unnest(?)) ORDER BY j.number"""  # noqa: S608  names of our own
    found = connection.execute(query, [list(map(shelved, scopes))])
    while rows := found.fetchmany(_PAGE):
        for scope, key, kind, answer in rows:
            yield unshelved(scope), unshelved(key), unshelved(kind), unshelved(answer)


def moments(connection: DuckDBPyConnection, places: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """When each of these questions (scope, key) was answered, of those that are held."""
    if not places:
        return {}
    scope, key = zip(*places, strict=True)
    with Incoming(connection, {"scope": scope, "key": key}) as incoming:
        query = f"""SELECT j.scope, j.key, j.at_us FROM journal j JOIN {incoming} i ON j.scope = i.scope AND j.key = i.key
            WHERE {within_scopes(connection, set(scope))}"""  # noqa: S608  names of our own
        return {(row["scope"], row["key"]): row["at_us"] for row in records(connection, query)}


def count(connection: DuckDBPyConnection) -> int:
    return int(scalar(connection, "SELECT count(*) FROM journal"))


def within_scopes(connection: DuckDBPyConnection, scopes: Collection[str]) -> str:
    """SQL for the stretches of the journal j in which entries of these scopes may be."""
    query = "SELECT low, high FROM journal_range WHERE scope IN (SELECT unnest(?))"
    found = connection.execute(query, [list(map(shelved, scopes))]).fetchall()
    return spans("j.number", found)
