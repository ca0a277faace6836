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


class Shelf:
    """Writes the trees of many searches into one store: growing ones after their first wave and every few seconds from there."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._finished: list[SearchRecord] = []
        self._written_s = time.monotonic()
        self._free_s = 0.0

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

    def watch(self, search_id: str, config: Mapping[str, Any], **provenance: Any) -> Callable[[SearchTree], None]:
        """An `on_wave` that keeps the growing tree of one search: at once and every few seconds, less often where that takes long.

        `config` is added to the tree's; `provenance` fills trace, task and fork_step.
        """
        last_s = -_EVERY_S

        def on_wave(tree: SearchTree) -> None:
            nonlocal last_s
            began_s = time.monotonic()
            if tree.stopped or began_s - last_s < _EVERY_S or began_s < self._free_s:
                return
            record = tree.to_record(search_id, **provenance)
            self.store.put_search(replace(record, config={**record.config, **config}))
            last_s = time.monotonic()
            self._free_s = last_s + (last_s - began_s) / _SHARE

        return on_wave
