"""Who works on units: this process, processes of this machine, or a Ray cluster. What comes of a unit is the same."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

from counterplay.growing import Shelf
from counterplay.jobs.desk import StoreUnitDesk
from counterplay.jobs.work import Work, Worked, Worker
from counterplay.searching import collected_seldom

if TYPE_CHECKING:
    from counterplay.core.protocols import Policy, Verifier
    from counterplay.core.store import Store
    from counterplay.parts import Asked
    from counterplay.plan import Plan


class InProcess:
    """Works in this process, on `plan.concurrency` units at once. Answers are journalled in the store itself.

    `policy` and `verifier` are used in place of those that `asked` names. Raises UserError where a job can't be run so.
    """

    def __init__(self, store: Store, asked: Asked, plan: Plan, *, policy: Policy | None = None, verifier: Verifier | None = None) -> None:
        self.size = plan.concurrency
        self.store, self.worker, self._shelf = store, Worker(asked, plan, policy=policy, verifier=verifier), Shelf(store)
        self._gate = asyncio.Semaphore(self.size)
        self._stack = ExitStack()
        self._stack.enter_context(collected_seldom())

    async def submit(self, work: Work) -> Worked:
        async with self._gate:
            return await self.worker.work(work, StoreUnitDesk(self.store, self._shelf, work))

    async def close(self) -> None:
        self._stack.close()
        await self.worker.close()
