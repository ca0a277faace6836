"""A plan without the work: which units there would be and what they are expected to use. Nothing is asked, and no store is written.

Sources are read into a copy that is thrown away. What units use is rehearsed on a sample of them (`rehearsal.py`); where units of the
same job have been worked on, what they really used corrects it, and the time follows from how fast they went.
"""

from __future__ import annotations

import asyncio
import heapq
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from counterplay.core.budget import Amounts, Budget
from counterplay.core.canonical import content_key, loads
from counterplay.core.errors import CounterplayError
from counterplay.jobs import running
from counterplay.jobs.beginning import check_sources
from counterplay.jobs.datasets import family
from counterplay.jobs.habits import Habits
from counterplay.jobs.planning import planned, units_of
from counterplay.jobs.ready import check_parts
from counterplay.jobs.rehearsal import Rehearsed, rehearse
from counterplay.jobs.reserving import Bound, Reserves, bound_of
from counterplay.jobs.stops import Stopped
from counterplay.jobs.taken import Taken, taken
from counterplay.jobs.totals import Reason, general, limits_of
from counterplay.jobs.unmatched import nothing_selected
from counterplay.searching import scope_of

if TYPE_CHECKING:
    from counterplay.core.nouns import Trace
    from counterplay.core.store import JobRow, NewUnit, Store, UnitRow
    from counterplay.jobs.spec import Job

_SAMPLE = 100
_REPEATS = 160
_RUNS = 400
_MEASURED = 3
_REASONS = 200
_Z95 = 1.96
KINDS = ("model_calls", "input_tokens", "output_tokens", "tokens", "usd", "tool_calls")


@dataclass(frozen=True)
class Amount:
    """What a job is expected to use of one kind: about so much, with 95 % from `low` to `high` as far as chance goes, and by what."""

    kind: str
    amount: float
    low: float
    high: float
    basis: str


@dataclass(frozen=True)
class Estimate:
    """What a job would do. `units` counts by state, `amounts` are of what is still to be asked; `answered` calls are journalled already.

    `notes` say what the estimate does not cover. `stopped` are the kinds of the budget that would stop units at their share
    (`stops.Stop`), `skipped` why units would not be worked on: `reason`, `count`. `read` counts what the sources have that is new,
    `unreadable` are the first of what could not be read.
    """

    job: str
    units: Mapping[str, int]
    search: str
    datasets: Sequence[str]
    amounts: Sequence[Amount]
    answered: float
    notes: Sequence[str]
    stopped: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[Mapping[str, Any]] = ()
    read: Mapping[str, int] = field(default_factory=dict)
    unreadable: Sequence[Mapping[str, Any]] = ()

    def of(self, kind: str) -> Amount | None:
        return next((one for one in self.amounts if one.kind == kind), None)


@dataclass(frozen=True)
class _Case:
    """One unit that was rehearsed: `amounts` a mean over repeats, `spread` their standard deviation, `stopped` each repeat that its budget
    stopped: by which kind, what it had used of it, and whether anything had been asked.
    """

    unit: str
    trace: str
    share: Mapping[str, float]
    amounts: Mapping[str, float]
    spread: Mapping[str, float]
    waves: float
    answered: float
    repeats: int
    stopped: Sequence[tuple[str, float, bool]]

    @property
    def open(self) -> float:
        """The share of its calls that is not answered yet."""
        return 1 - self.answered / max(self.answered, self.amounts.get("model_calls", 0.0), 1.0)


