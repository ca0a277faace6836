"""An environment of your own: a world in Python, checked, and searched with a policy that tries things.

python examples/my_environment.py
"""

import asyncio

from counterplay import Budget, Message, Proposal, State
from counterplay.core.nouns import ToolCall
from counterplay.replay.effects import call_tool, tool, tool_specs
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.testing import check_world
from counterplay.search.mcts import mcts
from counterplay.verifiers.outcome import OutcomeReward


class Safe:
    """Three digits open it; each one that is right says so."""

    def __init__(self, task: str) -> None:
        self.code, self.entered, self.done, self.reward = "271", "", False, None
        self.prompt, self.tools = [Message.system("You open safes."), Message.user(task)], tool_specs(type(self))

    @tool(effect="write(safe)")
    def turn(self, digit: int) -> str:
        """Turn the dial to a digit."""
        self.entered += str(digit)
        self.done = len(self.entered) == len(self.code)
        self.reward = float(self.entered == self.code) if self.done else None
        return "click" if self.code.startswith(self.entered) else "silence"

    def call(self, name, arguments):
        return call_tool(self, name, arguments)

    def snapshot(self):
        return self.entered, self.done, self.reward

    def restore(self, kept):
        self.entered, self.done, self.reward = kept


class AnyDigit:
    """A policy proposes actions with their probabilities."""

    async def propose(self, state: State, n: int) -> list[Proposal]:
        actions = [Message.assistant(None, [ToolCall("1", "turn", f'{{"digit": {digit}}}')]) for digit in range(n)]
        return [Proposal(action, prior=1 / n) for action in actions]


async def main() -> None:
    print(check_world(lambda: Safe("Open it."), [("turn", {"digit": 2}), ("turn", {"digit": 7})]))
    environment = LiveEnvironment(lambda: Safe("Open it."), task="Open it.")
    start, budget = await environment.initial(), Budget.parse("model_calls=2000")
    tree = await mcts(start, AnyDigit(), environment, OutcomeReward(), budget, num_simulations=200, num_actions=8)
    best = tree.best()
    if best is not None and best.score is not None:
        tried = [call.arguments for step in best.state.steps for call in step.action.tool_calls]
        print(f"{len(tree.nodes)} nodes; the best line is {tried}, which scores {best.score.value:g}")


asyncio.run(main())
