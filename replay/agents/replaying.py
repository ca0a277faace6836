"""An agent's own code, run again: with recorded answers up to a step, and from there with another action or its own model.

As durable-execution engines rebuild state from what was logged: up to the fork no model is asked and no tool executed, every
request is compared with the recorded one, and a difference can't be swallowed by the agent's code.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Message, State, Step, SubTrajectory, Trace, Trajectory
from counterplay.core.protocols import Environment
from counterplay.replay.agents.ambient import Interruption
from counterplay.replay.agents.latch import BranchEnd, Latch
from counterplay.replay.agents.matching import KINDS, Kind
from counterplay.replay.agents.pins import Pin, pinned
from counterplay.replay.agents.plan import OnDivergence, Plan, Seen, StepIn
from counterplay.replay.agents.replayer import Replayer
from counterplay.replay.agents.requests import Reader
from counterplay.replay.agents.running import Ended, run_agent
from counterplay.replay.agents.tool_log import ToolLog, declared_effects, recorded_runs, trajectory_of
from counterplay.replay.fork import fork
from counterplay.replay.live import Comparable

T = TypeVar("T")
Sample: TypeAlias = Literal["live", "none"]
_PINNED = threading.Lock()
_POLL_S = 0.002


@dataclass(frozen=True)
class Replay:
    """What a re-enactment came to.

    `returned` is what the agent returned, `error` its own exception; both None where it was interrupted, and `interruption` says by
    what, empty where it was not. The end of a branch that was to be only so long is no interruption. `trajectory` is the branch with
    its grades: as recorded up to the fork, from there built from what the agent asked; where nothing was forked, the recorded one as
    far as it was re-enacted. `sub_trajectories` are other contexts of the branch, `calls` the provenance of its model calls on the
    main line. `forked_at` is the step of the fork, None where there was none. `requests` are all that were compared with the recording,
    `divergences` those that were not the same, `missing` the recorded calls, as (trajectory, step), that should have been made and
    were not. `model_calls` counts requests that really went to a model, `tool_calls` functions that were really executed, by tool.
    `abandoned`: the agent swallowed every interruption, or hung, and its thread was left behind.
    """

    returned: Any = None
    error: BaseException | None = None
    interruption: str = ""
    trajectory: Trajectory = field(default_factory=Trajectory)
    sub_trajectories: tuple[SubTrajectory, ...] = ()
    calls: tuple[Call, ...] = ()
    forked_at: int | None = None
    requests: tuple[Seen, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()
    model_calls: int = 0
    executed: Mapping[str, int] = field(default_factory=dict)
    abandoned: bool = False

    @property
    def divergences(self) -> tuple[Seen, ...]:
        """What differed from the recording, in order."""
        return tuple(seen for seen in self.requests if seen.kind != "same")

    @property
    def classes(self) -> dict[Kind, int]:
        """How many requests were of each kind; kinds that did not occur are left out."""
        counts = Counter(seen.kind for seen in self.requests)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    @property
    def tool_calls(self) -> int:
        return sum(self.executed.values())

    @property
    def faithful(self) -> bool:
        """Whether the agent's code did what the recording says up to the fork, or to its end: the order of calls may differ."""
        return not self.interruption and all(seen.kind in ("same", "reordered") for seen in self.requests)


async def replay_agent_async(
    agent: Callable[..., Any],
    trace: Trace,
    *,
    reader: Reader,
    arguments: Mapping[str, Any] | None = None,
    at: int | None = None,
    trajectory: int = 0,
    action: Message | None = None,
    sample: Sample = "live",
    execute_tools: Collection[str] = (),
    environment: Environment | None = None,
    on_divergence: OnDivergence = "abort",
    effects: Mapping[str, Effect] | None = None,
    comparable: Comparable | None = None,
    window: int = 3,
    pin: bool = True,
    clock: bool = False,
    allow_hosts: Iterable[str] = (),
    timeout_s: float | None = None,
) -> Replay:
    """Run `agent(**arguments)`, sync or async, with the answers of `trace` up to step `at` of its main trajectory, or of the
    sub-trajectory `trajectory`. None: to the end, a check that the code still does what the log says.

    At the fork it is answered `action`, or, where that is None, asks its model. `sample` says who answers from there: "live" the
    agent's own model, "none" nobody, so that the branch is one step long. A tool gives what was recorded, where that still holds under
    its effect (`effects` by name, else as declared; unknown is external); else what `environment` gives; else it is executed where
    `execute_tools` names it; else the branch ends. `on_divergence`: "abort" interrupts the agent at the first request that is not the
    recorded one, "warn" answers it all the same, where it is plain which one was meant, "live" forks there. A request that equals a
    recorded call within `window` of the next is only out of order. `comparable` maps texts of both sides before they are compared.
    `pin` seeds chance as it was recorded, where it was; `clock` sets the time to that of the recording, and needs time-machine: both
    are process-wide, so that such replays wait for each other. `allow_hosts` may be reached besides models and executed tools.

    The agent runs in a thread of its own, with an event loop of its own, so clients are best made inside of it. `timeout_s` is in
    seconds, None is no limit. Raises UserError where the step can't be forked.
    """
    plan = Plan(
        fork=None if at is None else (trajectory, _fork_step(trace, at, trajectory)),
        action=action,
        live=sample == "live",
        live_sides=sample == "live",
        execute_tools=frozenset(execute_tools),
        on_divergence=on_divergence,
        comparable=comparable,
        window=window,
    )
    runs, latch = recorded_runs(trace), Latch()
    log = ToolLog(runs, runs, {**declared_effects(trace), **(effects or {})}, comparable)
    async with pinned_as(trace, pin=pin, clock=clock) as pins:
        replayer = Replayer(trace, plan, reader=reader, tools=log, latch=latch, step_in=waiting_for(environment), pins=pins)
        run = partial(agent, **(arguments or {}))
        ended = await run_agent(run, replayer, latch, allow_hosts=allow_hosts, timeout_s=timeout_s)
    return _replay(replayer, ended)


