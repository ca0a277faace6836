"""One search over many traces: each with its own budget, journal and tree, all in flight together.

The identity of a search is everything that decides its tree. A tree that is complete under its identity is not made
again; one that was cut off is, and finds its own calls answered in the journal.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from counterplay.branch_usage import TalliedPolicy, models_config, usage_config
from counterplay.choosing import JournaledLines, fit, opened, theirs, weighs_prefixes
from counterplay.core.canonical import canonical, content_key
from counterplay.core.errors import CounterplayError, StoreError, UserError
from counterplay.core.journal import Journal, JournaledEnvironment, JournaledPolicy, JournaledVerifier
from counterplay.core.nouns import Trace
from counterplay.core.protocols import fingerprint_of
from counterplay.core.records import SearchRecord
from counterplay.desk import StoreDesk
from counterplay.dividing import Shares
from counterplay.forking import READING, Parts, Start, identity_of, start_at, whole
from counterplay.growing import Shelf
from counterplay.parts import closing
from counterplay.plan import Plan, check_stitch
from counterplay.replay.capabilities import Capabilities, capabilities
from counterplay.replay.live import LiveEnvironment
from counterplay.search.registry import LOGGED, find, options
from counterplay.search.stitch import stitch
from counterplay.search.stopping import stopping
from counterplay.searched import Facts, Searched, ended, facts_of, summary
from counterplay.strategies import Auto, arms, lines_of, rounds, sized
from counterplay.version import __version__

if TYPE_CHECKING:
    from counterplay.core.budget import Budget
    from counterplay.core.protocols import Environment, Policy, Verifier
    from counterplay.core.store import Store
    from counterplay.core.store.rows import SearchRow
    from counterplay.desk import Desk
    from counterplay.parts import Asked, EnvironmentOf

__all__ = ["Searched", "Searching", "TraceSearch", "search"]

NO_STEPS = "it has no steps"
_YOUNG = 5000


@dataclass(frozen=True)
class Done:
    """The tree of one trace. `live_calls` were really made; `held` says that it was complete in the store.

    `unclosed` says why its environment failed when it was let go of; empty where it did not.
    """

    record: SearchRecord
    live_calls: int = 0
    held: bool = False
    unclosed: str = ""


class TraceSearch:
    """What a search does for one trace, wherever the trace is at hand: its parts are made once, what is kept is at a `Desk`.

    `auto` chooses the search for each trace where the plan leaves that to it.
    """

    def __init__(self, asked: Asked, plan: Plan, policy: Policy, verifier: Verifier, *, auto: Auto | None = None) -> None:
        self.asked, self.plan, self.policy, self.verifier, self.auto = asked, plan, policy, verifier, auto

    async def run(self, trace: Trace, environment_of: EnvironmentOf, budget: Callable[[], Budget], desk: Desk) -> Done:
        """The tree of `trace`. Raises CounterplayError where it can't be searched."""
        name, done = f"the environment of trace {trace.id}", None
        with theirs(name):
            environment = environment_of(trace)
        try:
            async with opened(environment, name):
                done = await self._searched(trace, environment, budget, desk)
        except UserError as error:
            if done is None:
                raise
            return replace(done, unclosed=str(error))  # its tree is made
        return done

    async def _searched(self, trace: Trace, environment: Environment, new_budget: Callable[[], Budget], desk: Desk) -> Done:
        if not trace.trajectory.steps:
            raise UserError(f"trace {trace.id} has no steps", "a trace with at least one model call")
        with theirs(f"the environment of trace {trace.id}"):
            found, made_of = capabilities(environment), _made_of(environment)
        with theirs("the policy, the environment or the verifier, asked for its fingerprint,"):
            fingerprints = [fingerprint_of(part) for part in (self.policy, environment, self.verifier)]
        journal = desk.journal(scope_of(trace))
        plan, why = await self._fitted(trace, found, journal, new_budget)
        asked = JournaledPolicy(self.policy, journal)
        played = (JournaledEnvironment if found.forks else JournaledLines)(environment, journal)
        parts, budget = Parts(TalliedPolicy(asked), played, JournaledVerifier(self.verifier, journal)), new_budget()
        siblings = desk.siblings(trace) if plan.localisation in READING else ()
        start, options = await self._start(trace, plan, parts, budget, siblings), self._options(plan)
        config = _config(plan, options, budget, siblings)
        search_id = content_key("search", plan.algorithm, trace.id, start.state.key, canonical(config), *fingerprints)
        held = desk.held(trace.id).get(search_id)
        record = _complete(held, desk)
        if record is not None:
            return Done(record, asked.live_calls, held=True)
        told = {"chosen": why, "begun": start.why, "made_of": made_of}
        config |= dict(zip(("policy", "environment", "verifier"), fingerprints, strict=True))
        config |= {name: value for name, value in told.items() if value}
        belongs = {"trace": trace.id, "task": trace.task, "fork_step": 0 if plan.algorithm in LOGGED else len(start.state)}
        given = {"siblings": [other.trajectory for other in siblings]} if siblings and plan.algorithm in LOGGED else {}
        # what has ended gives way to what has ended alone
        watch = None if held is not None and held.stopped else desk.watch(search_id, config, **belongs)
        run = partial(find(plan.algorithm), **options, **given, on_wave=watch)
        with stopping(plan.condition):
            tree = await run(start.state, parts.policy, parts.environment, parts.verifier, budget)
        tree.used = start.used + tree.used
        usage = {**usage_config(tree, parts.policy.by_state), "models": models_config(parts.policy.by_model)}
        tree.config = {**tree.config, **config, "usage": usage}
        return Done(tree.to_record(search_id, **belongs), asked.live_calls)

    async def _fitted(self, trace: Trace, found: Capabilities, journal: Journal, budget: Callable[[], Budget]) -> tuple[Plan, str]:
        """The plan as far as the environment allows it, and why it is another than was asked for."""
        if self.auto is not None:
            return await self._chosen(trace, found, journal, budget, self.auto)
        if found.forks and found.reenacts and self.plan.named:
            return self.plan, ""
        asks = found.reenacts or not found.forks
        process = asks and await weighs_prefixes(JournaledVerifier(self.verifier, journal), trace.trajectory)
        return fit(self.plan, found, named=self.plan.named, forked=self.plan.forked, process=process)

    async def _chosen(
        self, trace: Trace, found: Capabilities, journal: Journal, budget: Callable[[], Budget], auto: Auto
    ) -> tuple[Plan, str]:
        """The plan with the search that `--search auto` takes for this trace, and among which it chose."""
        plan, length = self.plan, len(trace.trajectory)
        calls = budget().limits.model_calls
        process = await weighs_prefixes(JournaledVerifier(self.verifier, journal), trace.trajectory)
        forked, lines = plan.fork if plan.forked else None, lines_of(calls, length)
        names = arms(found, process=process, lines=lines, forked=forked, stops=bool(plan.stop_when))
        name = auto.choose(trace, names)
        chosen = replace(plan, algorithm=name, options=sized(name, calls, length))
        fitted, _ = fit(chosen, found, named=True, forked=plan.forked, process=process)
        return fitted, f"{name}, by auto, of {', '.join(names)}"

    async def _start(self, trace: Trace, plan: Plan, parts: Parts, budget: Budget, siblings: Sequence[Trace]) -> Start:
        """The state to search from: the whole log for searches that fork it themselves, else the state at the fork."""
        if plan.algorithm in LOGGED:
            return Start(whole(trace))
        asked = self.asked
        return await start_at(trace, plan.fork, parts, budget, siblings=siblings, seed=asked.seed, max_steps=asked.max_steps)

    def _options(self, plan: Plan) -> dict[str, Any]:
        known, given = options(find(plan.algorithm)), dict(plan.options)
        given.setdefault("seed", self.asked.seed)
        if self.asked.max_steps is not None:
            given.setdefault("max_steps", self.asked.max_steps)
        if plan.algorithm in LOGGED and plan.fork != Plan.fork:
            given["localisation"] = plan.fork
        return {name: value for name, value in given.items() if name in known}