def estimated(job: Job) -> Estimate:
    """What `job` would do, and what it is expected to use. Raises UserError where it can't be run so."""
    from counterplay.jobs.work import check_plan

    check_parts(job)
    check_plan(job.asked(), job.plan())
    notes: list[str] = []
    with _looked_at(job, notes) as (store, rows, read):
        under_way = next((row for row in rows if _open(store, row)), None)
        units: Iterable[UnitRow | NewUnit] = units_of(store, under_way.id) if under_way else planned(store, job, rows)
        states, sample, skipped = _sampled(units)
        if not states and not any(sum(store.unit_counts(row.id).values()) for row in rows) and not _far(job):
            raise nothing_selected(store, job, read)
        found = Estimating(store, job, rows, notes)
        amounts, answered = found.amounts(sample, states["pending"])
        stopped = found.stopped(states["pending"])
        name = under_way.id if under_way else job.family
    if read.unreadable:
        notes.append(f"{read.said()}. A run names all of them in its store's quarantine")
    plan = job.plan()
    algorithm = plan.algorithm if plan.named else f"{plan.algorithm} or repair, by what the verifier has opinions on"
    folders = [export.folder for export in job.export]
    counts, unread = dict(read.counts), list(read.first)
    return Estimate(name, dict(states), algorithm, folders, amounts, answered, notes, stopped, skipped, counts, unread)


def _open(store: Store, row: JobRow) -> bool:
    counts = store.unit_counts(row.id)
    return bool(counts["pending"] or counts["running"])


@contextmanager
def _looked_at(job: Job, notes: list[str]) -> Iterator[tuple[Store, list[JobRow], Taken]]:
    """The store as the job would find it: the one there is, or a copy of it with what the sources have; and what was read of those."""
    from counterplay.core.store import Store

    path = job.job.store
    with ExitStack() as stack:
        if path.exists():
            store = stack.enter_context(Store.open(path, read_only=True))
            rows = family(store, job)
            if not job.source or any(_open(store, row) for row in rows):
                yield store, rows, Taken()
                return
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="counterplay-")))
        if path.exists():
            for file in (path, Path(f"{path}.journal"), Path(f"{path}.wal")):
                if file.exists():
                    shutil.copy(file, folder / file.name)
        copy = stack.enter_context(Store.open(folder / path.name))
        near = tuple(source for source in job.source if "://" not in source.path)
        if len(near) < len(job.source):
            notes.append("sources elsewhere are not read for a dry run: of them what the store holds is counted")
        check_sources(job)
        read = taken(copy, lambda: running.take_in(copy, job.model_copy(update={"source": near}), lambda _: None))
        yield copy, family(copy, job), read


def _far(job: Job) -> bool:
    """Whether there are sources that a dry run does not read."""
    return any("://" in source.path for source in job.source)


def _sampled(units: Iterable[UnitRow | NewUnit]) -> tuple[Counter[str], list[UnitRow | NewUnit], list[dict[str, Any]]]:
    """How many units there are by state, some of those that are pending, drawn by their ids, and why others are skipped."""
    states: Counter[str] = Counter()
    skipped: dict[str, Reason] = {}
    kept: list[tuple[int, int, UnitRow | NewUnit]] = []
    for number, unit in enumerate(units):
        state = "pending" if unit.state == "running" else unit.state
        states[state] += 1
        if state == "skipped" and len(skipped) < _REASONS:
            skipped.setdefault(general(unit.reason), Reason()).add(unit.id, unit.reason)
        if state == "pending":
            entry = (-int(content_key("sample", unit.id)[:12], 16), number, unit)
            (heapq.heappush if len(kept) < _SAMPLE else heapq.heappushpop)(kept, entry)
    sample = [unit for _, _, unit in sorted(kept, key=lambda entry: entry[1])]
    ranked = sorted(skipped.values(), key=lambda why: -why.count)
    return states, sample, [{"reason": why.first, "count": why.count} for why in ranked]


