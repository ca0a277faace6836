"""Trees on their way into the store: finished ones a few seconds' worth at a time, growing ones now and then as they are.

A growing tree is written unfinished (`stopped` is empty) under the id that it will have, so the finished one takes its place. What a kill
loses is replayed from the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store
    from counterplay.search.tree import SearchTree

_EVERY_S = 5.0
_SHARE = 0.05  # of the time may go into writing trees that are not finished


class Watching:
    """Hands on growing trees to `write`: each after its first wave and every few seconds from there, less often where that takes long."""

    def __init__(self, write: Callable[[SearchRecord], object]) -> None:
        self._write = write
        self._free_s = 0.0

    def watch(self, search_id: str, config: Mapping[str, Any], **provenance: Any) -> Callable[[SearchTree], None]:
        """An `on_wave` that hands on the growing tree of one search.

        `config` is added to the tree's; `provenance` fills trace, task and fork_step.
        """
        last_s = -_EVERY_S

        def on_wave(tree: SearchTree) -> None:
            nonlocal last_s
            began_s = time.monotonic()
            if tree.stopped or began_s - last_s < _EVERY_S or began_s < self._free_s:
                return
            record = tree.to_record(search_id, **provenance)
            self._timed(replace(record, config={**record.config, **config}), began_s)
            last_s = time.monotonic()

        return on_wave

    def take(self, record: SearchRecord) -> None:
        """Hand on a tree that grows in another process, where there is the time for it."""
        began_s = time.monotonic()
        if began_s >= self._free_s:
            self._timed(record, began_s)

    def _timed(self, record: SearchRecord, began_s: float) -> None:
        self._write(record)
        ended_s = time.monotonic()
        self._free_s = ended_s + (ended_s - began_s) / _SHARE


class Shelf(Watching):
    """Writes the trees of many searches into one store: those that have ended a few seconds' worth at a time, and growing ones."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.put_search)
        self.store = store
        self._finished: list[SearchRecord] = []
        self._written_s = time.monotonic()

    def put(self, record: SearchRecord) -> None:
        """Take a finished tree, to be written soon."""
        self._finished.append(record)
        if time.monotonic() - self._written_s >= _EVERY_S:
            self.write()

    def write(self) -> None:
        """Write every finished tree now."""
        while self._finished:
            self.store.put_search(self._finished[0])
            self._finished.pop(0)
        self._written_s = time.monotonic()