def scope_of(trace: Trace) -> str:
    """The journal of one trace: entries are keyed by what was asked, so a larger budget or another algorithm pays for nothing twice."""
    return f"search/{trace.id}"


def _complete(held: SearchRow | None, desk: Desk) -> SearchRecord | None:
    """The tree of this search, where it is kept and was neither cut off nor hurt."""
    if held is None or not ended(held.stopped):
        return None
    record = desk.search(held.id)
    return None if record.config.get("failures") else record


def _config(plan: Plan, options: Mapping[str, Any], budget: Budget, siblings: Sequence[Trace]) -> dict[str, Any]:
    """What decides a tree besides its parts and its root."""
    config = {**options, "fork": plan.fork, "budget": asdict(budget.limits), "code": __version__}
    if plan.stop_when:
        config["stop_when"] = asdict(plan.condition)
    if siblings:
        config["siblings"] = identity_of(siblings)
    return config


class Searching:
    """One search over many traces: what they share, made once."""

    def __init__(self, store: Store, traces: Sequence[Trace], asked: Asked, plan: Plan, on_trace: Callable[[], None]) -> None:
        check_price(asked, plan)
        self.asked, self.plan, self.on_trace = asked, plan, on_trace
        self.shares = Shares(store, plan, _job(asked, plan))
        division = self.shares.of(traces)
        self.budgets, self.skipped = division.budgets, dict(division.skipped)
        self.all, self.traces = traces, [trace for trace in traces if trace.id in division.budgets]
        self.policy = asked.make_policy(traces, concurrency=plan.pace.requests)
        self.environment_of = asked.make_environment(traces)
        self.shelf = Shelf(store)
        self.desk = StoreDesk(store, self.shelf, self.shares.siblings)
        self.auto = None
        if plan.algorithm == "auto":
            others = [asked.policy, asked.environment, *asked.verifiers]
            self.auto = Auto(store, self.shares.key, others, self.traces, seed=asked.seed)
        self.searched = TraceSearch(asked, plan, self.policy, asked.make_verifier(), auto=self.auto)
        self._errors: list[CounterplayError] = []
        self._unclosed: list[str] = []

    async def run(self) -> Searched:
        gate = asyncio.Semaphore(self.plan.concurrency)
        done: list[Facts] = []
        async with closing(self.policy):
            try:
                with self.plan.pace.kept(local=self.asked.local), collected_seldom():
                    for traces in self._rounds():
                        done += await self._together(gate, traces)
            finally:
                self.shelf.write()
        if self._errors and not done:
            raise self._errors[0]
        self.shares.end()
        tally = asdict(self.policy.tally) if hasattr(self.policy, "tally") else {}
        return summary(done, traces=len(self.all), skipped=self.skipped, tally=tally, unclosed=self._unclosed)

    def _rounds(self) -> Iterable[Sequence[Trace]]:
        """The traces whose searches do not wait for one another: all of them, but where searches are chosen by what others came to."""
        return rounds(self.traces) if self.auto is not None else [self.traces]

    async def _together(self, gate: asyncio.Semaphore, traces: Sequence[Trace]) -> list[Facts]:
        started = [asyncio.create_task(self._gated(gate, trace)) for trace in traces]
        try:
            found = await asyncio.gather(*started)
        finally:
            for task in started:
                task.cancel()
        done = [result for result in found if result is not None]
        if self.auto is not None:
            self.auto.learn({str(one.trace): (one.improved, one.used.get("model_calls", 0.0)) for one in done})
        return done

    async def _gated(self, gate: asyncio.Semaphore, trace: Trace) -> Facts | None:
        """What came of one trace; None, with the reason in `skipped`, where it could not be searched: one bad trace stops no other."""
        async with gate:
            try:
                done = await self.searched.run(trace, self.environment_of, self.budgets[trace.id], self.desk)
            except StoreError:
                raise
            except CounterplayError as error:
                self.skipped[trace.id] = str(error)
                self._errors.append(error)
                facts = None
            else:
                if not done.held:
                    self.shelf.put(done.record)
                self._unclosed += [done.unclosed] if done.unclosed else []
                facts = facts_of(done.record, trace.outcome.reward, live_calls=done.live_calls, held=done.held)
            self.on_trace()
            return facts


