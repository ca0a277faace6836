"""What a folder of rounds remembers: the options it was begun with, and of every round the stages that are done.

A stage is known by the content of what goes into it. One that is done is not done again; one that a kill cut off is begun again, and
finds what it had answered, played or trained.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from counterplay.core.canonical import canonical, content_key, loads
from counterplay.core.errors import UserError

IMPROVE, ROUND, EVALUATION = "improve.json", "round.json", "evaluation.json"


class Stages:
    """The stages of one round, in `round.json` of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ROUND
        self.known: dict[str, dict[str, Any]] = loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def done(
        self, name: str, inputs: Mapping[str, Any], make: Callable[[bool], Mapping[str, Any]], *, left: Iterable[str] = ()
    ) -> Mapping[str, Any]:
        """The result of stage `name` on `inputs`, both plain JSON: the known one, where all that it `left` is still there, else `make`'s.

        `make` is told whether a stage with the same inputs was begun before and cut off.
        """
        identity, held = content_key(name, canonical(inputs)), self.known.get(name, {})
        same = held.get("identity") == identity
        if same and held.get("result") is not None and all((self.folder / file).exists() for file in left):
            result: Mapping[str, Any] = held["result"]
            return result
        cut_off = same and held.get("result") is None
        self._keep(name, {"identity": identity, "result": None})
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        result = make(cut_off)
        spent = {"seconds": round(time.monotonic() - began_s, 1), "cpu_seconds": round(time.process_time() - began_cpu_s, 1)}
        self._keep(name, {"identity": identity, **spent, "result": result})
        return result

    def spent(self, what: str) -> float:
        """What all stages together took, `seconds` or `cpu_seconds`; of a stage that was cut off, its last go."""
        total: float = sum(stage.get(what, 0.0) for stage in self.known.values())
        return round(total, 1)

    def _keep(self, name: str, stage: Mapping[str, Any]) -> None:
        self.known[name] = dict(stage)
        write_json(self.folder / ROUND, self.known)


def settle(out: Path, asked: Mapping[str, Any]) -> None:
    """Make `out` the folder of these rounds, or go on in it.

    Raises UserError where it holds something else, or was begun with other options.
    """
    file = out / IMPROVE
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"got folder {out}, which holds something else", "a new folder, or one of earlier rounds")
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, {"format": 1, "asked": asked})
        return
    before: Mapping[str, Any] = loads(file.read_text(encoding="utf-8"))["asked"]
    now: Mapping[str, Any] = loads(json.dumps(asked))
    other = [f"{name} {_short(before.get(name))}, now {_short(now.get(name))}" for name in now if before.get(name) != now.get(name)]
    if other:
        do = "Give the same options to go on, or another --out to begin anew."
        raise UserError(f"the rounds in {out} were begun with other options: {'; '.join(other)}", "the same options", do)


def write_json(file: Path, value: Any) -> None:
    """The file whole or as it was, whenever it ends."""
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(file)


def files_hash(paths: Iterable[Path]) -> str:
    """A key of the content of files, and of all files in folders."""
    files = sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    parts = []
    for file in files:
        with file.open("rb") as stream:
            digest = blake2b(digest_size=16)
            while block := stream.read(2**20):
                digest.update(block)
        parts.append(f"{file.name} {digest.hexdigest()}")
    return content_key(*parts)


def _short(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
