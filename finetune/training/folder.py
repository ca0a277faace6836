"""The folder of a training: what is trained there, its checkpoints and its metrics, so that a killed one goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterplay.core.canonical import loads
from counterplay.core.errors import UserError
from counterplay.finetune.training import processes

STATE, METRICS, PLOT, CHECKPOINTS = "training.json", "metrics.jsonl", "metrics.svg", "checkpoints"


def prepare(out: Path, model_dir: Path, recipe: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Make room in `out`; the checkpoint to go on from, None to start afresh.

    Raises UserError where `out` holds the model, something else than a training, or, with `resume`, a training by another recipe.
    """
    if out.resolve() in {model_dir.resolve(), *model_dir.resolve().parents}:
        raise UserError(f"{out} holds the model that is trained", "another folder for the result")
    if processes.leads():
        _make_room(out, recipe, resume=resume)
    processes.wait()
    return _last_checkpoint(out / CHECKPOINTS) if resume else None


def _make_room(out: Path, recipe: Mapping[str, Any], *, resume: bool) -> None:
    state = out / STATE
    if out.exists() and not state.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and is no training of counterplay", "a new or empty folder, or a training to replace", "Give another folder."
        )
    checkpoint = _last_checkpoint(out / CHECKPOINTS) if resume else None
    if checkpoint is not None and loads(state.read_text(encoding="utf-8"))["recipe"] != loads(json.dumps(recipe)):
        raise UserError(
            f"{out} holds a training with another recipe", "the same options to resume it", f"See {state}, or train without resume."
        )
    if checkpoint is None and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint is not None:
        _forget_steps_after(out / METRICS, int(checkpoint.name.rpartition("-")[2]))
    write_state(out, recipe, None)


def _forget_steps_after(metrics: Path, step: int) -> None:
    """Steps after the checkpoint are taken, and noted, again."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
    metrics.write_text("".join(line for line in lines if line.endswith("\n") and loads(line)["step"] <= step), encoding="utf-8")


def _last_checkpoint(folder: Path) -> Path | None:
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def write_state(out: Path, recipe: Mapping[str, Any], report: Mapping[str, Any] | None) -> None:
    """The mark of a training folder; `report` is null until it is finished."""
    fresh = out / f".{STATE}"
    fresh.write_text(json.dumps({"format": 1, "recipe": recipe, "report": report}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(out / STATE)


def append_metrics(out: Path, line: Mapping[str, Any]) -> None:
    with (out / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of a training so far, each a step; those of a run that was killed and resumed are whole too."""
    text = (out / METRICS).read_text(encoding="utf-8") if (out / METRICS).is_file() else ""
    return [loads(line) for line in text.splitlines()]
