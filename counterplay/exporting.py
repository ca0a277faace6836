"""From the store to datasets."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast, get_args

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Trace
from counterplay.export_rows import PAIRS, SFT_ROWS, WEIGHTS
from counterplay.export_units import ABLATION, Unit, Units, finished, no_search
from counterplay.gating import SIMILARITY, gates_for

if TYPE_CHECKING:
    from counterplay.core.store import Store
    from counterplay.finetune.card import DatasetReport
    from counterplay.finetune.files import Format
    from counterplay.finetune.grpo import GRPORow
    from counterplay.finetune.rows import AnyRow, DPORow, Gate, Harvest, SFTRow, SourcedTree
    from counterplay.finetune.splits import SplitBy


SOURCES = ("logged", "searched", "both")


class Shared(TypedDict, total=False):
    """What every export can be told; the defaults are those of `write`.

    `min_grade` is the worst grade that may enter; `tokenizer` a model folder whose template measures the rows; `held_out` the share of the
    test split, of which no row shares a `split_by` (task, session, user) with training; `algorithms` and `agent` choose searches and
    traces; `formats` are of `finetune.files.Format`. `near_duplicates`, `held_out_file`, `look_for`, `look_for_rules` and `keep_secrets`
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


class Told(Shared, total=False):
    """What an export can be told in Python. `jobs` are ids: only what their units are about and came to; none: the whole store."""

    jobs: Sequence[str]


class _CheckedError(Exception):
    """What ends an export that was only to be checked: all that was asked for is right."""


