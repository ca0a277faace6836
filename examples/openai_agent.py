"""Your OpenAI agent, recorded as it is; then its own code goes back to a step, does something else there, and lives on from it.

OPENAI_BASE_URL=... OPENAI_API_KEY=... MODEL=... python examples/openai_agent.py
"""

import json
import os
import tempfile
from pathlib import Path

import openai

import counterplay
from counterplay import Message
from counterplay.core.nouns import ToolCall

ORDERS = {"17": "paid", "18": "refunded"}


@counterplay.tool(effect="read(order:{order_id})")
def look_up(order_id: str) -> str:
    """The state of an order."""
    return ORDERS.get(order_id, "no such order")


SCHEMA = {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "The state of an order.", "parameters": SCHEMA}}]


def agent(question: str) -> str:
    """Yours, unchanged."""
    client, messages = openai.OpenAI(), [{"role": "user", "content": question}]
    while True:
        asked = client.chat.completions.create(model=os.environ["MODEL"], messages=messages, tools=TOOLS)
        said = asked.choices[0].message
        if not said.tool_calls:
            return said.content or ""
        messages.append(said.model_dump(exclude_none=True))
        for call in said.tool_calls:
            result = look_up(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


QUESTION = "Is order 17 paid? Look it up."
with counterplay.record(Path(tempfile.mkdtemp(), "runs.jsonl"), task=QUESTION) as run:
    answer = agent(QUESTION)
    run.outcome(reward=float("paid" in answer))
print("recorded:", [step.action.signature for step in run.trace().trajectory.steps])

again = counterplay.replay_agent(lambda: agent(QUESTION), run.trace())
print(f"again, from the record: faithful {again.faithful}, {again.model_calls} model calls")

other = Message.assistant(None, [ToolCall("other", "look_up", '{"order_id": "18"}')])
instead = counterplay.replay_agent(lambda: agent(QUESTION), run.trace(), at=0, action=other, execute_tools=["look_up"])
print("with another look-up at its first step it says:", instead.returned)
