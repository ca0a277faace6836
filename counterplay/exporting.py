"""From the store to datasets and from datasets to a tuned model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Trace
from counterplay.loop import select

if TYPE_CHECKING:
    from counterplay.core.store import SearchRow, Store
    from counterplay.finetune.card import DatasetReport
    from counterplay.finetune.rows import SourcedTree
    from counterplay.finetune.train import TrainReport


def export_sft(
    store: Store,
    out: Path,
    *,
    source: str = "both",
    min_score: float = 1.0,
    min_grade: str = "executed",
    tokenizer: str | None = None,
    max_length: int | None = None,
    held_out: float = 0.0,
    algorithms: Sequence[str] | None = None,
    agent: str | None = None,
    seed: int = 0,
) -> DatasetReport:
    """Whole successful trajectories: `logged` ones, `searched` ones, or both. Raises UserError where no row is left."""
    from counterplay.finetune.rows import Harvest, SFTRow
    from counterplay.finetune.trajectories import logged_rows, sft_rows
    from counterplay.finetune.write import write_dataset

    if source not in ("logged", "searched", "both"):
        raise UserError(f"got --source {source!r}", "logged, searched or both")
    grade, traces = _grade(min_grade), select(store, agent=agent)
    rows: Harvest[SFTRow] = Harvest()
    if source != "searched":
        rows += logged_rows(traces, min_reward=min_score, min_grade=grade)
    ids = {trace.id for trace in traces}
    if source == "searched" or (source == "both" and any(row.trace in ids for row in _finished(store))):
        rows += sft_rows(trees(store, traces, algorithms), min_score=min_score, min_grade=grade)
    return write_dataset(rows, out, tokenizer=_tokenizer(tokenizer), max_length=max_length, split=_split(held_out), seed=seed)


def export_dpo(
    store: Store,
    out: Path,
    *,
    tau: float = 0.9,
    min_grade: str = "executed",
    tokenizer: str | None = None,
    max_length: int | None = None,
    held_out: float = 0.0,
    algorithms: Sequence[str] | None = None,
    agent: str | None = None,
    seed: int = 0,
) -> DatasetReport:
    """Step-level preference pairs from every tree in the store. Raises UserError where no pair is left."""
    from counterplay.finetune.pairs import dpo_rows
    from counterplay.finetune.write import write_dataset

    if not 0.5 < tau <= 1:
        raise UserError(f"got --tau {tau:g}", "a probability above 0.5 and at most 1")
    rows = dpo_rows(trees(store, select(store, agent=agent), algorithms), tau=tau, min_grade=_grade(min_grade))
    if not rows.rows:
        left_out = ", ".join(sorted({drop.reason for drop in rows.drops})) or "nothing else"
        do = f"Lower --tau, or search with more rollouts an alternative. Also left out: {left_out}."
        raise UserError(f"no two siblings differ with a probability of {tau:g}", "at least one pair", do)
    return write_dataset(rows, out, tokenizer=_tokenizer(tokenizer), max_length=max_length, split=_split(held_out), seed=seed)


def trees(store: Store, traces: Sequence[Trace], algorithms: Sequence[str] | None = None) -> list[SourcedTree]:
    """Every finished search of `traces` in the store, with the logged traces it grew from; only those of `algorithms` where given."""
    from counterplay.finetune.rows import SourcedTree

    by_id = {trace.id: trace for trace in traces}
    rows = [row for row in _finished(store) if (not algorithms or row.algorithm in algorithms) and row.trace in by_id]
    if not rows:
        wanted = f"one by {', '.join(algorithms)}" if algorithms else "at least one"
        unfinished = sum(not row.stopped and row.trace in by_id for row in store.searches())
        if unfinished:
            got = f"got no search of these traces in {store.path} that has ended, and {unfinished} under way or killed"
            raise UserError(got, wanted, "Run the same search again: it goes on where it stopped.")
        raise UserError(f"got no search of these traces in {store.path}", wanted, "Search first: counterplay search.")
    return [SourcedTree.of(store.search(row.id), [by_id[row.trace]]) for row in rows if row.trace is not None]


def _finished(store: Store) -> list[SearchRow]:
    """The searches that have ended: what is still under way, or was killed, is no evidence yet."""
    return [row for row in store.searches() if row.stopped]


def train(
    kind: str,
    model: str | Path,
    data: Path,
    out: Path,
    *,
    learning_rate: float | None = None,
    max_length: int | None = None,
    on_step: Callable[[float, float], None] | None = None,
    **settings: Any,
) -> TrainReport:
    """Fine-tune the model in folder `model` on a dataset folder; `kind` is sft or dpo. None leaves a setting to the recipe.

    `on_step` is called with the steps done and their total.
    """
    from counterplay.finetune.train import TrainStep, train_dpo, train_sft

    def note(step: TrainStep) -> None:
        if on_step is not None:
            on_step(step.step, step.total)

    recipe: Callable[..., TrainReport] = {"sft": train_sft, "dpo": train_dpo}[kind]
    given = {"learning_rate": learning_rate, "max_length": max_length}
    return recipe(model, data, out, on_step=note, **{k: v for k, v in given.items() if v is not None}, **settings)


def _grade(name: str) -> Grade:
    try:
        grade = Grade.parse(name)
    except ValueError as error:
        raise UserError(f"got --min-grade {name!r}", str(error).partition("wanted ")[2]) from None
    if grade is Grade.STALE:
        raise UserError(
            "got --min-grade stale", "exact, reused, executed or simulated", "A stale observation is a false one: it is never exported."
        )
    return grade


def _split(held_out: float) -> dict[str, float]:
    if not (math.isfinite(held_out) and 0 <= held_out < 1):
        raise UserError(f"got --held-out {held_out:g}", "a share from 0 up to, not including, 1")
    return {"train": 1 - held_out, "test": held_out} if held_out else {"train": 1.0}


def _tokenizer(folder: str | None) -> Any:
    if folder is None:
        return None
    from counterplay.finetune.trainers import load_tokenizer

    return load_tokenizer(Path(folder))
