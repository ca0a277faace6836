"""What lies in folders beside a store: datasets, trainings, rounds of improvement, evaluations of policies and of verifiers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterplay.core.canonical import loads
from counterplay.viewing.conversation import View

DEPTH, ENTRIES = 4, 20_000
_SKIPPED = {"checkpoints", "node_modules", "__pycache__", "trajectories"}
_NAMES = {"counterplay.json", "training.json", "improve.json", "report.json", "scaling.json"}


@dataclass
class Found:
    """Folders by what is in them, each under an id made of its name. `cut` says that there was more than was looked at."""

    datasets: dict[str, tuple[Path, View]] = field(default_factory=dict)
    trainings: dict[str, tuple[Path, View]] = field(default_factory=dict)
    improvements: dict[str, tuple[Path, View]] = field(default_factory=dict)
    evaluations: dict[str, tuple[Path, View]] = field(default_factory=dict)
    scalings: dict[str, tuple[Path, View]] = field(default_factory=dict)
    verifiers: dict[str, tuple[Path, View]] = field(default_factory=dict)
    cut: bool = False


def find(folders: Iterable[Path]) -> Found:
    """Look through `folders` and what lies up to four levels below. A file that can't be read as what its name says is passed over."""
    found = Found()
    for file in _files(folders, found):
        content = _read(file)
        shelf = None if content is None else _shelf(found, file.name, content)
        if shelf is not None:
            shelf[_id(file.parent, shelf)] = file.parent, content or {}
    return found


def _files(folders: Iterable[Path], found: Found) -> Iterator[Path]:
    seen, looked = set[Path](), 0
    for root in folders:
        for place, below, names in os.walk(root):
            here = Path(place)
            looked += 1 + len(names)
            if looked > ENTRIES:
                found.cut = True
                return
            deep = len(here.relative_to(root).parts) >= DEPTH
            below[:] = [] if deep else sorted(name for name in below if not name.startswith(".") and name not in _SKIPPED)
            if here.resolve() not in seen:
                seen.add(here.resolve())
                yield from (here / name for name in sorted(_NAMES & set(names)))


def _read(file: Path) -> View | None:
    try:
        content = loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _shelf(found: Found, name: str, content: View) -> dict[str, tuple[Path, View]] | None:
    def holds(*names: str) -> bool:
        return all(name in content for name in names)

    known: dict[str, tuple[bool, dict[str, Any]]] = {
        "counterplay.json": (holds("kind", "rows", "dropped"), found.datasets),
        "training.json": (holds("recipe", "report"), found.trainings),
        "improve.json": (holds("rounds", "chosen"), found.improvements),
        "scaling.json": (holds("curves", "gaps"), found.scalings),
    }
    if name == "report.json":
        if holds("evaluations"):
            return found.verifiers
        return found.evaluations if holds("policies", "comparisons") else None
    fits, shelf = known[name]
    return shelf if fits else None


def _id(folder: Path, taken: dict[str, Any]) -> str:
    name = folder.resolve().name or "folder"
    return next(each for each in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if each not in taken)
