"""The part of `Store` that searches are kept in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from counterplay.core.records import SearchRecord
from counterplay.core.store import searches
from counterplay.core.store.base import StoreFile
from counterplay.core.store.reading_searches import read_searches
from counterplay.core.store.rows import SearchRow
from counterplay.core.store.tables import shelved

_COLUMNS = "id, algorithm, trace, task, fork_step, stopped, nodes, finished"
_PLACE = "(coalesce(trace, ''), algorithm, id)"


class StoreSearches(StoreFile):
    """Search trees, one by one or many at a time."""

    def put_search(self, record: SearchRecord) -> bool:
        """Write a search, or replace in one transaction what was held under its id. False where exactly this is held already."""
        return self.put_searches([record]) == 1

    def put_searches(self, found: Iterable[SearchRecord]) -> int:
        """`put_search` of each, all in one transaction, some hundred at a time in memory. Returns how many were not held exactly so."""
        with self.transaction():
            return searches.put_searches(self._connection, found)

    def search(self, search_id: str) -> SearchRecord:
        """The search as it was put. Raises UserError with the closest ids where it is not held."""
        return next(self.load_searches([search_id]))

    def load_searches(self, search_ids: Iterable[str], *, batch: int = 128) -> Iterator[SearchRecord]:
        """Searches as they were put, in the order asked for, `batch` at a time in memory. Raises UserError where one is not held."""
        remaining = iter(search_ids)
        while ids := list(islice(remaining, batch)):
            with self._room.working():
                found = list(read_searches(self._connection.cursor(), self._numbers("search", ids)))
            yield from found

    def searches(
        self,
        *,
        trace: str | None = None,
        task: str | None = None,
        algorithm: str | None = None,
        traces: Collection[str] | None = None,
    ) -> list[SearchRow]:
        """Searches without their trees, in the order they were put; `traces` are those of several traces, None all."""
        wanted = {"trace": trace, "task": task, "algorithm": algorithm}
        given = {name: shelved(value) for name, value in wanted.items() if value is not None}
        parameters: list[Any] = list(given.values())
        where = ["true", *(f"{name} = ?" for name in given)]
        if traces is not None:
            where.append("trace IN (SELECT unnest(?))")
            parameters.append(list(map(shelved, traces)))
        query = f"SELECT {_COLUMNS} FROM search WHERE {' AND '.join(where)} ORDER BY number"  # noqa: S608  names of our own
        return [SearchRow(**row) for row in self._records(query, parameters)]

    def every_search(self, *, algorithms: Collection[str] = (), stopped: bool = False, page: int = 4096) -> Iterator[SearchRow]:
        """All searches without their trees, in order of trace, algorithm and id, whenever they were put; `page` at a time in memory.

        `algorithms` are those wanted, none for all; `stopped` leaves out searches that were interrupted.
        """
        where, wanted = ["stopped <> ''" if stopped else "true"], []
        if algorithms:
            where.append("algorithm IN (SELECT unnest(?))")
            wanted.append(list(map(shelved, algorithms)))
        query = f"SELECT {_COLUMNS} FROM search WHERE {' AND '.join(where)}"  # noqa: S608  names of our own
        after: list[str] = []
        while True:
            further = f" AND {_PLACE} > (?, ?, ?)" if after else ""
            rows = self._records(f"{query}{further} ORDER BY {_PLACE} LIMIT {int(page)}", [*wanted, *after])
            yield from (SearchRow(**row) for row in rows)
            if len(rows) < page:
                return
            after = [shelved(rows[-1][name] or "") for name in ("trace", "algorithm", "id")]
