"""From the store to datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast, get_args

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Trace
from counterplay.export_rows import PAIRS, SFT_ROWS, WEIGHTS
from counterplay.gating import SIMILARITY, gates_for
from counterplay.loop import select

if TYPE_CHECKING:
    from counterplay.core.store import SearchRow, Store
    from counterplay.finetune.card import DatasetReport
    from counterplay.finetune.rows import AnyRow, DPORow, Gate, Harvest, SourcedTree
    from counterplay.finetune.splits import SplitBy
    from counterplay.finetune.write import Format


ABLATION = "ablation"
SOURCES = ("logged", "searched", "both")


class Shared(TypedDict, total=False):
    """What every export can be told; the defaults are those of `write`.

    `min_grade` is the worst grade that may enter; `tokenizer` a model folder whose template measures the rows; `held_out` the share of the
    test split, of which no row shares a `split_by` (task, session, user) with training; `algorithms` and `agent` choose searches and
    traces; `formats` are of `finetune.write.Format`. `near_duplicates`, `held_out_file`, `look_for`, `look_for_rules` and `keep_secrets`
    are those of `gating.gates_for`; `per_task` and `per_tool` cap the rows of a task, and those that call a tool.
    """

    min_grade: str
    tokenizer: str | None
    max_length: int | None
    held_out: float
    split_by: Sequence[str]
    algorithms: Sequence[str] | None
    agent: str | None
    seed: int
    licence: str
    formats: Sequence[str]
    near_duplicates: float
    held_out_file: Path | None
    look_for: Sequence[str] | None
    look_for_rules: Path | None
    keep_secrets: bool
    per_task: int | None
    per_tool: int | None


@dataclass(frozen=True)
class _Export:
    """One export: what it reads, once, and where it writes."""

    store: Store
    out: Path
    shared: Shared

    @cached_property
    def traces(self) -> list[Trace]:
        return select(self.store, agent=self.shared.get("agent"))

    @cached_property
    def trees(self) -> list[SourcedTree]:
        return trees(self.store, self.traces, self.shared.get("algorithms"))

    def trees_beside(self, source: str) -> list[SourcedTree]:
        """The searches: none where only logs are asked for, or where there are none and logs are asked for too."""
        ids = {trace.id for trace in self.traces}
        found = _finished(self.store, self.shared.get("algorithms"))
        searched = source == "searched" or (source == "both" and any(row.trace in ids for row in found))
        return self.trees if searched else []

    @cached_property
    def grade(self) -> Grade:
        name = self.shared.get("min_grade", "executed")
        try:
            grade = Grade.parse(name)
        except ValueError as error:
            raise UserError(f"got --min-grade {name!r}", str(error).partition("wanted ")[2]) from None
        if grade is Grade.STALE:
            wanted = "exact, reused, executed or simulated"
            raise UserError("got --min-grade stale", wanted, "A stale observation is a false one: it is never exported.")
        return grade

    def branches(self, source: str) -> list[SourcedTree]:
        """Trees whose branches are played to their ends: searches, and the logged runs of each task merged."""
        from counterplay.finetune.merged import merged_logs

        _one_of("--source", source, SOURCES)
        return [*self.trees_beside(source), *(merged_logs(self.traces) if source != "searched" else [])]

    def pairs(self, rows: str, source: str, tau: float, min_score: float) -> Harvest[DPORow]:
        _one_of("--rows", rows, PAIRS)
        _check_tau(tau)
        if rows in ("step", "ablation") and source == "logged":
            raise UserError(f"got --source logged for --rows {rows}", "searched or both", "Merge logs into trees: search --search stitch.")
        if rows == "ablation":
            found = [*_trees(self.store, self.traces), *_trees(self.store, self.traces, [ABLATION])]
        else:
            found = self.trees if rows == "step" else self.branches(source)
        made = PAIRS[rows](found, tau, min_score, self.grade)
        if made.rows:
            return made
        left_out = ", ".join(sorted({drop.reason for drop in made.drops})) or "nothing else"
        if rows == "step":
            do = f"Lower --tau, or search with more rollouts an alternative. Also left out: {left_out}."
            raise UserError(f"no two siblings differ with a probability of {tau:g}", "at least one pair", do)
        first = "Leave calls out first: counterplay ablate" if rows == "ablation" else "Search with more finished branches a fork"
        do = f"{first}. Also left out: {left_out}."
        raise UserError(f"no two branches of a fork make a pair of the kind {rows}", "at least one pair", do)

    def gates(self, near_duplicates: float) -> list[Gate]:
        from counterplay.finetune.balance import capped

        shared = self.shared
        per_task, per_tool = shared.get("per_task"), shared.get("per_tool")
        caps = partial(capped, per_task=per_task, per_tool=per_tool, seed=shared.get("seed", 0))
        gates = gates_for(
            near_duplicates=near_duplicates,
            held_out_file=shared.get("held_out_file"),
            look_for=shared.get("look_for"),
            rules=shared.get("look_for_rules"),
            keep_secrets=shared.get("keep_secrets", False),
        )
        return [*gates, *([caps] if per_task or per_tool else [])]

    def write(self, made: Harvest[AnyRow], **chosen: Any) -> DatasetReport:
        """Write the rows; what every export is told, and what this one was (`chosen`), goes onto the card."""
        from counterplay.finetune.gates.near import near_ties
        from counterplay.finetune.splits import SplitBy
        from counterplay.finetune.write import write_dataset

        shared = self.shared
        near, by = shared.get("near_duplicates", SIMILARITY), shared.get("split_by") or ("task", "session")
        for name in by:
            _one_of("--split-by", name, get_args(SplitBy))
        held_out = shared.get("held_out_file")
        told = {name: shared.get(name) for name in ("algorithms", "agent", "look_for", "per_task", "per_tool")}
        return write_dataset(
            made,
            self.out,
            tokenizer=_tokenizer(shared.get("tokenizer")),
            max_length=shared.get("max_length"),
            split=_split(shared.get("held_out", 0.0)),
            seed=shared.get("seed", 0),
            formats=cast("Sequence[Format]", shared.get("formats") or ("parquet", "jsonl")),
            licence=shared.get("licence", "unknown"),
            gates=self.gates(near),
            by=cast("Sequence[SplitBy]", by),
            ties=near_ties,
            traces=self.traces,
            settings={**chosen, "min_grade": self.grade.name.lower(), **told, "held_out_file": held_out and Path(held_out).name},
        )


def export_sft(
    store: Store,
    out: Path,
    *,
    rows: str = "whole",
    source: str = "both",
    min_score: float = 1.0,
    tau: float = 0.9,
    weights: str = "none",
    **shared: Unpack[Shared],
) -> DatasetReport:
    """Successful trajectories: `logged` ones, `searched` ones, or both, cut into rows in one of the ways of `SFT_ROWS`.

    `tau` is how sure it must be that a step is an improvement, or was wrong. `weights` fills the columns `weight` and `step_weights`
    in one of the ways of `WEIGHTS`. Raises UserError where no row is left.
    """
    from counterplay.finetune.exactness import recorded_ids, with_token_ids

    _one_of("--weights", weights, ("none", *WEIGHTS))
    _one_of("--rows", rows, SFT_ROWS)
    _one_of("--source", source, SOURCES)
    _check_tau(tau)
    export = _Export(store, out, shared)
    found, logs = export.trees_beside(source), export.traces if source != "searched" else []
    made = SFT_ROWS[rows](found, logs, min_score, tau, export.grade)
    if weights != "none":
        made = WEIGHTS[weights](made, found, logs)
    made = replace(made, rows=tuple(with_token_ids(made.rows, recorded_ids(export.traces))))
    told = tau if rows in ("improved", "recovery") else None
    return export.write(made, rows=rows, source=source, min_score=min_score, tau=told, weights=weights)


def export_dpo(
    store: Store,
    out: Path,
    *,
    rows: str = "step",
    source: str = "both",
    tau: float = 0.9,
    min_score: float = 1.0,
    **shared: Unpack[Shared],
) -> DatasetReport:
    """Preference pairs of one of the kinds of `PAIRS`, from every tree in the store and, where whole branches are compared, from the
    logged runs of each task (`source` logged, searched or both). Raises UserError where no pair is left.
    """
    export = _Export(store, out, shared)
    made = export.pairs(rows, source, tau, min_score)
    return export.write(made, rows=rows, source=source, tau=tau, min_score=None if rows == "step" else min_score)


def export_reward(
    store: Store,
    out: Path,
    *,
    rows: str = "step",
    source: str = "both",
    tau: float = 0.9,
    min_score: float = 1.0,
    **shared: Unpack[Shared],
) -> DatasetReport:
    """Pairs with margins for a reward model, step-level or by the outcome of whole branches. Raises UserError where no pair is left."""
    from counterplay.finetune.reward import reward_rows

    _one_of("--rows", rows, ("step", "trajectory", "nearest"))
    export = _Export(store, out, shared)
    made = reward_rows(export.pairs(rows, source, tau, min_score))
    return export.write(made, rows=rows, source=source, tau=tau, min_score=None if rows == "step" else min_score)


def export_kto(
    store: Store,
    out: Path,
    *,
    rows: str = "step",
    source: str = "both",
    tau: float = 0.9,
    threshold: float | None = None,
    min_score: float = 1.0,
    **shared: Unpack[Shared],
) -> DatasetReport:
    """Answers that are desirable or not: single actions of searches (`step`), or everything from the fork, or the beginning of a log,
    to the end (`trajectory`, of `source`).

    `threshold` is the value that an action is held against, None its siblings. Raises UserError where no row is left.
    """
    from counterplay.finetune.kto import kto_rows, kto_trajectory_rows

    _one_of("--rows", rows, ("step", "trajectory"))
    _check_tau(tau)
    export = _Export(store, out, shared)
    if rows == "step":
        made = kto_rows(export.trees, tau=tau, threshold=threshold, min_grade=export.grade)
        return export.write(made, rows=rows, tau=tau, threshold="the siblings" if threshold is None else threshold)
    made = kto_trajectory_rows(export.branches(source), min_score=min_score, min_grade=export.grade)
    return export.write(made, rows=rows, source=source, min_score=min_score)


def export_grpo(
    store: Store, out: Path, *, source: str = "both", low: float = 0.1, high: float = 0.9, **shared: Unpack[Shared]
) -> DatasetReport:
    """Prompts to play on from: where logged tasks begin, and searched states from which `low` to `high` of the lines succeeded.

    Raises UserError where no prompt is left.
    """
    from counterplay.finetune.grpo import grpo_rows, logged_prompts

    _one_of("--source", source, SOURCES)
    if not 0 <= low <= high <= 1:
        raise UserError(f"got --low {low:g} and --high {high:g}", "two shares, the lower one first")
    export = _Export(store, out, shared)
    made = grpo_rows(export.trees_beside(source), low=low, high=high, min_grade=export.grade)
    if source != "searched":
        made += logged_prompts(export.traces)
    return export.write(made, source=source, low=low, high=high)


def export_prm(store: Store, out: Path, *, labels: str = "mc-soft", hard: float | None = None, **shared: Unpack[Shared]) -> DatasetReport:
    """The steps of searches with labels of one of the ways of `finetune.labels.write.LABELS`. Raises UserError where there is none."""
    from counterplay.finetune.prm_rows import prm_rows

    export = _Export(store, out, shared)
    return export.write(prm_rows(export.trees, labels=labels, hard=hard, min_grade=export.grade), labels=labels, hard=hard)


def trees(store: Store, traces: Sequence[Trace], algorithms: Sequence[str] | None = None) -> list[SourcedTree]:
    """Every finished search of `traces` in the store, with the logged traces it grew from; only those of `algorithms` where given.

    Trees of calls left out (`counterplay ablate`) are no searches: nobody sampled what follows there. They are given where they are named.
    """
    found = _trees(store, traces, algorithms)
    if not found:
        wanted, ids = f"one by {', '.join(algorithms)}" if algorithms else "at least one", {trace.id for trace in traces}
        unfinished = sum(not row.stopped and row.trace in ids for row in store.searches())
        if unfinished:
            got = f"got no search of these traces in {store.path} that has ended, and {unfinished} under way or killed"
            raise UserError(got, wanted, "Run the same search again: it goes on where it stopped.")
        raise UserError(f"got no search of these traces in {store.path}", wanted, "Search first: counterplay search.")
    return found


def _trees(store: Store, traces: Sequence[Trace], algorithms: Sequence[str] | None = None) -> list[SourcedTree]:
    """`trees`, or none."""
    from counterplay.finetune.rows import SourcedTree

    by_id = {trace.id: trace for trace in traces}
    return [
        SourcedTree.of(store.search(r.id), [by_id[r.trace]])
        for r in _finished(store, algorithms)
        if r.trace is not None and r.trace in by_id
    ]


def _finished(store: Store, algorithms: Sequence[str] | None = None) -> list[SearchRow]:
    """The searches that have ended: what is still under way, or was killed, is no evidence yet."""
    return [row for row in store.searches() if row.stopped and (row.algorithm in algorithms if algorithms else row.algorithm != ABLATION)]


def _one_of(option: str, got: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if got not in known:
        raise UserError(f"got {option} {got!r}", f"one of {', '.join(known)}")


def _check_tau(tau: float) -> None:
    if not 0.5 < tau <= 1:
        raise UserError(f"got --tau {tau:g}", "a probability above 0.5 and at most 1")


def _split(held_out: float) -> dict[str, float]:
    if not (math.isfinite(held_out) and 0 <= held_out < 1):
        raise UserError(f"got --held-out {held_out:g}", "a share from 0 up to, not including, 1")
    return {"train": 1 - held_out, "test": held_out} if held_out else {"train": 1.0}


def _tokenizer(folder: str | None) -> Any:
    if folder is None:
        return None
    from counterplay.finetune.trainers import load_tokenizer

    return load_tokenizer(Path(folder))