@contextmanager
def collected_seldom() -> Iterator[None]:
    """What is there already is not searched for garbage again, what trees grow by, which stays, less often. Afterwards all is as before."""
    young, *older = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(young and max(young, _YOUNG), *older)
    try:
        yield
    finally:
        gc.set_threshold(young, *older)
        gc.unfreeze()


def _job(asked: Asked, plan: Plan) -> str:
    """What makes two commands the same job, whatever traces they are about."""
    how = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in ("concurrency", "pace")}
    parts = {field.name: getattr(asked, field.name) for field in fields(asked) if field.name not in ("base_url", "comparable")}
    parts["allow_external"] = sorted(asked.allow_external)
    return content_key("job", __version__, repr(sorted(how.items())), repr(sorted(parts.items())))


def _made_of(environment: Environment) -> dict[str, Any] | None:
    """What a live world is made of, as it is kept with a tree."""
    return environment.made_of.to_record() if isinstance(environment, LiveEnvironment) else None


def check_price(asked: Asked, plan: Plan) -> None:
    """Refuse a limit in dollars that could never bind, and a price that is none. Raises UserError."""
    if asked.price is not None and not all(0 <= price < float("inf") for price in asked.price):
        raise UserError(f"got the price {asked.price[0]:g},{asked.price[1]:g}", "dollars that are not negative, and finite")
    if asked.price is None and asked.policy.startswith(("openai:", "batch:", "transformers:")) and plan.limits("usd"):
        do = "Give --price INPUT,OUTPUT, or limit model_calls or tokens."
        raise UserError("got a limit in usd for a policy whose price is not known", "a price", do)


