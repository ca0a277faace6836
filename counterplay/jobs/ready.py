"""Are the parts that a job names there? Asked before anything is stored, so that a slip of the pen makes no job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from counterplay.core.errors import UserError
from counterplay.core.loading import resolve
from counterplay.parts import world_factory

if TYPE_CHECKING:
    from counterplay.jobs.spec import Job

_BY_NAME = ("openai", "batch", "transformers", "logged")
_MODELS = ("prm:", "implicit-prm:")


def check_parts(job: Job) -> None:
    """Raises UserError where one is not. Models are looked for, not loaded; servers are not asked."""
    if job.stitches:
        return
    asked = job.asked()
    kind, _, rest = asked.policy.partition(":")
    if kind == "transformers" and not Path(rest).is_dir():
        raise UserError(f"got [policy] spec {asked.policy!r}, and {rest} is no folder", "the folder of a model")
    if kind == "batch" and not job.policy.base_urls:
        do = "Give [policy] base_urls; without a server use: counterplay search --policy batch:..."
        raise UserError(f"got [policy] spec {asked.policy!r} without a server, and a job can't wait for you to carry files", "a server", do)
    if kind not in _BY_NAME:
        resolve(asked.policy, "policy")
    if asked.environment != "recorded":
        world_factory(asked.environment)
    from counterplay.verifiers.registry import load

    for spec in asked.verifiers:
        if not spec.startswith(_MODELS):
            load(spec)
