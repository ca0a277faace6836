"""An evaluation as a folder: `report.json`, `report.md`, and every played run as a recording that `counterplay ingest` reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from counterplay import console
from counterplay.core.errors import UserError
from counterplay.evaluation import Evaluation
from counterplay.evaluation_shown import markdown

_MARKER = "report.json"


def prepare(folder: Path) -> None:
    """Make the folder, or empty one of an earlier evaluation. Raises UserError where it holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"got {folder}, which is a file", "a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise UserError(f"got folder {folder}, which holds something else", "a new folder, or one of an earlier evaluation")
    (folder / "trajectories").mkdir(parents=True, exist_ok=True)
    for old in (folder / "trajectories").glob("*.jsonl"):
        old.unlink()


def keep(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write all of an evaluation into a prepared folder; the files."""
    from counterplay.replay.recorder import Recorder

    paths = [folder / _MARKER, folder / "report.md"]
    paths[0].write_text(json.dumps(as_json(evaluation), ensure_ascii=False, indent=1), encoding="utf-8")
    paths[1].write_text(markdown(evaluation), encoding="utf-8")
    taken = set[str]()
    for name, runs in evaluation.runs.items():
        paths.append(folder / "trajectories" / f"{_file_name(name, taken)}.jsonl")
        with Recorder(paths[-1], agent=name) as recorder:
            for run in runs:
                notes: dict[str, Any] = {"end": run.end, "temperature": evaluation.settings.get("temperature")}
                if any(logprob is not None for logprob in run.logprobs):
                    notes["logprobs"] = list(run.logprobs)
                recorder.write(run.trajectory, run.calls, task=run.task, attempt=run.attempt, tags=("evaluation",), metadata=notes)
    return paths


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The report, what was not played, and the settings."""
    return {**console.plain(evaluation.report), "unplayed": dict(evaluation.unplayed), "settings": console.plain(evaluation.settings)}


def _file_name(name: str, taken: set[str]) -> str:
    """A name for a file that no other policy has, whatever characters its own name holds."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "policy"
    made = next(text for text in (plain, *(f"{plain}-{i}" for i in range(2, len(taken) + 3))) if text.casefold() not in taken)
    taken.add(made.casefold())
    return made
