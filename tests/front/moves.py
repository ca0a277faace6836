"""A game of six moves, of which only `b` every time is right: its world, its logs, a verifier of prefixes, and a model on a server.

Also copied into a folder of its own and imported there, for command lines that name `moves:World`.
"""

import os
import time

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, Outcome, Proposal, Source, Step, ToolCall, ToolSpec, Trace, Trajectory, Usage
from counterplay.core.protocols import first_draw

TOOL = ToolSpec.function("move", "Move.", {"type": "object", "properties": {"to": {"type": "string"}}}, Effect.parse("write(place)"))
LENGTH = 6


def action(to, number=0):
    return Message.assistant(None, [ToolCall(f"c{number}", "move", f'{{"to":"{to}"}}')])


class World:
    """Takes `MOVES_DELAY_S` seconds a move."""

    tools = (TOOL,)
    fingerprint = "moves-1"

    def __init__(self, task):
        self.prompt, self.moves = (Message.user(f"go {task}"),), []

    done = property(lambda self: len(self.moves) == LENGTH)
    reward = property(lambda self: float(self.moves == ["b"] * LENGTH))

    def call(self, name, arguments):
        time.sleep(float(os.environ.get("MOVES_DELAY_S", "0")))
        self.moves.append(arguments["to"])
        return "error: no such place" if arguments["to"] == "x" else f"at {arguments['to']}"

    def snapshot(self):
        return tuple(self.moves)

    def restore(self, snapshot):
        self.moves = list(snapshot)


def logged(task, moves="bbaaaa", *, name=None, agent=None):
    """A run of the moves; `x` is a move whose call fails."""
    steps = [
        Step(action(to, i), (Message.tool("error: no such place" if to == "x" else f"at {to}", f"c{i}"),)) for i, to in enumerate(moves)
    ]
    reward = float(moves == "b" * LENGTH)
    steps[-1] = Step(steps[-1].action, steps[-1].observations, terminated=True, reward=reward)
    trajectory = Trajectory((TOOL,), (Message.user(f"go {task}"),), tuple(steps))
    outcome = Outcome(reward, reward == 1.0, "environment")
    return Trace(name or f"{task}-{moves}", trajectory, Source("test"), task=task, agent=agent, outcome=outcome)


def moves_of(trajectory):
    return "".join(step.action.tool_calls[0].args["to"] for step in trajectory.steps)


def sound(trajectory):
    """1 until the first wrong move, 0 after it."""
    return float("a" not in moves_of(trajectory) and "x" not in moves_of(trajectory))


class Mover:
    """Right `rate` of the time, by state and draw. `draws` counts what it was asked for, by number of steps."""

    def __init__(self, rate=0.5):
        self.rate, self.fingerprint, self.draws = rate, f"mover-{rate}", {}

    async def propose(self, state, n):
        self.draws[len(state)] = self.draws.get(len(state), 0) + n
        return [Proposal(action(self.choice(state, first_draw.get() + i), len(state)), usage=Usage(10, 5)) for i in range(n)]

    def choice(self, state, draw):
        from random import Random

        return "b" if Random(f"{state.key}/{draw}").random() < self.rate else "a"


def answer(request):
    """What the model on the loopback server says: a move by the seed that was sent."""
    from tests.replay.loopback import completion

    number = sum(message["role"] == "assistant" for message in request["messages"])
    to = "b" if request["seed"] % 3 else "a"
    return completion(None, calls=[(f"c{number}", "move", f'{{"to":"{to}"}}')])
