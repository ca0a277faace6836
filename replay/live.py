"""An environment made of real instances: each branch acts on a world of its own that was brought to exactly its state.

A fresh instance reaches a state by the nearest kept snapshot or copy and by executing the rest of the prefix again. What
is executed again is compared with the recording, so a branch never starts from a world that went another way.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Self, TypeVar

from counterplay.core.canonical import chain_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, State, Step
from counterplay.core.protocols import fingerprint_of
from counterplay.replay.acting import (
    act,
    act_except,
    beginning,
    close_world,
    drive,
    execute,
    execute_except,
    fresh,
    initial,
    is_async,
    release,
    unnamed_externals,
    withheld,
)
from counterplay.replay.capabilities import Capabilities, Restorable
from counterplay.replay.divergence import Comparable, Divergence, compare, divergence_error, prompt_drift
from counterplay.replay.environment_fingerprint import Fingerprint, environment_fingerprint
from counterplay.replay.kept import Kept, Manner, manner_of
from counterplay.replay.world import Factory, World

__all__ = [
    "Comparable",
    "Divergence",
    "LiveEnvironment",
    "close_world",
    "compare",
    "execute",
    "execute_except",
    "initial",
    "prefix_keys",
    "unnamed_externals",
    "withheld",
]

T = TypeVar("T")
_THREADS = 64  # as many as a search has calls in flight by default
_LOST = "this world can't be restored, and the instance that stood in this state is gone or never was"


@dataclass(frozen=True, slots=True)
class _Look:
    """What one instance showed of all of them."""

    name: str
    fingerprint: str
    manner: Manner
    replayable: bool
    made_of: Fingerprint


class LiveEnvironment:
    """Executes actions in instances that `factory` makes; `factory` is called once a branch, and no instance serves two.

    At most `cache_states` snapshots, copies or idle instances are kept, of at most `cache_bytes` together (None: no limit; else
    the world's own `snapshot_bytes` count, or the pickles of snapshots and copies), least recently used first out; a world with
    neither snapshot nor copy is executed again from its beginning, and one that is not `replayable` never is: its branches go on
    only where their instances stand. `max_steps` truncates the trajectory at that length (and reads the reward there); None is no
    limit. Tools declared external are executed only where `allow_external` names them; else a new call ends the branch with
    `truncated` and an `error`, and one in a prefix is answered by its recording; what is observed after that is graded `stale`,
    for the world lacks the call's effect. `on_divergence="ignore"` trusts the
    recording without comparing. `comparable` maps observation texts before they are compared, e.g. to strip times.
    `blocking` moves plain instances that wait for something into threads; asynchronous ones need none. `task` distinguishes
    equal prompts over unequal data.

    Raises DivergenceError where a prefix that is executed again differs from its recording.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        task: str = "",
        max_steps: int | None = None,
        cache_states: int = 1024,
        cache_bytes: int | None = None,
        on_divergence: Literal["raise", "ignore"] = "raise",
        comparable: Comparable | None = None,
        allow_external: Iterable[str] = (),
        blocking: bool = False,
    ) -> None:
        self.factory, self.task, self.max_steps = factory, task, max_steps
        self.on_divergence, self.comparable, self.blocking = on_divergence, comparable, blocking
        self.allow_external = frozenset(allow_external)
        self._kept = Kept(cache_states, cache_bytes)
        self._jobs: set[Future[Any]] = set()
        self._seen: _Look | None = None

    async def initial(self) -> State:
        """The state every trajectory of this world begins in."""
        return await self._run(self._initial)

    async def step(self, state: State, action: Message) -> Step:
        return await self._run(lambda: self._step(state, action))

    async def open(self) -> Self:
        """Look at one instance, so that `fingerprint` and `capabilities` are known. Needed only where making one takes waiting."""
        if self._seen is None:
            await self.initial()
        return self

    @property
    def fingerprint(self) -> str:
        """Names the world's own fingerprint (rules and data; else what it is made of), the task and the step limit."""
        return f"live:{self._look().fingerprint}:{self.task}:{self.max_steps}:{','.join(sorted(self.allow_external))}"

    @property
    def made_of(self) -> Fingerprint:
        """Versions, code, data and tools of the world, part by part."""
        return self._look().made_of

    @property
    def capabilities(self) -> Capabilities:
        """How a recorded state is reached in this world."""
        seen = self._look()
        has = {"snapshot": "has snapshot and restore", "copy": "has copy", "tip": "has neither snapshot nor copy"}[seen.manner]
        again = "a prefix is executed again in a fresh instance" if seen.replayable else "says that it is not replayable"
        restorable: Restorable = "re-execute" if seen.replayable else "none"
        if seen.manner != "tip":
            restorable = seen.manner
        return Capabilities(restorable, f"{seen.name} {has}, and {again}", reenacts=seen.replayable)

    def close(self) -> None:
        """Let go of everything kept. The environment stays usable. An asynchronous world is closed by `aclose`."""
        drive(self._kept.clear())

    async def aclose(self) -> None:
        """Wait for what still plays in threads, then let go of everything kept. The environment stays usable."""
        if self._jobs:
            await asyncio.to_thread(wait, list(self._jobs))
        await self._kept.clear()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, play: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if not self.blocking:
            return await play()
        # A caller that gives up leaves the thread to finish, which puts the instance where `aclose` finds it.
        job = _threads().submit(contextvars.copy_context().run, lambda: drive(play()))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.wrap_future(job)

    async def _initial(self) -> State:
        world = await self._fresh()
        try:
            state = beginning(world)
        except BaseException:
            await release(world)
            raise
        if is_async(world) or not _replayable(world):
            await self._kept.store(state.key, self._kept.instance(world))
        else:
            await release(world)
        return state

    async def _step(self, state: State, action: Message) -> Step:
        world = await self._at(state)
        if world is None:
            return Step(action, truncated=True, error=_LOST)
        try:
            refused = withheld(world, action, self.allow_external)
            step = _refusal(action, refused[0]) if refused else await self._played(world, state, action)
            entry = None if step.finished and not refused else await self._kept.capture(world)
        except BaseException:
            await release(world)
            raise
        if entry is None:
            await release(world)
        else:
            done = () if refused else step.messages
            await self._kept.store(chain_key(state.key, *(message.wire for message in done)), entry)
        return step

    async def _played(self, world: World, state: State, action: Message) -> Step:
        step = await act(world, action)
        external = unnamed_externals(world, self.allow_external)
        if external and any(call.name in external for past in state.steps for call in past.action.tool_calls):
            step = replace(step, grades=_hollow_grades(world, step))
        if not step.finished and self.max_steps is not None and len(state) + 1 >= self.max_steps:
            step = replace(step, truncated=True, reward=getattr(world, "reward", None))
        return step

    async def _at(self, state: State) -> World | None:
        """An instance of the caller's own in exactly `state`; None where that can't be had."""
        world = await self._kept.take(state.key, self.factory)
        if world is not None:
            return world
        if state.steps and self._seen is not None and not self._seen.replayable:
            return None
        world, start = await self._nearest(state)
        if start < len(state) and not _replayable(world):
            await release(world)
            return None
        try:
            for i in range(start, len(state)):
                await self._replay(world, state.steps[i], i)
            beside = await self._kept.capture(world, stays=True)
        except BaseException:
            await release(world)
            raise
        if beside is not None:
            await self._kept.store(state.key, beside)
        return world

    async def _nearest(self, state: State) -> tuple[World, int]:
        """An instance at the deepest kept ancestor, and how many steps of `state` it has behind it; else a fresh one."""
        keys = list(prefix_keys(state))
        for length in range(len(state) - 1, -1, -1):
            world = await self._kept.take(keys[length], self.factory)
            if world is not None:
                return world, length
        world = await self._fresh()
        drift = prompt_drift(state, world)
        if drift is not None and self.on_divergence == "raise":
            await release(world)
            raise divergence_error(drift, -1)
        return world, 0

    async def _replay(self, world: World, recorded: Step, index: int) -> None:
        skipped = withheld(world, recorded.action, self.allow_external)
        step = await act_except(world, recorded, skipped)
        if self.on_divergence == "ignore":
            return
        difference = compare(recorded, step, comparable=self.comparable)
        if difference is None and step.terminated and not recorded.finished:
            difference = Divergence("ended_early", got="the world says that the episode is over", wanted="one that goes on")
        if difference is not None:
            raise divergence_error(difference, index)

    async def _fresh(self) -> World:
        world = await fresh(self.factory)
        if self.blocking and is_async(world):
            # It can't be closed in this thread; `aclose` does it.
            await self._kept.store("", self._kept.instance(world))
            raise UserError(f"got blocking for {type(world).__name__}, which is asynchronous", "a plain world", "Leave blocking out.")
        if self._seen is None:
            self._seen = _looked(world)
        return world

    def _look(self) -> _Look:
        """What is known of the instances; one is made where none was seen yet."""
        if self._seen is None:
            if inspect.iscoroutinefunction(self.factory):
                raise UserError(
                    "got an asynchronous world that was not opened", "await environment.open()", "Or use: async with environment."
                )
            drive(self._initial())
        assert self._seen is not None
        return self._seen


