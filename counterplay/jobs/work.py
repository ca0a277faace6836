"""The work of one unit: what it needs, what comes of it, and who does it. Nothing here knows of a queue or of another unit.

A unit is one trace that is searched, or all runs of one task that are stitched. `Worker` makes policy and verifier once and works on any
number of units at the same time; a `Crew` is one or more workers. The same work comes to the same records whoever does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from counterplay.core.budget import Amounts, Budget
from counterplay.core.errors import CounterplayError, PolicyError, StoreError, UserError, VerifierError
from counterplay.core.nouns import Trace
from counterplay.core.records import SearchRecord
from counterplay.forking import READING
from counterplay.jobs.paid import NAMES, Paid
from counterplay.parts import Asked, closing
from counterplay.plan import Plan, check_stitch
from counterplay.search.fairness import Limiter, shared
from counterplay.searched import Facts, added, added_up, facts_of, together
from counterplay.searching import NO_STEPS, TraceSearch, check_price, stitched

if TYPE_CHECKING:
    from counterplay.core.protocols import Policy, Verifier
    from counterplay.core.store.rows import SearchRow
    from counterplay.desk import Desk

Ended: TypeAlias = Literal["done", "failed", "skipped"]

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Work:
    """All that one unit needs; can be pickled.

    `traces` is the one trace of a search, or all runs of a task for `stitch`. `peers` are the other logged runs of its task in the store's
    order, of which the trace itself would be number `place`: recordings, and what localisation reads. `share` are this unit's own limits by
    kind, as they were divided; empty: what the plan gives each trace, or none. `entries` is what is journalled, by scope and key, `held`
    which searches of the trace are kept and `trees` those of them that were asked for: for workers without the store, whose crew fills
    them in.
    """

    unit: str
    traces: tuple[Trace, ...]
    peers: tuple[Trace, ...] = ()
    share: Mapping[str, float] = field(default_factory=dict)
    place: int = 0
    entries: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    held: tuple[SearchRow, ...] = ()
    trees: Mapping[str, SearchRecord] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[Trace, ...]:
        """The traces and their peers, in the store's order."""
        return (*self.peers[: self.place], *self.traces, *self.peers[self.place :])


@dataclass(frozen=True, slots=True)
class Worked:
    """What came of a unit; can be pickled.

    `done`: `records` are its trees, which came to their end unhurt. `failed`: why is in `reason`, `error_class` is one of `ERRORS`, and
    `records` hold what there is: a tree in which calls failed is better than none, and made again by the next attempt. `skipped`: there
    is nothing to search, for the `reason` given. `held` says that the records were complete in the store. `used` is what the budget was
    charged, answers from the journal included, `live_calls` the calls really made, whatever became of them. `tally` has the answered
    requests behind those, their tokens and dollars, as they are in the journal, and what else the policy counted (repeats, waste) since
    the worker's last unit, so that the tallies of all units add up. `failures` are those in the trees, by kind.
    """

    unit: str
    state: Ended
    reason: str = ""
    error_class: str = ""
    records: tuple[SearchRecord, ...] = ()
    held: bool = False
    used: Mapping[str, float] = field(default_factory=dict)
    live_calls: int = 0
    tally: Mapping[str, float] = field(default_factory=dict)
    improved: int = 0
    solved: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Any] = field(default_factory=dict)


ERRORS: Mapping[str, str] = {
    "rate_limit": "the server asked for fewer requests",
    "server": "the server failed, did not answer in time or broke off the connection",
    "unreached": "no connection to the server comes about",
    "closed": "the server lets nobody in: the key, the credit or the model",
    "policy": "the policy failed in another way",
    "refused": "the server refuses this request, and would again",
    "verifier": "a verifier failed",
    "environment": "an environment failed",
    "user": "something is not as it has to be, and won't be in the next attempt",
    "lost": "the worker is gone, or did not answer any more",
    "beside": "the worker is gone, and was at other units too, each of which is now tried alone",
    "defect": "an error that nobody foresaw",
}
"""What a unit may fail for. `user` and `refused` are not worth another attempt."""