def replay_agent(agent: Callable[..., Any], trace: Trace, **options: Any) -> Replay:
    """As `replay_agent_async`, for code that is not async. Inside a running event loop, which waits meanwhile, it works too."""
    return waited_for(partial(replay_agent_async, agent, trace, **options))


def waited_for(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of an async function, whether or not an event loop runs here."""
    if _has_loop():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(function())).result()
    return asyncio.run(function())


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def waiting_for(environment: Environment | None) -> StepIn | None:
    """An environment as agents' threads ask it: it is stepped in the event loop that runs here, and waited for."""
    if environment is None:
        return None
    loop = asyncio.get_running_loop()

    def step_in(state: State, action: Message) -> Step:
        return asyncio.run_coroutine_threadsafe(environment.step(state, action), loop).result()

    return step_in


@asynccontextmanager
async def pinned_as(trace: Trace, *, pin: bool, clock: bool) -> AsyncIterator[Pin]:
    """Chance and time as they were recorded. One at a time in a process: others wait."""
    pins = trace.metadata.get("pins") or {}
    seed = pins.get("seed") if pin else None
    start = trace.started_at_us if clock else None
    if seed is None and start is None:
        yield Pin()
        return
    while not _PINNED.acquire(blocking=False):  # noqa: ASYNC110  the others may run in other event loops
        await asyncio.sleep(_POLL_S)
    try:
        with pinned(seed=seed, clock=start) as pinning:
            yield pinning
    finally:
        _PINNED.release()


def _fork_step(trace: Trace, at: int, trajectory: int) -> int:
    """The step to fork at, counted from the start. Raises UserError where it can't be forked, or no model was asked there."""
    from counterplay.replay.agents.recorded_calls import recorded_calls

    step = len(fork(trace, at, trajectory=trajectory))
    if all((call.trajectory, call.step) != (trajectory, step) for call in recorded_calls(trace)):
        raise UserError(f"got step {step}, at which no model was asked", "a step that a model sampled", "fork_points lists those.")
    return step


def _replay(replayer: Replayer, ended: Ended) -> Replay:
    first = replayer.latch.first
    interruption = "" if first is None or isinstance(first, BranchEnd) else said(first)
    missing = replayer.missing() if not interruption else ()
    main = replayer.lines.main
    if main is not None:
        main.end(terminated=first is None and ended.error is None, truncated=bool(interruption), error=interruption or error_text(ended))
    return Replay(
        returned=ended.returned if first is None else None,
        error=None if isinstance(first, BranchEnd) else ended.error,
        interruption=interruption,
        trajectory=_reached(replayer, interruption) if main is None else main.trajectory,
        sub_trajectories=tuple(SubTrajectory(line.trajectory) for line in replayer.lines.sides),
        calls=_calls(replayer),
        forked_at=None if main is None else main.forked_at,
        requests=(*replayer.seen, *missing),
        missing=tuple((seen.trajectory or 0, seen.step or 0) for seen in missing),
        model_calls=replayer.model_calls,
        executed=dict(replayer.tools.executed),
        abandoned=ended.abandoned,
    )


def said(interruption: Interruption) -> str:
    return str(interruption) or type(interruption).__name__


def error_text(ended: Ended) -> str | None:
    return None if ended.error is None else f"{type(ended.error).__name__}: {ended.error}"


def _reached(replayer: Replayer, interruption: str) -> Trajectory:
    """The recorded trajectory as far as it was re-enacted."""
    path = trajectory_of(replayer.trace, replayer.main_trajectory)
    last = replayer.last
    if last is None or not interruption:
        return path.prefix(0) if last is None else path
    steps = path.steps[: last[1] + 1]
    return replace(path, steps=(*steps[:-1], replace(steps[-1], terminated=False, truncated=True, error=interruption)))


def _calls(replayer: Replayer) -> tuple[Call, ...]:
    """The calls of the recorded prefix, and those of the branch."""
    main, source = replayer.lines.main, replayer.main_trajectory
    until = len(trajectory_of(replayer.trace, source)) if main is None else main.forked_at
    kept = [replace(call, trajectory=0) for call in replayer.trace.calls if call.trajectory == source and call.step < until]
    return (*kept, *(main.calls if main else ()))
