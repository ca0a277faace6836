"""Search trees as they are read: one of them as text, Graphviz or JSON, or a list of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from counterplay import console
from counterplay.core.errors import UserError
from counterplay.naming import short_ids, whole_id, whole_trace_ids

if TYPE_CHECKING:
    from rich.table import Table

    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store
    from counterplay.core.store.rows import SearchRow

FORMATS = ("text", "dot", "json")
_RUNNING = "not finished"


def find(store: Store, search_id: str) -> SearchRecord:
    """The search of this id, or the only one whose id begins so. Raises UserError where there is none, or several."""
    return store.search(whole_id(search_id, [row.id for row in store.searches()], "search"))


def drawn(
    record: SearchRecord,
    *,
    format: str = "text",  # noqa: A002  the user's word
    max_depth: int | None = None,
    max_children: int | None = None,
    fold: bool = True,
    width: int = 120,
) -> str:
    """A search tree in one of `FORMATS`; None shows all, and JSON always has all. Raises UserError on another format.

    JSON is `search.draw.to_dict` with the search's id, trace, task and fork step, the best path and the contested forks.
    """
    from counterplay.search.draw import reading_of, to_dict, to_dot
    from counterplay.search.render import to_text
    from counterplay.search.tree import SearchTree

    tree = SearchTree.from_record(record)
    if format == "text":
        trace = (
            f"search {record.id}" + (f" of trace {record.trace}" if record.trace else "") + (f", task {record.task}" if record.task else "")
        )
        return f"{trace}\n{to_text(tree, max_depth=max_depth, max_children=max_children, fold=fold, width=width)}"
    if format == "dot":
        return to_dot(tree, max_depth=max_depth, max_children=max_children)
    if format == "json":
        source = {"id": record.id, "trace": record.trace, "task": record.task, "fork_step": record.fork_step}
        return json.dumps({**source, **to_dict(tree), **reading_of(tree)}, ensure_ascii=False)
    raise UserError(f"got --format {format!r}", f"one of {', '.join(FORMATS)}")


def listed(store: Store, *, trace: str = "", limit: int | None = None) -> Table:
    """The searches of a store as a table, the latest first; None shows all. Ids are as long as it takes to tell them apart.

    `trace` is an id, or how it begins: those of that trace alone. Raises UserError where there is none.
    """
    every = store.searches()
    rows = of_trace(store, every, trace)
    short = short_ids(row.id for row in every)
    latest = rows[::-1][:limit]
    shown = [(short[r.id], r.algorithm, r.task or r.trace or "", r.nodes, r.finished, r.stopped or _RUNNING) for r in latest]
    title = (
        f"{len(rows):,} searches"
        if len(latest) == len(rows)
        else f"the latest {len(latest):,} of {len(rows):,} searches (--all lists them)"
    )
    table = console.table(title, ["search", "algorithm", "task or trace", "nodes", "ends", "stopped"], shown)
    table.columns[0].no_wrap, table.columns[0].min_width = True, max(map(len, short.values()))
    return table


def as_json(store: Store, *, trace: str = "", limit: int | None = None) -> str:
    """The same as one JSON object, with whole ids."""
    rows = of_trace(store, store.searches(), trace)
    return json.dumps({"searches": len(rows), "latest": [asdict(row) for row in rows[::-1][:limit]]}, ensure_ascii=False)


def of_trace(store: Store, rows: Sequence[SearchRow], trace: str) -> list[SearchRow]:
    """The searches of one trace, all of them where none is named. Raises UserError where there is none."""
    (whole,) = whole_trace_ids(store, [trace]) or [""] if trace else [""]
    found = [row for row in rows if not whole or row.trace == whole]
    if not found:
        got = f"got no search of trace {whole}" if whole else "got a store without searches"
        raise UserError(got, "at least one", "Make one: counterplay search --help")
    return found
