"""What a command read of a job's sources, and what of it could not be read: how many, which are the first, where all of them are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from counterplay.jobs.events import cleaned

if TYPE_CHECKING:
    from counterplay.core.store import IngestReport, Store
    from counterplay.jobs.spec import Job

_FIRST = 5
_TOLD = 3
_LONGEST = 120
_TELLING = ("files_read", "files_unchanged", "traces_added", "traces_updated", "traces_known", "inputs_unreadable")


@dataclass(frozen=True)
class Taken:
    """`counts` are those of `IngestReport` that are not 0. `files` of what was read hold something that could not be and had not been
    met before, `first` are the first of them: `uri`, how many `inputs`, `line` and `reason` of the first. Where all of it had been met
    before, `files` is 0, and `first` are those of the store.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    first: Sequence[Mapping[str, Any]] = ()
    files: int = 0

    @property
    def unreadable(self) -> int:
        """How many inputs could not be read."""
        return self.counts.get("rejected_added", 0) + self.counts.get("rejected_known", 0)

    @property
    def read(self) -> str:
        """What was read, in words; empty where nothing was."""
        return read_of(self.counts)

    def said(self, job: Job | None = None) -> str:
        """What could not be read, in words; empty where nothing. Where `job` is given, with how to see all of it in its store."""
        if not self.unreadable:
            return ""
        some = "; ".join(_one(each) for each in self.first[:_TOLD])
        more = f"; and {self.files - _TOLD:,} more file{'s' * (self.files > _TOLD + 1)}" if self.files > _TOLD else ""
        where = "" if job is None else f". In quarantine: {listing(job)}"
        inputs = _counted(self.unreadable, "inputs", "could not be read")
        return f"{inputs}{', new are' if self.counts.get('rejected_known') and self.files else ''}: {some}{more}{where}"

    def logged(self) -> dict[str, Any]:
        """What there is to log of what could not be read."""
        return {
            "count": self.unreadable,
            "files": self.files,
            "first": [{**each, "reason": cleaned(each["reason"])} for each in self.first],
        }


def taken(store: Store, take: Callable[[], IngestReport | None]) -> Taken:
    """What `take` takes in."""
    began_us = time.time_ns() // 1000
    report = take()
    if report is None:
        return Taken()
    counts = {name: count for name, count in asdict(report).items() if count}
    rows, files = store.rejected_files(since_us=began_us, limit=_FIRST) if report.rejected_added else ([], 0)
    if report.rejected_known and not rows:
        rows, _ = store.rejected_files(limit=_FIRST)
    return Taken(counts, [{"uri": row.uri, "inputs": n, "line": row.line, "reason": row.reason} for row, n in rows], files)


def listing(job: Job) -> str:
    """The command that names everything of the store that could not be read."""
    return f'counterplay sql "SELECT uri, line, reason FROM quarantine" --store {job.job.store}'  # noqa: S608  a command for a person


def read_of(counts: Mapping[str, int]) -> str:
    """Counts of what was read, in words."""
    found = {**counts, "inputs_unreadable": counts.get("rejected_added", 0) + counts.get("rejected_known", 0)}
    return ", ".join(_counted(found[name], *name.split("_")) for name in _TELLING if found.get(name))


def _counted(count: int, what: str, how: str) -> str:
    return f"{count:,} {what if count > 1 else what[:-1]} {how}"


def _one(row: Mapping[str, Any]) -> str:
    place = row["uri"] if row["line"] is None else f"{row['uri']}:{row['line']}"
    reason = " ".join(row["reason"].split())
    return f"{place} ({reason[:_LONGEST]}{'…' * (len(reason) > _LONGEST)})"