def _looked(world: World) -> _Look:
    made_of, named = environment_fingerprint(world), fingerprint_of(world)
    declared = isinstance(getattr(world, "fingerprint", None), str)
    return _Look(type(world).__name__, named if declared else f"{named}#{made_of.key}", manner_of(world), _replayable(world), made_of)


def _replayable(world: World) -> bool:
    return getattr(world, "replayable", True) is not False


def _refusal(action: Message, place: int) -> Step:
    name = action.tool_calls[place].name
    reason = f"tool {name} is external and was not executed; name it in allow_external where this world only simulates it"
    return Step(action, truncated=True, error=reason)


def _hollow_grades(world: World, step: Step) -> tuple[Grade, ...]:
    """Grades in a world that lacks the effect of an external call, which was answered by the recording: only pure results are true."""
    pure = {tool.name for tool in world.tools if tool.effect.kind == "pure"}
    names = [call.name for call in step.action.tool_calls]
    return tuple(grade if i < len(names) and names[i] in pure else Grade.STALE for i, grade in enumerate(step.grades))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "counterplay-world")


def prefix_keys(state: State) -> Iterator[str]:
    """The keys of all prefixes, shortest first; the last is the state's own."""
    key = chain_key(state.root_key, *(message.wire for message in state.prompt))
    yield key
    for step in state.steps:
        key = chain_key(key, *(message.wire for message in step.messages))
        yield key
