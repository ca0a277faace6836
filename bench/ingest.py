"""How fast growing histories go in, beside two baselines in the same run on the same bytes: `orjson.loads` alone, and DuckDB's
own `read_ndjson`.

    python bench/ingest.py [--spans 20000] [--rounds 3] [--format chat|otlp|both] [--json]

Logs keep the whole prompt of every model call, as most sources do: one JSON line a call, or one OTLP/JSON export a trace. Sizes are
those of real customer-service agents: 14 tools of 8 KB together, a policy of 7 KB, 60 calls of about 1.2 KB of news. `orjson.loads` only
parses; `read_ndjson` parses and stores rows as they are. The store parses them, joins them to traces, keeps every message once under a
verified key, redacts secrets (and once more without), and can give every trace back. On two cores two processes read and one writes.
Each figure is the best of some rounds in which all take their turns, for other work on the machine only ever takes time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson

from counterplay import loop
from counterplay.core.store import Store

STEPS = 60
SYLLABLES = ["ba", "ne", "ri", "to", "lu", "sam", "pel", "dor", "vin"]
WORDS = ["".join(random.Random(i).choices(SYLLABLES, k=1 + i % 4)) for i in range(2000)]


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def tool(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    properties = {f"p{i}": {"type": "string", "description": text(rng, 12)} for i in range(3)}
    parameters = {"type": "object", "properties": properties, "required": ["p0"]}
    return {"type": "function", "function": {"name": f"tool_{number}", "description": text(rng, 50), "parameters": parameters}}


TOOLS = [tool(number) for number in range(14)]
POLICY = text(random.Random(99), 1000)


def calls(trace: int) -> Iterator[tuple[int, list[dict[str, Any]], dict[str, Any]]]:
    """Place, prompt and answer of every call of a trace."""
    rng = random.Random(trace)
    messages: list[dict[str, Any]] = [{"role": "system", "content": POLICY}, {"role": "user", "content": text(rng, 40)}]
    for step in range(STEPS):
        function = {"name": f"tool_{step % 14}", "arguments": json.dumps({"p0": text(rng, 3)})}
        asked = {"id": f"call_{rng.getrandbits(96):024x}", "type": "function", "function": function}
        answer = {"role": "assistant", "content": text(rng, 12), "tool_calls": [asked]}
        yield step, messages, answer
        messages = [*messages, answer, {"role": "tool", "tool_call_id": asked["id"], "content": text(rng, 130)}]


def write_chat(path: Path, traces: int) -> None:
    """One line a call, request and response, as proxies and SDK wrappers log them."""
    with path.open("wb") as out:
        for trace in range(traces):
            for step, messages, answer in calls(trace):
                usage = {"prompt_tokens": 2000 + 300 * step, "completion_tokens": 30, "total_tokens": 2030 + 300 * step}
                choice = {"index": 0, "finish_reason": "tool_calls", "message": answer}
                response = {"id": f"c{trace}-{step}", "model": "m-1", "created": 1_700_000_000 + step, "choices": [choice], "usage": usage}
                request = {"model": "m", "messages": messages, "tools": TOOLS, "temperature": 0.5}
                row = {"metadata": {"trace_id": f"t{trace}"}, "request": request, "response": response, "latency_ms": 900}
                out.write(orjson.dumps(row) + b"\n")


def parts(message: dict[str, Any]) -> dict[str, Any]:
    """A message in the parts of the OpenTelemetry GenAI conventions."""
    if message["role"] == "tool":
        found = [{"type": "tool_call_response", "id": message["tool_call_id"], "response": message["content"]}]
    else:
        found = [{"type": "text", "content": message["content"]}]
    for call in message.get("tool_calls", ()):
        found.append({"type": "tool_call", "id": call["id"], **call["function"]})
    return {"role": message["role"], "parts": found}


def attribute(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value if isinstance(value, str) else orjson.dumps(value).decode()}}


def write_otlp(path: Path, traces: int) -> None:
    """One OTLP/JSON export a trace, in the GenAI conventions of 1.37 and later."""
    definitions = [{"type": "function", **each["function"]} for each in TOOLS]
    with path.open("wb") as out:
        for trace in range(traces):
            spans = [span(trace, step, messages, answer, definitions) for step, messages, answer in calls(trace)]
            resource_spans = {"resource": {"attributes": [attribute("service.name", "bench")]}, "scopeSpans": [{"spans": spans}]}
            out.write(orjson.dumps({"resourceSpans": [resource_spans]}) + b"\n")


def span(trace: int, step: int, messages: list[Any], answer: dict[str, Any], definitions: list[Any]) -> dict[str, Any]:
    start = 1_700_000_000_000_000_000 + (trace * STEPS + step) * 1_000_000_000
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.input.messages": [parts(message) for message in messages],
        "gen_ai.output.messages": [{**parts(answer), "finish_reason": "tool_call"}],
        "gen_ai.tool.definitions": definitions,
        "gen_ai.usage.input_tokens": 2000 + 300 * step,
        "gen_ai.usage.output_tokens": 30,
    }
    return {
        "traceId": f"{trace + 1:032x}",
        "spanId": f"{step + 1:016x}",
        "name": "chat m",
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 900_000_000),
        "attributes": [attribute(key, value) for key, value in told.items()],
        "status": {},
    }


WRITERS: dict[str, Callable[[Path, int], None]] = {"chat": write_chat, "otlp": write_otlp}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parse_only(path: Path) -> None:
    with path.open("rb", buffering=1 << 20) as lines:
        for line in lines:
            orjson.loads(line)


def read_ndjson(path: Path, target: Path) -> None:
    with duckdb.connect(str(target)) as connection:
        connection.execute("CREATE TABLE log AS SELECT * FROM read_ndjson(?, maximum_object_size=268435456)", [str(path)])


def ingest(path: Path, target: Path, *, redact: bool) -> None:
    with Store.open(target) as store:
        report = loop.ingest([path], store, redact=None if redact else ())
        if report.rejected_added or not report.traces_added:
            msg = f"the log was not read whole: {report}"
            raise RuntimeError(msg)


def one_round(log: Path, folder: Path) -> tuple[dict[str, float], int]:
    """How long each takes, in seconds, and the size of the store."""
    folder.mkdir()
    seconds = {
        "orjson_loads": timed(lambda: parse_only(log)),
        "read_ndjson": timed(lambda: read_ndjson(log, folder / "plain.duckdb")),
        "ingest": timed(lambda: ingest(log, folder / "store.duckdb", redact=True)),
        "ingest_without_redaction": timed(lambda: ingest(log, folder / "bare.duckdb", redact=False)),
    }
    size = (folder / "store.duckdb").stat().st_size
    shutil.rmtree(folder)
    return seconds, size


def measure(kind: str, spans: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        traces = max(1, spans // STEPS)
        WRITERS[kind](log, traces)
        megabytes = log.stat().st_size / 1e6
        every = [one_round(log, Path(folder) / f"round {number}") for number in range(rounds)]
        seconds = {name: min(taken[name] for taken, _ in every) for name in every[0][0]}
        store_bytes = every[-1][1]
    return {
        "format": kind, "spans": traces * STEPS, "log_mb": megabytes, "store_mb": store_bytes / 1e6,
        "mb_per_s": {name: megabytes / taken for name, taken in seconds.items()},
        "spans_per_s": {name: traces * STEPS / taken for name, taken in seconds.items()},
        "of_orjson_alone": seconds["orjson_loads"] / seconds["ingest"],
        "of_orjson_alone_without_redaction": seconds["orjson_loads"] / seconds["ingest_without_redaction"],
        "of_read_ndjson": seconds["read_ndjson"] / seconds["ingest"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Ingest rate of growing histories.")
    parser.add_argument("--spans", type=int, default=20_000, help="model calls; a tenth of them is measured too")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; the best counts")
    parser.add_argument("--format", choices=(*WRITERS, "both"), default="both")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args()
    for kind in WRITERS if options.format == "both" else (options.format,):
        for spans in (options.spans // 10, options.spans):
            figures = measure(kind, spans, max(1, options.rounds))
            if options.json:
                print(json.dumps(figures))
                continue
            print(f"{kind}: {figures['spans']:,} spans, {figures['log_mb']:,.0f} MB of log, {figures['store_mb']:,.0f} MB of store")
            for name, rate in figures["mb_per_s"].items():
                print(f"  {name:28} {rate:8.1f} MB/s {figures['spans_per_s'][name]:12,.0f} spans/s")
            print(f"  ingest is {figures['of_orjson_alone']:.2f} of orjson.loads alone", end="")
            print(
                f" ({figures['of_orjson_alone_without_redaction']:.2f} without redaction), {figures['of_read_ndjson']:.2f} of read_ndjson"
            )


if __name__ == "__main__":
    main()
