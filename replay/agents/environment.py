"""An agent's own code as an `Environment`: so any search works over any agent, with its own tools, prompts and control flow.

A step runs the agent again from its start: its recorded actions and observations answer it up to the state, the new action is
the answer to its next request, its code runs the tools of it, and the request after that holds what was observed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from counterplay.core.canonical import canonical, chain_key, content_key
from counterplay.core.effects import Effect
from counterplay.core.errors import DivergenceError
from counterplay.core.nouns import Call, Message, Source, State, Step, Trace, Trajectory
from counterplay.core.protocols import Environment, fingerprint_of
from counterplay.replay.agents.latch import BranchEnd, Diverged, Latch
from counterplay.replay.agents.plan import OnDivergence, Plan
from counterplay.replay.agents.recorded_calls import recorded_calls
from counterplay.replay.agents.replayer import Replayer
from counterplay.replay.agents.replaying import error_text, pinned_as, said, waiting_for
from counterplay.replay.agents.requests import Reader
from counterplay.replay.agents.running import Ended, run_agent
from counterplay.replay.agents.sides import Sides
from counterplay.replay.agents.tool_log import ToolLog, ToolRun, declared_effects, recorded_runs, step_runs
from counterplay.replay.environment_fingerprint import source_digest
from counterplay.replay.live import Comparable

_KEPT = 4096


class AgentEnvironment:
    """Plays actions through `agent(**arguments)`, sync or async, which is run once a step and asks no model on the way.

    A step whose agent asks its model again goes on; one whose agent returns is `terminated`, and `reward` makes of what it returned
    what was earned (None: nothing). An agent that raises ends the branch with `error`; one that does what nobody may answer is
    `truncated`, with the reason. States begin as `trace` does, where it is given: its tool results, its sub-agents' calls and its chance
    are used. Tools are answered as `replay_agent` answers them: recorded, `environment`, `execute_tools`, else not at all. Sub-agents'
    models are answered by the recording, and asked live only where `live_side_calls` is set; such answers are kept, so that a
    branch stays what it was. The other options are those of `replay_agent`. Branches run side by side, but for those that are pinned.

    What tools gave on a branch is kept for `kept_steps` steps as it was; after that, and in another process, a tool gives the text of
    its observation. A step costs the agent's own time for the whole prefix. An agent that rewrites what it has said to its
    model before can't be followed over such a place: its step is truncated with the reason.

    Raises DivergenceError where the agent, re-run, does not come to the state that it is asked in.
    """

    def __init__(
        self,
        agent: Callable[..., Any],
        trace: Trace | None = None,
        *,
        reader: Reader,
        arguments: Mapping[str, Any] | None = None,
        execute_tools: Collection[str] = (),
        environment: Environment | None = None,
        live_side_calls: bool = False,
        on_divergence: OnDivergence = "abort",
        effects: Mapping[str, Effect] | None = None,
        reward: Callable[[Any], float | None] | None = None,
        comparable: Comparable | None = None,
        window: int = 3,
        pin: bool = True,
        clock: bool = False,
        allow_hosts: Iterable[str] = (),
        timeout_s: float | None = None,
        kept_steps: int = _KEPT,
    ) -> None:
        self.agent, self.trace, self.reader, self.arguments = agent, trace, reader, dict(arguments or {})
        self.environment, self.reward, self.timeout_s = environment, reward, timeout_s
        self.allow_hosts, self.pin, self.clock = tuple(allow_hosts), pin, clock
        self._plan = Plan(
            live=False,
            live_sides=live_side_calls,
            execute_tools=frozenset(execute_tools),
            on_divergence="abort" if on_divergence == "live" else on_divergence,
            comparable=comparable,
            window=window,
        )
        self._runs = recorded_runs(trace) if trace is not None else ()
        self._effects = {**(declared_effects(trace) if trace is not None else {}), **(effects or {})}
        self._sides, self._kept = Sides(), _Kept(kept_steps)

    async def step(self, state: State, action: Message) -> Step:
        shared = shared_steps(state, self.trace)
        target = _target(state, action, self.trace, shared)
        plan, latch = replace(self._plan, fork=(0, len(state)), action=action), Latch()
        effects = {**self._effects, **{tool.name: tool.effect for tool in state.tools if tool.effect.kind != "external"}}
        before = [*self._before(state, action, shared)]
        log = ToolLog(before, [*self._runs, *(run for run in before if run not in self._runs)], effects, self._plan.comparable)
        async with pinned_as(target, pin=self.pin, clock=self.clock) as pins:
            step_in = waiting_for(self.environment)
            replayer = Replayer(target, plan, reader=self.reader, tools=log, latch=latch, step_in=step_in, sides=self._sides, pins=pins)
            replayer.matcher.excuse_contexts(_started_after(target, shared))
            run = partial(self.agent, **self.arguments)
            ended = await run_agent(run, replayer, latch, allow_hosts=self.allow_hosts, timeout_s=self.timeout_s)
        step = self._step(replayer, ended, action)
        self._kept.put(chain_key(state.key, *(message.wire for message in step.messages)), tuple(log.branch))
        return step

    @cached_property
    def fingerprint(self) -> str:
        """Names the agent, its arguments, the recording, and who answers what."""
        plan = self._plan
        parts = [
            _identity(self.agent),
            canonical({name: _identity(value) for name, value in self.arguments.items()}),
            "" if self.trace is None else f"{self.trace.id} {self.trace.trajectory.key}",
            canonical([sorted(plan.execute_tools), plan.live_sides, plan.on_divergence, plan.window, self.pin, self.clock]),
            canonical({name: str(effect) for name, effect in self._effects.items()}),
            "" if self.environment is None else fingerprint_of(self.environment),
            "" if self.reward is None else fingerprint_of(self.reward),
            "" if plan.comparable is None else fingerprint_of(plan.comparable),
        ]
        return f"agent:{content_key(*parts)}"

    def _before(self, state: State, action: Message, shared: int) -> Iterator[ToolRun]:
        """The tool runs of a state, step by step: those the branch made, the recorded ones, or what its observations say.

        And those of the step to come, where it is a recorded one.
        """
        logged = self.trace.trajectory.steps[shared : shared + 1] if self.trace is not None and shared == len(state) else ()
        repeated = shared + any(step.action.signature == action.signature for step in logged)
        yield from (run for run in self._runs if self._started(run) < repeated)
        for at in range(shared, len(state)):
            made = self._kept.get(state.prefix(at + 1).key)
            if made is None:
                yield from step_runs(state.steps[at], (0, at))
            else:
                yield from (replace(run, where=(0, at)) for run in made)

    def _started(self, run: ToolRun) -> int:
        """The main step in which a recorded tool ran; before all of them where that is not known."""
        if run.where is None or self.trace is None:
            return -1
        trajectory, step = run.where
        parent = self.trace.sub_trajectories[trajectory - 1].parent_step if trajectory else step
        return -1 if parent is None else parent

    def _step(self, replayer: Replayer, ended: Ended, action: Message) -> Step:
        first, main = replayer.latch.first, replayer.lines.main
        if main is None:
            raise _not_reached(replayer, ended)
        played = main.trajectory.steps[-1] if main.trajectory.steps else Step(action)
        step = Step(action, played.observations, grades=played.grades) if played.action == action else Step(action)
        if isinstance(first, BranchEnd):
            return step if step.observations else replace(step, truncated=True, error="the agent asked its model the same once more")
        if first is not None:
            return replace(step, truncated=True, error=said(first))
        if ended.error is not None:
            return replace(step, error=error_text(ended))
        return replace(step, terminated=True, reward=None if self.reward is None else self.reward(ended.returned))


class _Kept:
    """What tools gave in a step, by the key of the state that it led to: the latest so many. Safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: OrderedDict[str, tuple[ToolRun, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, runs: tuple[ToolRun, ...]) -> None:
        with self._lock:
            self._runs[key] = runs
            self._runs.move_to_end(key)
            while len(self._runs) > self._limit:
                self._runs.popitem(last=False)

    def get(self, key: str) -> tuple[ToolRun, ...] | None:
        with self._lock:
            return self._runs.get(key)


def shared_steps(state: State, trace: Trace | None) -> int:
    """How many steps a state has in common with the recorded trajectory."""
    if trace is None or state.prompt != trace.trajectory.prompt:
        return 0
    pairs = zip(state.steps, trace.trajectory.steps, strict=False)
    return next((at for at, (ours, theirs) in enumerate(pairs) if ours.messages != theirs.messages), min(len(state), len(trace.trajectory)))


def _target(state: State, action: Message, trace: Trace | None, shared: int) -> Trace:
    """The state, and the action after it, as the trace that the agent is to repeat."""
    path = Trajectory(state.tools, state.prompt, (*state.steps, Step(action)))
    source = Source("state")
    if trace is None:
        return Trace("state", path, source, calls=tuple(Call(at) for at in range(len(path))))
    logged = {call.step: call.call for call in recorded_calls(trace) if not call.trajectory}
    calls = [logged[at] for at in range(shared) if at in logged]
    calls += [Call(at) for at in range(shared, len(path))]
    subs = [call for call in trace.calls if call.trajectory]
    return Trace(
        trace.id,
        path,
        source,
        sub_trajectories=trace.sub_trajectories,
        calls=(*calls, *subs),
        metadata={"pins": trace.metadata.get("pins")},
        started_at_us=trace.started_at_us,
    )


def _started_after(target: Trace, shared: int) -> Sequence[int]:
    """The sub-agents that a branch need not start, for they were started by steps that are not in it; those of an unknown step too."""
    subs = enumerate(target.sub_trajectories, 1)
    return [at for at, sub in subs if sub.parent_step is None or sub.parent_step >= shared]


def _not_reached(replayer: Replayer, ended: Ended) -> DivergenceError:
    """Why the agent did not come to the state."""
    first = replayer.latch.first
    step = -1 if replayer.last is None else replayer.last[1]
    if first is not None:
        kind = replayer.seen[-1].kind if isinstance(first, Diverged) and replayer.seen else "not_in_recording"
        return DivergenceError(f"the agent, re-run, was interrupted: {said(first)}", "what the state says", step=step + 1, kind=kind)
    got = f"the agent, re-run, ended after {step + 1} steps" + (f" with {error_text(ended)}" if ended.error is not None else "")
    return DivergenceError(got, f"a request for step {len(replayer.trace.trajectory) - 1}", step=step + 1, kind="missing_call")


def _identity(value: Any) -> str:
    """What tells an agent or one of its arguments from another: its data, its own `fingerprint`, or its source and what is bound to it."""
    if isinstance(value, partial):
        bound = [*map(_identity, value.args), *(f"{name}={_identity(given)}" for name, given in sorted(value.keywords.items()))]
        return content_key(_identity(value.func), *bound)
    if isinstance(getattr(value, "fingerprint", None), str):
        return fingerprint_of(value)
    try:
        return canonical(value)
    except (TypeError, ValueError, RecursionError):
        return content_key(fingerprint_of(value), source_digest(value) or "", repr(getattr(value, "__self__", "") or ""))
