"""Search overhead: microseconds per simulation and per policy call with a policy, environment and verifier that answer at once.

A game of 4 candidates and depth 10, whose values are pseudo-random and differ little, so that the tree grows broad. Each figure
stands beside a bare PUCT search written below (plain
recursion over tuples, no states, budget, waves, journal or I/O), timed in the same process on the same game. The bare one asks its policy
at every simulation, counterplay only where a node is selected again, so it needs fewer calls for a tree of as many nodes; both
ratios are shown. `python bench/search_overhead.py [--nodes 1000 10000 50000] [--repeat 3] [--json]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from counterplay.core.budget import Budget
from counterplay.core.journal import Journal, JournaledEnvironment, JournaledPolicy, JournaledVerifier, MemoryJournal
from counterplay.core.nouns import Message, Proposal, State, Step, ToolCall
from counterplay.core.store import Store
from counterplay.search.best_of_n import best_of_n
from counterplay.search.mcts import mcts

BRANCHING, DEPTH = 4, 10
PRIORS = (0.4, 0.3, 0.2, 0.1)


def value_of(number: int) -> float:
    return 0.45 + (number * 2654435761 % 1000) / 10000


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
        if not node.children and len(node.path) < DEPTH:
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
        self.last = {wire: Step(step.action, step.observations, terminated=True) for wire, step in self.steps.items()}

    async def propose(self, _state: State, n: int) -> list[Proposal]:
        self.calls += 1
        return self.proposals[:n]

    async def step(self, state: State, action: Message) -> Step:
        return (self.steps if len(state.steps) < DEPTH - 1 else self.last)[action.wire]

    def verify(self, state: State) -> float:
        return value_of(int(state.key[:8], 16))


class Sampling(Instant):
    """Draws one at a time, as a language model would."""

    async def propose(self, state: State, n: int) -> list[Proposal]:
        self.calls += 1
        return [self.proposals[(int(state.key[:4], 16) + i) % BRANCHING] for i in range(n)]


START = State((), (Message.user("go"),))


async def grow(nodes: int, wave_size: int, journal: Journal | None = None) -> int:
    parts = Instant()
    three = (parts, parts, parts.verify)
    if journal is not None:
        three = (JournaledPolicy(parts, journal), JournaledEnvironment(parts, journal), JournaledVerifier(parts.verify, journal))
    await mcts(START, *three, Budget(), num_simulations=nodes, num_actions=BRANCHING, wave_size=wave_size)
    return parts.calls


async def grow_lines(nodes: int) -> int:
    parts = Sampling()
    await best_of_n(START, parts, parts, parts.verify, Budget(), n=nodes // DEPTH)
    return parts.calls


def bare(nodes: int) -> int:
    game = BareGame()
    bare_mcts(game, nodes)
    return game.calls


def stored(nodes: int) -> int:
    """With the store's own journal, on disk."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store.duckdb") as store:
        journal = store.journal("bench")
        timed.begin()
        return asyncio.run(grow(nodes, 8, journal))


class Clock:
    """CPU seconds of this process since the last `begin`."""

    def begin(self) -> None:
        self.started_s = time.process_time()

    def read(self) -> float:
        return time.process_time() - self.started_s


timed = Clock()
SEARCHES: dict[str, Callable[[int], int]] = {
    "bare mcts": bare,
    "mcts, waves of 8": lambda nodes: asyncio.run(grow(nodes, 8)),
    "mcts, waves of 32": lambda nodes: asyncio.run(grow(nodes, 32)),
    "mcts, one by one": lambda nodes: asyncio.run(grow(nodes, 1)),
    "mcts, memory journal": lambda nodes: asyncio.run(grow(nodes, 8, MemoryJournal())),
    "mcts, store journal": stored,
    "best_of_n": lambda nodes: asyncio.run(grow_lines(nodes)),
}


def measure(nodes: int, repeat: int) -> list[dict[str, float | str]]:
    """CPU time of each search, the best of `repeat`; the searches take turns, so that a busy machine is unfair to none."""
    best = dict.fromkeys(SEARCHES, math.inf)
    calls = dict.fromkeys(SEARCHES, 0)
    for _ in range(repeat):
        for name, search in SEARCHES.items():
            gc.collect()
            timed.begin()
            calls[name] = search(nodes)
            best[name] = min(best[name], timed.read())
    bare_call = best["bare mcts"] / calls["bare mcts"]
    return [
        {
            "search": name,
            "nodes": nodes,
            "policy_calls": calls[name],
            "us_per_node": best[name] / nodes * 1e6,
            "us_per_policy_call": best[name] / calls[name] * 1e6,
            "ratio_per_node": best[name] / best["bare mcts"],
            "ratio_per_policy_call": best[name] / calls[name] / bare_call,
        }
        for name in SEARCHES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10000, 50000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for nodes in options.nodes for row in measure(nodes, options.repeat)]
    if options.json:
        print(json.dumps({"clock": "process CPU time", "rows": rows}))
        return
    heads = f"{'us/node':>8} {'us/call':>8} {'x bare/node':>12} {'x bare/call':>12} {'x first size':>13}"
    print(f"{'search':21} {'nodes':>6} {'calls':>6} {heads}")
    first = {row["search"]: row["us_per_policy_call"] for row in rows if row["nodes"] == options.nodes[0]}
    for row in rows:
        growth = float(row["us_per_policy_call"]) / float(first[row["search"]])
        print(
            f"{row['search']:21} {row['nodes']:6} {row['policy_calls']:6} {row['us_per_node']:8.2f} {row['us_per_policy_call']:8.2f}"
            f" {row['ratio_per_node']:12.2f} {row['ratio_per_policy_call']:12.2f} {growth:13.2f}"
        )


if __name__ == "__main__":
    main()
