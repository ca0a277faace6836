"""A solvable game: a tree of moves with uneven priors and lengths, whose exact values are known.

The likeliest line of TRAP ends quickly and badly, the best one is unlikely and long. `random_game` makes others of any shape.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Grade, Message, Proposal, State, Step, ToolCall, ToolSpec, Usage
from counterplay.core.protocols import first_draw

Tree = dict | float

TRAP: Tree = {
    "hurry": (0.55, {"grab": (0.7, 0.3), "look": (0.3, {"grab": (0.9, 0.2), "leave": (0.1, 0.5)})}),
    "ask": (0.3, {"guess": (0.6, 0.1), "wait": (0.4, {"go": (0.8, 0.6), "stay": (0.2, 0.0)})}),
    "plan": (
        0.15,
        {
            "quit": (0.5, 0.0),
            "read": (
                0.3,
                {"skim": (0.7, 0.4), "study": (0.3, {"act": (0.8, {"finish": (0.6, 1.0), "stop": (0.4, 0.1)}), "rest": (0.2, 0.2)})},
            ),
            "nap": (0.2, 0.05),
        },
    ),
}
BEST_LINE = ("plan", "read", "study", "act", "finish")
MOVE = ToolSpec.function("move", "Make a move.", {"type": "object", "properties": {"to": {"type": "string"}}})


def random_game(seed: int, depth: int = 4, branching: int = 3) -> Tree:
    generator = random.Random(seed)

    def grow(left: int) -> Tree:
        if left == 0 or (left < depth and generator.random() < 0.25):
            return round(generator.random(), 3)
        shares = [generator.random() ** 2 + 0.01 for _ in range(generator.randint(1, branching))]
        return {f"m{i}": (share / sum(shares), grow(left - 1)) for i, share in enumerate(shares)}

    return grow(depth)


def start(text: str = "Play.") -> State:
    return State((MOVE,), (Message.user(text),))


def moves(state: State) -> tuple[str, ...]:
    return tuple(call.args["to"] for step in state.steps for call in step.action.tool_calls)


def action(move: str, call_id: str = "c") -> Message:
    return Message.assistant(None, [ToolCall(call_id, "move", json.dumps({"to": move}))])


@dataclass
class Game:
    """The rules; also the environment, which counts what it executes, and the policies and verifiers that belong to it."""

    tree: Tree = field(default_factory=lambda: TRAP)
    jitter: bool = False
    executed: Counter = field(default_factory=Counter)

    def at(self, path: tuple[str, ...]) -> Tree:
        here = self.tree
        for move in path:
            here = here[move][1]
        return here

    def best(self, path: tuple[str, ...] = ()) -> float:
        here = self.at(path)
        return here if not isinstance(here, dict) else max(self.best((*path, move)) for move in here)

    async def step(self, state: State, action: Message) -> Step:
        await pause(self.jitter, "step", state.key, action.wire)
        self.executed[state.key, action.signature] += 1
        path = (*moves(state), *(call.args["to"] for call in action.tool_calls))
        here = self.at(path)
        over = not isinstance(here, dict)
        seen = Message.tool(json.dumps({"at": "/".join(path), "over": over}), action.tool_calls[0].id)
        return Step(action, (seen,), terminated=over, reward=here if over else None, grades=(Grade.EXECUTED,))

    async def exact(self, state: State) -> float:
        """A perfect process verifier: the value of best play."""
        await pause(self.jitter, "exact", state.key)
        return self.best(moves(state))

    async def outcome(self, state: State) -> float | None:
        """An outcome verifier: no opinion before the end."""
        await pause(self.jitter, "outcome", state.key)
        return state.steps[-1].reward if state.finished else None


@dataclass
class Sampler:
    """Draws moves by their priors, reproducibly, under fresh tool-call ids; without priors in its proposals."""

    game: Game
    seed: int = 0
    tokens: int = 0
    asked: list = field(default_factory=list)
    fingerprint: str = "sampler"

    async def propose(self, state: State, n: int) -> list[Proposal]:
        first = first_draw.get()
        self.asked.append((state.key, first, n))
        await pause(self.game.jitter, "propose", state.key, str(first))
        here = self.game.at(moves(state))
        proposals = []
        for i in range(first, first + n):
            generator = random.Random(f"{self.seed} {state.key} {i}")
            (move,) = generator.choices(list(here), [share for share, _ in here.values()])
            usage = Usage(self.tokens, generator.randint(0, self.tokens)) if self.tokens else Usage()
            proposals.append(Proposal(action(move, f"call_{state.key[:6]}_{i}"), usage=usage))
        return proposals


@dataclass
class Enumerator:
    """Gives the n likeliest moves with their priors."""

    game: Game
    fingerprint: str = "enumerator"

    async def propose(self, state: State, n: int) -> list[Proposal]:
        await pause(self.game.jitter, "propose", state.key)
        here = self.game.at(moves(state))
        ranked = sorted(here, key=lambda move: -here[move][0])[:n]
        return [Proposal(action(move), prior=here[move][0], logprob=-1.0) for move in ranked]


async def pause(jitter: bool, *parts: str) -> None:
    """Wait a few turns of the event loop, differently for every question, so that answers come in another order than they were asked."""
    if jitter:
        for _ in range(int(content_key(*parts)[0], 16)):
            await asyncio.sleep(0)
