"""Playing actions in one instance of a world, plain or asynchronous.

Each way of acting is written once, as a coroutine; its plain form drives the same coroutine, which never waits in a world
of plain methods. Nothing here decides what may be executed except `withheld`, which every caller asks first.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall, Trajectory
from counterplay.replay.divergence import in_call_order
from counterplay.replay.world import Content, Factory, ToolError, World

T = TypeVar("T")
_METHODS = ("call", "reply", "snapshot", "restore", "copy", "close")


async def settled(value: Awaitable[T] | T) -> T:
    """What a plain or asynchronous function of the user's gave."""
    return await cast("Awaitable[T]", value) if inspect.isawaitable(value) else value


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits. Raises UserError where it does: an asynchronous world was played as a plain one."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    coroutine.close()
    raise UserError("got an asynchronous world", "one of plain methods", "Play it through LiveEnvironment, without blocking.")


async def fresh(factory: Factory) -> World:
    return await settled(factory())


async def release(world: World) -> None:
    """Release what an instance holds, where it says how: by `close`, unless that is one of the tools it offers."""
    close: Callable[[], Any] | None = getattr(world, "close", None)
    if close is not None and all(tool.name != "close" for tool in world.tools):
        await settled(close())


def close_world(world: World) -> None:
    """`release` of a plain world."""
    drive(release(world))


def is_async(world: World) -> bool:
    """Whether one of the world's methods is a coroutine function."""
    return any(inspect.iscoroutinefunction(getattr(world, name, None)) for name in _METHODS)


def initial(factory: Callable[[], World]) -> State:
    """The state every trajectory of this world begins in: its tools and prompt."""
    world = factory()
    try:
        return beginning(world)
    finally:
        close_world(world)


def beginning(world: World) -> State:
    return Trajectory(tuple(world.tools), tuple(world.prompt))


def execute(world: World, action: Message) -> Step:
    """`act` in a plain world."""
    return drive(act(world, action))


async def act(world: World, action: Message) -> Step:
    """Play one action in `world`, changing it. Calls run in order and their results carry the calls' ids; all are graded `executed`.

    An unknown tool, arguments that are not a JSON object and a ToolError are answered by an observation, as agent loops do;
    any other exception ends the step with `error`. `reward` is read when the episode ends.
    """
    observations: list[Message] = []
    error, terminated, truncated = None, False, False
    try:
        for call in action.tool_calls:
            observations.append(tool_message(await answer(world, call), call.id))  # noqa: PERF401  a failure keeps what came before
        if not action.tool_calls and hasattr(world, "reply"):
            observations.extend(await settled(world.reply(action)))
        nothing_follows = not action.tool_calls and not observations
        terminated = nothing_follows or bool(getattr(world, "done", False))
        truncated = not terminated and bool(getattr(world, "truncated", False))
    except Exception as failure:  # noqa: BLE001  a world is user code: its failure is data
        error = f"{type(failure).__name__}: {failure}"
    grades = (Grade.EXECUTED,) * len(observations)
    reward = getattr(world, "reward", None) if terminated or truncated else None
    return Step(action, tuple(observations), terminated=terminated, truncated=truncated, error=error, reward=reward, grades=grades)


async def answer(world: World, call: ToolCall) -> Content:
    """What a tool answers one call with. Anything but a ToolError goes through."""
    names = [tool.name for tool in world.tools]
    if call.name not in names:
        return f"Error: unknown tool {call.name!r}. Available tools: {', '.join(names)}."
    arguments = call.args
    if arguments is None:
        return f"Error: the arguments of {call.name} are not a JSON object: {call.arguments}"
    try:
        result: object = await settled(world.call(call.name, arguments))
    except ToolError as refusal:
        return str(refusal)
    if isinstance(result, str) or (isinstance(result, list | tuple) and all(isinstance(part, dict) for part in result)):
        return cast("Content", result)
    raise TypeError(f"tool {call.name} returned {type(result).__name__} {result!r:.80}, wanted text or content parts")


def tool_message(content: Content, call_id: str) -> Message:
    """A tool's answer as a message. Raises TypeError where content parts are not JSON."""
    if isinstance(content, str):
        return Message.tool(content, call_id)
    return Message.from_openai({"role": "tool", "tool_call_id": call_id, "content": list(content)})


def unnamed_externals(world: World, allow_external: Container[str]) -> set[str]:
    return {tool.name for tool in world.tools if tool.effect.kind == "external" and tool.name not in allow_external}


def withheld(world: World, action: Message, allow_external: Container[str]) -> list[int]:
    """The places of the calls that may not be executed: those of external tools that are not named."""
    external = unnamed_externals(world, allow_external)
    return [i for i, call in enumerate(action.tool_calls) if call.name in external]


def execute_except(world: World, recorded: Step, skipped: Iterable[int]) -> Step:
    """`act_except` in a plain world."""
    return drive(act_except(world, recorded, skipped))


async def act_except(world: World, recorded: Step, skipped: Iterable[int]) -> Step:
    """Execute a recorded action again; the calls at the places in `skipped` are answered by the recording instead.

    So is an answer to the user, where the world has no `reply`: what a user said is an input, not a state of the world.
    """
    places = set(skipped)
    if not recorded.action.tool_calls and recorded.observations and not hasattr(world, "reply"):
        return recorded
    if not places:
        return await act(world, recorded.action)
    calls = recorded.action.tool_calls
    allowed = Message.assistant(tool_calls=[call for i, call in enumerate(calls) if i not in places])
    # With every call withheld nothing is executed: an action without calls would be taken for an answer to the user.
    step = await act(world, allowed) if allowed.tool_calls else Step(recorded.action)
    live, told = iter(step.observations), in_call_order(recorded).observations
    merged = []
    for i in range(len(calls)):
        message = next(live, None) if i not in places else next(iter(told[i : i + 1]), None)
        if message is None:
            break
        merged.append(message)
    return replace(step, action=recorded.action, observations=tuple(merged), grades=(Grade.EXECUTED,) * len(merged))
