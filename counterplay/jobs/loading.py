"""From unit rows to work: traces read a few units at a time, and the other runs of their tasks where a search reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import UserError
from counterplay.jobs.work import Work, Worked, needs_peers

if TYPE_CHECKING:
    from counterplay.core.nouns import Trace
    from counterplay.core.store import Store, UnitRow
    from counterplay.parts import Asked
    from counterplay.plan import Plan

_TASKS = 8
_RUNS = 64
_AT_ONCE = 64


class Loader:
    """Reads what units of the job `job` need. `at_once` is how many traces it is given together, unless a single unit has more.

    Of a task's other runs at most 64 are read, the first that came. Which they are is kept when they are first asked for: logs that come
    in later change nothing about a job under way.
    """

    def __init__(self, store: Store, job: str, asked: Asked, plan: Plan) -> None:
        self.store, self.at_once = store, _AT_ONCE
        self._peers = needs_peers(asked, plan)
        self._journal = store.journal(f"job/{job}")
        self._runs = lru_cache(maxsize=_TASKS)(self._read_runs)

    def load(self, units: Sequence[UnitRow]) -> list[Work | Worked]:
        """The work of each unit; what came of it at once where a trace of it is not held any more."""
        try:
            traces = {trace.id: trace for trace in self.store.load([trace for unit in units for trace in unit.traces])}
        except UserError as error:
            if len(units) > 1:
                return [work for unit in units for work in self.load([unit])]
            return [Worked(units[0].id, "failed", str(error), "user")]
        return [self._work(unit, tuple(traces[trace] for trace in unit.traces)) for unit in units]

    def _work(self, unit: UnitRow, traces: tuple[Trace, ...]) -> Work:
        task = traces[0].task
        if not self._peers or task is None:
            return Work(unit.id, traces, share=unit.share)
        runs = self._runs(task)
        place = next((at for at, run in enumerate(runs) if run.id == traces[0].id), len(runs))
        return Work(unit.id, traces, tuple(run for run in runs if run.id != traces[0].id), unit.share, place)

    def _read_runs(self, task: str) -> tuple[Trace, ...]:
        key = f"runs of {task}"
        known = self._journal.get(key)
        if known is None:
            ids = [row.id for row in self.store.traces(task=task, limit=_RUNS)]
            self._journal.put(key, "runs", dumps(ids))
        else:
            ids = loads(known)
        return tuple(self.store.load(ids))
