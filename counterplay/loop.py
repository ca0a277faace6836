"""The loop: the lines that join the rooms. Traces in, fidelity checked, pivots found, counterfactuals searched, datasets out.

Every function takes an open store and plain values, returns a report, and leaves nothing half-done: what was answered is
journalled, and the same call made again goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import CounterplayError, StoreError, UserError
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected
from counterplay.naming import whole_trace_ids

if TYPE_CHECKING:
    from counterplay.connectors.redaction import Rule
    from counterplay.core.store import Store
    from counterplay.core.store.rows import IngestReport
    from counterplay.parts import Asked
    from counterplay.plan import Pace
    from counterplay.reading import Door

Item = Trace | Rejected
_AT_ONCE = 64
_SCHEMES = "s3://, gs://, az://, postgresql://, langfuse://, langsmith://, phoenix://, mlflow://"


def _nothing(*_: Any) -> None:
    """For callers that don't watch."""


@contextmanager
def opened(path: Path | str, *, read_only: bool = False, existing: bool = False, memory: str | None = None) -> Iterator[Store]:
    """The store at `path`, closed again on the way out. One that is read, or has to be `existing`, is a UserError where it is missing.

    `memory` is that of `Store.open`.
    """
    from counterplay.core.store import Store

    if (read_only or existing) and not Path(path).exists():
        raise UserError(f"got store {path}, which does not exist", "a store", f"Make one: counterplay ingest LOGS --store {path}")
    with Store.open(path, read_only=read_only, memory=memory) as store:
        yield store


def ingest(
    paths: Iterable[Path | str],
    store: Store,
    *,
    format: str = "auto",  # noqa: A002  the user's word
    effects: Path | None = None,
    redact: Sequence[Rule] | None = None,
    processes: int | None = None,
    again: bool | None = None,
    together: str | None = None,
    on_item: Callable[[], None] = _nothing,
    on_note: Callable[[str], None] = _nothing,
) -> IngestReport:
    """Take log files, folders and object stores into the store, and what servers have that is new (docs/sources.md, docs/pulls.md).

    A `postgresql://` address is read as a database of LangGraph checkpoints.

    `effects` names a TOML table of tool effects that completes what the logs say. `redact` are the rules of what becomes a token
    before it is stored, None: secrets; empty: nothing. `processes` is how many read at once, 0: this one; None: as many as pay.
    `again`: whether unchanged files are read again; None: of folders and prefixes not, files that are named always. `together` says which
    files may hold parts of one trace: all, partition or file; None: all of a folder, and of a prefix those of a partition.
    `on_note` is told in words how far it is with a server. Raises SourceError where objects could not be read after all tries: what else
    there is is stored.
    """
    from counterplay.connectors.redaction import rules_of
    from counterplay.incremental import trees_of
    from counterplay.pulling import pull, told_apart
    from counterplay.pulling import together as summed
    from counterplay.reading import Door, Reading
    from counterplay.tree_ingest import ingest_tree, tree_of

    rules = rules_of() if redact is None else tuple(redact)
    trees, named = trees_of([os.fspath(path) for path in paths], files=again is not None)
    addresses, names = told_apart(named)
    databases, files = [name for name in names if is_postgres(name)], [name for name in names if not is_postgres(name)]
    door = Door(effects, rules or None, store.salt)
    reading = Reading(check_paths(files), format, door, processes)
    reports = [_ingest_postgres(dsn, store, door, on_item) for dsn in databases]
    if files:
        reports.append(replace(store.ingest(_watched(reading, on_item)), files_read=len(files)))
        store.count_redactions(reading.redacted)
    planned = [tree_of(root, door, format=format, again=bool(again), together=together) for root in trees]
    reports += [ingest_tree(tree, store, door, processes=processes, on_item=on_item, on_note=on_note) for tree in planned]
    reports += [pull(address, store, door, on_item=on_item, on_note=on_note) for address in addresses]
    return reports[0] if len(reports) == 1 else summed(reports)


def is_postgres(name: str) -> bool:
    """Whether this names a database, not a file."""
    return name.startswith(("postgresql://", "postgres://"))


def _ingest_postgres(dsn: str, store: Store, door: Door, on_item: Callable[[], None]) -> IngestReport:
    """The LangGraph checkpoints of a Postgres database."""
    from counterplay.connectors.langgraph import read_postgres
    from counterplay.reading import blocking

    through = door.opener()
    report = store.ingest(_watched(map(through, blocking(read_postgres(dsn))), on_item))
    store.count_redactions(through.counts)
    return report


def _watched(items: Iterable[Item], on_item: Callable[[], None]) -> Iterator[Item]:
    for item in items:
        on_item()
        yield item