class WorkerLostError(CounterplayError):
    """A worker is gone, and with it what it was at. What it was answered is journalled: another attempt goes on where it was.

    `alone`: it was at nothing else, so that the unit may be to blame. Where it was at several nobody knows which one was.
    """

    def __init__(self, got: str, wanted: str = "", do: str = "", *, alone: bool = True) -> None:
        super().__init__(got, wanted, do)
        self.alone = alone


class TreeWantedError(Exception):
    """A tree that is kept is wanted where it is not at hand: the unit is to be sent again, with it."""

    def __init__(self, search_id: str) -> None:
        super().__init__(search_id)
        self.search_id = search_id


class Crew(Protocol):
    """Who works. `size` is how many units it works on at once; a submission beyond that waits."""

    size: int

    async def submit(self, work: Work) -> Worked:
        """What came of a unit.

        Raises WorkerLostError where its worker is gone (the unit is then worked on alone the next time), StoreError where answers can't be
        kept, UserError where no worker can be made.
        """
        ...

    async def close(self) -> None:
        """Let go of everybody. What was submitted and has not come back is given up."""
        ...


class Worker:
    """Works on units, any number at once. Policy and verifier are made once, or once a unit where the policy is what was logged.

    `policy` and `verifier` are used in place of those that `asked` names. Raises UserError where a job can't be run so.
    """

    def __init__(self, asked: Asked, plan: Plan, *, policy: Policy | None = None, verifier: Verifier | None = None) -> None:
        check_plan(asked, plan)
        self.asked, self.plan = asked, plan
        self._tallied: Mapping[str, Any] = {}
        self._whole = Budget.parse(plan.budget)
        self._limiter: Limiter | None = None
        self.policy, self.verifier = policy, verifier
        if plan.algorithm == "stitch":
            return
        if verifier is None:
            self.verifier = asked.make_verifier()
        if policy is None and not by_logs(asked):
            self.policy = asked.make_policy(concurrency=plan.pace.requests)
        with plan.pace.kept(local=asked.local) as limiter:
            self._limiter = limiter

    async def work(self, work: Work, desk: Desk) -> Worked:
        """What comes of a unit. One bad unit stops no other: only StoreError is raised, and TreeWantedError by a desk without the store."""
        usable = [trace for trace in work.traces if trace.trajectory.steps]
        if not usable:
            return Worked(work.unit, "skipped", NO_STEPS)
        paid = Paid(getattr(self.policy, "price", None))
        try:
            if self.plan.algorithm == "stitch":
                return _of(work, [(record, facts_of(record, None)) for record in stitched(work.traces)])
            with nullcontext() if self._limiter is None else shared(self._limiter):
                worked = await self._searched(work, paid.desk(desk))
        except (StoreError, TreeWantedError):
            raise
        except CounterplayError as error:
            worked = Worked(work.unit, "failed", str(error), _class_of(error))
        except Exception as error:  # noqa: BLE001  whatever it was, it is this unit's and must not stop the others
            worked = Worked(work.unit, "failed", f"{type(error).__name__}: {error}", "defect")
        return replace(worked, live_calls=paid.live_calls, tally={**self._tally(), **paid.tally})

    async def close(self) -> None:
        """Let go of the policy, in the event loop that used it."""
        if self.policy is not None:
            async with closing(self.policy):
                self.policy = None

    async def _searched(self, work: Work, desk: Desk) -> Worked:
        (trace,) = work.traces
        policy = self.asked.make_policy(work.runs) if self.policy is None else self.policy
        assert self.verifier is not None
        search = TraceSearch(self.asked, self.plan, policy, self.verifier)
        done = await search.run(trace, self.asked.make_environment(work.runs), self._budget(work), desk)
        facts = facts_of(done.record, trace.outcome.reward, held=done.held)
        unclosed = {"closing": {"count": 1, "first": done.unclosed}} if done.unclosed else {}
        return _of(work, [(done.record, facts)], unclosed=unclosed)

    def _budget(self, work: Work) -> Callable[[], Budget]:
        if not work.share:
            return self.plan.made_of(Amounts(seconds=self._whole.limits.seconds), self._whole)
        return self.plan.made_of(Amounts(**{"seconds": self._whole.limits.seconds, **work.share}), self._whole)

    def _tally(self) -> dict[str, float]:
        """What the policy counted since this was asked last, beside what the journal tells."""
        tally = getattr(self.policy, "tally", None)
        if not is_dataclass(tally) or isinstance(tally, type):
            return {}
        counted = {name: amount for name, amount in asdict(tally).items() if isinstance(amount, int | float) and name not in NAMES}
        new = {name: amount - self._tallied.get(name, 0) for name, amount in counted.items()}
        self._tallied = counted
        return {name: amount for name, amount in new.items() if amount}


