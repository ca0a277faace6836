"""The whole loop on the example agent: its logs in, failing steps found, counterfactuals searched, datasets out, tuned models compared.

Everything is done with the same functions the command line uses, and everything is kept in one folder to look at.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import console, evaluation, exporting, loop, searching, training
from counterplay.core.errors import UserError
from counterplay.parts import Asked, closing, world_factory
from counterplay.plan import Plan

if TYPE_CHECKING:
    from counterplay.core.store import Store
    from counterplay.finetune.card import DatasetReport

EXAMPLE = Path(__file__).parent / "examples" / "ledger"
WORLD = "counterplay.examples.ledger:Ledger"
TASKS = "counterplay.examples.ledger:tasks:heldout:{}"
MAX_STEPS, MAX_TOKENS, NEW_TASKS = 40, 64, 600
TUNED = "ledger-tuned"

LOGGED, CONTROL, SFT, DPO = "logged agent", "control SFT", "counterfactual SFT", "counterfactual DPO"


@dataclass(frozen=True)
class Round:
    """One round of search: how many runs of which agent, how many failed and were searched, how many got a better branch."""

    agent: str
    traces: int
    searched: int
    improved: int
    model_calls: int


@dataclass(frozen=True)
class Demo:
    """What the loop did and how the agents compare. `seconds` is wall time by stage.

    `label_noise` is the expected share of pairs that are the wrong way round; None where the tuned agent left no pair, and so no DPO.
    """

    folder: Path
    rounds: tuple[Round, ...]
    rows: dict[str, int]
    label_noise: float | None
    evaluation: evaluation.Evaluation
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
    """Run the loop into `folder`, which is replaced where an earlier run made it. Raises UserError where the example is not installed.

    Round one searches the failed runs of the logged agent and tunes it on the better trajectories. Round two lets the tuned
    agent work on new tasks and prefers, pair by pair, what would have been better than its own mistakes.
    """
    logs, model = EXAMPLE / "logs.jsonl.gz", EXAMPLE / "model"
    if not (logs.is_file() and model.is_dir()):
        raise UserError(f"got no example in {EXAMPLE}", "its logs and model", "Run the demo from a checkout: make demo")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _prepare(folder)
    clock, models, tuned = _Clock(quiet=quiet), {LOGGED: model}, folder / "tuned.jsonl.gz"
    with loop.opened(folder / "ledger.duckdb") as store:
        first = _round(store, logs, "ledger", model, clock)
        with clock.stage("export SFT data"):
            control = exporting.export_sft(store, folder / "sft-logged", source="logged", tokenizer=str(model))
            sft = exporting.export_sft(store, folder / "sft-counterfactual", source="both", tokenizer=str(model))
        for name, data in ((CONTROL, "sft-logged"), (SFT, "sft-counterfactual")):
            models[name] = _train("sft", name, model, folder / data, clock, epochs=3, learning_rate=5e-4)
        with clock.stage("let the tuned agent work on new tasks", NEW_TASKS) as tick:
            asyncio.run(_work(models[SFT], tuned, tick.advance))
        second = _round(store, tuned, TUNED, models[SFT], clock)
        with clock.stage("export DPO data"):
            dpo = _pairs(store, folder / "dpo", model)
        if dpo is not None:
            models[DPO] = _train("dpo", DPO, models[SFT], folder / "dpo", clock, epochs=3, learning_rate=5e-5)
    rows = {CONTROL: control.rows["train"], SFT: sft.rows["train"], DPO: dpo.rows["train"] if dpo else 0}
    report = _evaluate(models, held_out_tasks, clock)
    return Demo(folder, (first, second), rows, dpo.label_noise if dpo else None, report, clock.seconds)


def _prepare(folder: Path) -> None:
    marker = folder / "ledger.duckdb"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise UserError(f"got folder {folder}, which holds something else", "a new folder, or one of an earlier demo")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _round(store: Store, logs: Path, agent: str, model: Path, clock: _Clock) -> Round:
    """Take an agent's logs in, find where its failed runs went wrong, and search what else it could have done."""
    with clock.stage(f"ingest the logs of {agent}") as tick:
        taken = loop.ingest([logs], store, on_item=tick.advance)
    failed = loop.select(store, which="failed", agent=agent)
    with clock.stage(f"localise the errors of {agent}") as tick:
        asyncio.run(loop.localise(store, failed, Asked(verifiers=("ledger",)), on_trace=tick.advance))
    asked = Asked(f"transformers:{model}", WORLD, ("outcome", "ledger"), max_tokens=MAX_TOKENS, max_steps=MAX_STEPS)
    plan = Plan("repair", {"n": 8, "rollouts_per_alternative": 2}, concurrency=max(1, len(failed)))
    with clock.stage(f"search counterfactuals of {agent}", len(failed)) as tick:
        done = asyncio.run(searching.search(store, failed, asked, plan, on_trace=tick.advance))
    return Round(agent, taken.traces_added, len(done.searches), done.improved, int(done.used.get("model_calls", 0)))


async def _work(model: Path, logs: Path, on_task: Callable[[], None]) -> None:
    """Record the model at work, as a production agent would be, on training tasks it has not met."""
    from counterplay.replay.policies import policy_from_spec
    from counterplay.replay.recorder import Recorder, record

    tasks = evaluation.tasks_from_spec(f"counterplay.examples.ledger:tasks:new:{NEW_TASKS}")
    with Recorder(logs, agent=TUNED) as recorder:
        async with closing(policy_from_spec(f"transformers:{model}", temperature=0.4, max_tokens=MAX_TOKENS)) as policy:
            await record(tasks, world_factory(WORLD), policy, recorder, max_steps=MAX_STEPS, concurrency=128, progress=lambda _: on_task())


def _pairs(store: Store, out: Path, model: Path) -> DatasetReport | None:
    """Preference pairs from what the tuned agent got wrong; None where it left no pair to learn from."""
    try:
        return exporting.export_dpo(store, out, agent=TUNED, tokenizer=str(model))
    except UserError as error:
        console.err.print(f"no DPO: {error}", highlight=False, markup=False)
        return None


def _train(kind: str, name: str, start: Path, data: Path, clock: _Clock, **settings: Any) -> Path:
    out = data.parent / f"model-{data.name}"
    with clock.stage(f"train: {name}") as tick:
        training.train(kind, start, data, out, batch_size=8, on_step=tick.at, **settings)
    return out


def _evaluate(models: dict[str, Path], held_out_tasks: int, clock: _Clock) -> evaluation.Evaluation:
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
        "control": "the logged agent, tuned on its logged successes only",
        **{f"runs of {r.agent}": f"{r.traces}, {r.searched} failed and searched, {r.improved} with a better branch" for r in demo.rounds},
        "training rows": ", ".join(f"{name} {count}" for name, count in demo.rows.items()),
        "expected label noise of the pairs": "no pairs, no DPO" if demo.label_noise is None else f"{demo.label_noise:.1%}",
        "wall time": f"{sum(demo.seconds.values()):.0f} s",
        "everything is in": str(demo.folder),
    }
    return [console.facts(lines), *evaluation.tables(demo.evaluation)]