def check_paths(paths: Iterable[Path | str]) -> list[Path]:
    """The paths, all of which exist. Raises UserError where one does not."""
    given = list(paths)
    unknown = next((str(path) for path in given if "://" in str(path)), None)
    if unknown is not None:
        raise UserError(f"got {unknown}, whose scheme is not known", f"a path, or an address that begins with one of {_SCHEMES}")
    files = [Path(path) for path in given]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise UserError(f"got {', '.join(missing)}, which does not exist", "log files or folders")
    return files


def select(
    store: Store, *, trace_ids: Sequence[str] | None = None, which: str = "all", agent: str | None = None, limit: int | None = None
) -> list[Trace]:
    """Traces by id, shortened or not, or by outcome (`failed`, `succeeded`, `all`), of one agent where named, in the store's order."""
    if trace_ids:
        return [store.trace(trace_id) for trace_id in whole_trace_ids(store, trace_ids)][:limit]
    wanted: dict[str, bool | EllipsisType] = {"failed": False, "succeeded": True, "all": ...}
    if which not in wanted:
        raise UserError(f"got --select {which!r}", f"one of {', '.join(wanted)}")
    return list(store.load([row.id for row in store.traces(success=wanted[which], agent=agent, limit=limit)]))


@dataclass(frozen=True)
class ToolFidelity:
    """How often one tool (empty: a user) answered as recorded."""

    tool: str
    observations: int
    reproduced: int


@dataclass(frozen=True)
class Replayed:
    """What re-enacting logged traces gave.

    `divergences` is the first of each unfaithful trace: trace, step, tool, kind, got, wanted; `kinds` counts them by kind. `drift` says in
    words how the environment differs from the one that a trace was recorded in, with the traces it concerns; empty where it does not,
    or where the log does not say.
    """

    traces: int
    observations: int
    reproduced: int
    outcomes: int
    outcomes_reproduced: int
    tools: tuple[ToolFidelity, ...] = ()
    divergences: tuple[Mapping[str, Any], ...] = ()
    kinds: Mapping[str, int] = field(default_factory=dict)
    drift: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def faithful(self) -> bool:
        """Everything that was logged came back. False where nothing could be checked."""
        return bool(self.observations) and not self.divergences and self.outcomes_reproduced == self.outcomes


def comparable_of(store: Store) -> Callable[[str], str] | None:
    """What the store's redaction makes of a text, so that live actions match redacted logs; None where nothing in it was redacted."""
    from counterplay.connectors.redaction import PII, Redactor, rules_of

    kinds = store.redactions()
    return Redactor(store.salt, rules_of(("secrets", *(kind for kind in PII if kind in kinds)))).text if kinds else None


async def replay(traces: Sequence[Trace], asked: Asked, *, on_trace: Callable[[], None] = _nothing) -> Replayed:
    """Re-enact every trace in the environment that was asked for, and compare observations and outcomes."""
    from counterplay.replay.fidelity import check

    against = _against(traces, asked)
    results = []
    for trace in traces:
        results.append((trace, await check(trace.trajectory, against(trace), allow_external=asked.allow_external)))
        on_trace()
    executed = [seen for _, fidelity in results for seen in fidelity.observations if seen.executed]
    seen_by, same_by = Counter(seen.tool for seen in executed), Counter(seen.tool for seen in executed if seen.reproduced)
    outcomes = [fidelity.outcome_reproduced for _, fidelity in results if fidelity.outcome_reproduced is not None]
    firsts = [(trace.id, *fidelity.first) for trace, fidelity in results if fidelity.first]
    return Replayed(
        traces=len(results),
        observations=len(executed),
        reproduced=sum(same_by.values()),
        outcomes=len(outcomes),
        outcomes_reproduced=sum(outcomes),
        tools=tuple(ToolFidelity(tool, seen_by[tool], same_by[tool]) for tool in sorted(seen_by)),
        divergences=tuple(
            {"trace": trace_id, "step": step, "tool": d.tool, "kind": d.kind, "got": d.got, "wanted": d.wanted}
            for trace_id, step, d in firsts
        ),
        kinds=dict(Counter(d.kind for _, _, d in firsts).most_common()),
        drift=await drifted(traces, asked),
    )


async def drifted(traces: Sequence[Trace], asked: Asked) -> dict[str, tuple[str, ...]]:
    """How the environment differs from the one each trace was recorded in, in words, with the traces. Nothing is played."""
    from counterplay.parts import is_environment
    from counterplay.replay.acting import fresh, release
    from counterplay.replay.environment_fingerprint import Fingerprint, drift_of, environment_fingerprint

    if asked.environment == "recorded":
        return {}
    against, made_of = _against(traces, asked), dict[str, Fingerprint]()
    for trace in traces:
        made = against(trace)
        if is_environment(made):
            return {}
        world = await fresh(made)
        try:
            made_of[trace.id] = environment_fingerprint(world)
        finally:
            await release(world)
    return drift_of(traces, lambda trace: made_of[trace.id])


