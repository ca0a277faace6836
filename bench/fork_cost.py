"""What going back costs: a fork at step 45 of 60, by running anew, executing the prefix again, snapshot, copy, or the log alone.

    python bench/fork_cost.py [--json]

Each way gets one new action from the policy in the state before step 45 and answers it, in one process, over the same log. Times are
medians and are given as ratios to executing the prefix again; model calls are counted in the policy, tool calls in the world. A
model call takes no time here, and each tool call does a fixed amount of work (a hash over a few kilobytes, well under a
millisecond), which is little: real ones make running and executing again dearer. Below stand what the log alone costs: the fork
itself, beside a deep copy of the state; 50 recorded steps re-enacted and verified; and a step of a branch that has left the log.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import hashlib
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, Proposal, State, Step, ToolCall, ToolSpec
from counterplay.core.protocols import Environment
from counterplay.replay.fidelity import check
from counterplay.replay.fork import fork
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorded import RecordedEnvironment

FORK, LENGTH, ROUNDS = 45, 60, 30
STEPS, BRANCH = 50, 100
TEXT = b"counterplay" * 2000


class Counting:
    """A counter behind a tool that takes some work."""

    tools = (ToolSpec.function("bump", "", {}, Effect("write", "n")), ToolSpec.function("look", "", {}, Effect("read", "n")))
    prompt = (Message.user("count"),)
    calls = 0

    def __init__(self) -> None:
        self.n = 0

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        Counting.calls += 1
        self.n += int(arguments.get("by", 1)) if name == "bump" else 0
        digest = hashlib.sha256(TEXT + str(self.n).encode()).hexdigest()
        return json.dumps({"n": self.n, "digest": digest * 20})


class Snapshots(Counting):
    def snapshot(self) -> object:
        return self.n

    def restore(self, snapshot: Any) -> None:
        self.n = snapshot


class Copies(Counting):
    def copy(self) -> Copies:
        twin = type(self)()
        twin.n = self.n
        return twin


def bump(by: int) -> Message:
    return Message.assistant(tool_calls=[ToolCall(f"c{by}", "bump", json.dumps({"by": by}))])


LOOK = Message.assistant(tool_calls=[ToolCall("look", "look", "{}")])


async def logged(environment: LiveEnvironment) -> State:
    state = await environment.initial()
    for i in range(LENGTH):
        state = state.extend(await environment.step(state, LOOK if i % 3 == 2 else bump(i)))
    return state


class Agent:
    """A policy that plays the log's actions, then one of its own. `asked` counts its model calls."""

    asked = 0

    def __init__(self, *actions: Message) -> None:
        self.actions = actions

    async def propose(self, state: State, n: int) -> list[Proposal]:
        Agent.asked += 1
        own = self.actions[len(state)] if len(state) < len(self.actions) else bump(1000 + Agent.asked)
        return [Proposal(own)] * n

    async def act(self, environment: Environment, state: State) -> State:
        return state.extend(await environment.step(state, (await self.propose(state, 1))[0].action))


async def measure(way: str, ask: Callable[[], Awaitable[Any]], times: int = 1) -> dict[str, Any]:
    """One row: median seconds, and mean model and tool calls, of doing it once. `times` are done in each round."""
    seconds, tools, models = [], Counting.calls, Agent.asked
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            await ask()
        seconds.append((time.perf_counter() - start) / times)
    rounds = ROUNDS * times
    counted = {"model_calls": (Agent.asked - models) / rounds, "tool_calls": (Counting.calls - tools) / rounds}
    return {"way": way, **counted, "seconds": statistics.median(seconds)}


async def ways(log: State) -> list[dict[str, Any]]:
    """One new action in the state before step 45, however that is reached."""
    agent, fresh = Agent(), LiveEnvironment(Counting)

    async def anew() -> None:
        environment, player = LiveEnvironment(Counting), Agent(*(step.action for step in log.steps[:FORK]))
        state = await environment.initial()
        for _ in range(FORK + 1):
            state = await player.act(environment, state)

    # A fork in a world without snapshots starts anew each time: the instances at the tips are elsewhere.
    rows = [await measure("executed again from the start", lambda: agent.act(fresh, fork(log, FORK)))]
    rows.insert(0, await measure("agent and world run anew", anew))
    for name, make in (("snapshot", Snapshots), ("copy", Copies)):
        environment = LiveEnvironment(make)
        made = await logged(environment)
        rows.append(await measure(name, lambda e=environment, m=made: agent.act(e, fork(m, FORK))))  # type: ignore[misc]
    # The recorded answer of the logged action needs no world at all.
    recorded, same = RecordedEnvironment([log]), Agent(*(step.action for step in log.steps))
    rows.append(await measure("recorded", lambda: same.act(recorded, fork(log, FORK)), 10))
    # A read that the log made just before, asked for once more: found by what it depends on.
    rows.append(await measure("recorded elsewhere, reused", lambda: Agent(*[LOOK] * LENGTH).act(recorded, fork(log, FORK)), 10))
    return rows


async def log_alone(log: State) -> list[dict[str, Any]]:
    """What needs neither model nor world."""
    recorded = RecordedEnvironment([log])
    actions, begun = [step.action for step in log.steps[:STEPS]], log.prefix(STEPS)

    async def forked() -> str:
        return fork(log, FORK).key

    async def copied() -> State:
        return copy.deepcopy(log.prefix(FORK))

    async def again() -> None:
        state = log.prefix(0)
        for action in actions:
            state = state.extend(await recorded.step(state, action))
        if state.key != begun.key:
            raise AssertionError("the log did not come back")

    async def off_the_log() -> None:
        state = log.prefix(FORK)
        for i in range(BRANCH):
            step = await recorded.step(state, bump(10_000 + i))
            state = state.extend(Step(step.action, (Message.tool("executed elsewhere", "c"),)))

    rows = [await measure("fork of a recorded state, key and all", forked, 100), await measure("deep copy of that state", copied)]
    rows.append(await measure(f"{STEPS} recorded steps re-enacted", again))
    rows.append(await measure(f"{STEPS} recorded steps checked (fidelity)", lambda: check(begun, recorded)))
    off = await measure(f"a step off the log, of {BRANCH}", off_the_log)
    return [*rows, {**off, "seconds": off["seconds"] / BRANCH}]


async def main() -> list[dict[str, Any]]:
    log = await logged(LiveEnvironment(Counting))
    rows = [*await ways(log), *await log_alone(log)]
    base = next(row["seconds"] for row in rows if row["way"] == "executed again from the start")
    return [{**row, "time_ratio": row["seconds"] / base} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows for machines")
    found = asyncio.run(main())
    if parser.parse_args().json:
        print(json.dumps(found))
    else:
        print(f"fork at step {FORK} of {LENGTH}, one new action, median of {ROUNDS}")
        for row in found:
            counts = f"{row['model_calls']:6.1f} model calls {row['tool_calls']:6.1f} tool calls"
            print(f"{row['way']:40} {counts} {row['time_ratio']:9.4f} of the time {1e6 * row['seconds']:10,.1f} us")
