"""After an external call that was not made again, a live world lacks its effect: what it says is not true, and is graded so."""

from counterplay.core.effects import Effect
from counterplay.core.nouns import Grade, Message, Step, ToolCall, ToolSpec, Trajectory
from counterplay.replay.live import LiveEnvironment


class Shop:
    tools = (
        ToolSpec.function("refund", "Pay back.", {"type": "object"}, Effect("external")),
        ToolSpec.function("status", "Look.", {"type": "object"}, Effect("read", "order")),
        ToolSpec.function("add", "Add.", {"type": "object"}, Effect("pure")),
    )
    prompt = (Message.user("refund it"),)
    refunds = 0

    def __init__(self):
        self.paid = True

    def call(self, name, arguments):
        if name == "refund":
            type(self).refunds += 1
            self.paid = False
            return "refunded"
        return "3" if name == "add" else f"paid: {self.paid}"


def call(name):
    return Message.assistant(None, [ToolCall("1", name, "{}")])


async def test_reads_after_a_withheld_external_call_are_stale_and_pure_results_are_not():
    refunded = Trajectory(Shop.tools, Shop.prompt, (Step(call("refund"), (Message.tool("refunded", "1"),), grades=(Grade.EXACT,)),))
    shop = LiveEnvironment(Shop)
    status = await shop.step(refunded, call("status"))
    assert (status.observations[0].content_text, status.grade) == ("paid: True", Grade.STALE)
    assert (await shop.step(refunded, call("add"))).grade is Grade.EXECUTED
    assert Shop.refunds == 0
    named = LiveEnvironment(Shop, allow_external={"refund"})
    true = await named.step(refunded, call("status"))
    assert (true.observations[0].content_text, true.grade) == ("paid: False", Grade.EXECUTED)
