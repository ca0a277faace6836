"""Runs queries inside the sandbox, each on a connection of its own that can't write, and says what each gave.

Its orders are one JSON object on stdin; each line of its answer begins with the orders' secret. A query is one statement that gives rows.
The engines' own locks are set as well; the sandbox does not depend on them.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import sqlite3
import sys
import urllib.parse
from typing import Any

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, 33}  # 33 is SQLITE_RECURSIVE, which Python has no name for


def encoded(value: Any) -> Any:
    """A value as JSON that keeps its kind: numbers are numbers, all else but text, lists and NULL is an object that says what it is."""
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, dict):
        return {"map": sorted(([encoded(key), encoded(item)] for key, item in value.items()), key=repr)}
    return _named(value)


def _named(value: Any) -> dict[str, Any]:
    if isinstance(value, decimal.Decimal):
        return {"number": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dt.date | dt.time):
        return {"time": value.isoformat().removesuffix("T00:00:00")}
    if isinstance(value, dt.timedelta):
        return {"seconds": value.total_seconds()}
    return {"text": str(value)}


def sqlite_rows(orders: dict[str, Any], query: str, most: int) -> list[Any]:
    if orders["path"]:
        mode = "mode=ro" if orders["copied"] else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"file:{urllib.parse.quote(orders['path'])}?{mode}", uri=True)
    else:
        connection = sqlite3.connect(":memory:")
        connection.executescript(orders["script"])
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY)
    cursor = connection.execute(query)
    if cursor.description is None:
        raise ValueError("it is not a query: it gives no rows")
    return list(cursor.fetchmany(most))


def duckdb_rows(orders: dict[str, Any], query: str, most: int) -> list[Any]:
    import duckdb

    locks = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false", "threads": "1"}
    if orders["locked"]:
        locks |= {"enable_external_access": "false"}
    memory = {"memory_limit": f"{orders['memory_bytes'] // 2}B"}
    connection = duckdb.connect(orders["path"] or ":memory:", read_only=bool(orders["path"]), config={**locks, **memory})
    if not orders["path"]:
        connection.execute(orders["script"])
    if orders["locked"]:
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET lock_configuration = true")
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ValueError(f"it is not a query: {len(statements)} statements, {[str(one.type).rsplit('.')[-1] for one in statements]}")
    result = connection.execute(query)
    zoned = ["TIME ZONE" in str(column[1]).upper() for column in result.description or ()]
    if any(zoned):  # reading one as a Python value needs a package that may not be here
        names = [f"c{index}" for index in range(len(zoned))]
        shown = ", ".join(f"{name}::varchar" if zone else name for name, zone in zip(names, zoned, strict=True))
        result = connection.execute(f"select {shown} from ({query.strip().rstrip(';')}\n) as t({', '.join(names)})")  # noqa: S608  theirs anyway
    return list(result.fetchmany(most))


def main() -> None:
    orders = json.load(sys.stdin)
    run = duckdb_rows if orders["engine"] == "duckdb" else sqlite_rows
    most = orders["rows"] + 1
    for name, query in orders["queries"].items():
        try:
            said: dict[str, Any] = {"rows": [[encoded(value) for value in row] for row in run(orders, query, most)]}
        except Exception as error:  # noqa: BLE001  whatever an engine raises is what the query gave
            said = {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.write(f"{orders['secret']} {json.dumps({'query': name, **said})}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
