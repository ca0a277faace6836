"""Looking at a store: whether it is there and whole, who has it, what was left beside it. Nothing is changed."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from counterplay.core.errors import CounterplayError
from counterplay.doctor import Finding

if TYPE_CHECKING:
    from counterplay.core.store import Store

_SAMPLE = 25
_SHOWN = 3


def store_findings(store: Path, *, full: bool) -> Iterator[Finding]:
    """The store, what stands beside it, and whether what is in it is what was written: a sample of it, all where `full`."""
    from counterplay.jobs.progress import read_status

    if not store.exists():
        yield Finding("store", "file", "absent", f"{store} does not exist", f"Make one: counterplay ingest LOGS --store {store}")
        return
    status = read_status(store)
    if status is not None:
        said = f"process {status.pid} works on {status.job}: {status.settled:,} of {status.units:,} units settled"
        yield Finding("store", "job", "well", said, "What is in the store can be looked at once that has ended.")
        return
    yield from _left(store)
    from counterplay.core.store import Store

    try:
        opened = Store.open(store, read_only=True)
    except CounterplayError as error:
        yield Finding("store", "file", "odd" if "in use by process" in error.got else "broken", error.got, error.do)
        return
    with opened:
        try:
            yield from _inside(opened, full=full)
        except Exception as error:  # noqa: BLE001  a damaged file fails in DuckDB's own ways, and that is what is looked for
            said = f"can't be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            yield Finding("store", "content", "broken", said, "Restore it from a copy, or ingest the logs into a new one.")


def _left(store: Path) -> Iterator[Finding]:
    """Files beside the store that somebody left who did not come to an end."""
    beside = sorted(file.name for file in store.parent.glob(f"{glob.escape(store.name)}.*") if not file.name.endswith(".status.json"))
    journals = [name for name in beside if name.startswith(f"{store.name}.journal")]
    inboxes = [name for name in beside if ".inbox" in name]
    others = [name for name in beside if name not in journals and name not in inboxes and not name.endswith(".wal")]
    if journals:
        said = f"{len(journals)} beside it: {_some(journals)}; answers of a process that did not end, or still works"
        yield Finding("store", "journal files", "odd", said, "They are taken in by the next command that writes; delete none.")
    if inboxes:
        do = "They are stored by the next `counterplay receive` or exporter of this store."
        yield Finding("store", "inboxes", "odd", f"{len(inboxes)} beside it, with spans that wait: {_some(inboxes)}", do)
    if others:
        said = f"{len(others)} beside it: {_some(others)}"
        yield Finding("store", "leftovers", "odd", said, "Those of processes that are gone are removed by the next command that writes.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _inside(store: Store, *, full: bool) -> Iterator[Finding]:
    stats = store.stats()
    said = f"{stats.traces:,} traces, {stats.searches:,} searches, {stats.journal:,} journalled answers, {stats.file_bytes / 1e6:,.1f} MB"
    yield Finding("store", "file", "well", f"{store.path}: {said}")
    rejected = sum(stats.quarantine.values())
    if rejected:
        do = f"See why: counterplay stats --store {store.path}"
        yield Finding("store", "quarantine", "odd", f"{rejected:,} pieces of input could not be read", do)
    running = [(row.id, store.unit_counts(row.id)) for row in store.jobs() if row.state == "running"]
    for job, counts in running:
        left = counts["pending"] + counts["running"]
        state = f"{left:,} units are left, {counts['parked'] + counts['failed']:,} were given up"
        yield Finding("store", f"job {job}", "odd", f"it did not come to its end: {state}", "Go on: counterplay run JOB")
    problems = [str(problem) for problem in store.verify()] if full else list(_sampled(store))
    looked = "all of it" if full else "a sample of traces and searches; --full looks at all"
    if problems:
        do = "Restore it from a copy, or ingest the logs into a new one."
        yield Finding("store", "content", "broken", f"{len(problems)} problems, the first: {problems[0]}", do)
    else:
        yield Finding("store", "content", "well", f"what was written is what is there ({looked})")


def _sampled(store: Store) -> Iterator[str]:
    """What is wrong with some traces, evenly drawn, and with the searches over them."""
    from counterplay.core.store import Selection

    share = min(1.0, 2 * _SAMPLE / max(1, store.stats().traces))
    ids = [row.id for row in store.select_ids(Selection(sample=share, limit=_SAMPLE))]
    for trace in store.load(ids):
        tips = {row.id: row.tip for row in store.trajectories(kind="logged", trace=trace.id)}
        if tips.get(trace.id) != trace.trajectory.key:
            yield f"trace {trace.id}: its messages do not give its key"
    rows = store.searches(traces=ids)[:_SAMPLE]
    for row, record in zip(rows, store.load_searches([row.id for row in rows]), strict=True):
        if len(record.nodes) != row.nodes:
            yield f"search {row.id}: it has {len(record.nodes)} nodes in place of {row.nodes}"
