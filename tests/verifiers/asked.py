"""Verifiers that note what they are asked, and trajectories of any length."""

import asyncio
import json

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, Step, ToolCall, ToolSpec, Trajectory

OBJECT = {"type": "object", "properties": {}}
READ = ToolSpec.function("read", "Look", OBJECT, Effect("read"))
WRITE = ToolSpec.function("write", "Change", OBJECT, Effect("write"))
MAIL = ToolSpec.function("mail", "Send", OBJECT)


def step(name="read", answer=None, **flags):
    """One call of a tool whose name may end in a number: `read3` reads 3."""
    tool = name.rstrip("0123456789")
    number = int(name[len(tool) :] or 0)
    call = ToolCall("c", tool, json.dumps({"n": number}))
    return Step(Message.assistant(None, [call]), (Message.tool(f"{name} done" if answer is None else answer, "c"),), **flags)


def line(*names, **ending):
    """A trajectory of these calls; `ending` are the flags of the last step."""
    steps = [step(name) for name in names[:-1]] + [step(name, **ending) for name in names[-1:]]
    return Trajectory((READ, WRITE, MAIL), (Message.user("go"),), tuple(steps))


class Scoring:
    """Scores the last step by a table of names; None for what is not in it. Notes the lengths it was asked about."""

    version = "1"

    def __init__(self, table, name="scoring", *, many=True, wait=False):
        self.table, self.name, self.wait = table, name, wait
        self.singles, self.batches = [], []
        self.batch = self.many if many else None

    def value(self, trajectory):
        last = trajectory.steps[-1].action.tool_calls if trajectory.steps else ()
        found = [self.table.get(f"{call.name}{call.args['n'] or ''}") for call in last]
        known = [value for value in found if value is not None]
        if known and known[0] == "boom":
            msg = "boom"
            raise RuntimeError(msg)
        return sum(known) / len(known) if known else None

    async def __call__(self, trajectory):
        self.singles.append(len(trajectory))
        if self.wait:
            await asyncio.sleep(0.002)
        return self.value(trajectory)

    async def many(self, trajectories):
        self.batches.append([len(t) for t in trajectories])
        answers = []
        for trajectory in trajectories:
            try:
                answers.append(self.value(trajectory))
            except RuntimeError as error:
                answers.append(error)
        return answers
