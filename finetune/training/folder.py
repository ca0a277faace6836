"""The folder of a training: what is trained there, its checkpoints and its metrics, so that a killed one goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from counterplay.core.canonical import loads
from counterplay.core.errors import UserError
from counterplay.finetune.training import processes

STATE, METRICS, PLOT, CHECKPOINTS = "training.json", "metrics.jsonl", "metrics.svg", "checkpoints"


def prepare(out: Path, model_dir: Path, decisive: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Make room in `out`; the checkpoint to go on from, None to start afresh. `decisive` is what decides the result: recipe and keys.

    Raises UserError where `out` holds the model, something else than a training, or, with `resume`, a training by another recipe, on
    another dataset or from another model.
    """
    if out.resolve() in {model_dir.resolve(), *model_dir.resolve().parents}:
        raise UserError(f"{out} holds the model that is trained", "another folder for the result")
    if processes.leads():
        _make_room(out, decisive, resume=resume)
    processes.wait()
    return _last_checkpoint(out / CHECKPOINTS) if resume else None


def _make_room(out: Path, decisive: Mapping[str, Any], *, resume: bool) -> None:
    state = out / STATE
    if out.exists() and not state.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and is no training of counterplay", "a new or empty folder, or a training to replace", "Give another folder."
        )
    checkpoint = _last_checkpoint(out / CHECKPOINTS) if resume else None
    if checkpoint is not None:
        kept, given = loads(state.read_text(encoding="utf-8")), loads(json.dumps(decisive))
        others = [f"another {name}" for name, value in given.items() if kept.get(name) != value]
        if others:
            do = f"See {state}, or train without resume."
            raise UserError(f"{out} holds a training with {' and '.join(others)}", "the same options, dataset and model to resume it", do)
    if checkpoint is None and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint is not None:
        _forget_steps_after(out / METRICS, int(checkpoint.name.rpartition("-")[2]))
    write_state(out, decisive, None)


def _forget_steps_after(metrics: Path, step: int) -> None:
    """Steps after the checkpoint are taken, and noted, again."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.is_file() else []
    metrics.write_text("".join(line for line in lines if line.endswith("\n") and loads(line)["step"] <= step), encoding="utf-8")


def _last_checkpoint(folder: Path) -> Path | None:
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def write_state(out: Path, decisive: Mapping[str, Any], report: Mapping[str, Any] | None) -> None:
    """The mark of a training folder; `report` is null until it is finished."""
    fresh = out / f".{STATE}"
    fresh.write_text(json.dumps({"format": 1, **decisive, "report": report}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(out / STATE)


def rows_key(rows: Iterable[Mapping[str, Any]]) -> str:
    """A key of ready rows in their order, 32 hex digits."""
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, default=asdict).encode() + b"\n")
    return digest.hexdigest()


def append_metrics(out: Path, line: Mapping[str, Any]) -> None:
    with (out / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of a training so far, each a step; those of a run that was killed and resumed are whole too."""
    text = (out / METRICS).read_text(encoding="utf-8") if (out / METRICS).is_file() else ""
    return [loads(line) for line in text.splitlines()]
