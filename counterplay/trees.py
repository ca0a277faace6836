"""Search trees as they are read: one of them as text, Graphviz or JSON, or a list of all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from counterplay.core.records import SearchRecord
    from counterplay.core.store import Store

FORMATS = ("text", "dot", "json")
_RUNNING = "not finished"


def find(store: Store, search_id: str) -> SearchRecord:
    """The search of this id, or the only one whose id begins so. Raises UserError where there is none, or several."""
    found = [row for row in store.searches() if row.id.startswith(search_id)]
    exact = [row for row in found if row.id == search_id]
    if len(found) > 1 and not exact:
        ids = ", ".join(row.id for row in found[:4])
        raise UserError(f"got search {search_id!r}, which {len(found)} ids begin with", "one of them", f"For example: {ids}")
    return store.search(found[0].id if len(found) == 1 else search_id)


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


def listed(store: Store) -> Any:
    """All searches of a store as a table. Raises UserError where there is none."""
    rows = store.searches()
    if not rows:
        raise UserError("got a store without searches", "at least one", "Make one: counterplay search --help")
    shown = [(row.id, row.algorithm, row.task or row.trace or "", row.nodes, row.finished, row.stopped or _RUNNING) for row in rows]
    return console.table(f"{len(rows):,} searches", ["search", "algorithm", "task or trace", "nodes", "ends", "stopped"], shown)
