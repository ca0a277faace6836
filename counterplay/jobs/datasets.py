"""The datasets of a job, made once its units have settled: the exports of `counterplay export`, by the options that the file gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import StoreError, UserError
from counterplay.jobs.checking import export_options, typed
from counterplay.jobs.wording import told

if TYPE_CHECKING:
    from counterplay.core.store import JobRow, Store
    from counterplay.jobs.events import Events
    from counterplay.jobs.sections import Export
    from counterplay.jobs.spec import Job


@dataclass(frozen=True)
class Made:
    """One dataset. `rows` by split, `dropped` by reason; `problem` says why there is none (empty where there is one)."""

    kind: str
    folder: str
    rows: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    label_noise: float | None = None
    problem: str = ""


def make_datasets(store: Store, job: Job, folder: Path, events: Events) -> list[Made]:
    """Every dataset of the job in `folder`, of what it and those before it were about. One that has no row stops no other."""
    made: list[Made] = []
    of = [row.id for row in family(store, job)]
    for export in job.export:
        with events.exporting(export.kind, export.folder):
            made.append(_made(store, job, export, folder / export.folder, of))
        events.made(made[-1])
    return made


def family(store: Store, job: Job) -> list[JobRow]:
    """The jobs of this content in the store, the oldest first: one for each time that there was something new."""
    return [row for row in store.jobs() if row.id == job.family or row.id.startswith(f"{job.family}.")]


def options_of(export: Export, seed: int) -> dict[str, Any]:
    """What the export is told: the options of the file, and the job's seed where they have none."""
    options = typed(export.kind, export.options)
    if "seed" in export_options(export.kind).model_fields:
        options.setdefault("seed", seed)
    return options


def _made(store: Store, job: Job, export: Export, folder: Path, of: Sequence[str]) -> Made:
    from counterplay import exporting

    options = options_of(export, job.job.seed)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the output folder {folder.parent} can't be made: {error.strerror}", "a folder", "See [output] folder.") from None
    try:
        report = getattr(exporting, f"export_{export.kind}")(store, folder, jobs=of, **options)
    except StoreError:
        raise
    except UserError as error:
        return Made(export.kind, str(folder), problem=str(told(error)))
    return Made(export.kind, str(folder), dict(report.rows), dict(report.dropped), report.label_noise)
