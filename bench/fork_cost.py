"""What going back costs: a fork at step 45 of 60, by snapshot, by copy, by executing the prefix again, and by the log alone.

    python bench/fork_cost.py [--json]

Each way answers one new action in the state before step 45, in one process, over the same log. Times are medians and are
given as ratios to executing the prefix again; tool calls are counted in the world. Each tool call does a fixed amount of
work (a hash over a few kilobytes, well under a millisecond), which is little: real tools make re-execution dearer.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, State, ToolCall, ToolSpec
from counterplay.core.protocols import Environment
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorded import RecordedEnvironment

FORK, LENGTH, ROUNDS = 45, 60, 30
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


async def measure(ask: Callable[[int], Awaitable[Any]]) -> tuple[float, float]:
    """Median seconds and mean tool calls of one fork."""
    times, before = [], Counting.calls
    for i in range(ROUNDS):
        start = time.perf_counter()
        await ask(i)
        times.append(time.perf_counter() - start)
    return statistics.median(times), (Counting.calls - before) / ROUNDS


async def main() -> list[dict[str, Any]]:
    rows = []

    async def way(name: str, environment: Environment, state: State, action: Callable[[int], Message]) -> None:
        seconds, calls = await measure(lambda i: environment.step(state, action(i)))
        rows.append({"way": name, "tool_calls": calls, "seconds": seconds})

    # A fork in a world without snapshots starts anew each time: the instances at the tips are elsewhere.
    again = LiveEnvironment(Counting)
    log = await logged(again)
    await way("executed again from the start", again, log.prefix(FORK), lambda i: bump(1000 + i))
    for name, make in (("snapshot", Snapshots), ("copy", Copies)):
        environment = LiveEnvironment(make)
        await way(name, environment, (await logged(environment)).prefix(FORK), lambda i: bump(1000 + i))
    # The recorded answer of the logged action needs no world at all.
    await way("recorded", RecordedEnvironment([log]), log.prefix(FORK), lambda _: log.steps[FORK].action)
    # A read that the log made just before, asked for once more: found by what it depends on.
    await way("recorded elsewhere, reused", RecordedEnvironment([log]), log.prefix(FORK), lambda _: LOOK)
    return [{**row, "time_ratio": row["seconds"] / rows[0]["seconds"]} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows for machines")
    found = asyncio.run(main())
    if parser.parse_args().json:
        print(json.dumps(found))
    else:
        print(f"fork at step {FORK} of {LENGTH}, one new action, median of {ROUNDS}")
        for row in found:
            print(f"{row['way']:32} {row['tool_calls']:6.1f} tool calls  {row['time_ratio']:7.3f} of the time")
