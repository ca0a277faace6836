"""Whether an environment keeps its word: the same answer to the same action in the same state, however that state was reached.

Lines of actions are played straight through once; that is the truth. Then they are played again, gone back into, and
played beside each other, and every answer has to be the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from counterplay.core.canonical import dumps
from counterplay.core.errors import DivergenceError, UserError
from counterplay.core.nouns import Message, State, Step, ToolCall, Trajectory
from counterplay.core.protocols import Environment
from counterplay.replay.acting import release, settled
from counterplay.replay.capabilities import Capabilities, capabilities
from counterplay.replay.divergence import Comparable, compare, short
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.world import World

_POINTS = 12  # steps of a line that are gone back to
_DETOUR = 3  # steps of a branch that is played in between


@dataclass(frozen=True, slots=True)
class EnvironmentCheck:
    """What was found in order: `checked` names the properties, `steps` counts the steps asked for, `left_out` the tools that
    were not called because they are external and not named.
    """

    checked: tuple[str, ...]
    steps: int
    capabilities: Capabilities
    left_out: tuple[str, ...] = ()


@dataclass
class _Line:
    """Actions to play from `start`; `truth` is what followed each, `states` the state before each and the last."""

    start: State
    actions: list[Message]
    truth: list[Step] = field(default_factory=list)
    states: list[State] = field(default_factory=list)


async def check_environment(
    subject: Environment | Callable[[], Any],
    script: Sequence[Trajectory] | Sequence[tuple[str, Mapping[str, Any]]],
    *,
    start: State | None = None,
    allow_external: Iterable[str] = (),
    comparable: Comparable | None = None,
) -> EnvironmentCheck:
    """Play `script` in many ways that must give the same steps. Raises UserError naming property, step, what came and what was wanted.

    `subject` is an environment, or better a factory (plain or asynchronous) of environments or worlds, for only fresh ones show
    what another has left behind. `script` holds trajectories, whose actions are played from their prompts, or tool calls, each of
    which is one action; they begin in `start` (None: where the environment says its trajectories begin).

    * deterministic: played again from its beginning, a line answers alike;
    * restore: gone back to, by whatever the environment has kept and in a fresh environment that has kept nothing, a step
      answers as it did, and so do all after it; left out where nothing can be restored;
    * no leak: a line answers as if alone with other branches played in between, beside it at the same time, and in a second environment.

    What tools answer is all that is seen, so lines should end with reads of what the writes changed. Actions that call a tool
    that is external (or unknown) and not named in `allow_external` are left out.
    """
    check = _Check(subject, frozenset(allow_external), comparable)
    try:
        return await check.run(script, start)
    finally:
        await check.close()


class _Check:
    def __init__(self, subject: Environment | Callable[[], Any], allow_external: frozenset[str], comparable: Comparable | None) -> None:
        self.subject, self.allow_external, self.comparable = subject, allow_external, comparable
        self.steps, self.left_out = 0, dict[str, None]()
        self._made: list[Environment] = []

    async def run(self, script: Sequence[Any], start: State | None) -> EnvironmentCheck:
        first = await self.make()
        lines = [line for line in await self.lines(first, script, start) if line.actions]
        if not lines:
            raise UserError(
                "got nothing to check" + self._left(), "actions that may be executed", "Declare effects, or name tools in allow_external."
            )
        found = capabilities(first)
        for line in lines:
            await self.learn(first, line)
        checked = ["deterministic"]
        again = await self.make()
        for line in lines:
            await self.walk(again, line, 0, "deterministic: played again from the beginning")
        if found.forks:
            await self.check_restore(first, lines)
            checked.append("restore")
        await self.check_leak(first, lines, forks=found.forks)
        return EnvironmentCheck((*checked, "no leak"), self.steps, found, tuple(self.left_out))

    async def make(self) -> Environment:
        """A fresh environment where there is a factory, else the one there is."""
        if isinstance(self.subject, Environment) and not isinstance(self.subject, type):
            return self.subject
        factory = self.subject
        made = await settled(cast("Awaitable[Any] | Any", factory()))
        if isinstance(made, Environment):
            environment = made
        elif isinstance(made, World):
            await release(made)
            environment = LiveEnvironment(factory, allow_external=self.allow_external, comparable=self.comparable)
        else:
            raise UserError(f"got a {type(made).__name__} from the factory", "an environment (step) or a world (tools, prompt, call)")
        self._made.append(environment)
        if hasattr(environment, "open"):
            await settled(environment.open())
        return environment

    async def close(self) -> None:
        for environment in self._made:
            close = getattr(environment, "aclose", None) or getattr(environment, "close", None)
            if close is not None:
                await settled(close())

    async def lines(self, environment: Environment, script: Sequence[Any], start: State | None) -> list[_Line]:
        own: State | None = await settled(environment.initial()) if hasattr(environment, "initial") else None
        declared = {} if own is None else {tool.name: tool.effect for tool in own.tools}
        if script and isinstance(script[0], Trajectory):
            return [self._allowed(declared, t.prefix(0), [step.action for step in t.steps]) for t in script]
        begin = start if start is not None else own
        if begin is None:
            raise UserError(
                f"got tool calls for {type(environment).__name__}, which has no `initial`", "the state they begin in", "Give start."
            )
        actions = [
            Message.assistant(tool_calls=[ToolCall(f"call_{i}", name, dumps(dict(arguments)))])
            for i, (name, arguments) in enumerate(script)
        ]
        return [self._allowed(declared, begin, actions)]

    def _allowed(self, declared: Mapping[str, Any], start: State, actions: Iterable[Message]) -> _Line:
        effects = {tool.name: tool.effect for tool in start.tools} | dict(declared)
        kept = []
        for action in actions:
            barred = [
                call.name
                for call in action.tool_calls
                if call.name not in self.allow_external and (call.name not in effects or effects[call.name].kind == "external")
            ]
            self.left_out.update(dict.fromkeys(barred))
            if not barred:
                kept.append(action)
        return _Line(start, kept)

    def _left(self) -> str:
        return f" ({', '.join(self.left_out)} left out as external)" if self.left_out else ""

    async def learn(self, environment: Environment, line: _Line) -> None:
        """Play a line straight through: the truth that all else is held against."""
        state = line.start
        for i, action in enumerate(line.actions):
            step = await self.ask(environment, state, action, f"played for the first time: step {i}")
            line.states.append(state)
            line.truth.append(step)
            if step.finished:
                break
            state = state.extend(step)
        if line.truth[0].error is not None:
            raise UserError(f"the first action can't be executed: {line.truth[0].error}", "a line that can be played")

    async def walk(self, environment: Environment, line: _Line, at: int, what: str, count: int | None = None) -> None:
        """Play a line from its step `at` on, and compare."""
        state = line.states[at]
        for i in range(at, len(line.truth) if count is None else min(at + count, len(line.truth))):
            step = await self.ask(environment, state, line.actions[i], f"{what}: step {i}")
            self.compare(line.truth[i], step, f"{what}: step {i}")
            if not step.finished:
                state = state.extend(step)

    async def check_restore(self, warm: Environment, lines: Sequence[_Line]) -> None:
        for line in lines:
            for at in reversed(_points(len(line.truth))):
                for which in ("first", "second"):
                    await self.walk(warm, line, at, f"restore: gone back to the state before step {at} for the {which} time")
                cold = await self.make()
                await self.walk(cold, line, at, f"restore: the state before step {at} in a fresh environment", 2)

    async def check_leak(self, environment: Environment, lines: Sequence[_Line], *, forks: bool) -> None:
        for line in lines:
            points = _points(len(line.truth)) if forks else [0]
            for at in points if forks else ():
                await self.wander(environment, line, at)
                await self.walk(environment, line, at, f"no leak: after another branch was played from before step {at}")
            await asyncio.gather(
                self.walk(environment, line, 0, "no leak: played beside other branches"),
                *(self.wander(environment, line, at) for at in points),
                self.walk(environment, line, 0, "no leak: played twice at the same time"),
            )
            first, second = await self.make(), await self.make()
            await asyncio.gather(
                self.walk(first, line, 0, "no leak: played beside a second environment"),
                self.walk(second, line, 0, "no leak: played in a second environment beside the first"),
            )

    async def wander(self, environment: Environment, line: _Line, at: int) -> None:
        """Play another branch from before step `at`: the later actions first, then those before."""
        state = line.states[at]
        actions = [action for i, action in enumerate(line.actions) if i != at]
        for action in (actions[at:] + actions[:at])[:_DETOUR] or line.actions[at : at + 1]:
            step = await self.ask(environment, state, action, f"no leak: another branch from before step {at}")
            if step.finished:
                return
            state = state.extend(step)

    async def ask(self, environment: Environment, state: State, action: Message, what: str) -> Step:
        self.steps += 1
        try:
            step: object = await environment.step(state, action)
        except DivergenceError as error:
            raise UserError(f"{what}: {error.got}", error.wanted, _DO) from error
        if not isinstance(step, Step):
            raise UserError(f"{what} is a {type(step).__name__}", "a Step")
        return step

    def compare(self, was: Step, now: Step, what: str) -> None:
        if was.error is not None or now.error is not None:
            if was.error != now.error:
                raise UserError(f"{what} ended with error {now.error!r}", f"error {was.error!r}", _DO)
            return
        difference = compare(was, now, comparable=self.comparable)
        if difference is not None:
            tool = f" of {difference.tool}" if difference.tool else ""
            raise UserError(f"{what}{tool} ({difference.kind}) answered {short(difference.got)}", short(difference.wanted), _DO)
        ends = [(step.terminated, step.truncated, step.reward) for step in (was, now)]
        if ends[0] != ends[1]:
            raise UserError(f"{what} ended as (terminated, truncated, reward) {ends[1]}", f"{ends[0]}", _DO)


_DO = "An answer may depend on nothing but the state and the action."


def _points(length: int) -> list[int]:
    """At most `_POINTS` steps, evenly spread, with the first and the last."""
    if length <= _POINTS:
        return list(range(length))
    return sorted({round(i * (length - 1) / (_POINTS - 1)) for i in range(_POINTS)})
