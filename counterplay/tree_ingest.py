"""Folders and prefixes into a store: what is new in them, and how far they are read, stored together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from counterplay.core.canonical import content_key
from counterplay.core.errors import SourceError, UserError
from counterplay.core.nouns import Trace
from counterplay.incremental import Tree, check_together
from counterplay.objects import Location
from counterplay.pulling import together as summed
from counterplay.reading import Door, Item, Reading

if TYPE_CHECKING:
    from counterplay.core.store import Store
    from counterplay.core.store.rows import IngestReport

_PASSES = 3


def tree_of(root: Path | Location, door: Door, *, format: str, again: bool, together: str | None) -> Tree:  # noqa: A002
    """How a folder or prefix is to be read. What is asked of the door is part of it: asked otherwise, everything is read again."""
    effects = "" if door.effects is None else _text_of(door.effects)
    how = content_key("read", format, effects, repr(door.rules))
    return Tree(root, format, check_together(together, root), again, how)


def _text_of(table: Path) -> str:
    try:
        return table.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"got the table of effects {table}, which can't be read: {why}", "a TOML file") from None


def ingest_tree(
    tree: Tree,
    store: Store,
    door: Door,
    *,
    processes: int | None = None,
    on_item: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> IngestReport:
    """Take what is new in a folder or prefix. What the network kept back, or what changed meanwhile, is read again in another pass.

    Raises SourceError where something could not be read in three passes; all else is stored, and read no more.
    """
    reports: list[IngestReport] = []
    tasks: set[str] = set()
    unread: list[str] = []
    for number in range(_PASSES):
        unread = []
        for chunk in tree.chunks(store):
            reading = Reading((), tree.format, door, processes, planned=(chunk.units, chunk.rejected))
            report = store.ingest(chunk.items(_noted(reading, tasks, on_item)), watermarks=chunk.marks)
            store.count_redactions(reading.redacted)
            read = sum(len(part.files) for part in chunk.parts) + len(chunk.passed)
            reports.append(replace(report, files_unchanged=0 if number else chunk.unchanged, files_read=read))
            unread += chunk.unread
            on_note(f"{sum(report.files_unchanged for report in reports)} files unchanged")
        if not unread:
            break
        tree = replace(tree, again=False)
    if unread:
        some = f"{unread[0]}{f' (and {len(unread) - 1} more)' if len(unread) > 1 else ''}"
        raise SourceError(f"got {some}", "all of it", "What was read is stored; run again to go on.")
    return replace(summed(reports), tasks=len(tasks))


def _noted(items: Iterable[Item], tasks: set[str], on_item: Callable[[], None]) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Trace) and item.task is not None:
            tasks.add(item.task)
        on_item()
        yield item
