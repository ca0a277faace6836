"""Many searches at once on one server, beside a hand-written asyncio loop that makes the same calls with the same dependencies.

The server, in a process of its own on loopback, answers after an exponential latency that depends on the request alone. The loop is
a raw httpx2 client and one semaphore: for each trace it posts wave after wave of the calls that the search makes (json.dumps of the
messages, json.loads of the answer), and knows nothing of states, trees, budgets or fairness. Then CPU a call at 2 and 32 KB, beside
`AsyncOpenAI.chat.completions.create`. `python bench/concurrency.py [--quick | --full] [--json]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from counterplay.core.budget import Budget
from counterplay.core.nouns import Message, Proposal, State, Step, ToolSpec
from counterplay.core.protocols import first_draw
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.search.beam import beam
from counterplay.search.best_of_n import best_of_n
from counterplay.search.fairness import Limiter, shared
from counterplay.search.mcts import mcts

DEPTH, PAD, MOVES = 6, "the account was credited and the balance agreed with the statement; " * 4, 6
MOVE = ToolSpec.function("move", "Make a move.", {"type": "object", "properties": {"to": {"type": "integer"}}})
SEARCHES: dict[str, Callable[..., Awaitable[Any]]] = {
    "best of 8": partial(best_of_n, n=8),
    "beam 4x4": partial(beam, width=4, num_actions=4),
    "mcts": partial(mcts, num_simulations=24, num_actions=4),
}

# --- the server -------------------------------------------------------------------------------------------------------------------------


def answer_to(body: bytes, number: int) -> tuple[bytes, float]:
    """What the `number`-th request with this body is answered, and its latency in units of the mean."""
    drawn = blake2b(body + number.to_bytes(4), digest_size=8).digest()
    call = {"id": "move:0", "type": "function", "function": {"name": "move", "arguments": f'{{"to": {drawn[0] % MOVES}}}'}}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": None, "tool_calls": [call]}}
    usage = {"prompt_tokens": len(body) // 4, "completion_tokens": 12, "total_tokens": len(body) // 4 + 12}
    latency = -math.log((int.from_bytes(drawn[1:5]) + 1) / 2**32)
    return json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode(), latency


def serve(port: Any) -> None:
    """`/MEAN_MS/v1/chat/completions`; `/reset` forgets what was asked."""
    asked: dict[bytes, int] = {}

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(int(length[15:]))
                path = head.split(b" ", 2)[1].split(b"/")
                if path[1] == b"reset":
                    asked.clear()
                    answer = b"{}"
                else:
                    key = blake2b(body, digest_size=16).digest()
                    asked[key] = asked.get(key, -1) + 1
                    answer, latency = answer_to(key, asked[key])
                    await asyncio.sleep(latency * int(path[1]) / 1000)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


# --- the game ---------------------------------------------------------------------------------------------------------------------------


def root(trace: int) -> State:
    return State((MOVE,), (Message.system("Play. " + PAD * 4), Message.user(f"Game {trace}.")))


@dataclass
class Game:
    """The environment and the verifier; notes which proposals a search asked for together."""

    waves: list[list[tuple[State, int]]] = field(default_factory=list)
    stepped: bool = True

    async def step(self, state: State, action: Message) -> Step:
        self.stepped = True
        seen = Message.tool(f"{len(state)}: {PAD}", action.tool_calls[0].id)
        return Step(action, (seen,), terminated=len(state) + 1 >= DEPTH)

    def verify(self, state: State) -> float:
        return int(state.key[:8], 16) / 2**32


@dataclass
class Rehearsal:
    """A policy that answers at once as the server will."""

    game: Game

    async def propose(self, state: State, n: int) -> list[Proposal]:
        if self.game.stepped:
            self.game.waves.append([])
            self.game.stepped = False
        self.game.waves[-1].append((state, n))
        key = blake2b(json.dumps(request(state), separators=(",", ":")).encode(), digest_size=16).digest()
        start = first_draw.get()
        answers = [json.loads(answer_to(key, number)[0]) for number in range(start, start + n)]
        return [Proposal(Message.from_openai(answer["choices"][0]["message"])) for answer in answers]


def request(state: State) -> dict[str, Any]:
    """What the hand-written loop sends; byte for byte what the policy sends."""
    messages = [message.to_openai() for message in state.messages]
    tools = [tool.to_openai() for tool in state.tools]
    return {"model": "m", "tools": tools, "messages": messages, "temperature": 1.0, "max_tokens": 64}


async def rehearsed(search: Callable[..., Awaitable[Any]], traces: int) -> list[list[list[dict[str, Any]]]]:
    """For each trace the waves of requests its search makes, each request once a draw."""
    made = []
    for trace in range(traces):
        game = Game()
        await search(root(trace), Rehearsal(game), game, game.verify, Budget())
        made.append([[request(state) for state, n in wave for _ in range(n)] for wave in game.waves])
    return made


# --- the two contenders -----------------------------------------------------------------------------------------------------------------


async def by_hand(url: str, waves: Sequence[Sequence[Sequence[dict[str, Any]]]], in_flight: int) -> int:
    import httpx2

    gate, calls = asyncio.Semaphore(in_flight), 0
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)

    async with httpx2.AsyncClient(timeout=120, limits=limits) as client:

        async def post(asked: dict[str, Any]) -> Any:
            nonlocal calls
            async with gate:
                body = json.dumps(asked, separators=(",", ":"), ensure_ascii=False).encode()
                response = await client.post(f"{url}/chat/completions", content=body, headers={"Content-Type": "application/json"})
            calls += 1
            return json.loads(response.content)["choices"][0]["message"]

        async def one(trace: Sequence[Sequence[dict[str, Any]]]) -> None:
            for wave in trace:
                await asyncio.gather(*(post(asked) for asked in wave))

        await asyncio.gather(*(one(trace) for trace in waves))
    return calls


async def by_search(url: str, search: Callable[..., Awaitable[Any]], traces: int, in_flight: int) -> int:
    policy = OpenAIPolicy("m", base_url=url, api_key="none", max_tokens=64, seed=None, n_support="never", concurrency=in_flight)

    async def one(trace: int) -> None:
        game = Game()
        await search(root(trace), policy, game, game.verify, Budget(), concurrency=in_flight)

    with shared(Limiter(in_flight)):
        async with policy:
            await asyncio.gather(*(one(trace) for trace in range(traces)))
    return policy.tally.calls


def reset(url: str) -> None:
    import httpx2

    httpx2.post(f"{url}/reset", content=b"{}").raise_for_status()


@dataclass
class Measured:
    wall_s: float
    cpu_s: float
    calls: int
    memory_mb: float


async def timed(run: Awaitable[int]) -> Measured:
    """Wall time, CPU of this process, calls, and how much resident memory grew at most meanwhile."""
    gc.collect()
    before = most = resident_mb()
    over = asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, resident_mb())
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    began, cpu = time.perf_counter(), time.process_time()
    calls = await run
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    over.set()
    await watching
    return Measured(wall, cpu, calls, most - before)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def compare(base: str, name: str, traces: int, *, mean_ms: int, in_flight: int, turn: int) -> dict[str, Any]:
    """Both contenders, who goes first taking turns."""
    search, url = SEARCHES[name], f"{base}/{mean_ms}/v1"
    waves = asyncio.run(rehearsed(search, traces))

    def hand() -> Measured:
        reset(base)
        return asyncio.run(timed(by_hand(url, waves, in_flight)))

    def ours() -> Measured:
        reset(base)
        return asyncio.run(timed(by_search(url, search, traces, in_flight)))

    mine, theirs = (ours(), hand()) if turn % 2 else reversed((hand(), ours()))
    return {
        "search": name,
        "traces": traces,
        "latency_ms": mean_ms,
        "in_flight": in_flight,
        "calls": mine.calls,
        "calls_by_hand": theirs.calls,
        "wall_s": mine.wall_s,
        "wall_by_hand_s": theirs.wall_s,
        "ratio": mine.wall_s / theirs.wall_s,
        "cpu_ms_a_call": mine.cpu_s / mine.calls * 1e3,
        "cpu_ms_a_call_by_hand": theirs.cpu_s / theirs.calls * 1e3,
        "memory_mb": mine.memory_mb,
        "resident_mb": resident_mb(),
    }


def grid(*, quick: bool, full: bool) -> list[tuple[str, int, int, int]]:
    """Search, traces, latency in ms, requests in flight."""
    few = [(name, traces, 50, 64) for traces in (8, 64) for name in SEARCHES]
    if quick:
        return few
    slow = [(name, traces, 500, 256) for traces in (8, 64) for name in SEARCHES]
    many = [(name, 256, 50, 64) for name in (SEARCHES if full else ["best of 8"])]
    return few + slow + many + ([(name, 256, 500, 256) for name in SEARCHES] if full else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 64 traces at 50 ms")
    parser.add_argument("--full", action="store_true", help="256 traces with every search and latency too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    heads = (
        f"{'ms':>4} {'flight':>6} {'calls':>6} {'wall s':>7} {'by hand':>8} {'ratio':>6} {'CPU ms':>7} {'by hand':>8} {'+MB':>5} {'MB':>5}"
    )
    if not options.json:
        print(f"{'search':10} {'traces':>6} {heads}")
    rows = []
    try:
        base = f"http://127.0.0.1:{here.recv()}"
        asyncio.run(by_search(f"{base}/1/v1", SEARCHES["best of 8"], 2, 8))
        for turn, (name, traces, mean_ms, in_flight) in enumerate(grid(quick=options.quick, full=options.full)):
            row = compare(base, name, traces, mean_ms=mean_ms, in_flight=in_flight, turn=turn)
            rows.append(row)
            if not options.json:
                print(
                    f"{name:10} {traces:6} {mean_ms:4} {in_flight:6} {row['calls']:6} {row['wall_s']:7.2f} {row['wall_by_hand_s']:8.2f}"
                    f" {row['ratio']:6.2f} {row['cpu_ms_a_call']:7.2f} {row['cpu_ms_a_call_by_hand']:8.2f} {row['memory_mb']:5.0f}"
                    f" {row['resident_mb']:5.0f}",
                    flush=True,
                )
    finally:
        process.kill()
        process.join()
    from policy_throughput import remote_model

    client = remote_model(150 if options.quick else 400)
    if options.json:
        print(json.dumps({"searches": rows, "client": client}))
        return
    print("CPU of this process a call: the policy, and AsyncOpenAI.chat.completions.create")
    for size, found in client.items():
        print(f"  {size:>5}: {found['cpu_ms']:.2f} ms, {found['openai_cpu_ms']:.2f} ms, {found['ratio']:.1f} times less")


if __name__ == "__main__":
    main()
