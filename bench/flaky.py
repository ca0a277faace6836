"""The same search against a calm server and a flaky one: what differs in the result, and whether the tally of paid calls is right.

The flaky server (seeded) fails 25 % of what it is asked: 10 % status 500, 5 % resets, 5 % no answer, 5 % torn answers with status 200; and
it has bursts of 429, with and without `Retry-After`. `python bench/flaky.py [--traces 8] [--seeds 3] [--json]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from counterplay import Store
from counterplay.core.canonical import content_key
from counterplay.exporting import export_sft
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.replay import openai_sending
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.openai_tally import Tally
from counterplay.searching import search
from tests.front import moves
from tests.replay.model_servers import Flaky, ModelServer

SEARCHES: dict[str, dict[str, Any]] = {
    "fork_best_of_n": {"n": 4, "rollouts_per_alternative": 4},
    "mcts": {"num_simulations": 24, "num_actions": 3},
    "beam": {"width": 3, "num_actions": 3},
}
PARTS = SimpleNamespace(policy=None, World=moves.World)
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Result:
    """`trees`, `ids` and `dataset` are digests; `counts` is the server's account, `tally` the policy's."""

    trees: str
    ids: str
    dataset: str
    tally: Tally
    counts: dict[str, int]
    failures: int
    seconds: float

    @property
    def same(self) -> tuple[str, str, str]:
        return self.trees, self.ids, self.dataset


async def searched(server: ModelServer, name: str, traces: int, folder: Path) -> Result:
    """Search `traces` failed runs with a fresh store, and export what came of it."""
    logs = [moves.logged(f"train-{i}", "bbaaaa"[: i % 3] + "a" * (moves.LENGTH - i % 3)) for i in range(traces)]
    policy = OpenAIPolicy("m", base_url=server.base_url, timeout_s=TIMEOUT_S, concurrency=64)
    PARTS.policy, sys.modules["flaky_parts"] = policy, PARTS  # type: ignore[assignment]
    asked = Asked("flaky_parts:policy", "flaky_parts:World", ("outcome",))
    options = SEARCHES[name]
    plan = Plan(name, options, **({} if name == "fork_best_of_n" else {"fork": "start"}))
    with Store.open(folder / "store.duckdb") as store:
        store.ingest(logs)
        begun_s = time.perf_counter()
        report = await search(store, logs, asked, plan)
        seconds = time.perf_counter() - begun_s
        export_sft(store, folder / "sft", source="searched")
    files = sorted(path for path in (folder / "sft").rglob("*") if path.is_file())
    dataset = content_key(*(path.read_bytes().hex() for path in files))
    ids = content_key(*report.searches)
    failed = sum(kind["count"] for kind in report.failures.values()) + len(report.skipped)
    return Result(report.digest, ids, dataset, policy.tally, dict(server.counts), failed, seconds)


def compare(make: Callable[[], ModelServer], name: str, traces: int) -> Result:
    with tempfile.TemporaryDirectory() as folder, make() as server:
        return asyncio.run(searched(server, name, traces, Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    openai_sending._FIRST_DELAY_S = 0.05  # noqa: SLF001  the server's bursts are short as well
    found = []
    if not options.json:
        print(
            f"{'search':16} {'seed':>4} {'same':>5} {'paid':>6} {'server':>6} {'tokens':>7} {'server':>7} {'unusable':>8} {'torn':>5}",
            end="",
        )
        print(f" {'lost':>5} {'500':>4} {'429':>4} {'failed':>6} {'time':>6}")
    for name in SEARCHES:
        calm = compare(lambda: ModelServer(moves.answer), name, options.traces)
        for seed in range(options.seeds):
            flaky = compare(lambda seed=seed: Flaky(seed, answer=moves.answer), name, options.traces)  # type: ignore[misc]
            tally, counts = flaky.tally, flaky.counts
            row = {
                "search": name,
                "seed": seed,
                "same": flaky.same == calm.same,
                "tally": asdict(tally),
                "server": counts,
                "failures": flaky.failures,
                "time_ratio": flaky.seconds / calm.seconds,
            }
            found.append(row)
            if options.json:
                continue
            tokens = tally.input_tokens + tally.output_tokens
            print(f"{name:16} {seed:4} {row['same']!s:>5} {tally.calls:6} {counts['answered']:6} {tokens:7} {counts['tokens']:7}", end="")
            unread = counts.get("torn", 0) - counts.get("cut", 0)
            print(f" {tally.unusable:8} {unread:5} {tally.lost:5} {counts.get('500', 0):4} {counts.get('429', 0):4}", end="")
            print(f" {flaky.failures:6} {row['time_ratio']:6.1f}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
