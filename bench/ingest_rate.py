"""How fast growing histories go into the store, beside two baselines in the same process on the same bytes.

The logs keep the whole prompt of every model call, as most sources do: one JSON line a call. `orjson.loads` alone only
parses them; DuckDB's `read_ndjson` parses and stores them as they are. The store parses them, keeps every message once under
a verified key and can give every trace back.

    python bench/ingest_rate.py [--traces 200] [--steps 40] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson

from counterplay.core.nouns import Call, Grade, Message, Outcome, Source, Step, ToolSpec, Trace, Trajectory
from counterplay.core.store import Store

WORDS = ["invoice", "ledger", "account", "tax", "rate", "amount", "vendor", "period", "entry", "balance", "posting", "query", "result"]
TOOLS = [{"type": "function", "function": {"name": f"tool_{i}", "description": "d" * 200, "parameters": {}}} for i in range(8)]


def write_logs(path: Path, traces: int, steps: int) -> None:
    """One line a model call, each with the whole conversation so far."""
    rng = random.Random(0)
    with path.open("wb") as out:
        for trace in range(traces):
            messages: list[dict[str, Any]] = [
                {"role": "system", "content": "You keep the books. " * 40},
                {"role": "user", "content": text(rng, 60)},
            ]
            for step in range(steps):
                call = {
                    "id": f"call_{step}",
                    "type": "function",
                    "function": {"name": f"tool_{step % 8}", "arguments": json.dumps({"id": step})},
                }
                action = {"role": "assistant", "content": text(rng, 20), "tool_calls": [call]}
                line = {"trace": f"t{trace}", "task": f"task{trace // 4}", "messages": messages, "tools": TOOLS, "response": action}
                out.write(orjson.dumps(line) + b"\n")
                messages = [*messages, action, {"role": "tool", "tool_call_id": call["id"], "content": text(rng, 80)}]


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)) + f" {rng.getrandbits(48):x}"


def read_traces(path: Path) -> Iterator[Trace]:
    """The traces of the log, one at a time: its last call holds every message."""
    tools = tuple(ToolSpec.from_openai(tool) for tool in TOOLS)
    with path.open("rb") as lines:
        for name, calls in itertools.groupby((orjson.loads(line) for line in lines), key=lambda call: call["trace"]):
            yield as_trace(name, list(calls), tools)


def as_trace(name: str, calls: list[dict[str, Any]], tools: tuple[ToolSpec, ...]) -> Trace:
    messages = [Message.from_openai(fields) for fields in (*calls[-1]["messages"], calls[-1]["response"])]
    start = len(calls[0]["messages"])
    steps = tuple(Step(pair[0], tuple(pair[1:]), grades=(Grade.EXACT,) * len(pair[1:])) for pair in in_pairs(messages[start:]))
    trajectory = Trajectory(tools, tuple(messages[:start]), steps)
    provenance = tuple(Call(step, model="m") for step in range(len(steps)))
    return Trace(name, trajectory, Source("bench"), task=calls[0]["task"], outcome=Outcome(1.0, success=True), calls=provenance)


def in_pairs(messages: list[Message]) -> Iterator[list[Message]]:
    return (messages[i : i + 2] for i in range(0, len(messages), 2))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def parse_only(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(len(orjson.loads(line)["messages"]) for line in lines)


def duckdb_ndjson(path: Path, target: Path) -> None:
    with duckdb.connect(str(target)) as connection:
        connection.execute("CREATE TABLE log AS SELECT * FROM read_ndjson(?, maximum_object_size=67108864)", [str(path)])


def store_ingest(path: Path, target: Path) -> Any:
    with Store.open(target) as store:
        return store.ingest(read_traces(path))


def measure(traces: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        write_logs(log, traces, steps)
        size = log.stat().st_size
        parse_s, _ = timed(lambda: parse_only(log))
        ndjson_s, _ = timed(lambda: duckdb_ndjson(log, Path(folder) / "plain.duckdb"))
        build_s, held = timed(lambda: list(read_traces(log)))
        store_s, report = timed(lambda: store_ingest(log, Path(folder) / "store.duckdb"))
        again_s, again = timed(lambda: store_ingest(log, Path(folder) / "store.duckdb"))
        with Store.open(Path(folder) / "store.duckdb") as store:
            verify_s, problems = timed(store.verify)
            stats = store.stats()
            journal_s = journal_put_s(store)
        if problems or again.nodes_added or len(held) != stats.traces:
            msg = f"the store is not as it should be: {problems[:3]}, {again}"
            raise RuntimeError(msg)
        return {
            "traces": traces, "steps": steps, "log_mb": size / 1e6, "nodes": report.nodes_added,
            "traces_per_s": traces / store_s, "messages_per_s": stats.messages / store_s, "log_mb_per_s": size / 1e6 / store_s,
            "content_mb_per_s": stats.content_bytes / 1e6 / store_s, "seconds": store_s, "of_which_parse_and_build_s": build_s,
            "second_ingest_s": again_s, "verify_s": verify_s, "orjson_loads_s": parse_s, "duckdb_read_ndjson_s": ndjson_s,
            "time_ratio_to_orjson_loads": store_s / parse_s, "time_ratio_to_read_ndjson": store_s / ndjson_s,
            "log_bytes_per_content_byte": size / stats.content_bytes, "journal_put_us": journal_s * 1e6,
            "store_file_mb": stats.file_bytes / 1e6, "plain_file_mb": (Path(folder) / "plain.duckdb").stat().st_size / 1e6,
        }  # fmt: skip


def journal_put_s(store: Store, puts: int = 20_000) -> float:
    journal, answer = store.journal("bench"), "x" * 800
    seconds, _ = timed(lambda: [journal.put(f"{i:032x}", "propose", answer) for i in range(puts)])
    return seconds / puts


def main() -> None:
    parser = argparse.ArgumentParser(description="Ingest rate of growing histories.")
    parser.add_argument("--traces", type=int, default=200, help="how many traces")
    parser.add_argument("--steps", type=int, default=40, help="model calls a trace")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = measure(options.traces, options.steps)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:12,.2f}" if isinstance(value, float) else f"{name:32} {value:12,}")


if __name__ == "__main__":
    main()
