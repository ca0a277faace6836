"""How much of what a search sends is in the servers' prompt caches: by affinity to the prompt, in turn, and with one server alone.

Three servers on loopback, each with a prompt cache: a trie of messages, counted in tokens, the least lately used forgotten first. Their
memory in all, and that of the one, is a share of what is new in everything that is sent. `python bench/routing.py [--traces 24] [--json]`
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.concurrency import SEARCHES, Game, answer_to, root
from counterplay.core.budget import Budget
from counterplay.replay import openai_policy
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.routing import Router, Server
from tests.replay.model_servers import ModelServer, Reply

BYTES_A_TOKEN = 4


class Caching(ModelServer):
    """Keeps `memory` tokens of prompts. An answer depends on the request and on how often it was made, not on the cache."""

    def __init__(self, memory: int, made: dict[bytes, int]) -> None:
        super().__init__()
        self.memory, self.made = memory, made
        self.known: OrderedDict[bytes, int] = OrderedDict()

    async def reply(self, body: bytes) -> Reply:
        await asyncio.sleep(0.003)
        key = blake2b(body, digest_size=16).digest()
        self.made[key] = self.made.get(key, -1) + 1
        answer = json.loads(answer_to(key, self.made[key])[0])
        tokens, cached = self.read([json.dumps(message) for message in json.loads(body)["messages"]])
        self.counts["input"] += tokens
        self.counts["cached"] += cached
        answer["usage"] |= {"prompt_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}
        return Reply(body=json.dumps(answer).encode())

    def read(self, messages: Sequence[str]) -> tuple[int, int]:
        """Tokens of a prompt, and how many of them were in the cache, which has all of them then."""
        key, tokens, cached, hit = b"", 0, 0, True
        for message in messages:
            key = blake2b(key + message.encode(), digest_size=16).digest()
            size = len(message) // BYTES_A_TOKEN
            hit = hit and key in self.known
            tokens, cached = tokens + size, cached + size * hit
            self.known[key] = size
            self.known.move_to_end(key)
        while sum(self.known.values()) > self.memory:
            self.known.popitem(last=False)
        return tokens, cached


class InTurn(Router):
    """The first request to the first server, the second to the second, and so on."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.next = itertools.cycle(self.servers)

    def _choose(self, request: Any) -> Server:  # noqa: ARG002  it does not matter what is asked
        return next(self.next)


async def searched(name: str, traces: int, router: type[Router], memories: Sequence[int]) -> dict[str, Any]:
    openai_policy.Router = router  # type: ignore[misc]
    made: dict[bytes, int] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(Caching(memory, made)) for memory in memories]
        urls = [server.base_url for server in servers]
        async with OpenAIPolicy("m", base_url=urls, max_tokens=64, seed=None, n_support="never", concurrency=48) as policy:

            async def one(trace: int) -> None:
                game = Game()
                await SEARCHES[name](root(trace), policy, game, game.verify, Budget())

            await asyncio.gather(*(one(trace) for trace in range(traces)))
        tokens, cached = (sum(server.counts[kind] for server in servers) for kind in ("input", "cached"))
        calls = [server.counts["requests"] for server in servers]
    return {
        "cached": cached / tokens,
        "computed_tokens": tokens - cached,
        "calls": sum(calls),
        "most": max(calls) * len(calls) / sum(calls),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=24)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    if not options.json:
        heads = (
            f"{'search':10} {'memory':>7} {'affinity':>8} {'in turn':>8} {'one':>6} {'computed, in turn / affinity':>29} {'most calls':>10}"
        )
        print(heads)
    for name in SEARCHES:
        everything = asyncio.run(searched(name, options.traces, Router, [10**9]))
        for share in (1.0, 0.33):
            whole = int(everything["computed_tokens"] * share)
            each = [whole // options.servers] * options.servers
            ways = {"affinity": (Router, each), "in turn": (InTurn, each), "one": (Router, [whole])}
            row: dict[str, Any] = {way: asyncio.run(searched(name, options.traces, *how)) for way, how in ways.items()}
            row |= {"search": name, "memory": share, "ratio": row["in turn"]["computed_tokens"] / row["affinity"]["computed_tokens"]}
            found.append(row)
            if not options.json:
                shares = f"{row['affinity']['cached']:8.2f} {row['in turn']['cached']:8.2f} {row['one']['cached']:6.2f}"
                print(f"{name:10} {share:7.2f} {shares} {row['ratio']:29.2f} {row['affinity']['most']:10.2f}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
