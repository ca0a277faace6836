"""Where a search begins: at the start, at a step, or wherever a strategy of `search/branching.py` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from counterplay.core.budget import Amounts, Budget
from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import State, Trace, Trajectory
from counterplay.plan import STRATEGIES
from counterplay.replay.fork import fork
from counterplay.search.branching import Strategy, choose
from counterplay.search.engine import Engine
from counterplay.search.localise import first_drop
from counterplay.search.logged import horizon, logged_path, score_log

if TYPE_CHECKING:
    from counterplay.branch_usage import TalliedPolicy
    from counterplay.core.protocols import Environment, Verifier
    from counterplay.core.store import Store

READING = frozenset({"pivot", "rare_state"})
"""The strategies that read the other logged runs of a task."""

NOT_FOUND = "found no step"
"""How the reason for a start ends where a strategy had nothing to say."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a search asks, journalled."""

    policy: TalliedPolicy
    environment: Environment
    verifier: Verifier


@dataclass(frozen=True, slots=True)
class Start:
    """The state to search from, what finding it used, and why it is this one (empty where the user named it)."""

    state: State
    used: Amounts = Amounts()  # noqa: RUF009  frozen
    why: str = ""


def siblings_of(store: Store) -> Callable[[Trace], tuple[Trace, ...]]:
    """For a trace, the other logged runs of its task by the same agent in the store, in its order; none where the task is not known."""

    @lru_cache(maxsize=64)
    def runs(task: str, agent: str | None) -> tuple[Trace, ...]:
        return tuple(store.load([row.id for row in store.traces(task=task) if row.agent == agent and row.steps]))

    def others(trace: Trace) -> tuple[Trace, ...]:
        if trace.task is None:
            return ()
        return tuple(other for other in runs(trace.task, trace.agent) if other.id != trace.id and other.trajectory.steps)

    return others


def identity_of(siblings: Sequence[Trace]) -> str:
    """What a search that reads these runs owes to them."""
    return content_key(*(f"{trace.id} {trace.trajectory.key} {trace.trajectory.steps[-1].reward}" for trace in siblings))


def whole(trace: Trace) -> Trajectory:
    """The run of a trace, all of whose prompts are known. Raises UserError where they are not."""
    if trace.completeness.inputs not in ("full", "stitched"):
        raise UserError(f"the prompts of trace {trace.id} were logged as '{trace.completeness.inputs}'", "prompts that are known whole")
    return trace.trajectory


async def start_at(
    trace: Trace, where: str, parts: Parts, budget: Budget, *, siblings: Sequence[Trace] = (), seed: int = 0, max_steps: int | None = None
) -> Start:
    """The state at `where`: "start", a step number, or the step that a strategy puts first, the start where it finds none.

    "value_drop" takes the largest fall of a process verifier's value from 0.2 on, and asks no model. What other strategies play or draw
    is paid for by `budget`, of which they leave at least half to the search. Raises UserError where no search can begin there.
    """
    if where == "value_drop":
        found = await first_drop(trace.trajectory, parts.verifier)
        return Start(fork(trace, found.step or 0), why=found.reason)
    if where not in STRATEGIES:
        return Start(fork(trace, 0 if where == "start" else int(where)))
    trajectory = whole(trace)
    path = logged_path(trajectory, "localise")
    engine = Engine(parts.policy, parts.environment, parts.verifier, budget, max_steps=horizon(trajectory, max_steps))
    if where == "pivot":
        await score_log(engine, path)
    forks = await choose(engine, path, cast("Strategy", where), others=[other.trajectory for other in siblings], seed=seed)
    if not forks:
        return Start(fork(trace, 0), engine.used(), f"{where} {NOT_FOUND}")
    return Start(fork(trace, forks[0].step), engine.used(), forks[0].reason)
