"""What the search of one trace needs of what is kept: answers, trees, other runs of the task. A store gives it, or a message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from counterplay.forking import siblings_of

if TYPE_CHECKING:
    from counterplay.core.journal import Journal
    from counterplay.core.nouns import Trace
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store
    from counterplay.core.store.rows import SearchRow
    from counterplay.growing import Shelf
    from counterplay.search.tree import SearchTree


class Desk(Protocol):
    """Where the search of one trace finds what is known already, and leaves what it is told."""

    def journal(self, scope: str) -> Journal:
        """The answers of one scope; `put` is durable before it returns."""
        ...

    def held(self, trace: str) -> Mapping[str, SearchRow]:
        """The searches of this trace that are kept, by id."""
        ...

    def search(self, search_id: str) -> SearchRecord:
        """One of `held`, with its tree."""
        ...

    def siblings(self, trace: Trace) -> Sequence[Trace]:
        """The other logged runs of its task by the same agent, in the store's order."""
        ...

    def watch(self, search_id: str, config: Mapping[str, Any], **provenance: Any) -> Callable[[SearchTree], None] | None:
        """An `on_wave` for a tree that grows; None where nobody looks on."""
        ...


class StoreDesk:
    """A desk in the process that has the store open. `siblings` narrows the other runs that a trace has in the store."""

    def __init__(self, store: Store, shelf: Shelf, siblings: Callable[[Trace, Sequence[Trace]], Sequence[Trace]]) -> None:
        self.store, self.shelf = store, shelf
        self._narrowed, self._siblings_of = siblings, siblings_of(store)
        self.journal, self.search, self.watch = store.journal, store.search, shelf.watch

    def held(self, trace: str) -> Mapping[str, SearchRow]:
        return {row.id: row for row in self.store.searches(trace=trace)}

    def siblings(self, trace: Trace) -> Sequence[Trace]:
        return self._narrowed(trace, self._siblings_of(trace))
