"""Agents of five kinds, their tools, which count what is really executed, and a server of the model that plays for them all.

Each agent is asked to put order 1 right, on a server given by its base URL, and makes its own client. The model is scripted by how
many answers it has given in a context, so any request can be answered from what is in it.
"""

import asyncio
import json
import re
import sqlite3
from collections import Counter
from contextlib import closing

import httpx2
import openai

from counterplay.replay.effects import tool
from tests.replay.loopback import Loopback, completion

EXECUTED = Counter()
ORDERS = {}
PROMPT = [{"role": "system", "content": "You keep orders."}, {"role": "user", "content": "Put order 1 right."}]
SCRIPT = [
    [("look_up", {"order": 1}), ("look_up", {"order": 2})],
    [("refund", {"order": 1, "amount": 5})],
    [("look_up", {"order": 1})],
    [("send_mail", {"to": "ann@example.org", "text": "Refunded."})],
    "Order 1 is refunded.",
]
LAST = len(SCRIPT) - 1


def fresh():
    """The world as every run finds it."""
    EXECUTED.clear()
    ORDERS.clear()
    ORDERS.update({1: {"paid": 20, "refunded": 0}, 2: {"paid": 8, "refunded": 0}})


@tool(effect="read(order:{order})")
def look_up(order: int) -> dict[str, int]:
    """One order."""
    EXECUTED["look_up"] += 1
    return dict(ORDERS[order])


@tool(effect="write(order:{order})")
def refund(order: int, amount: int) -> str:
    """Pay back."""
    EXECUTED["refund"] += 1
    ORDERS[order]["refunded"] += amount
    return f"refunded {amount}"


@tool(effect="external")
def send_mail(to: str, text: str) -> str:
    """Send a mail."""
    EXECUTED["send_mail"] += 1
    return f"sent to {to}"


@tool(effect="read(order:{order})", name="look_up")
async def alook_up(order: int) -> dict[str, int]:
    """One order."""
    EXECUTED["look_up"] += 1
    await asyncio.sleep(0)
    return dict(ORDERS[order])


@tool(effect="write(order:{order})", name="refund")
async def arefund(order: int, amount: int) -> str:
    """Pay back."""
    EXECUTED["refund"] += 1
    ORDERS[order]["refunded"] += amount
    return f"refunded {amount}"


@tool(effect="external", name="send_mail")
async def asend_mail(to: str, text: str) -> str:
    """Send a mail."""
    EXECUTED["send_mail"] += 1
    return f"sent to {to}"


TOOLS = {"look_up": look_up, "refund": refund, "send_mail": send_mail}
ASYNC_TOOLS = {"look_up": alook_up, "refund": arefund, "send_mail": asend_mail}


def _parameters(*names):
    kinds = {"order": "integer", "amount": "integer"}
    return {"type": "object", "properties": {name: {"type": kinds.get(name, "string")} for name in names}, "required": list(names)}


DEFINITIONS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": _parameters(*names)}}
    for name, names in {"look_up": ["order"], "refund": ["order", "amount"], "send_mail": ["to", "text"]}.items()
]


class Model(Loopback):
    """Answers by `script`, one entry an answer: a text, or the calls to make. The last one is given for ever."""

    def __init__(self, script=None):
        super().__init__(default=self._answer)
        self.plays = SCRIPT if script is None else script

    def _answer(self, request):
        given = sum(message["role"] == "assistant" for message in request["messages"])
        play = self.plays[min(given, len(self.plays) - 1)]
        text, calls = (play, []) if isinstance(play, str) else (None, play)
        named = [(f"call_{given}_{at}", name, json.dumps(arguments)) for at, (name, arguments) in enumerate(calls)]
        body = {**completion(text, calls=named), "id": f"chatcmpl-{given}"}
        return (200, stream_of(body), {"Content-Type": "text/event-stream"}) if request.get("stream") else body


