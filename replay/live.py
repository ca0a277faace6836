"""An environment made of real instances: each branch acts on a world of its own that was brought to exactly its state.

A fresh instance reaches a state by the nearest kept snapshot or copy and by executing the rest of the prefix again. What
is executed again is compared with the recording, so a branch never starts from a world that went another way.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

from counterplay.core.canonical import chain_key, content_key
from counterplay.core.errors import DivergenceError
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall, Trajectory
from counterplay.core.protocols import fingerprint_of
from counterplay.replay.world import ToolError, World

P = ParamSpec("P")
T = TypeVar("T")
Comparable: TypeAlias = Callable[[str], str]


def initial(factory: Callable[[], World]) -> State:
    """The state every trajectory of this world begins in: its tools and prompt."""
    world = factory()
    try:
        return Trajectory(tuple(world.tools), tuple(world.prompt))
    finally:
        close_world(world)


def execute(world: World, action: Message) -> Step:
    """Play one action in `world`, changing it. Calls run in order and their results carry the calls' ids; all are graded `executed`.

    An unknown tool, arguments that are not a JSON object and a ToolError are answered by an observation, as agent loops do;
    any other exception ends the step with `error`. `reward` is read when the episode ends.
    """
    observations: list[Message] = []
    error = None
    try:
        for call in action.tool_calls:
            observations.append(Message.tool(call_text(world, call), call.id))  # noqa: PERF401  a failure keeps what came before
        if not action.tool_calls and hasattr(world, "reply"):
            observations.extend(world.reply(action))
        nothing_follows = not action.tool_calls and not observations
        terminated = nothing_follows or bool(getattr(world, "done", False))
    except Exception as failure:  # noqa: BLE001  a world is user code: its failure is data
        error, terminated = f"{type(failure).__name__}: {failure}", False
    grades = (Grade.EXECUTED,) * len(observations)
    reward = getattr(world, "reward", None) if terminated else None
    return Step(action, tuple(observations), terminated=terminated, error=error, reward=reward, grades=grades)


def call_text(world: World, call: ToolCall) -> str:
    """The text a tool answers one call with. Anything but a ToolError goes through."""
    names = [tool.name for tool in world.tools]
    if call.name not in names:
        return f"Error: unknown tool {call.name!r}. Available tools: {', '.join(names)}."
    arguments = call.args
    if arguments is None:
        return f"Error: the arguments of {call.name} are not a JSON object: {call.arguments}"
    try:
        result: object = world.call(call.name, arguments)
    except ToolError as refusal:
        return str(refusal)
    if not isinstance(result, str):
        raise TypeError(f"tool {call.name} returned {type(result).__name__} {result!r:.80}, wanted text")
    return result


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first way in which a step that was executed again differs from its recording.

    `kind` is one of `prompt_drift`, `result_drift`, `role_drift`, `missing_observation`, `extra_observation`, `ended_early`
    and `world_error`. `observation` is the index within the step; None where the difference is not in one.
    """

    kind: str
    tool: str = ""
    got: str = ""
    wanted: str = ""
    observation: int | None = None


def compare(recorded: Step, got: Step, *, comparable: Comparable | None = None) -> Divergence | None:
    """The first difference between a recorded step and the same action executed again; None where they agree.

    Observations are compared by place, role and content: tool-call ids are names, and redacted logs
    lack them.
    """
    same_text = comparable or _as_it_is
    names = [call.name for call in recorded.action.tool_calls]
    for i, (was, now) in enumerate(zip(recorded.observations, got.observations, strict=False)):
        tool = names[i] if i < len(names) else ""
        if was.role != now.role:
            return Divergence("role_drift", tool, now.role, was.role, i)
        if content_key(same_text(was.content_text)) != content_key(same_text(now.content_text)):
            return Divergence("result_drift", tool, now.content_text, was.content_text, i)
    if got.error is not None:
        place = len(got.observations)
        return Divergence("world_error", names[place] if place < len(names) else "", got.error, "an observation", place)
    return _count_difference(recorded, got, names)


