"""Can the job be run as it is? What can be known of that is asked before anything is stored or paid for, by dry runs and runs alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from counterplay.core.errors import UserError
from counterplay.jobs.datasets import options_of
from counterplay.jobs.wording import of_job

if TYPE_CHECKING:
    from counterplay.jobs.spec import Job


def check_parts(job: Job) -> None:
    """Raises UserError where a part is not there, or a dataset can't be written. Models are not loaded, and servers not asked."""
    job.hand_over_key()
    if job.engine.memory is not None:
        _check_memory(job.engine.memory)
    if not job.stitches:
        _check_batch(job)
        asked = job.asked()
        for place, check in (
            ("[policy]", asked.check_policy),
            ("[environment]", asked.check_environment),
            ("[[verifier]]", asked.check_verifiers),
        ):
            with of_job(place):
                check()
    check_output(job.output.folder)
    _check_exports(job)


def check_output(folder: Path) -> None:
    """Raises UserError where the folder is none, or nothing can be written there."""
    there = next((each for each in (folder, *folder.absolute().parents) if os.path.lexists(each)), folder)
    if not there.is_dir():
        raise UserError(f"got [output] folder {folder}, but {there} is no folder", "a folder, or a path where one can be made")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"got [output] folder {folder}, but nothing can be written in {there}", "a folder that can be written to")


def _check_exports(job: Job) -> None:
    from counterplay import exporting
    from counterplay.export_units import ABLATION
    from counterplay.search.registry import SEARCHES, meant

    known = [*SEARCHES, "stitch", ABLATION]
    for number, export in enumerate(job.export, 1):
        place, options = f"[export] {number}", options_of(export, job.job.seed)
        with of_job(place):
            for name in options.get("algorithms") or ():
                if name not in known:
                    raise UserError(f"got algorithms with {name!r}", f"some of {', '.join(known)}", meant(name, known))
            exporting.check(export.kind, job.output.folder / export.folder, **options)


def _check_memory(memory: str) -> None:
    from counterplay.core.store import Store

    with of_job("[engine] memory"), Store.open(":memory:", memory=memory):
        pass


def _check_batch(job: Job) -> None:
    spec, servers = job.policy.spec, job.policy.base_urls
    if not spec.startswith("batch:"):
        return
    if not servers:
        got = f"got [policy] spec {spec!r} without base_urls: a job sends its questions itself, and waits for the answers"
        do = "https://api.openai.com/v1 is OpenAI's. To carry files by hand: counterplay search --policy batch:..."
        raise UserError(got, 'base_urls = ["..."], the one server that keeps its batches', do)
    if len(servers) > 1:
        raise UserError(f"got {len(servers)} base_urls for {spec!r}", "one: a batch is answered where it was sent")
