"""Search overhead: microseconds per node and per policy call with a policy, environment and verifier that answer at once.

Each figure stands beside a bare PUCT search written below (plain recursion over tuples, no states, budget, waves, journal or I/O),
timed in the same process on the same game. `python bench/search_overhead.py [--nodes 1000 10000] [--repeat 5] [--json]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import time
from collections.abc import Callable

from counterplay.core.budget import Budget
from counterplay.core.nouns import Message, Proposal, State, Step, ToolCall
from counterplay.search.best_of_n import best_of_n
from counterplay.search.mcts import mcts

BRANCHING = 4
PRIORS = (0.4, 0.3, 0.2, 0.1)


def value_of(number: int) -> float:
    return (number * 2654435761 % 1000) / 1000


# --- the baseline: what a search costs when it is nothing but a search ---------------------------------------------------------------


class BareNode:
    __slots__ = ("children", "n", "path", "prior", "w")

    def __init__(self, path: tuple[int, ...], prior: float) -> None:
        self.path, self.prior = path, prior
        self.n, self.w = 0, 0.0
        self.children: list[BareNode] = []


class BareGame:
    def __init__(self) -> None:
        self.calls = 0

    def propose(self, _path: tuple[int, ...]) -> list[tuple[int, float]]:
        self.calls += 1
        return list(enumerate(PRIORS))

    def step(self, path: tuple[int, ...], action: int) -> tuple[int, ...]:
        return (*path, action)

    def evaluate(self, path: tuple[int, ...]) -> float:
        return value_of(hash(path))


def bare_mcts(game: BareGame, nodes: int) -> BareNode:
    root = BareNode((), 1.0)
    made = 0
    while made < nodes:
        node, path = root, [root]
        while node.children and node.n:
            scale = (math.log((node.n + 19653) / 19652) + 1.25) * math.sqrt(node.n)
            best, highest = node.children[0], -1.0
            for child in node.children:
                q = child.w / child.n if child.n else 0.0
                score = q + scale * child.prior / (1 + child.n)
                if score > highest:
                    best, highest = child, score
            node = best
            path.append(node)
            if not node.n:
                break
        if not node.children:
            node.children = [BareNode(game.step(node.path, action), prior) for action, prior in game.propose(node.path)]
        made += 1
        value = game.evaluate(node.path)
        for seen in path:
            seen.n += 1
            seen.w += value
    return root


# --- the same game for counterplay ----------------------------------------------------------------------------------------------------


class Instant:
    """Policy, environment and verifier that answer at once, from objects made beforehand."""

    def __init__(self) -> None:
        self.calls = 0
        actions = [Message.assistant(None, [ToolCall("c", "move", f'{{"to": {i}}}')]) for i in range(BRANCHING)]
        self.proposals = [Proposal(action, prior=prior) for action, prior in zip(actions, PRIORS, strict=True)]
        self.steps = {p.action.wire: Step(p.action, (Message.tool(f"moved {i}", "c"),)) for i, p in enumerate(self.proposals)}

    async def propose(self, _state: State, n: int) -> list[Proposal]:
        self.calls += 1
        return self.proposals[:n]

    async def step(self, _state: State, action: Message) -> Step:
        return self.steps[action.wire]

    def verify(self, state: State) -> float:
        return value_of(int(state.key[:8], 16))


async def grow_mcts(nodes: int, wave_size: int) -> int:
    parts = Instant()
    await mcts(
        State((), (Message.user("go"),)),
        parts,
        parts,
        parts.verify,
        Budget(),
        num_simulations=nodes,
        num_actions=BRANCHING,
        wave_size=wave_size,
    )
    return parts.calls


async def grow_lines(nodes: int) -> int:
    class Sampling(Instant):
        async def propose(self, state: State, n: int) -> list[Proposal]:
            self.calls += 1
            return [self.proposals[(int(state.key[:4], 16) + i) % BRANCHING] for i in range(n)]

    parts = Sampling()
    await best_of_n(State((), (Message.user("go"),)), parts, parts, parts.verify, Budget(), n=nodes // 20, max_steps=20)
    return parts.calls


def bare(nodes: int) -> int:
    game = BareGame()
    bare_mcts(game, nodes)
    return game.calls


SEARCHES: dict[str, Callable[[int], int]] = {
    "bare mcts": bare,
    "mcts, waves of 8": lambda nodes: asyncio.run(grow_mcts(nodes, 8)),
    "mcts, one by one": lambda nodes: asyncio.run(grow_mcts(nodes, 1)),
    "best_of_n": lambda nodes: asyncio.run(grow_lines(nodes)),
}


def measure(nodes: int, repeat: int) -> list[dict[str, float | str]]:
    """CPU time of each search, the best of `repeat`; the searches take turns, so that a busy machine is unfair to none."""
    best = dict.fromkeys(SEARCHES, math.inf)
    calls = dict.fromkeys(SEARCHES, 0)
    for _ in range(repeat):
        for name, search in SEARCHES.items():
            gc.collect()
            started_s = time.process_time()
            calls[name] = search(nodes)
            best[name] = min(best[name], time.process_time() - started_s)
    return [
        {
            "search": name,
            "nodes": nodes,
            "policy_calls": calls[name],
            "us_per_node": best[name] / nodes * 1e6,
            "us_per_policy_call": best[name] / calls[name] * 1e6,
            "ratio_per_node": best[name] / best["bare mcts"],
        }
        for name in SEARCHES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for nodes in options.nodes for row in measure(nodes, options.repeat)]
    if options.json:
        print(json.dumps({"clock": "process CPU time", "rows": rows}))
        return
    print(f"{'search':20} {'nodes':>7} {'policy calls':>13} {'us/node':>9} {'us/call':>9} {'x bare, per node':>17}")
    for row in rows:
        print(
            f"{row['search']:20} {row['nodes']:7} {row['policy_calls']:13} {row['us_per_node']:9.2f}"
            f" {row['us_per_policy_call']:9.2f} {row['ratio_per_node']:17.2f}"
        )


if __name__ == "__main__":
    main()