class Estimating:
    """What the units of one job are expected to use."""

    def __init__(self, store: Store, job: Job, rows: Sequence[JobRow], notes: list[str]) -> None:
        self.store, self.job, self.rows, self.notes = store, job, rows, notes
        self.asked, self.plan = job.asked(), replace(job.plan(), budget="")
        self._rate = lru_cache(maxsize=4096)(self._rate_of)
        self._bound: Bound | None = None if job.stitches else bound_of(self.asked)
        self._cases: list[_Case] = []

    def amounts(self, sample: Sequence[UnitRow | NewUnit], pending: int) -> tuple[list[Amount], float]:
        """Of each kind, for so many pending units of which these are a sample; and how many calls are answered already."""
        if self.job.stitches or not sample:
            if pending:
                self.notes.append("stitch merges logged runs: it asks nothing and costs nothing")
            return self._time(0.0, [], pending), 0.0
        habits = Habits(self.store.load(self._shown()))
        cases = self._cases = self._rehearsed(sample, habits, max(1, _REPEATS // len(sample)))
        if not cases:
            return [], 0.0
        done = self._done()
        past = self._rehearsed([unit for unit, _ in done], habits, max(1, _REPEATS // max(1, len(done))))
        measured = {unit.id: used for unit, used in done}
        found = [self._amount(kind, cases, pending, past, measured) for kind in KINDS]
        answered = fmean(case.answered for case in cases) * pending
        amounts = [one for one in found if one is not None]
        if amounts and all(one.kind != "usd" for one in amounts):
            self.notes.append("no price is known: [policy] price says what tokens cost")
        if not past:
            self.notes.append("how often the model decides otherwise than its logs is known once it is asked: --probe 10 measures it")
        calls = next((one.amount for one in amounts if one.kind == "model_calls"), 0.0)
        return [*amounts, *self._time(calls, cases, pending, habits.latency_s)], answered

    def _shown(self) -> list[str]:
        """Runs that show how the agent goes on: some hundred, drawn by their ids, of those that the job may be about and others."""
        from counterplay.core.store import Selection

        rows = self.store.select_ids(Selection(agents=self.job.select.agents))
        return heapq.nsmallest(_RUNS, (row.id for row in rows), key=lambda name: content_key("shown", name))

    def _rehearsed(self, units: Sequence[UnitRow | NewUnit], habits: Habits, repeats: int) -> list[_Case]:
        cases, problems = [], Counter[str]()
        for unit in units:
            (trace,) = self.store.load(unit.traces)
            reserves = None if self._bound is None else Reserves(trace, self._bound)
            try:
                found = [asyncio.run(self._once(trace, unit, habits, seed, reserves)) for seed in range(repeats)]
            except CounterplayError as error:
                problems[str(error)] += 1
                continue
            cases.append(_case(unit, found, self._answered(trace)))
        for said, count in problems.items():
            self.notes.append(f"{count} of {len(units)} units can't be rehearsed: {said}")
        return cases

    def stopped(self, pending: int) -> list[dict[str, Any]]:
        """What kinds of the budget would stop units at their share, of so many pending ones."""
        own, found = limits_of(self.job.budget.per_trace), dict[str, Stopped]()
        for case in self._cases:
            weight = pending / len(self._cases) / case.repeats
            for kind, used, asked in case.stopped:
                share = {**case.share, **own}.get(kind)
                found.setdefault(kind, Stopped()).add(case.trace, share, used, asked=asked, weight=weight)
        ranked = sorted(found.items(), key=lambda item: (-item[1].count, item[0]))
        return [asdict(one.told(kind, pending, self.job, self.store.load(one.units), foreseen=True)) for kind, one in ranked]

    async def _once(self, trace: Trace, unit: UnitRow | NewUnit, habits: Habits, seed: int, reserves: Reserves | None) -> Rehearsed:
        budget = self.plan.made_of(Amounts(**unit.share), Budget())
        asked = replace(self.asked, seed=self.asked.seed + seed)
        process = any(name != "outcome" for name in self.job.verifiers)
        return await rehearse(trace, asked, self.plan, habits, budget, rate=self._rate(trace.task), process=process, reserves=reserves)

    def _rate_of(self, task: str | None) -> tuple[float, float]:
        """Successes and failures of a task's logged runs; of a task that is not known one failure."""
        if task is None:
            return 0.0, 1.0
        known = [row.success if row.success is not None else (row.reward or 0) >= 1 for row in self.store.traces(task=task, limit=_RUNS)]
        return float(sum(known)), float(len(known) - sum(known))

    def _answered(self, trace: Trace) -> float:
        """How many proposals for this trace are in the journal."""
        entries = self.store.journal_entries([scope_of(trace)])
        return float(sum(len(loads(answer)) for _, _, kind, answer in entries if kind == "propose"))

    def _done(self) -> list[tuple[UnitRow, Mapping[str, float]]]:
        """Units of this job, and of those before it, that were worked on, with what they used."""
        found = ((unit, unit.result.get("used", {})) for row in self.rows for unit in units_of(self.store, row.id, "done"))
        kept = heapq.nsmallest(_SAMPLE, found, key=lambda pair: content_key("sample", pair[0].id))
        return kept if len(kept) >= _MEASURED else []

    def _amount(
        self, kind: str, cases: Sequence[_Case], pending: int, past: Sequence[_Case], measured: Mapping[str, Mapping[str, float]]
    ) -> Amount | None:
        each = [case.amounts.get(kind, 0.0) * case.open for case in cases]
        if not any(each):
            return None
        n = len(each)
        own = fmean(case.spread.get(kind, 0.0) ** 2 for case in cases)
        unseen = max(0, pending - n) / n
        error = sqrt(pending * own + pending * unseen * pstdev(each) ** 2)
        factor, doubt, basis = _measured(kind, past, measured)
        amount = fmean(each) * pending * factor
        half = _Z95 * sqrt((error * factor) ** 2 + (amount * doubt) ** 2)
        return Amount(kind, amount, max(0.0, amount - half), amount + half, basis or f"the search rehearsed on {n} of {pending:,} units")

    def _time(self, calls: float, cases: Sequence[_Case], pending: int, latency_s: float | None = None) -> list[Amount]:
        if cases and not calls:
            return []
        pace = running.pace_of(self.store, self.job)
        if pace is not None and pace["seconds"] > 0:
            rate, what = (pace["calls"], calls) if calls and pace["calls"] else (pace["units"], float(pending))
            if rate:
                seconds = what * pace["seconds"] / rate
                return [Amount("seconds", seconds, seconds * 0.8, seconds * 1.2, f"the rate of the {pace['units']:,.0f} units before")]
        if latency_s is None or not cases or self.asked.local:
            self.notes.append("the time is known once a rate is: --probe 10 measures it")
            return []
        flying = min(self.job.engine.at_once, pending)
        by_waiting = fmean(case.waves for case in cases) * pending * latency_s / flying
        seconds = max(by_waiting, calls * latency_s / self.plan.pace.requests)
        return [Amount("seconds", seconds, seconds / 2, seconds * 2, f"logged calls, which took {latency_s:.2f} s on average")]


def _case(unit: UnitRow | NewUnit, found: Sequence[Rehearsed], answered: float) -> _Case:
    kinds = {kind for one in found for kind in one.used}
    of = {kind: [one.used.get(kind, 0.0) for one in found] for kind in kinds}
    mean, spread = {kind: fmean(each) for kind, each in of.items()}, {kind: pstdev(each) for kind, each in of.items()}
    stopped = [(one.stopped, one.used.get(one.stopped, 0.0), bool(one.waves)) for one in found if one.stopped]
    waves = fmean(one.waves for one in found)
    return _Case(unit.id, unit.traces[0], unit.share, mean, spread, waves, answered, len(found), stopped)


def _measured(kind: str, past: Sequence[_Case], used: Mapping[str, Mapping[str, float]]) -> tuple[float, float, str]:
    """By how much units that were worked on used more than was rehearsed, how unsure that is as a share, and what it rests on."""
    told = kind if kind not in ("input_tokens", "output_tokens") else "tokens"
    pairs = [(used[case.unit].get(told, 0.0), case.amounts.get(told, 0.0)) for case in past]
    whole = sum(rehearsed for _, rehearsed in pairs)
    if not whole or not any(real for real, _ in pairs):
        return 1.0, 0.0, ""
    ratio = sum(real for real, _ in pairs) / whole
    spread = sqrt(sum((real - ratio * rehearsed) ** 2 for real, rehearsed in pairs) / max(1, len(pairs) - 1))
    return ratio, spread * sqrt(len(pairs)) / whole / ratio, f"{len(pairs)} units of this job that were worked on"