async def search(
    store: Store, traces: Sequence[Trace], asked: Asked, plan: Plan, *, on_trace: Callable[[], None] = lambda: None
) -> Searched:
    """Search every trace and keep its tree. A trace whose tree is complete in the store is not searched again."""
    if plan.algorithm == "stitch":
        check_stitch(asked, plan)
        return _stitched(store, traces, on_trace)
    return await Searching(store, traces, asked, plan, on_trace).run()


def _stitched(store: Store, traces: Sequence[Trace], on_trace: Callable[[], None]) -> Searched:
    """Merge the runs of each task; zero model calls."""
    by_task: dict[str, list[Trace]] = {}
    for trace in traces:
        by_task.setdefault(f"task {trace.task}" if trace.task is not None else f"trace {trace.id}", []).append(trace)
    made = []
    for runs in by_task.values():
        for record in stitched(runs):
            made.append(facts_of(record, None, held=not store.put_search(record)))
            on_trace()
    skipped = {trace.id: NO_STEPS for trace in traces if not trace.trajectory.steps}
    return summary(made, traces=len(traces), skipped=skipped)


def stitched(runs: Sequence[Trace]) -> Iterator[SearchRecord]:
    """The trees of the runs of one task, of those that have steps, in their order."""
    usable = [trace for trace in runs if trace.trajectory.steps]
    for trace, tree in zip(usable, stitch([trace.trajectory for trace in usable]), strict=True):
        yield tree.to_record(content_key("stitch", trace.id), trace=trace.id, task=trace.task)
