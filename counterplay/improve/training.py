"""What a round learns from its searches: datasets, the next model, and the learned verifier that guides the next searches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import exporting, loop
from counterplay.core.canonical import loads
from counterplay.core.errors import UserError
from counterplay.improve.kept import files_hash
from counterplay.improve.settings import Improvement, agent_of
from counterplay.training import train as tune

if TYPE_CHECKING:
    from counterplay.core.store import Store

SHARED = ("batch_size", "micro_batch", "lora", "checkpoint_steps")


def export(store: Store, given: Improvement, number: int, folder: Path, *, solved: int) -> dict[str, Any]:
    """Write the round's datasets: successful runs, logged and searched, and pairs where they were asked for. Counts of both.

    `solved` is how many failed runs were solved so far. No dataset is written where nothing has succeeded.
    """
    agent = agent_of(number) if given.start == "previous" and given.plays(number) else None
    if not solved and not store.traces(success=True, agent=agent, limit=1):
        return {"rows": 0, "pairs": 0, "left_out": {}, "data": ""}
    common: dict[str, Any] = {
        "tokenizer": str(given.model),
        "max_length": given.max_length,
        "agent": agent,
        "seed": given.asked.seed,
    }
    sft, pairs = exporting.export_sft(store, folder / "sft", source="both", **common), 0
    if given.dpo:
        try:
            pairs = exporting.export_dpo(store, folder / "dpo", **{**common, "max_length": _dpo_length(given)}).rows["train"]
        except UserError:
            shutil.rmtree(folder / "dpo", ignore_errors=True)  # no pair is sure enough: SFT alone
    written = files_hash([folder / name for name in ("sft", "dpo") if (folder / name).is_dir()])
    return {"rows": sft.rows["train"], "pairs": pairs, "left_out": dict(sft.dropped), "data": written}


def train(given: Improvement, start: Path, folder: Path, pairs: int, on_step: Callable[[float, float], None], *, cut_off: bool) -> None:
    """Train `folder / "model"`: SFT from `start`, then DPO where there are pairs, which takes from SFT's settings those of `SHARED`.

    `cut_off` says that it was begun before: it goes on from the last checkpoint, where they are kept.
    """
    resume = cut_off and given.training.get("checkpoint_steps") is not None
    common = {"seed": given.asked.seed, "on_step": on_step, "resume": resume}
    shared = {name: given.training[name] for name in SHARED if name in given.training}
    out = folder / ("model-sft" if pairs else "model")
    if not resume:
        for stale in ("model-sft", "model"):
            shutil.rmtree(folder / stale, ignore_errors=True)
    if not (resume and pairs and _finished(out)):  # trained again it might differ, and then DPO could not go on from its checkpoint
        tune("sft", start, folder / "sft", out, **{**common, **given.training, "max_length": given.max_length})
    if pairs:
        tune("dpo", out, folder / "dpo", folder / "model", **{**common, **shared, **given.dpo_training, "max_length": _dpo_length(given)})


def _finished(model: Path) -> bool:
    """Whether the training in this folder came to its end."""
    from counterplay.finetune.training.folder import STATE

    state = model / STATE
    return state.is_file() and loads(state.read_text(encoding="utf-8")).get("report") is not None


def _dpo_length(given: Improvement) -> int:
    return given.dpo_training.get("max_length") or given.max_length


def train_prm(store: Store, given: Improvement, folder: Path, note: Callable[..., None]) -> dict[str, Any]:
    """A learned verifier from every search so far, in `folder / "prm"`; no such folder, and why, where they hold nothing to learn from."""
    from counterplay.finetune import prm
    from counterplay.finetune.labels.write import label_rows, outcomes

    fresh, out = folder / ".prm", folder / "prm"
    for stale in (fresh, out):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        sources = exporting.trees(store, loop.select(store))
        report = prm.train(
            given.prm,
            given.model,
            fresh,
            rows=lambda: label_rows("mc-soft", sources)[0],
            nodes=list,
            ends=lambda: outcomes(sources),
            note=note,
            **{"seed": given.asked.seed, **given.prm_training},
        )
    except UserError as error:  # nothing was searched, or nothing came of it
        shutil.rmtree(fresh, ignore_errors=True)
        return {"examples": 0, "why": str(error)}
    fresh.rename(out)
    return {"examples": report.examples, "loss": report.loss}


def spec_of(given: Improvement, folder: Path) -> str:
    """What names the learned verifier of a round; empty where it has none."""
    out = folder / "prm"
    if not out.is_dir():
        return ""
    return f"prm:{out}" if given.prm == "prm" else f"implicit-prm:{out},{given.model}"
