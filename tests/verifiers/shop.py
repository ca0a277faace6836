"""A shop, an agent that forgets half of the time to look before it refunds, and its logs: what a plugin's user has in a folder."""

PARTS = '''
from random import Random

from counterplay.core.nouns import Message, Proposal, ToolCall
from counterplay.core.protocols import first_draw
from counterplay.replay.effects import call_tool, tool, tool_specs


class Shop:
    def __init__(self, task):
        self.looked, self.prompt = False, [Message.system("You run a shop."), Message.user(f"Refund order {task}.")]
        self.tools, self.done, self.reward = tool_specs(type(self)), False, None

    @tool(effect="read(order:{order_id})")
    def look_up(self, order_id: str) -> str:
        """The state of an order."""
        self.looked = True
        return "paid"

    @tool(effect="write(order:{order_id})")
    def refund(self, order_id: str) -> str:
        """Pay an order back."""
        self.done, self.reward = True, 1.0 if self.looked else 0.0
        return "done"

    def call(self, name, arguments):
        return call_tool(self, name, arguments)


class Hasty:
    fingerprint = "hasty-1"

    async def propose(self, state, n):
        return [Proposal(self.one(state, first_draw.get() + i)) for i in range(n)]

    def one(self, state, draw):
        order = state.prompt[-1].content_text.split()[-1].rstrip(".")
        hasty = len(state) or Random(f"{state.key}{draw}").random() < 0.6
        call = ToolCall(f"c{len(state)}", "refund" if hasty else "look_up", '{"order_id": "%s"}' % order)
        return Message.assistant(None, [call])


policy = Hasty()
'''

RECORD = """
import asyncio
from counterplay.replay.recorder import Recorder, record
from parts import Shop, policy

with Recorder("logs.jsonl", agent="shop") as recorder:
    asyncio.run(record([str(i) for i in range(12)], Shop, policy, recorder))
"""
