"""LangGraph agents that are played for real: a scripted model that counts its calls, and tools that count their executions."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytest.importorskip("langchain", reason="langchain is not installed")
pytest.importorskip("langgraph.checkpoint.sqlite", reason="langgraph-checkpoint-sqlite is not installed")

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.sqlite import SqliteSaver
from pydantic import Field

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, ToolCall

EFFECTS = {
    "get_order": Effect.parse("read(order:{order_id})"),
    "list_orders": Effect.parse("read(order)"),
    "cancel": Effect.parse("write(order:{order_id})"),
    "send_mail": Effect.parse("external"),
    "add": Effect.parse("pure"),
}


class Scripted(BaseChatModel):
    """Says `script[i]` where i assistant messages came before, and the last one ever after. `asked` holds every request."""

    script: list[Any]
    asked: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.asked.append(list(messages))
        assert len(self.asked) < 100, "the script never ends"
        place = sum(message.type == "ai" for message in messages)
        said = self.script[min(place, len(self.script) - 1)]
        if callable(said):
            said = said(messages, len(self.asked))
        usage = {"input_tokens": 10 + place, "output_tokens": 3, "total_tokens": 13 + place, "input_token_details": {"cache_read": 2}}
        answer = said.model_copy(
            update={"usage_metadata": usage, "response_metadata": {"model_name": "scripted-1", "finish_reason": "stop"}}
        )
        return ChatResult(generations=[ChatGeneration(message=answer)])


class Desk:
    """Orders, and the tools over them. `executed` counts what any of them really did."""

    def __init__(self):
        self.executed = Counter()
        self.orders = {"1": "open", "2": "open"}

    def tools(self):
        def get_order(order_id: str) -> str:
            """The status of an order."""
            self.executed["get_order"] += 1
            return f"{order_id} is {self.orders[order_id]}"

        def list_orders() -> str:
            """All orders."""
            self.executed["list_orders"] += 1
            return json.dumps(self.orders)

        def cancel(order_id: str) -> str:
            """Cancel an order."""
            self.executed["cancel"] += 1
            self.orders[order_id] = "cancelled"
            return f"{order_id} cancelled"

        def send_mail(text: str) -> str:
            """Write to the customer."""
            self.executed["send_mail"] += 1
            return "sent"

        def add(x: int, y: int) -> str:
            """A sum."""
            self.executed["add"] += 1
            return str(x + y)

        return [StructuredTool.from_function(each) for each in (get_order, list_orders, cancel, send_mail, add)]


def does(*calls, text=""):
    """An assistant message of LangChain's: does(("get_order", {"order_id": "1"}, "c1"))."""
    return AIMessage(text, tool_calls=[{"name": name, "args": args, "id": own, "type": "tool_call"} for name, args, own in calls])


def act(*calls):
    """The same as an action."""
    return Message.assistant(tool_calls=[ToolCall(own, name, json.dumps(args)) for name, args, own in calls])


STORY = [
    does(("get_order", {"order_id": "1"}, "c0")),
    does(("get_order", {"order_id": "2"}, "c1"), ("add", {"x": 1, "y": 2}, "c2")),
    does(("cancel", {"order_id": "1"}, "c3")),
    does(("get_order", {"order_id": "1"}, "c4")),
    does(("send_mail", {"text": "done"}, "c5")),
    AIMessage("Order 1 is cancelled."),
]
"""Six steps: reads, a parallel call, a write, the same read again, a mail, a text."""


def agent(model, tools, **options):
    return create_agent(model, tools, system_prompt="You keep orders.", **options)


def play(path, make=agent, *, script=None, said="Cancel order 1.", **options):
    """Let LangGraph itself write a thread `t` to a file. Gives the desk, which has forgotten what was executed, and the graph."""
    desk = Desk()
    model = Scripted(script=script or STORY)
    graph = make(model, desk.tools(), **options)
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        recorder = graph.copy(update={"checkpointer": SqliteSaver(connection)})
        for text in [said] if isinstance(said, str) else said:
            recorder.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": "t"}})
    desk.executed.clear()
    model.asked.clear()
    return desk, model, graph


@cache
def _story():
    with TemporaryDirectory() as folder:
        play(Path(folder) / "agent.db")
        return (Path(folder) / "agent.db").read_bytes()


def fresh_story(folder):
    """The thread of STORY as LangGraph wrote it, alone in a folder; and a desk, a model and a graph that have done nothing yet."""
    path, desk, model = folder / "agent.db", Desk(), Scripted(script=STORY)
    path.write_bytes(_story())
    desk.orders["1"] = "cancelled"
    return path, desk, model, agent(model, desk.tools())
