"""Answers about what was measured: verifiers, trainings, rounds of improvement, evaluations, test-time scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from counterplay import console
from counterplay.viewing.conversation import View
from counterplay.viewing.folders import Found

STEPS = 1000
_ROUND = (
    "number",
    "success",
    "interval",
    "tasks",
    "gain",
    "over_base",
    "verdict",
    "search",
    "traces",
    "failed",
    "solved",
    "rows",
    "pairs",
    "model_calls",
    "tokens",
    "seconds",
)


def verifier_reports(found: Found) -> View:
    shown = [{"id": name, "name": folder.name, "evaluations": told["evaluations"]} for name, (folder, told) in found.verifiers.items()]
    return {"reports": console.plain(shown)}


def training(found: Found) -> View:
    rounds = [
        {**_named(name, folder), "chosen": told["chosen"], "stopped": told["stopped"], "rounds": [_picked(one) for one in told["rounds"]]}
        for name, (folder, told) in found.improvements.items()
    ]
    evaluations = [
        {**_named(name, folder), "policies": told["policies"], "comparisons": told["comparisons"]}
        for name, (folder, told) in found.evaluations.items()
    ]
    scalings = [{**_named(name, folder), **told} for name, (folder, told) in found.scalings.items()]
    trainings = [
        {**_named(name, folder), "recipe": told["recipe"], "report": told["report"], "metrics": metrics(folder)}
        for name, (folder, told) in found.trainings.items()
    ]
    answer: View = {"trainings": trainings, "improvements": rounds, "evaluations": evaluations, "scalings": scalings}
    return dict(console.plain(answer))


def metrics(folder: Path) -> dict[str, list[float | None]]:
    """The metrics of a training in columns, thinned evenly to at most a thousand steps, the last one among them."""
    from counterplay.finetune.training.folder import read_metrics

    try:
        lines = read_metrics(folder)
    except ValueError:  # a line is being written
        return {"step": []}
    every = -(-len(lines) // STEPS) or 1
    kept = lines[(len(lines) - 1) % every :: every]
    names = dict.fromkeys(["step", *(name for line in kept for name, value in line.items() if _number(value))])
    return {name: [value if _number(value := line.get(name)) else None for line in kept] for name in names}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(name: str, folder: Path) -> View:
    return {"id": name, "name": folder.name}


def _picked(one: View) -> View:
    return {name: one.get(name) for name in _ROUND}