def _against(traces: Sequence[Trace], asked: Asked) -> Callable[[Trace], Any]:
    from counterplay.parts import is_environment, make_world, subject, world_factory

    if asked.environment == "recorded":
        return asked.make_environment(traces)
    factory = world_factory(asked.environment)

    def against(trace: Trace) -> Any:
        made = make_world(factory, subject(factory, trace))
        first = iter([made])
        return made if is_environment(made) else lambda: next(first, None) or make_world(factory, subject(factory, trace))

    return against


@dataclass(frozen=True)
class Pivot:
    """Where one trace went wrong. `step` is None where undetermined; `mass` the probability on it; `action` what the agent did there."""

    trace: str
    task: str | None
    step: int | None
    mass: float | None
    action: str
    reason: str


@dataclass(frozen=True)
class Localised:
    """`found` of the `pivots` have a step; the others say why not."""

    traces: int
    found: int
    pivots: tuple[Pivot, ...]


async def localise(
    store: Store,
    traces: Sequence[Trace],
    asked: Asked,
    *,
    method: str = "drop",
    budget: str = "",
    pace: Pace | None = None,
    on_trace: Callable[[], None] = _nothing,
) -> Localised:
    """The pivotal step of each trace: `drop` asks a process verifier about every prefix, `bisect` plays on from prefixes.

    What `bisect` asks a model is limited by `pace`, over all traces together. It reads the other logged runs of the task by the same agent
    first, so that lines which are in the log cost nothing.
    """
    from counterplay.core.journal import JournaledEnvironment, JournaledPolicy, JournaledVerifier
    from counterplay.forking import siblings_of
    from counterplay.parts import closing
    from counterplay.plan import Pace, Plan
    from counterplay.search.localise import first_drop
    from counterplay.search.localise import localise as bisect

    if method not in ("drop", "bisect"):
        raise UserError(f"got --method {method!r}", "drop or bisect")
    if method == "drop" and not asked.verifiers:
        raise UserError(
            "got no verifier", "one with opinions on unfinished runs", "Give --verifier; list them with: counterplay verifiers list"
        )
    if method == "drop" and budget:
        raise UserError("got --budget for --method drop, which plays nothing", "no budget, or --method bisect")
    if asked.price is None and asked.policy.startswith(("openai:", "batch:", "transformers:")) and Plan(budget=budget).limits("usd"):
        raise UserError("got a limit in usd for a policy whose price is not known", "a limit in model_calls or tokens")
    verifier = asked.make_verifier()
    pace, others_of = pace or Pace(), siblings_of(store)
    playing = method == "bisect" and bool(traces)
    policy = asked.make_policy(traces, concurrency=pace.requests) if playing else None
    environment_of = asked.make_environment(traces) if playing else None
    share = Plan(budget=budget).share(len(traces))

    gate, errors = asyncio.Semaphore(_AT_ONCE), list[CounterplayError]()

    async def bounded(trace: Trace) -> Pivot:
        """One bad trace stops no other."""
        async with gate:
            try:
                return await one(trace)
            except StoreError:
                raise
            except CounterplayError as error:
                errors.append(error)
                return Pivot(trace.id, trace.task, None, None, "", str(error))

    async def one(trace: Trace) -> Pivot:
        if policy is None or environment_of is None:
            found = await first_drop(trace.trajectory, verifier)
        else:
            journal = store.journal(f"localise/{trace.id}")
            parts = (
                JournaledPolicy(policy, journal),
                JournaledEnvironment(environment_of(trace), journal),
                JournaledVerifier(verifier, journal),
            )
            siblings = [other.trajectory for other in others_of(trace)]
            found = await bisect(trace.trajectory, *parts, share(), siblings=siblings, max_steps=asked.max_steps, seed=asked.seed)
        on_trace()
        action = "" if found.step is None else trace.trajectory.steps[found.step].action.signature
        mass = None if found.step is None else found.posterior[found.step]
        return Pivot(trace.id, trace.task, found.step, mass, action, found.reason)

    async with closing(policy) if policy is not None else nullcontext():
        with pace.kept(local=asked.local):
            started = [asyncio.create_task(bounded(trace)) for trace in traces if trace.trajectory.steps]
        pivots = tuple(await asyncio.gather(*started))
    if errors and len(errors) == len(pivots):
        raise errors[0]
    return Localised(len(traces), sum(pivot.step is not None for pivot in pivots), pivots)
