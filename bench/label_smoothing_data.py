"""Preference pairs of the example agent for `bench/label_smoothing.py`, made as `counterplay demo` makes them, and kept in a store.

The agent works on tasks of its own, its failed runs are searched with `repair`, and sibling actions that played lines tell apart become
pairs. Tasks of the two stores share no content, so that neither do the pairs.
"""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

from counterplay import evaluation, exporting, loop, searching
from counterplay.examples.ledger import Ledger
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import DPORow
from counterplay.parts import Asked, closing
from counterplay.plan import Plan
from counterplay.replay.policies import policy_from_spec
from counterplay.replay.recorder import Recorder, record

EXAMPLE = Path(__file__).parents[1] / "examples" / "ledger"
MODEL = EXAMPLE / "model"
WORLD = "counterplay.examples.ledger:Ledger"
MAX_TOKENS, MAX_STEPS = 64, 40


def pairs(folder: Path, split: str, tasks: int, *, tau: float) -> list[DPORow]:
    """The pairs of the agent's runs on so many tasks of a split. What the folder holds already is not played again."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{split}-{tasks}"
    made, logs = folder / f"{name}-{tau:g}.pickle", folder / f"{name}.jsonl.gz"
    if not made.is_file():
        asyncio.run(_work(evaluation.tasks_from_spec(f"counterplay.examples.ledger:tasks:{split}:{tasks}"), logs))
        with made.open("wb") as stream:
            pickle.dump(_searched(logs, folder / f"{name}.duckdb", tau), stream)
    with made.open("rb") as stream:
        rows: list[DPORow] = pickle.load(stream)
    return rows


def _searched(logs: Path, kept: Path, tau: float) -> list[DPORow]:
    with loop.opened(kept) as store:
        loop.ingest([logs], store)
        failed = loop.select(store, which="failed")
        asked = Asked(f"transformers:{MODEL}", WORLD, ("outcome", "ledger"), max_tokens=MAX_TOKENS, max_steps=MAX_STEPS)
        plan = Plan("repair", {"n": 8, "rollouts_per_alternative": 2}, concurrency=len(failed))
        asyncio.run(searching.search(store, failed, asked, plan))
        return list(dpo_rows(exporting.trees(store, loop.select(store)), tau=tau).rows)


async def _work(tasks: list[str], logs: Path) -> None:
    with Recorder(logs, agent="ledger") as recorder:
        async with closing(policy_from_spec(f"transformers:{MODEL}", max_tokens=MAX_TOKENS)) as policy:
            await record(tasks, Ledger, policy, recorder, max_steps=MAX_STEPS, concurrency=128)
