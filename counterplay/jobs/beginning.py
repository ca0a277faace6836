"""A job's sources and its store, before anything is done: for a job that has nothing to begin with, nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from counterplay.core.errors import UserError
from counterplay.jobs.wording import of_job

if TYPE_CHECKING:
    from counterplay.core.store import Store
    from counterplay.jobs.spec import Job

_MEMORY = "512MB"


def check_sources(job: Job) -> None:
    """Raises UserError where a source of this machine is not there, or what it is read with can't be."""
    from counterplay.connectors.base import get
    from counterplay.connectors.pulls.address import is_address
    from counterplay.door import rules_for
    from counterplay.replay.effects import EffectTable

    for source in job.source:
        if "://" not in source.path and not is_address(source.path) and not Path(source.path).exists():
            do = "The path of a [[source]] is relative to the job file."
            raise UserError(f"got the source {source.path}, which does not exist", "a log file or a folder of them", do)
        with of_job(f"[[source]] {source.path}"):
            if source.format != "auto":
                get(source.format)
            if source.effects is not None:
                EffectTable.from_toml(source.effects)
            rules_for(source.redact, source.redact_rules, off=source.no_redact)


@contextmanager
def opened(job: Job) -> Iterator[Store]:
    """The job's store, which is made where there is none, and goes again where the block fails before anything is in it."""
    from counterplay.core.store import Store

    path, is_new = job.job.store, not job.job.store.exists()
    if is_new:
        check_sources(job)
    folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    is_empty = False
    try:
        with Store.open(path, memory=job.engine.memory or _MEMORY) as store:
            try:
                yield store
            except BaseException:
                is_empty = is_new and _is_empty(store)
                raise
    except BaseException:
        if is_empty:
            for ending in ("", ".journal", ".wal"):
                Path(f"{path}{ending}").unlink(missing_ok=True)
        with suppress(OSError):  # something is in it
            for folder in folders:
                folder.rmdir()
        raise


def has_traces(store: Store) -> bool:
    return next(store.select_ids(), None) is not None


def _is_empty(store: Store) -> bool:
    return not (has_traces(store) or store.jobs() or store.rejected(limit=1))