@dataclass(frozen=True)
class _Export:
    """One export: what it reads, unit by unit, and where it writes. Without a store it ends before anything is read."""

    store: Store
    out: Path
    shared: Told

    @cached_property
    def units(self) -> Units:
        return self._units(self.shared.get("algorithms"))

    def _units(self, algorithms: Sequence[str] | None) -> Units:
        return Units(self.store, self.shared.get("agent"), algorithms, self.shared.get("jobs", ()))

    def read(self, source: str = "both", *, logs: bool | None = None) -> Iterator[Unit]:
        """The units: with their searches unless only logs are asked for, or there are none and logs are asked for too; and with all traces
        where `logs` are, as they are by `source`. Nothing is read before the first is asked for.
        """
        if source == "searched":
            self.units.check_searched()
        trees = source == "searched" or (source == "both" and self.units.searched)
        yield from self.units.read(trees=trees, logs=source != "searched" if logs is None else logs)

    def searches(self) -> Iterator[Unit]:
        """The units that have searches. Raises UserError where there are none."""
        return self.read("searched")

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

    @cached_property
    def beside(self) -> Path:
        """Where rows may be set aside meanwhile."""
        from counterplay.finetune.write import beside

        return beside(self.out)

    def branches(self, source: str) -> Iterator[Sequence[SourcedTree]]:
        """By unit, trees whose branches are played to their ends: searches, and the logged runs of each task merged."""
        from counterplay.finetune.merged import merged_logs

        for unit in self.read(source):
            yield [*unit.trees, *(merged_logs(unit.traces) if source != "searched" else [])]

    def pairs(self, rows: str, source: str, tau: float, min_score: float) -> Iterator[Harvest[DPORow]]:
        from counterplay.finetune.pairs import PairMark, settle
        from counterplay.finetune.settling import settled

        _one_of("--rows", rows, PAIRS)
        _one_of("--source", source, SOURCES)
        _check_tau(tau)
        if rows in ("step", "ablation") and source == "logged":
            do = "Merge logs into trees: counterplay search --search stitch."
            raise UserError(f"got --source logged for --rows {rows}", "searched or both", do)
        grade, make = self.grade, PAIRS[rows]
        if rows == "step":
            candidates = (make(unit.trees, tau, min_score, grade) for unit in self.searches())
            made = settled(candidates, self.beside, PairMark.of, settle)
        elif rows == "ablation":
            made = self._ablated(tau, min_score)
        else:
            made = (make(found, tau, min_score, grade) for found in self.branches(source))
        return or_else(made, partial(_no_pair, rows, tau))

    def _ablated(self, tau: float, min_score: float) -> Iterator[Harvest[DPORow]]:
        """Calls left out on purpose, whose trees are in memory together, for how often a tool was missed is counted over all of them; and
        those that one of two successful branches happened to do without.
        """
        from counterplay.finetune.ablation import ablation_rows

        meant, played = self._units([ABLATION]), self._units(None)
        meant.origins = played.origins = self.units.origins
        yield ablation_rows([tree for unit in meant.read(logs=False) for tree in unit.trees], min_grade=self.grade)
        for unit in played.read(logs=False):
            yield PAIRS["ablation"](unit.trees, tau, min_score, self.grade)

    def gates(self, near_duplicates: float) -> list[Gate]:
        from counterplay.finetune.balance import Caps

        shared = self.shared
        per_task, per_tool = shared.get("per_task"), shared.get("per_tool")
        gates = gates_for(
            near_duplicates=near_duplicates,
            held_out_file=shared.get("held_out_file"),
            look_for=shared.get("look_for"),
            rules=shared.get("look_for_rules"),
            keep_secrets=shared.get("keep_secrets", False),
        )
        if per_task is None and per_tool is None:
            return gates
        return [*gates, Caps(per_task=per_task, per_tool=per_tool, seed=shared.get("seed", 0))]

    def write(self, made: Iterator[Harvest[AnyRow]], **chosen: Any) -> DatasetReport:
        """Write the rows; what every export is told, and what this one was (`chosen`), goes onto the card."""
        from counterplay.finetune.gates.near import NearTies
        from counterplay.finetune.splits import SplitBy
        from counterplay.finetune.write import check_writing, write_dataset

        shared = self.shared
        near, by = shared.get("near_duplicates", SIMILARITY), shared.get("split_by") or ("task", "session")
        for name in by:
            _one_of("--split-by", name, get_args(SplitBy))
        held_out = shared.get("held_out_file")
        gates, split = self.gates(near), _split(shared.get("held_out", 0.0))
        how: dict[str, Any] = {
            "tokenizer": _tokenizer(shared.get("tokenizer")),
            "max_length": shared.get("max_length"),
            "split": split,
            "formats": cast("Sequence[Format]", shared.get("formats") or ("parquet", "jsonl")),
        }
        check_writing(self.out, **how)
        if self.store is None:
            raise _CheckedError
        told = {name: shared.get(name) for name in ("algorithms", "agent", "look_for", "per_task", "per_tool")}
        jobs = list(dict.fromkeys(self.store.job(job).name for job in shared.get("jobs", ()))) or None
        return write_dataset(
            made,
            self.out,
            **how,
            seed=shared.get("seed", 0),
            licence=shared.get("licence", "unknown"),
            gates=gates,
            by=cast("Sequence[SplitBy]", by),
            ties=NearTies(),
            traces=self.units.sources(),
            settings={
                **chosen,
                "min_grade": self.grade.name.lower(),
                **told,
                "jobs": jobs,
                "held_out_file": held_out and Path(held_out).name,
            },
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
    **shared: Unpack[Told],
) -> DatasetReport:
    """Successful trajectories: `logged` ones, `searched` ones, or both, cut into rows in one of the ways of `SFT_ROWS`.

    `tau` is how sure it must be that a step is an improvement, or was wrong. `weights` fills the columns `weight` and `step_weights`
    in one of the ways of `WEIGHTS`. Raises UserError where no row is left.
    """
    from counterplay.finetune.exactness import recorded_ids, with_token_ids
    from counterplay.finetune.weights import scaled

    _one_of("--weights", weights, ("none", *WEIGHTS))
    _one_of("--rows", rows, SFT_ROWS)
    _one_of("--source", source, SOURCES)
    _check_tau(tau)
    export = _Export(store, out, shared)
    logged, grade = source != "searched", export.grade

    def made_of(unit: Unit) -> Harvest[SFTRow]:
        logs = unit.traces if logged else []
        made = SFT_ROWS[rows](unit.trees, logs, min_score, tau, grade)
        if weights != "none":
            made = WEIGHTS[weights](made, unit.trees, logs)
        return replace(made, rows=tuple(with_token_ids(made.rows, recorded_ids(unit.traces))))

    found = map(made_of, export.read(source))
    made = scaled(found, export.beside) if weights != "none" else found
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
    **shared: Unpack[Told],
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
    **shared: Unpack[Told],
) -> DatasetReport:
    """Pairs with margins for a reward model, step-level or by the outcome of whole branches. Raises UserError where no pair is left."""
    from counterplay.finetune.reward import reward_rows

    _one_of("--rows", rows, ("step", "trajectory", "nearest"))
    export = _Export(store, out, shared)
    made = map(reward_rows, export.pairs(rows, source, tau, min_score))
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
    **shared: Unpack[Told],
) -> DatasetReport:
    """Answers that are desirable or not: single actions of searches (`step`), or everything from the fork, or the beginning of a log,
    to the end (`trajectory`, of `source`).

    `threshold` is the value that an action is held against, None its siblings. Raises UserError where no row is left.
    """
    from counterplay.finetune.kto import AnswerMark, kto_candidates, kto_trajectory_candidates, settle
    from counterplay.finetune.settling import settled

    _one_of("--rows", rows, ("step", "trajectory"))
    _one_of("--source", source, SOURCES)
    _check_tau(tau)
    export = _Export(store, out, shared)
    grade = export.grade
    if rows == "step":
        found = (kto_candidates(unit.trees, tau=tau, threshold=threshold, min_grade=grade) for unit in export.searches())
        chosen: dict[str, Any] = {"tau": tau, "threshold": "the siblings" if threshold is None else threshold}
    else:
        found = (kto_trajectory_candidates(trees, min_score=min_score, min_grade=grade) for trees in export.branches(source))
        chosen = {"source": source, "min_score": min_score}
    return export.write(settled(found, export.beside, AnswerMark.of, settle), rows=rows, **chosen)