def stream_of(body):
    """A completion as the events of a stream."""
    message = body["choices"][0]["message"]
    head = {"id": body["id"], "object": "chat.completion.chunk", "model": body["model"]}
    deltas = [{"role": "assistant", "content": ""}] + [{"content": piece} for piece in re.findall(".{1,4}", message["content"] or "")]
    for at, call in enumerate(message.get("tool_calls", [])):
        half = len(call["function"]["arguments"]) // 2
        deltas.append(
            {"tool_calls": [{"index": at, **call, "function": {**call["function"], "arguments": call["function"]["arguments"][:half]}}]}
        )
        deltas.append({"tool_calls": [{"index": at, "function": {"arguments": call["function"]["arguments"][half:]}}]})
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": body["choices"][0]["finish_reason"]}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def client_of(url, **options):
    """A client that costs little to make: nothing here needs certificates."""
    return openai.OpenAI(base_url=url, api_key="k", http_client=httpx2.Client(verify=False), **{"max_retries": 0, **options})


def async_client_of(url, **options):
    http = httpx2.AsyncClient(verify=False)
    return openai.AsyncOpenAI(base_url=url, api_key="k", http_client=http, **{"max_retries": 0, **options})


def answered(call_id, value):
    return {"role": "tool", "tool_call_id": call_id, "content": value if isinstance(value, str) else json.dumps(value)}


def plain(url, prompt=None, definitions=None, tools=None, **params):
    """A loop over the OpenAI SDK."""
    with client_of(url) as client:
        messages = [*(prompt or PROMPT)]
        while True:
            completion = client.chat.completions.create(model="m", messages=messages, tools=definitions or DEFINITIONS, **params)
            said = completion.choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                return said.content
            for call in said.tool_calls:
                function = (tools or TOOLS)[call.function.name]
                messages.append(answered(call.id, function(**json.loads(call.function.arguments))))


async def parallel(url):
    """An async loop whose tool calls run side by side."""

    async def run(call):
        return answered(call.id, await ASYNC_TOOLS[call.function.name](**json.loads(call.function.arguments)))

    async with async_client_of(url) as client:
        messages = [*PROMPT]
        while True:
            said = (await client.chat.completions.create(model="m", messages=messages, tools=DEFINITIONS)).choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                return said.content
            messages += await asyncio.gather(*map(run, said.tool_calls))


def graph(url):
    """A LangGraph agent with checkpoints in SQLite."""
    from langchain.agents import create_agent
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI
    from langgraph.checkpoint.sqlite import SqliteSaver

    connection = sqlite3.connect(":memory:", check_same_thread=False)
    with closing(connection), httpx2.Client(verify=False) as http:
        tools = [StructuredTool.from_function(function, name=name) for name, function in TOOLS.items()]
        model = ChatOpenAI(model="m", base_url=url, api_key="k", max_retries=0, http_client=http)
        agent = create_agent(model, tools, system_prompt=PROMPT[0]["content"], checkpointer=SqliteSaver(connection))
        result = agent.invoke({"messages": [PROMPT[1]]}, {"configurable": {"thread_id": "1"}, "recursion_limit": 50})
        return result["messages"][-1].content


def catcher(url, tries=3):
    """An agent that catches every exception, whatever it is, tries again, and then goes on as if nothing had been."""
    with client_of(url) as client:
        messages = [*PROMPT]
        for _ in range(20):
            said = None
            for _ in range(tries):
                try:
                    said = client.chat.completions.create(model="m", messages=messages, tools=DEFINITIONS).choices[0].message
                    break
                except:  # noqa: E722
                    pass
            if said is None:
                return "all is well"
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                return said.content
            for call in said.tool_calls:
                try:
                    value = TOOLS[call.function.name](**json.loads(call.function.arguments))
                except BaseException:  # noqa: BLE001
                    value = "that did not work"
                messages.append(answered(call.id, value))
        return "too long"


def streamer(url):
    """An agent that reads its answers as streams."""
    with client_of(url) as client:
        messages = [*PROMPT]
        while True:
            text, calls = "", {}
            for chunk in client.chat.completions.create(model="m", messages=messages, tools=DEFINITIONS, stream=True):
                delta = chunk.choices[0].delta
                text += delta.content or ""
                for part in delta.tool_calls or ():
                    call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
                    call["arguments"] += part.function.arguments or ""
            if not calls:
                return text
            asked = [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
                for call in calls.values()
            ]
            messages.append({"role": "assistant", "content": text or None, "tool_calls": asked})
            messages += [answered(call["id"], TOOLS[call["name"]](**json.loads(call["arguments"]))) for call in calls.values()]


KINDS = {"plain": plain, "parallel": parallel, "graph": graph, "catcher": catcher, "streamer": streamer}
