"""Moving rows: Arrow in, tuples out. Free text that UTF-8 can't hold (lone surrogates) is kept by an escape.

Many rows move as columns: a name and a list of values each, in place of a dict a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, chain, pairwise
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from counterplay.core.canonical import loads
from counterplay.core.errors import StoreError

_FULL = re.compile("No space left|Could not write file|failed to (pin|allocate)")
_ESCAPE = "json:"
_GAP, _RANGES = 8192, 31
_NO_TEXT = frozenset(("BIGINT", "INTEGER", "UTINYINT", "UTINYINT[]", "BIGINT[]", "DOUBLE", "BOOLEAN", "UUID"))
VARIANT = {"trace": "attributes", "call": "attributes", "search": "attributes"}

Row = Mapping[str, Any]
Columns = Mapping[str, Sequence[Any]]


def shelved(text: str) -> str:
    """`text` as the store keeps it: itself, or `json:"..."` where UTF-8 can't hold it. `unshelved` is the inverse."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return _ESCAPE + json.dumps(text)
    return _ESCAPE + json.dumps(text) if text.startswith(_ESCAPE) else text


def unshelved(text: str | None) -> Any:
    return loads(text[len(_ESCAPE) :]) if text is not None and text.startswith(_ESCAPE) else text


def merged(parts: Sequence[Columns]) -> Columns:
    """The rows of `parts` (equal names) one after another."""
    return {name: list(chain.from_iterable([part[name] for part in parts])) for name in parts[0]} if parts else {}


def single(row: Row) -> Columns:
    """One row as columns."""
    return {name: (value,) for name, value in row.items()}


def insert(connection: DuckDBPyConnection, table: str, rows: Sequence[Row] | Columns) -> None:
    """Append rows (equal keys), or columns, to `table` as one Arrow batch; columns not named stay NULL."""
    if not (any(map(len, rows.values())) if isinstance(rows, Mapping) else rows):
        return
    variant = VARIANT.get(table)
    columns = f"* REPLACE (TRY_CAST(TRY_CAST(nullif({variant}, '{{}}') AS JSON) AS VARIANT) AS {variant})" if variant else "*"
    with Incoming(connection, rows) as incoming:
        connection.execute(f"INSERT INTO {table} BY NAME SELECT {columns} FROM {incoming}")  # noqa: S608  names of our own


class Incoming:
    """Rows as a temporary relation of a connection, for the length of a `with`."""

    def __init__(self, connection: DuckDBPyConnection, rows: Sequence[Row] | Columns) -> None:
        import pyarrow as pa

        self._connection = connection
        columns = rows if isinstance(rows, Mapping) else {name: [row[name] for row in rows] for name in rows[0]}
        self._table = pa.table({name: _array(values) for name, values in columns.items()})

    def __enter__(self) -> str:
        self._connection.register("incoming", self._table)
        return "incoming"

    def __exit__(self, *_: object) -> None:
        with suppress(duckdb.TransactionException):  # the transaction has failed: that error is the one to see
            self._connection.unregister("incoming")


@contextmanager
def transaction(connection: DuckDBPyConnection) -> Iterator[None]:
    """All of the block is stored, or none of it. Raises StoreError where DuckDB can't write."""
    connection.begin()
    try:
        yield
        connection.commit()
    except BaseException as error:
        _rollback(connection)
        if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.FatalException) or _FULL.search(str(error)):
            got = f"the store can't be written: {str(error).splitlines()[0]}"
            do = "Nothing of this batch was stored, all before it was: make room, or allow for more memory, and run again."
            raise StoreError(got, do=do) from error
        raise


def _rollback(connection: DuckDBPyConnection) -> None:
    with suppress(duckdb.Error):  # a failed commit has rolled back already
        connection.rollback()


def records(connection: DuckDBPyConnection, query: str, parameters: Iterable[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
    """The rows of a query as dicts, text unshelved. `parameters` are values in order, or by name."""
    cursor = connection.execute(query, parameters if isinstance(parameters, Mapping) else list(parameters))
    columns = cursor.description or ()
    names = [column[0] for column in columns]
    found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    for name in (column[0] for column in columns if str(column[1]) not in _NO_TEXT):
        for row in found:
            if row[name] is not None:
                row[name] = _unshelve(row[name])
    return found


def scalar(connection: DuckDBPyConnection, query: str, parameters: Iterable[Any] = ()) -> Any:
    """The single value of a query. The result is read to its end: DuckDB refuses other work on a connection before that."""
    return connection.execute(query, list(parameters)).fetchall()[0][0]


def within(column: str, values: Collection[int]) -> str:
    """SQL for `column` being one of `values`, which are its parameter. Their ranges let DuckDB skip whole row groups."""
    return f"{spans(column, [(value, value) for value in values])} AND {column} IN (SELECT unnest(?))"


def spans(column: str, ranges: Iterable[tuple[int, int]]) -> str:
    """SQL for `column` being in one of the ranges, or in one of the narrower gaps between them: it names a few ranges only."""
    ordered = sorted(ranges)
    reached = list(accumulate((high for _, high in ordered), max))
    gaps = [i for i in range(1, len(ordered)) if ordered[i][0] - reached[i - 1] > _GAP]
    widest = sorted(gaps, key=lambda i: reached[i - 1] - ordered[i][0])[:_RANGES]
    ends = [0, *sorted(widest), len(ordered)] if ordered else []
    told = [f"{column} BETWEEN {ordered[low][0]:d} AND {reached[high - 1]:d}" for low, high in pairwise(ends)]
    return f"({' OR '.join(told) or 'false'})"


def next_number(connection: DuckDBPyConnection, table: str) -> int:
    return int(scalar(connection, f"SELECT coalesce(max(number), 0) + 1 FROM {table}"))  # noqa: S608  names of our own


def hex_key(column: str) -> str:
    """SQL for a UUID column as the 32 hex digits of `Trajectory.key`."""
    return f"replace({column}::VARCHAR, '-', '')"


def _array(values: Sequence[Any]) -> Any:
    """An Arrow array. Texts are looked at one by one only where one of them needs the escape."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        array = pa.array(values)
    except UnicodeEncodeError:
        return pa.array(_shelve(values))
    texts = pc.list_flatten(array) if pa.types.is_list(array.type) else array
    escaped = pa.types.is_string(texts.type) and pc.any(pc.starts_with(texts, _ESCAPE)).as_py()
    return pa.array(_shelve(values)) if escaped else array


def _shelve(values: Sequence[Any]) -> Sequence[Any]:
    first = next((value for value in values if value is not None), None)
    if isinstance(first, str):
        return [value if value is None else shelved(value) for value in values]
    if isinstance(first, list):
        return [[shelved(x) if isinstance(x, str) else x for x in value] if value else value for value in values]
    return values


def _unshelve(value: Any) -> Any:
    if isinstance(value, str):
        return unshelved(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [unshelved(text) for text in value]
    return value