def check_plan(asked: Asked, plan: Plan) -> None:
    """Raises UserError on what no job can do."""
    if plan.algorithm == "auto":
        got = "got --search auto for a job: it chooses by what other traces came to, and units know nothing of one another"
        raise UserError(got, "one search for all units", "Name it, or use `counterplay search --search auto`.")
    if plan.algorithm == "stitch":
        check_stitch(asked, plan)
        return
    check_price(asked, plan)


def by_logs(asked: Asked) -> bool:
    """Whether the policy is what was logged, and so another for each unit."""
    return asked.policy == "logged"


def needs_peers(asked: Asked, plan: Plan) -> bool:
    """Whether the search of a trace reads the other logged runs of its task."""
    reads = asked.environment == "recorded" or by_logs(asked) or bool(asked.simulator)
    return plan.algorithm != "stitch" and (reads or plan.localisation in READING)


def siblings_in(work: Work, trace: Trace) -> tuple[Trace, ...]:
    """Those of the peers that localisation reads: by the same agent, and of the same task where that is known."""
    if trace.task is None:
        return ()
    alike = (peer for peer in work.peers if peer.task == trace.task and peer.agent == trace.agent)
    return tuple(peer for peer in alike if peer.id != trace.id and peer.trajectory.steps)


def _of(work: Work, made: Sequence[tuple[SearchRecord, Facts]], *, unclosed: Mapping[str, Any] = _NOTHING) -> Worked:
    facts = [one for _, one in made]
    failures = together(one.failures for one in facts)
    kind = next(iter(failures), "")
    return Worked(
        work.unit,
        "failed" if kind else "done",
        f"{failures[kind]['count']} calls failed, the first: {failures[kind]['first']}" if kind else "",
        _told(kind, failures[kind]["first"]) if kind else "",
        tuple(record for record, _ in made),
        held=all(one.held for one in facts),
        used=added(one.used for one in facts),
        improved=sum(one.improved for one in facts),
        solved=sum(one.solved for one in facts),
        notes=dict(added_up({note: 1} for one in facts for note in one.notes)),
        failures={**unclosed, **failures},
    )


_SAID = (
    ("user", re.compile(r"went another way in the prompt \(prompt_drift\)|re-run, was interrupted: prompt drift at ")),
    ("closed", re.compile(r"answered 401\b|wanted an account with credit left|answered 404\b.*; wanted model ")),
    ("rate_limit", re.compile(r"answered 429\b")),
    ("unreached", re.compile(r"can't be reached")),
    ("server", re.compile(r"answered (408|409|5\d\d)\b|did not answer within|broke off the connection")),
    ("refused", re.compile(r"answered 4\d\d\b")),
)


def _told(kind: str, reason: str) -> str:
    """The class of a call that failed. What a model's server said, wherever it was asked, says more than who asked it."""
    return next((name for name, said in _SAID if said.search(reason)), kind if kind in ERRORS else "policy")


def _class_of(error: CounterplayError) -> str:
    kinds = {UserError: "user", VerifierError: "verifier", PolicyError: "policy"}
    return _told(next((name for kind, name in kinds.items() if isinstance(error, kind)), "environment"), str(error))
