"""The desks of workers: of one that has the store beside it, and of one that has what was sent with the work."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from counterplay.jobs.work import TreeWantedError, Work, siblings_in
from counterplay.searching import scope_of

if TYPE_CHECKING:
    from counterplay.core.journal import Journal
    from counterplay.core.nouns import Trace
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store
    from counterplay.core.store.rows import SearchRow
    from counterplay.growing import Shelf
    from counterplay.search.tree import SearchTree


class StoreUnitDesk:
    """The desk for one unit, in the process that has the store open."""

    def __init__(self, store: Store, shelf: Shelf, work: Work) -> None:
        self.store, self._work = store, work
        self.journal, self.search, self.watch = store.journal, store.search, shelf.watch

    def held(self, trace: str) -> Mapping[str, SearchRow]:
        return {row.id: row for row in self.store.searches(trace=trace)}

    def siblings(self, trace: Trace) -> Sequence[Trace]:
        return siblings_in(self._work, trace)


class SentDesk:
    """The desk for one unit in a process without the store: what is known came with the work, what is new goes where `new` says.

    `grows` is what takes growing trees; None where nobody looks on.
    """

    def __init__(self, work: Work, new: Callable[[str, Mapping[str, str]], Journal], grows: Callable[..., Any] | None = None) -> None:
        self._work, self._new, self._grows = work, new, grows

    def journal(self, scope: str) -> Journal:
        return self._new(scope, self._work.entries.get(scope, {}))

    def held(self, trace: str) -> Mapping[str, SearchRow]:
        return {row.id: row for row in self._work.held if row.trace == trace}

    def search(self, search_id: str) -> SearchRecord:
        if search_id not in self._work.trees:
            raise TreeWantedError(search_id)
        return self._work.trees[search_id]

    def siblings(self, trace: Trace) -> Sequence[Trace]:
        return siblings_in(self._work, trace)

    def watch(self, search_id: str, config: Mapping[str, Any], **provenance: Any) -> Callable[[SearchTree], None] | None:
        return None if self._grows is None else self._grows(search_id, config, **provenance)


class Filling:
    """Completes works that are to be sent elsewhere with what the store knows of them, all that come together with one question."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._waiting: list[tuple[Work, asyncio.Future[Work]]] = []

    async def filled(self, work: Work, *, searched: bool) -> Work:
        """`work` with its journal and its searches; as it is where nothing is `searched`."""
        if not searched:
            return work
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._read)
        future: asyncio.Future[Work] = loop.create_future()
        self._waiting.append((work, future))
        return await future

    def _read(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            entries: dict[str, dict[str, str]] = defaultdict(dict)
            for scope, key, _, answer in self.store.journal_entries([scope_of(trace) for work, _ in waiting for trace in work.traces]):
                entries[scope][key] = answer
            for work, future in waiting:
                known = {scope: entries[scope] for trace in work.traces if (scope := scope_of(trace)) in entries}
                held = tuple(row for trace in work.traces for row in self.store.searches(trace=trace.id))
                if not future.done():
                    future.set_result(replace(work, entries=known, held=held))
        except Exception as error:  # noqa: BLE001  it belongs to whoever waits
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
