"""What going back costs in a LangGraph thread of 60 steps: re-homed in memory, by LangGraph's own fork, and by running it again.

    python bench/langgraph_fork.py [--json]

Each way brings the agent to the state before step 45 and has its model say one new thing there; only "re-homed, not asked yet"
stops before that. The agent is `create_agent` with a model that answers at once and a tool that only returns text, kept in an
SQLite file; real models and tools make running it again dearer and leave the others as they are. Times are medians and are
given as ratios to running it again. LangGraph's own fork writes into the thread: `written` counts the checkpoints it left there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from counterplay.core.effects import PURE
from counterplay.core.nouns import Message
from counterplay.replay.langgraph import GraphEnvironment, fork_graph, graph_forks

LENGTH, FORK, ROUNDS = 60, 45, 9
SAY = Message.assistant("Something else.")


def agent(calls: Counter[str], length: int = LENGTH) -> Any:
    """A graph whose model calls a tool in every step but the last."""
    from langchain.agents import create_agent
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.tools import tool

    class Model(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "bench"

        def bind_tools(self, tools: Any, **_: Any) -> Any:  # noqa: ARG002
            return self

        def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:  # noqa: ARG002
            calls["model"] += 1
            place = sum(message.type == "ai" for message in messages)
            call = {"name": "look", "args": {"at": place}, "id": f"c{place}", "type": "tool_call"}
            said = AIMessage("", tool_calls=[call]) if place < length - 1 else AIMessage("done")
            return ChatResult(generations=[ChatGeneration(message=said)])

    @tool
    def look(at: int) -> str:
        """Look at a place."""
        calls["tool"] += 1
        return f"At {at} there is nothing to be seen. " * 10

    return create_agent(Model(), [look], system_prompt="You look at places.")


def recorded(path: Path, calls: Counter[str]) -> Any:
    """Write the thread; the graph that did."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    graph = agent(calls)
    connection = sqlite3.connect(path, check_same_thread=False)
    graph.copy(update={"checkpointer": SqliteSaver(connection)}).invoke(
        {"messages": [("user", "go")]}, {"configurable": {"thread_id": "t"}}
    )
    connection.close()
    return graph


async def measured(name: str, calls: Counter[str], once: Callable[[int], Awaitable[None]], rounds: int = ROUNDS) -> dict[str, Any]:
    times = []
    await once(-1)
    calls.clear()
    for turn in range(rounds):
        start_s = time.perf_counter()
        await once(turn)
        times.append(time.perf_counter() - start_s)
    model, tool = calls["model"] / rounds, calls["tool"] / rounds
    return {"way": name, "ms": statistics.median(times) * 1000, "model_calls": model, "tool_calls": tool, "written": 0.0}


async def main() -> list[dict[str, Any]]:
    calls: Counter[str] = Counter()
    with TemporaryDirectory() as folder:
        path = Path(folder, "agent.db")
        graph = recorded(path, calls)
        rows = [await again(calls), await own_fork(path, graph, calls)]
        point = graph_forks(path, "t").at(FORK)

        async def rehomed(_: int) -> None:
            fork_graph(graph, path, point)

        async def answered(_: int) -> None:
            await fork_graph(graph, path, point).answer(SAY)

        async def sampled(_: int) -> None:
            await fork_graph(graph, path, point).sample()

        async def listed(_: int) -> None:
            await fork_graph(graph, path, graph_forks(path, "t").at(FORK)).answer(SAY)

        environment = GraphEnvironment(graph, path, "t", effects={"look": PURE})

        async def stepped(turn: int) -> None:
            await environment.step(point.state, Message.assistant(f"Something else, {turn}."))

        rows.append(await measured("re-homed, not asked yet", calls, rehomed))
        rows.append(await measured("re-homed, an answer given", calls, answered))
        rows.append(await measured("re-homed, the model sampled", calls, sampled))
        rows.append(await measured("re-homed, the file read anew", calls, listed))
        rows.append(await measured("one step of GraphEnvironment", calls, stepped))
    return [{**row, "time_ratio": row["ms"] / rows[0]["ms"]} for row in rows]


async def again(calls: Counter[str]) -> dict[str, Any]:
    """The agent from its start, in memory, up to the model's answer in step 45."""
    from langgraph.checkpoint.memory import InMemorySaver

    graph = agent(calls, FORK + 1)

    async def once(turn: int) -> None:
        bound = graph.copy(update={"checkpointer": InMemorySaver()})
        await bound.ainvoke({"messages": [("user", "go")]}, {"configurable": {"thread_id": str(turn)}})

    return await measured("run again from the start", calls, once, 3)


async def own_fork(path: Path, graph: Any, calls: Counter[str]) -> dict[str, Any]:
    """LangGraph's own way: invoke with the checkpoint's config, which makes the fork the thread's latest state."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    copy = path.with_name("own.db")
    copy.write_bytes(path.read_bytes())  # noqa: ASYNC240
    config = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": graph_forks(path, "t").at(FORK).checkpoint_id}}
    connection = sqlite3.connect(copy, check_same_thread=False)
    bound = graph.copy(update={"checkpointer": SqliteSaver(connection)})

    def count() -> int:
        return int(connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0])

    async def once(_: int) -> None:
        bound.invoke(None, config, interrupt_after=["model"])

    before = count()
    row = await measured("LangGraph's own fork", calls, once)
    written = (count() - before) / (ROUNDS + 1)
    connection.close()
    return {**row, "written": written}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows for machines")
    found = asyncio.run(main())
    if parser.parse_args().json:
        print(json.dumps(found))
    else:
        print(f"fork before step {FORK} of {LENGTH}, median of {ROUNDS}")
        for row in found:
            print(
                f"{row['way']:30} {row['ms']:8.2f} ms  {row['time_ratio']:7.4f} of the time  {row['model_calls']:5.1f} model calls"
                f"  {row['tool_calls']:5.1f} tool calls  {row['written']:4.1f} checkpoints written"
            )