def export_grpo(
    store: Store, out: Path, *, source: str = "both", low: float = 0.1, high: float = 0.9, **shared: Unpack[Told]
) -> DatasetReport:
    """Prompts to play on from: where logged tasks begin, and searched states from which `low` to `high` of the lines succeeded.

    Raises UserError where no prompt is left.
    """
    from counterplay.finetune.grpo import PromptMark, grpo_candidates, prompt_candidates, settle
    from counterplay.finetune.settling import settled

    _one_of("--source", source, SOURCES)
    if not 0 <= low <= high <= 1:
        raise UserError(f"got --low {low:g} and --high {high:g}", "two shares, the lower one first")
    export = _Export(store, out, shared)
    grade = export.grade

    def rows() -> Iterator[Harvest[GRPORow]]:
        """The searched states, then where logs begin: each with a cap of its own."""
        searched = (grpo_candidates(unit.trees, low=low, high=high, min_grade=grade) for unit in export.read(source, logs=False))
        yield from settled(searched, export.beside, PromptMark.of, settle)
        if source != "searched":
            logged = (prompt_candidates(unit.traces) for unit in export.read("logged"))
            yield from settled(logged, export.beside, PromptMark.of, partial(settle, per_task=1))

    return export.write(rows(), source=source, low=low, high=high)


def export_prm(store: Store, out: Path, *, labels: str = "mc-soft", hard: float | None = None, **shared: Unpack[Told]) -> DatasetReport:
    """The steps of searches with labels of one of the ways of `finetune.labels.write.LABELS`. Raises UserError where there is none."""
    from counterplay.finetune.labels.write import LABELS, no_label
    from counterplay.finetune.prm_rows import prm_candidates

    _one_of("--labels", labels, LABELS)
    export = _Export(store, out, shared)
    grade = export.grade
    made = (prm_candidates(unit.trees, labels=labels, hard=hard, min_grade=grade) for unit in export.searches())
    return export.write(or_else(made, partial(no_label, labels)), labels=labels, hard=hard)


def check(kind: str, out: Path, **options: Any) -> None:
    """Raises UserError where `export_<kind>` of these options can't write into `out`, whatever is in the store.

    It is the export itself, as far as the point at which it begins to read: the files that the options name are read here.
    """
    with suppress(_CheckedError):
        globals()[f"export_{kind}"](None, out, **options)


def or_else(made: Iterable[Harvest[AnyRow]], error: Callable[[Collection[str]], UserError]) -> Iterator[Harvest[AnyRow]]:
    """The harvests; where none of them has a row, the error, made of the reasons why things were left out."""
    some, reasons = False, set[str]()
    for harvest in made:
        some = some or bool(harvest.rows)
        reasons |= {drop.reason for drop in harvest.drops}
        yield harvest
    if not some:
        raise error(reasons)


def _no_pair(rows: str, tau: float, reasons: Collection[str]) -> UserError:
    left_out = ", ".join(sorted(reasons)) or "nothing else"
    if rows == "step":
        do = f"Lower --tau, or search with more rollouts an alternative. Also left out: {left_out}."
        return UserError(f"no two siblings differ with a probability of {tau:g}", "at least one pair", do)
    first = "Leave calls out first: counterplay ablate" if rows == "ablation" else "Search with more finished branches a fork"
    do = f"{first}. Also left out: {left_out}."
    return UserError(f"no two branches of a fork make a pair of the kind {rows}", "at least one pair", do)


def trees(store: Store, traces: Sequence[Trace], algorithms: Sequence[str] | None = None) -> list[SourcedTree]:
    """Every finished search of `traces` in the store, with the logged trace it grew from, in order of trace, algorithm and id; only
    those of `algorithms` where given. Raises UserError where there is none.

    Trees of calls left out (`counterplay ablate`) are no searches: nobody sampled what follows there. They are given where they are named.
    """
    from counterplay.finetune.rows import SourcedTree

    by_id = {trace.id: trace for trace in traces}
    held = store.searches(traces=by_id)
    wanted = sorted((row.trace or "", row.algorithm, row.id) for row in finished(held, algorithms))
    if not wanted:
        raise no_search(store, algorithms, sum(not row.stopped for row in held))
    return [SourcedTree.of(record, [by_id[record.trace or ""]]) for record in store.load_searches(name for _, _, name in wanted)]


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