class LiveEnvironment:
    """Executes actions in instances that `factory` makes; `factory` is called once a branch, and no instance serves two.

    `cache_states` snapshots or copies are kept, least recently used first out; a world with neither is executed again from
    its beginning. `max_steps` truncates the trajectory at that length (and reads the reward there); None is no limit.
    Tools declared external are executed only where `allow_external` names them; else a new call ends the branch with
    `truncated` and an `error`, and one in a prefix is answered by its recording; what is observed after that is graded `stale`,
    for the world lacks the call's effect. `on_divergence="ignore"` trusts the
    recording without comparing. `comparable` maps observation texts before they are compared, e.g. to strip times.
    `blocking` moves instances that wait for something into threads. `task` distinguishes equal prompts over unequal data.

    Raises DivergenceError where a prefix that is executed again differs from its recording.
    """

    def __init__(
        self,
        factory: Callable[[], World],
        *,
        task: str = "",
        max_steps: int | None = None,
        cache_states: int = 1024,
        on_divergence: Literal["raise", "ignore"] = "raise",
        comparable: Comparable | None = None,
        allow_external: Iterable[str] = (),
        blocking: bool = False,
    ) -> None:
        self.factory, self.task, self.max_steps = factory, task, max_steps
        self.on_divergence, self.comparable, self.blocking = on_divergence, comparable, blocking
        self.allow_external = frozenset(allow_external)
        self._kept = _Kept(cache_states)

    async def initial(self) -> State:
        """The state every trajectory of this world begins in."""
        return await self._run(initial, self.factory)

    async def step(self, state: State, action: Message) -> Step:
        return await self._run(self._step, state, action)

    @cached_property
    def fingerprint(self) -> str:
        """Names the world's own fingerprint (rules and data), the task and the step limit."""
        world = self.factory()
        try:
            return f"live:{fingerprint_of(world)}:{self.task}:{self.max_steps}:{','.join(sorted(self.allow_external))}"
        finally:
            close_world(world)

    def close(self) -> None:
        """Let go of everything kept. The environment stays usable."""
        self._kept.clear()

    async def _run(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return await asyncio.to_thread(function, *arguments, **options) if self.blocking else function(*arguments, **options)

    def _step(self, state: State, action: Message) -> Step:
        world = self._at(state)
        refused = withheld(world, action, self.allow_external)
        if refused:
            self._kept.put(state.key, world)
            name = action.tool_calls[refused[0]].name
            reason = f"tool {name} is external and was not executed; name it in allow_external where this world only simulates it"
            return Step(action, truncated=True, error=reason)
        step = execute(world, action)
        external = unnamed_externals(world, self.allow_external)
        if external and any(call.name in external for past in state.steps for call in past.action.tool_calls):
            step = replace(step, grades=_hollow_grades(world, step))
        if not step.finished and self.max_steps is not None and len(state) + 1 >= self.max_steps:
            step = replace(step, truncated=True, reward=getattr(world, "reward", None))
        if step.finished:
            close_world(world)
        else:
            self._kept.put(chain_key(state.key, *(message.wire for message in step.messages)), world)
        return step

    def _at(self, state: State) -> World:
        """An instance of the caller's own in exactly `state`."""
        world = self._kept.take(state.key, self.factory)
        if world is not None:
            return world
        world, start = self._nearest(state)
        try:
            for i in range(start, len(state)):
                self._replay(world, state.steps[i], i)
        except BaseException:
            close_world(world)
            raise
        self._kept.keep(state.key, world)
        return world

    def _nearest(self, state: State) -> tuple[World, int]:
        """An instance at the deepest kept ancestor, and how many steps of `state` it has behind it; else a fresh one."""
        keys = list(prefix_keys(state))
        for length in range(len(state) - 1, -1, -1):
            world = self._kept.take(keys[length], self.factory)
            if world is not None:
                return world, length
        world = self.factory()
        drift = _prompt_drift(state, world)
        if drift is not None and self.on_divergence == "raise":
            close_world(world)
            raise _divergence(drift, -1)
        return world, 0

    def _replay(self, world: World, recorded: Step, index: int) -> None:
        skipped = withheld(world, recorded.action, self.allow_external)
        step = execute_except(world, recorded, skipped)
        if self.on_divergence == "ignore":
            return
        difference = compare(recorded, step, comparable=self.comparable)
        if difference is None and step.terminated and not recorded.finished:
            difference = Divergence("ended_early", got="the world says that the episode is over", wanted="one that goes on")
        if difference is not None:
            raise _divergence(difference, index)


def _hollow_grades(world: World, step: Step) -> tuple[Grade, ...]:
    """Grades in a world that lacks the effect of an external call, which was answered by the recording: only pure results are true."""
    pure = {tool.name for tool in world.tools if tool.effect.kind == "pure"}
    names = [call.name for call in step.action.tool_calls]
    return tuple(grade if i < len(names) and names[i] in pure else Grade.STALE for i, grade in enumerate(step.grades))


def unnamed_externals(world: World, allow_external: Container[str]) -> set[str]:
    return {tool.name for tool in world.tools if tool.effect.kind == "external" and tool.name not in allow_external}


def withheld(world: World, action: Message, allow_external: Container[str]) -> list[int]:
    """The places of the calls that may not be executed: those of external tools that are not named."""
    external = unnamed_externals(world, allow_external)
    return [i for i, call in enumerate(action.tool_calls) if call.name in external]


def execute_except(world: World, recorded: Step, skipped: Iterable[int]) -> Step:
    """Execute a recorded action again; the calls at the places in `skipped` are answered by the recording instead.

    So is an answer to the user, where the world has no `reply`: what a user said is an input, not a state of the world.
    """
    places = set(skipped)
    if not recorded.action.tool_calls and recorded.observations and not hasattr(world, "reply"):
        return recorded
    if not places:
        return execute(world, recorded.action)
    calls = recorded.action.tool_calls
    allowed = Message.assistant(tool_calls=[call for i, call in enumerate(calls) if i not in places])
    # With every call withheld nothing is executed: an action without calls would be taken for an answer to the user.
    step = execute(world, allowed) if allowed.tool_calls else Step(recorded.action)
    live = iter(step.observations)
    merged = []
    for i in range(len(calls)):
        message = next(live, None) if i not in places else next(iter(recorded.observations[i : i + 1]), None)
        if message is None:
            break
        merged.append(message)
    return replace(step, action=recorded.action, observations=tuple(merged), grades=(Grade.EXECUTED,) * len(merged))


def close_world(world: World) -> None:
    """Release what an instance holds, where it says how."""
    close = getattr(world, "close", None)
    if close is not None:
        close()


class _Kept:
    """States that an instance can be brought to without executing anything: snapshots, copies, or one instance at its tip.

    Safe to use from several threads. What has `snapshot` and `restore` is kept as a snapshot; what has `copy` as an
    instance that is copied and never stepped; anything else can be taken from here once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._states: OrderedDict[str, tuple[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, world: World) -> None:
        """Keep the state of an instance that its owner is done with."""
        kind = _manner(world)
        saved = world.snapshot() if kind == "snapshot" else world  # type: ignore[attr-defined]  # optional part of the protocol
        self._store(key, kind, saved)
        if kind == "snapshot":
            close_world(world)

    def keep(self, key: str, world: World) -> None:
        """Keep the state of an instance that its owner goes on with; without effect where it can be neither captured nor copied."""
        kind = _manner(world)
        if kind == "snapshot":
            self._store(key, kind, world.snapshot())  # type: ignore[attr-defined]
        elif kind == "copy":
            self._store(key, kind, world.copy())  # type: ignore[attr-defined]

    def take(self, key: str, factory: Callable[[], World]) -> World | None:
        """An instance of the caller's own in this state; None where it is not kept."""
        with self._lock:
            found = self._states.get(key)
            if found is None:
                return None
            kind, saved = found
            if kind == "tip":
                del self._states[key]
                world: World = saved
                return world
            self._states.move_to_end(key)
        if kind == "copy":
            copied: World = saved.copy()
            return copied
        world = factory()
        world.restore(saved)  # type: ignore[attr-defined]
        return world

    def clear(self) -> None:
        with self._lock:
            states, self._states = self._states, OrderedDict()
        for kind, saved in states.values():
            _discard(kind, saved)

    def _store(self, key: str, kind: str, saved: Any) -> None:
        out = []
        with self._lock:
            if key in self._states:
                out.append(self._states.pop(key))
            self._states[key] = (kind, saved)
            while len(self._states) > self._limit:
                out.append(self._states.popitem(last=False)[1])
        for old_kind, old in out:
            _discard(old_kind, old)


def _discard(kind: str, saved: Any) -> None:
    if kind != "snapshot":
        close_world(saved)


def _manner(world: World) -> str:
    if hasattr(world, "snapshot") and hasattr(world, "restore"):
        return "snapshot"
    return "copy" if hasattr(world, "copy") else "tip"


def prefix_keys(state: State) -> Iterator[str]:
    """The keys of all prefixes, shortest first; the last is the state's own."""
    key = chain_key(state.root_key, *(message.wire for message in state.prompt))
    yield key
    for step in state.steps:
        key = chain_key(key, *(message.wire for message in step.messages))
        yield key


def _prompt_drift(state: State, world: World) -> Divergence | None:
    """A user message of the world that the state never had: most likely the world of another task."""
    said = {message.content_text for message in state.prompt}
    for message in world.prompt:
        if message.role == "user" and message.content_text not in said:
            user = next((m.content_text for m in state.prompt if m.role == "user"), "no user message")
            return Divergence("prompt_drift", got=message.content_text, wanted=user)
    return None


def _count_difference(recorded: Step, got: Step, names: list[str]) -> Divergence | None:
    had, have = len(recorded.observations), len(got.observations)
    if have < had:
        return Divergence("missing_observation", names[have] if have < len(names) else "", "nothing", _first(recorded, have), have)
    if have > had:
        return Divergence("extra_observation", names[had] if had < len(names) else "", _first(got, had), "nothing", had)
    return None


def _first(step: Step, index: int) -> str:
    return step.observations[index].content_text


def _divergence(difference: Divergence, step: int) -> DivergenceError:
    where = "in the prompt" if step < 0 else f"at step {step}"
    tool = f" of {difference.tool}" if difference.tool else ""
    return DivergenceError(
        f"the prefix went another way {where}{tool} ({difference.kind}): {_short(difference.got)}",
        _short(difference.wanted),
        "Look with: counterplay replay --check.",
        step=step,
        kind=difference.kind,
    )


def _short(text: str, limit: int = 200) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)")


def _as_it_is(text: str) -> str:
    return text
