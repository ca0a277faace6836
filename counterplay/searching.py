"""One search over many traces: each with its own budget, journal and tree, all in flight together.

The identity of a search is everything that decides its tree. A tree that is complete under its identity is not made
again; one that was cut off is, and finds its own calls answered in the journal.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from counterplay.branch_usage import TalliedPolicy, usage_config
from counterplay.choosing import JournaledLines, fit, opened, theirs, weighs_prefixes
from counterplay.core.canonical import canonical, content_key
from counterplay.core.errors import CounterplayError, StoreError, UserError
from counterplay.core.journal import Journal, JournaledEnvironment, JournaledPolicy, JournaledVerifier
from counterplay.core.nouns import Trace
from counterplay.core.protocols import fingerprint_of
from counterplay.core.records import SearchRecord
from counterplay.dividing import Shares
from counterplay.forking import NOT_FOUND, READING, Parts, Start, identity_of, siblings_of, start_at, whole
from counterplay.growing import Shelf
from counterplay.parts import closing
from counterplay.plan import Plan, check_stitch
from counterplay.replay.capabilities import Capabilities, capabilities
from counterplay.replay.live import LiveEnvironment
from counterplay.search.registry import LOGGED, find, options
from counterplay.search.stitch import stitch
from counterplay.search.stopping import stopping
from counterplay.search.tree import SearchTree
from counterplay.strategies import Auto, arms, lines_of, rounds, sized
from counterplay.version import __version__

if TYPE_CHECKING:
    from counterplay.core.budget import Budget
    from counterplay.core.protocols import Environment
    from counterplay.core.store import Store
    from counterplay.parts import Asked

_CLOCK = "seconds"
_YOUNG = 5000


@dataclass(frozen=True)
class Searched:
    """What a search over many traces did. `searches` holds one id a tree, in trace order.

    `resumed` trees were complete in the store already. `improved` trees have a finished branch that scores above the logged one.
    `used` is what the trees' budgets were charged, answers from the journal included; `live_calls` the model calls really made now.
    `failures` counts calls that failed inside searches, by kind, with the first message of each; such searches are tried again, but for
    `closing`: environments that failed when they were let go of.
    `branch_errors` counts branches that could not go on, by their reason, the most frequent eight. `notes` counts what was not as asked
    for or was left to be chosen: another search, a start because a strategy found no step.
    `digest` is 32 hex digits over the trees: equal for equal trees.
    """

    searches: tuple[str, ...]
    traces: int
    skipped: Mapping[str, str]
    resumed: int
    improved: int
    nodes: int
    used: Mapping[str, float]
    live_calls: int
    tally: Mapping[str, Any]
    stopped: Mapping[str, int]
    failures: Mapping[str, Any]
    branch_errors: Mapping[str, int]
    notes: Mapping[str, int]
    digest: str


@dataclass(frozen=True)
class Done:
    """The tree of one trace. `live_calls` were really made; `held` says that it was complete in the store."""

    record: SearchRecord
    live_calls: int = 0
    held: bool = False


class Searching:
    """The parts of one search, made once."""

    def __init__(self, store: Store, traces: Sequence[Trace], asked: Asked, plan: Plan, on_trace: Callable[[], None]) -> None:
        check_price(asked, plan)
        self.store, self.asked, self.plan, self.on_trace = store, asked, plan, on_trace
        self.shares = Shares(store, plan, _job(asked, plan))
        division = self.shares.of(traces)
        self.budgets, self.skipped = division.budgets, dict(division.skipped)
        self.all, self.traces = traces, [trace for trace in traces if trace.id in division.budgets]
        self.policy, self.verifier = asked.make_policy(traces, concurrency=plan.pace.requests), asked.make_verifier()
        self.environment_of = asked.make_environment(traces)
        self.siblings_of = siblings_of(store)
        self.held = {row.id: row for row in store.searches()}
        self.shelf = Shelf(store)
        self.auto = None
        if plan.algorithm == "auto":
            others = [asked.policy, asked.environment, *asked.verifiers]
            self.auto = Auto(store, self.shares.key, others, self.traces, seed=asked.seed)
        self._errors: list[CounterplayError] = []
        self._unclosed: list[str] = []

    async def run(self) -> Searched:
        gate = asyncio.Semaphore(self.plan.concurrency)
        done: list[Done] = []
        async with closing(self.policy):
            try:
                with self.plan.pace.kept(local=self.asked.local), _collected_seldom():
                    for traces in self._rounds():
                        done += await self._together(gate, traces)
            finally:
                self.shelf.write()
        if self._errors and not done:
            raise self._errors[0]
        self.shares.end()
        return summary(
            [result.record for result in done],
            resumed=sum(result.held for result in done),
            traces=len(self.all),
            skipped=self.skipped,
            live_calls=sum(result.live_calls for result in done),
            tally=asdict(self.policy.tally) if hasattr(self.policy, "tally") else {},
            rewards={trace.id: trace.outcome.reward for trace in self.traces},
            unclosed=self._unclosed,
        )

    def _rounds(self) -> Iterable[Sequence[Trace]]:
        """The traces whose searches do not wait for one another: all of them, but where searches are chosen by what others came to."""
        return rounds(self.traces) if self.auto is not None else [self.traces]

    async def _together(self, gate: asyncio.Semaphore, traces: Sequence[Trace]) -> list[Done]:
        started = [asyncio.create_task(self._gated(gate, trace)) for trace in traces]
        try:
            found = await asyncio.gather(*started)
        finally:
            for task in started:
                task.cancel()
        done = [result for result in found if result is not None]
        if self.auto is not None:
            rewards = {trace.id: trace.outcome.reward for trace in traces}
            results = [(str(one.record.trace), one.record) for one in done]
            self.auto.learn({name: (_improved(made, rewards[name]), made.used.model_calls or 0.0) for name, made in results})
        return done

    async def _gated(self, gate: asyncio.Semaphore, trace: Trace) -> Done | None:
        """The tree of one trace; None, with the reason in `skipped`, where it could not be searched: one bad trace stops no other."""
        async with gate:
            try:
                done = await self._one(trace)
            except StoreError:
                raise
            except CounterplayError as error:
                self.skipped[trace.id] = str(error)
                self._errors.append(error)
                done = None
            self.on_trace()
            return done

    async def _one(self, trace: Trace) -> Done:
        name, done = f"the environment of trace {trace.id}", None
        with theirs(name):
            environment = self.environment_of(trace)
        try:
            async with opened(environment, name):
                done = await self._searched(trace, environment)
        except UserError as error:
            if done is None:
                raise
            self._unclosed.append(str(error))  # its tree is made
        return done

    async def _searched(self, trace: Trace, environment: Environment) -> Done:
        if not trace.trajectory.steps:
            raise UserError(f"trace {trace.id} has no steps", "a trace with at least one model call")
        with theirs(f"the environment of trace {trace.id}"):
            found, made_of = capabilities(environment), _made_of(environment)
        with theirs("the policy, the environment or the verifier, asked for its fingerprint,"):
            fingerprints = [fingerprint_of(part) for part in (self.policy, environment, self.verifier)]
        journal = self._journal(trace)
        plan, why = await self._fitted(trace, found)
        asked = JournaledPolicy(self.policy, journal)
        played = (JournaledEnvironment if found.forks else JournaledLines)(environment, journal)
        parts, budget = Parts(TalliedPolicy(asked), played, JournaledVerifier(self.verifier, journal)), self.budgets[trace.id]()
        siblings = self.shares.siblings(trace, self.siblings_of(trace)) if plan.localisation in READING else ()
        start, options = await self._start(trace, plan, parts, budget, siblings), self._options(plan)
        config = self._config(plan, options, budget, siblings)
        search_id = content_key("search", plan.algorithm, trace.id, start.state.key, canonical(config), *fingerprints)
        record = self._complete(search_id)
        if record is not None:
            return Done(record, asked.live_calls, held=True)
        told = {"chosen": why, "begun": start.why, "made_of": made_of}
        config |= dict(zip(("policy", "environment", "verifier"), fingerprints, strict=True))
        config |= {name: value for name, value in told.items() if value}
        belongs = {"trace": trace.id, "task": trace.task, "fork_step": 0 if plan.algorithm in LOGGED else len(start.state)}
        given = {"siblings": [other.trajectory for other in siblings]} if siblings and plan.algorithm in LOGGED else {}
        ended = search_id in self.held and self.held[search_id].stopped
        watch = None if ended else self.shelf.watch(search_id, config, **belongs)  # what has ended gives way to what has ended alone
        run = partial(find(plan.algorithm), **options, **given, on_wave=watch)
        with stopping(plan.condition):
            tree = await run(start.state, parts.policy, parts.environment, parts.verifier, budget)
        tree.used = start.used + tree.used
        tree.config = {**tree.config, **config, "usage": usage_config(tree, parts.policy.by_state)}
        record = tree.to_record(search_id, **belongs)
        self.shelf.put(record)
        return Done(record, asked.live_calls)

    def _complete(self, search_id: str) -> SearchRecord | None:
        """The tree of this search, where it is in the store and was neither cut off nor hurt."""
        held = self.held.get(search_id)
        if held is None or not held.stopped or _CLOCK in held.stopped:
            return None
        record = self.store.search(search_id)
        return None if record.config.get("failures") else record

    async def _fitted(self, trace: Trace, found: Capabilities) -> tuple[Plan, str]:
        """The plan as far as the environment allows it, and why it is another than was asked for."""
        if self.auto is not None:
            return await self._chosen(trace, found, self.auto)
        if found.forks and found.reenacts and self.plan.named:
            return self.plan, ""
        asks = found.reenacts or not found.forks
        process = asks and await weighs_prefixes(JournaledVerifier(self.verifier, self._journal(trace)), trace.trajectory)
        return fit(self.plan, found, named=self.plan.named, forked=self.plan.forked, process=process)

    async def _chosen(self, trace: Trace, found: Capabilities, auto: Auto) -> tuple[Plan, str]:
        """The plan with the search that `--search auto` takes for this trace, and among which it chose."""
        plan, length = self.plan, len(trace.trajectory)
        calls = self.budgets[trace.id]().limits.model_calls
        process = await weighs_prefixes(JournaledVerifier(self.verifier, self._journal(trace)), trace.trajectory)
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

    def _journal(self, trace: Trace) -> Journal:
        """One journal a trace: entries are keyed by what was asked, so a larger budget or another algorithm pays for nothing twice."""
        return self.store.journal(f"search/{trace.id}")

    def _options(self, plan: Plan) -> dict[str, Any]:
        known, given = options(find(plan.algorithm)), dict(plan.options)
        given.setdefault("seed", self.asked.seed)
        if self.asked.max_steps is not None:
            given.setdefault("max_steps", self.asked.max_steps)
        if plan.algorithm in LOGGED and plan.fork != Plan.fork:
            given["localisation"] = plan.fork
        return {name: value for name, value in given.items() if name in known}

    def _config(self, plan: Plan, options: Mapping[str, Any], budget: Budget, siblings: Sequence[Trace]) -> dict[str, Any]:
        """What decides a tree besides its parts and its root."""
        config = {**options, "fork": plan.fork, "budget": asdict(budget.limits), "code": __version__}
        if plan.stop_when:
            config["stop_when"] = asdict(plan.condition)
        if siblings:
            config["siblings"] = identity_of(siblings)
        return config


@contextmanager
def _collected_seldom() -> Iterator[None]:
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


def summary(
    records: Sequence[SearchRecord],
    *,
    resumed: int = 0,
    traces: int = 0,
    skipped: Mapping[str, str] | None = None,
    live_calls: int = 0,
    tally: Mapping[str, Any] | None = None,
    rewards: Mapping[str, float | None] | None = None,
    unclosed: Sequence[str] = (),
) -> Searched:
    """Many trees as one report. `rewards` are the logged ones by trace, `unclosed` says why environments could not be closed."""
    failures: dict[str, dict[str, Any]] = {"closing": {"count": len(unclosed), "first": unclosed[0]}} if unclosed else {}
    for record in records:
        for kind, failed in (record.config.get("failures") or {}).items():
            known = failures.setdefault(kind, {"count": 0, "first": failed["first"]})
            known["count"] += failed["count"]
    used: Counter[str] = Counter()
    for record in records:
        used.update({kind: amount for kind, amount in asdict(record.used).items() if amount and kind != _CLOCK})
    return Searched(
        searches=tuple(record.id for record in records),
        traces=traces,
        skipped=skipped or {},
        resumed=resumed,
        improved=sum(_improved(record, (rewards or {}).get(record.trace or "")) for record in records),
        nodes=sum(len(record.nodes) for record in records),
        used=dict(used),
        live_calls=live_calls,
        tally=tally or {},
        stopped=dict(Counter(record.stopped for record in records)),
        failures=failures,
        branch_errors=dict(Counter(n.step.error for r in records for n in r.nodes if n.step is not None and n.step.error).most_common(8)),
        notes=dict(Counter(note for record in records for note in _notes(record))),
        digest=content_key(*(_tree_digest(record) for record in records)),
    )


def _notes(record: SearchRecord) -> list[str]:
    begun = str(record.config.get("begun", ""))
    return [note for note in (str(record.config.get("chosen", "")), begun if begun.endswith(NOT_FOUND) else "") if note]


def _improved(record: SearchRecord, reward: float | None) -> bool:
    tree = SearchTree.from_record(record)
    best, logged = tree.best(), [node.score.value for node in tree.finished() if node.logged and node.score is not None]
    return best is not None and best.score is not None and not best.logged and best.score.value > max(logged, default=reward or 0.0)


def check_price(asked: Asked, plan: Plan) -> None:
    """Refuse a limit in dollars that could never bind. Raises UserError."""
    if asked.price is None and asked.policy.startswith(("openai:", "transformers:")) and plan.limits("usd"):
        do = "Give --price INPUT,OUTPUT, or limit model_calls or tokens."
        raise UserError("got a limit in usd for a policy whose price is not known", "a price", do)


def _tree_digest(record: SearchRecord) -> str:
    return content_key(record.id, repr([(n.parent, n.step, n.prior, n.visits, n.value_sum, n.draws, n.score) for n in record.nodes]))


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
        usable = [trace for trace in runs if trace.trajectory.steps]
        for trace, tree in zip(usable, stitch([trace.trajectory for trace in usable]), strict=True):
            record = tree.to_record(content_key("stitch", trace.id), trace=trace.id, task=trace.task)
            made.append((record, not store.put_search(record)))
            on_trace()
    skipped = {trace.id: "it has no steps" for trace in traces if not trace.trajectory.steps}
    return summary([record for record, _ in made], resumed=sum(held for _, held in made), traces=len(traces), skipped=skipped)
