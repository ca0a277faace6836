"""Every question of the page, and its answer: the same whether a server asks or a self-contained file is written.

The questions and the shapes of the answers are `viewer/API.md` and `viewer/src/types.ts`. Nothing here writes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from counterplay.core.store.viewing import TraceIndex
from counterplay.viewing import datasets, failing, folders, reports, searches, traces
from counterplay.viewing.asking import MissingError, Query
from counterplay.viewing.conversation import View

if TYPE_CHECKING:
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store
    from counterplay.finetune.records import Record
    from counterplay.search.tree import SearchTree

MOST_NODES = 500
_KEPT = 8


class Answers:
    """Answers about an open store and the folders beside it. Close it before the store; `answer` may be called from any thread."""

    def __init__(
        self, store: Store, places: Sequence[Path] = (), *, name: str = "", tokenizer: Path | None = None, copied: bool = False
    ) -> None:
        """`name` is the store's for people to read, `copied` says that it is a copy of one that is being written."""
        self.store, self.index = store, TraceIndex(store)
        self._places, self._name, self._tokenizer_folder, self.copied = places, name, tokenizer, copied
        self._as_of_us, self._lock = time.time_ns() // 1000, threading.RLock()
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def close(self) -> None:
        self.index.close()

    @cached_property
    def found(self) -> folders.Found:
        """What lies beside the store, looked through once."""
        return folders.find(self._places)

    def answer(self, path: str, given: Mapping[str, str] | None = None) -> View:
        """The answer to `path` below `api/`, its parts still as they stand in a URL.

        Raises MissingError where there is nothing of that name, UserError where the question can't be read.
        """
        name, *rest = (unquote(part) for part in path.strip("/").split("/"))
        known: Mapping[str, Callable[[list[str], Query], View | None]] = {
            "meta": lambda parts, _: None if parts else self.meta(),
            "traces": self._traces,
            "facets": lambda parts, query: None if parts else traces.facets(self.index, query),
            "searches": self._searches,
            "failures": lambda parts, query: None if parts else self._failures(query.text("agent")),
            "datasets": self._datasets,
            "verifiers": lambda parts, _: None if parts else reports.verifier_reports(self.found),
            "training": lambda parts, _: None if parts else reports.training(self.found),
        }
        answer = known[name](rest, Query(given or {})) if name in known else None
        if answer is None:
            raise MissingError(f"nothing at api/{path[:200]}", f"one of {', '.join(known)}")
        return answer

    def meta(self) -> View:
        from counterplay import __version__

        found = self.found
        named = {
            name: len(getattr(found, name)) for name in ("datasets", "verifiers", "trainings", "improvements", "evaluations", "scalings")
        }
        counts = {"traces": self.index.count, "searches": len(self.store.searches()), **named}
        told = {"version": __version__, "store": self._name, "copied": self.copied, "as_of_us": self._as_of_us}
        return {**told, "counts": counts, "embedded": False}

    def trace(self, trace_id: str) -> View:
        row = self.index.row(trace_id)
        if row is None:
            raise MissingError(
                f"no trace {trace_id!r} in {self._name}", "one that it holds", "Its trees name theirs: counterplay tree --store STORE"
            )
        return traces.trace_detail(self.store, self.index, row)

    def tree(self, search_id: str) -> View:
        def made() -> View:
            record, tree = self._grown(search_id)
            (summary,) = searches.summaries(self.index, [row for row in self.store.searches() if row.id == record.id])
            return searches.tree_view(record, tree, summary)

        shown: View = self._once(("tree", search_id), made)
        return shown

    def nodes(self, search_id: str, indices: Sequence[int] | None = None) -> View:
        """Some nodes whole; None gives all."""
        record, tree = self._grown(search_id)
        return searches.node_details(record, tree, range(len(tree.nodes)) if indices is None else indices)

    def _grown(self, search_id: str) -> tuple[SearchRecord, SearchTree]:
        from counterplay.search.tree import SearchTree

        def grow() -> tuple[SearchRecord, SearchTree]:
            if not any(row.id == search_id for row in self.store.searches()):
                raise MissingError(
                    f"no search {search_id!r} in {self._name}", "one that it holds", "They are listed by: counterplay tree --store STORE"
                )
            record = self.store.search(search_id)
            return record, SearchTree.from_record(record)

        grown: tuple[SearchRecord, SearchTree] = self._once(("search", search_id), grow)
        return grown

    def _traces(self, parts: list[str], query: Query) -> View | None:
        if not parts:
            return traces.trace_list(self.index, query)
        return self.trace(parts[0]) if len(parts) == 1 else None

    def _searches(self, parts: list[str], query: Query) -> View | None:
        match parts:
            case []:
                return searches.search_list(self.store, self.index, query)
            case [search]:
                return self.tree(search)
            case [search, "nodes"]:
                return self.nodes(search, query.numbers("index", MOST_NODES))
        return None

    def _failures(self, agent: str | None) -> View:
        made: View = self._once(("failures", str(agent)), lambda: failing.failures(self.store, self.index, agent))
        return made

    def _datasets(self, parts: list[str], query: Query) -> View | None:
        held = self.found.datasets
        if not parts:
            shown = [datasets.summary(name, folder, told) for name, (folder, told) in held.items()]
            return {"datasets": shown, "tokenizer": None if self._tokenizer_folder is None else self._tokenizer_folder.name}
        if parts[0] not in held:
            raise MissingError(f"no dataset {parts[0]!r}", f"one of {', '.join(held) or 'none'}")
        folder, told = held[parts[0]]
        match parts[1:]:
            case []:
                return datasets.detail(parts[0], folder, told)
            case ["drops"]:
                return datasets.drops(told, query)
            case ["rows"]:
                return datasets.row_list(self._records(folder, datasets.split_of(told, query.text("split"))), told["kind"], query)
            case ["rows", split, number]:
                return self._row(folder, told, split, number)
        return None

    def _row(self, folder: Path, told: View, split: str, number: str) -> View:
        records = self._records(folder, datasets.split_of(told, split))
        place = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else len(records)
        if place >= len(records):
            raise MissingError(f"no row {number} in {split}", f"one below {len(records)}")
        return datasets.row_detail(self.index, records[place], told["kind"], place, self._tokenizer)

    def _records(self, folder: Path, split: str) -> list[Record]:
        from counterplay.finetune.write import read_dataset

        records: list[Record] = self._once(("records", str(folder), split), lambda: read_dataset(folder, split)[1])
        return records

    @cached_property
    def _tokenizer(self) -> Any:
        from counterplay.finetune.trainers import load_tokenizer

        return None if self._tokenizer_folder is None else load_tokenizer(self._tokenizer_folder)

    def _once(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """What `make` gives, kept while it is among the last asked for."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
