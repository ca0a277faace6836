"""From a selection to units of work: which, in what order, with how much of the budget. Made once a job, all or none.

A unit is one trace; for `stitch` it is all runs of a task. Without a budget to divide, units are made as they are read. To divide one,
a few words of every trace are held at once (half a kilobyte each), never a trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from counterplay.core.canonical import content_key
from counterplay.dividing import counted_share, divide_light, divisible
from counterplay.jobs.checking import moment
from counterplay.naming import whole_trace_ids

if TYPE_CHECKING:
    from counterplay.core.store import JobRow, LightRow, NewUnit, Selection, Store, UnitRow
    from counterplay.jobs.spec import Job
    from counterplay.plan import Plan

_PAGE = 4096
_BY_BUDGET = "the budget "
_OUTCOMES = {"failed": ("failed",), "succeeded": ("success",), "all": ()}


def selection_of(job: Job) -> Selection:
    """What the store is asked for; `since` of so many days is counted from now."""
    from counterplay.core.store import Selection

    select = job.select
    which = select.which or ("all" if job.stitches or select.traces else "failed")
    return Selection(
        outcome=_OUTCOMES[which],
        agents=select.agents,
        tasks=select.tasks,
        tags=select.tags,
        formats=select.formats,
        cost_above_usd=select.cost_above_usd,
        steps_above=select.steps_above,
        since_us=None if select.since is None else moment(select.since),
        until_us=None if select.until is None else moment(select.until),
        sample=select.sample,
        seed=job.job.seed,
        limit=select.limit,
    )


def planned(store: Store, job: Job, before: Iterable[JobRow] = ()) -> Iterator[NewUnit]:
    """The units of `job`, in the order they are worked on; none where the jobs `before` had all that is selected.

    Where something is new, what those jobs had no budget for is taken up again with it.
    """
    had, unpaid = set[int](), set[int]()
    for unit in (unit for row in before for unit in units_of(store, row.id)):
        (unpaid if _unpaid(unit) else had).add(_mark(unit.id, unit.traces))
    if unpaid and next(_units(store, job, had | unpaid), None) is None:
        return
    yield from _units(store, job, had)


def _units(store: Store, job: Job, had: set[int]) -> Iterator[NewUnit]:
    """The units that are selected and not among those that others had."""
    if job.stitches:
        return _tasks(store, job, had)
    rows = _traces(store, job, had)
    plan = job.plan()
    return _shared(store, list(rows), plan) if divisible(plan.budget) else _each(rows)


def units_of(store: Store, job: str, state: str | None = None) -> Iterator[UnitRow]:
    """All units of a job, a page at a time in memory."""
    after: int | None = None
    while page := store.units(job, state=state, limit=_PAGE, after=after):  # type: ignore[arg-type]
        yield from page
        after = page[-1].number


def _mark(unit: str, traces: Iterable[str]) -> int:
    """What tells units apart in 64 bits: a unit whose task has new runs is another."""
    return int(content_key(unit, *traces)[:16], 16)


def _unpaid(unit: UnitRow) -> bool:
    return unit.state == "skipped" and unit.reason.startswith(_BY_BUDGET)


def _traces(store: Store, job: Job, had: set[int]) -> Iterator[LightRow]:
    named = set(whole_trace_ids(store, job.select.traces))
    if named:
        for trace in named:
            store.trace(trace)  # refuses, by name, what is not held
    found = (row for row in store.select_ids(selection_of(job)) if not named or row.id in named)
    return (row for row in found if _mark(row.id, (row.id,)) not in had)


def _each(rows: Iterable[LightRow]) -> Iterator[NewUnit]:
    from counterplay.core.store import NewUnit

    return (NewUnit(row.id, (row.id,)) for row in rows)


def _shared(store: Store, rows: list[LightRow], plan: Plan) -> Iterator[NewUnit]:
    from counterplay.core.store import NewUnit, Selection

    counts = _tool_calls(store, rows) if plan.limits("tool_calls") else {}
    division = divide_light(rows, store.select_ids(Selection()), plan, counts)
    for row in rows:
        make = division.budgets.get(row.id)
        if make is None:
            yield NewUnit(row.id, (row.id,), state="skipped", reason=division.skipped[row.id])
        else:
            yield NewUnit(row.id, (row.id,), share=counted_share(make))


def _tool_calls(store: Store, rows: list[LightRow]) -> dict[str, int]:
    """How many tool calls each run made: the one thing that has to be read from the traces themselves."""
    loaded = store.load([row.id for row in rows])
    return {trace.id: sum(len(step.action.tool_calls) for step in trace.trajectory.steps) for trace in loaded}


def _tasks(store: Store, job: Job, had: set[int]) -> Iterator[NewUnit]:
    from counterplay.core.store import NewUnit

    named = set(whole_trace_ids(store, job.select.traces))
    made = (
        NewUnit(traces[0] if task is None else f"task {task}", tuple(traces))
        for task, traces in store.tasks_of(selection_of(job))
        if not named or named.intersection(traces)
    )
    return (unit for unit in made if _mark(unit.id, unit.traces) not in had)
