"""The whole loop on the example agent: its logs in, failing steps found, counterfactuals searched, datasets out, tuned models compared.

Everything is done with the same functions the command line uses, and everything is kept in one folder to look at.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import console, evaluation, exporting, loop
from counterplay.core.errors import UserError
from counterplay.parts import Asked

if TYPE_CHECKING:
    from counterplay.core.store import Store
    from counterplay.finetune.evaluate import EvaluationReport

EXAMPLE = Path(__file__).parent / "examples" / "ledger"
WORLD = "counterplay.examples.ledger:Ledger"
TASKS = "counterplay.examples.ledger:tasks:heldout:{}"
MAX_STEPS, MAX_TOKENS = 40, 64

LOGGED, CONTROL, SFT, DPO = "logged agent", "logged-success SFT", "counterfactual SFT", "counterfactual DPO"


@dataclass(frozen=True)
class Demo:
    """What the loop did and how the agents compare. `seconds` is wall time by stage."""

    folder: Path
    traces: int
    failed: int
    searched: int
    improved: int
    rows: dict[str, int]
    label_noise: float
    evaluation: EvaluationReport
    seconds: dict[str, float]


class _Clock:
    """Wall time by stage, shown as it passes."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.seconds = quiet, dict[str, float]()

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[console.Ticker]:
        started = time.monotonic()
        with console.ticking(name, total, quiet=self.quiet) as tick:
            yield tick
        self.seconds[name] = round(time.monotonic() - started, 1)
        if not self.quiet:
            console.err.print(f"[green]✓[/] {name}  [dim]{self.seconds[name]:.1f} s[/]", highlight=False)


def run(folder: Path, *, held_out_tasks: int = 300, quiet: bool = False) -> Demo:
    """Run the loop into `folder`, which is replaced where an earlier run made it. Raises UserError where the example is not installed."""
    logs, model = EXAMPLE / "logs.jsonl.gz", EXAMPLE / "model"
    if not (logs.is_file() and model.is_dir()):
        raise UserError(f"got no example in {EXAMPLE}", "its logs and model", "Run the demo from a checkout: make demo")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _prepare(folder)
    clock = _Clock(quiet=quiet)
    with loop.opened(folder / "ledger.duckdb") as store:
        with clock.stage("ingest the agent's logs") as tick:
            taken = loop.ingest([logs], store, on_item=tick.advance)
        searched = _search(store, model, clock)
        rows, noise = _export(store, folder, model, clock)
    models = _train(folder, model, clock)
    report = _evaluate(models, held_out_tasks, clock)
    return Demo(folder, taken.traces_added, taken.failed, searched.traces, searched.improved, rows, noise, report, clock.seconds)


def _prepare(folder: Path) -> None:
    marker = folder / "ledger.duckdb"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise UserError(f"got folder {folder}, which holds something else", "a new folder, or one of an earlier demo")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _search(store: Store, model: Path, clock: _Clock) -> loop.Searched:
    failed = loop.select(store, trace_ids=None, which="failed", limit=None)
    asked = Asked(f"transformers:{model}", WORLD, ("outcome", "ledger"), max_tokens=MAX_TOKENS, max_steps=MAX_STEPS)
    with clock.stage("find where failed runs went wrong") as tick:
        asyncio.run(loop.localise(store, failed, Asked(verifiers=("ledger",)), on_trace=tick.advance))
    plan = loop.Plan("repair", {"n": 8, "rollouts_per_alternative": 2}, concurrency=len(failed))
    with clock.stage("search counterfactuals", len(failed)) as tick:
        return asyncio.run(loop.search(store, failed, asked, plan, on_trace=tick.advance))


def _export(store: Store, folder: Path, model: Path, clock: _Clock) -> tuple[dict[str, int], float]:
    with clock.stage("export datasets"):
        control = exporting.export_sft(store, folder / "sft-logged", source="logged", tokenizer=str(model))
        sft = exporting.export_sft(store, folder / "sft-counterfactual", source="both", tokenizer=str(model))
        dpo = exporting.export_dpo(store, folder / "dpo", tokenizer=str(model))
    rows = {CONTROL: control.rows["train"], SFT: sft.rows["train"], DPO: dpo.rows["train"]}
    return rows, dpo.label_noise or 0.0


def _train(folder: Path, model: Path, clock: _Clock) -> dict[str, Path]:
    models = {LOGGED: model, CONTROL: folder / "model-control", SFT: folder / "model-sft", DPO: folder / "model-dpo"}
    recipes: list[tuple[str, str, Path, str, dict[str, Any]]] = [
        (CONTROL, "sft", model, "sft-logged", {"epochs": 3, "learning_rate": 5e-4, "batch_size": 8}),
        (SFT, "sft", model, "sft-counterfactual", {"epochs": 3, "learning_rate": 5e-4, "batch_size": 8}),
        (DPO, "dpo", models[SFT], "dpo", {"epochs": 1, "learning_rate": 2e-5, "batch_size": 8}),
    ]
    for name, kind, start, data, settings in recipes:
        with clock.stage(f"train: {name}") as tick:
            exporting.train(kind, start, folder / data, models[name], on_step=tick.at, **settings)
    return models


def _evaluate(models: dict[str, Path], held_out_tasks: int, clock: _Clock) -> EvaluationReport:
    tasks = evaluation.tasks_from_spec(TASKS.format(held_out_tasks))
    policies = {name: f"transformers:{path}" for name, path in models.items()}
    with clock.stage(f"play {held_out_tasks} held-out tasks with each agent", len(tasks) * len(policies)) as tick:
        return asyncio.run(
            evaluation.evaluate(
                policies,
                WORLD,
                tasks,
                temperature=0.0,
                max_tokens=MAX_TOKENS,
                max_steps=MAX_STEPS,
                against=[LOGGED, CONTROL, SFT],
                on_task=tick.advance,
            )
        )


def table(demo: Demo) -> list[Any]:
    """The one table at the end, and what it rests on."""
    lines = {
        "logged runs": f"{demo.traces} ({demo.failed} failed)",
        "searched": f"{demo.searched} failed runs, {demo.improved} with a better branch",
        "training rows": ", ".join(f"{name}: {count}" for name, count in demo.rows.items()),
        "expected label noise of the pairs": f"{demo.label_noise:.1%}",
        "everything is in": str(demo.folder),
    }
    return [console.facts(lines), *evaluation.tables(demo.evaluation)]
