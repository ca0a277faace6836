"""The part of `Store` that batch jobs keep their state in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from counterplay.core.store import units
from counterplay.core.store.base import StoreFile
from counterplay.core.store.rows import JobRow, NewUnit, Settled, UnitRow, UnitState


class StoreJobs(StoreFile):
    """Jobs and their units. Every method that names a job raises UserError where the store has none of that id."""

    def put_job(self, job: str, name: str, spec: str) -> JobRow:
        """A new job under the id `job`, or the one that is held: its name and spec are replaced, and it is running again."""
        with self.transaction():
            return units.put_job(self._connection, job, name, spec)

    def job(self, job: str) -> JobRow:
        return units.job(self._connection.cursor(), job)

    def jobs(self) -> list[JobRow]:
        """All of them, in the order in which they were first put."""
        return units.jobs(self._connection.cursor())

    def end_job(self, job: str, state: str) -> None:
        """Say how it ended, in a word: done, stopped, failed. Its units stay as they are."""
        with self.transaction():
            units.end_job(self._connection, job, state)

    def add_units(self, job: str, new: Iterable[NewUnit]) -> int:
        """Add units in this order, all or none; those whose id the job has are left as they are. Returns how many were new.

        They are taken a few thousand at a time, so that any number may come.
        """
        with self.transaction():
            return units.add(self._connection, job, new)

    def claim(self, job: str, owner: str, count: int, *, lease_s: float = 600.0, now_us: int | None = None) -> list[UnitRow]:
        """The next units to work on, at most `count`, in the order they were added; each then runs under `owner` until its lease ends.

        Those are the pending ones that are due, and the running ones whose lease has ended or whose owner is another: the store is open
        for writing in one process alone, so another owner is one that is gone. `owner` has to be new for every run of a job.
        `now_us` is the time that is compared with; None is now. The `at_us` of a unit that is taken from another owner stays what it was:
        since then nobody has said what came of it.
        """
        with self.transaction():
            return units.claim(self._connection, job, owner, count, lease_s=lease_s, now_us=now_us)

    def renew(self, job: str, ids: Sequence[str], owner: str, *, lease_s: float = 600.0) -> list[str]:
        """Prolong leases, from now on. Returns the ids that `owner` does not hold any more: work on them is lost."""
        with self.transaction():
            return units.renew(self._connection, job, ids, owner, lease_s)

    def settle(self, job: str, settled: Sequence[Settled], owner: str) -> list[str]:
        """Say what came of units that `owner` has claimed. Returns the ids that it does not hold: nothing was changed about those.

        A unit is settled for good once: it is never claimed again (but see `reopen_units`). One that is pending again may be.
        """
        with self.transaction():
            return units.settle(self._connection, job, settled, owner)

    def reopen_units(self, job: str, states: Sequence[UnitState] = ("failed", "parked")) -> int:
        """Give units that were settled in these states another start, with no attempts behind them. Returns how many."""
        with self.transaction():
            return units.reopen(self._connection, job, states)

    def unit_counts(self, job: str) -> dict[UnitState, int]:
        """How many units there are in each of the six states."""
        return units.counts(self._connection.cursor(), job)

    def due_us(self, job: str) -> int | None:
        """When the next unit falls due of those that wait for their time or whose lease runs, in microseconds; None where there is none.

        Zero or a time that is past: one is due now.
        """
        return units.due_us(self._connection.cursor(), job)

    def units(self, job: str, *, state: UnitState | None = None, limit: int | None = None, after: int | None = None) -> list[UnitRow]:
        """Units in the order they were added, a page of `limit` of them after the number `after`; None is all, and from the first."""
        return units.page(self._connection.cursor(), job, state, limit, after)

    def searches_by(self, jobs: Sequence[str], traces: Sequence[str]) -> set[str]:
        """The ids of the searches that units of these jobs came to, of the units that one of these traces is in."""
        return units.searches_by(self._connection.cursor(), jobs, traces)
