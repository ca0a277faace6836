"""What recording costs per model call, beside the same calls of the bare client against the same server on loopback.

    python bench/record_overhead.py [--calls 200] [--json]

`watched` is a run whose interceptor keeps what it is shown; `idle` is the same client while a run of somebody else is active.
Rounds of the ways alternate in one process, and the medians of the calling thread's CPU time are given as ratios to the bare
client's. `answered` is a call that the interceptor answers: no server is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import Context, copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai

from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest, ToolAnswer, ToolRequest, intercepting

ROUNDS = 12
CHUNKS = 40
ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * CHUNKS}, "finish_reason": "stop"}],
    }
).encode()
EVENT = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}],
}
EVENTS = [f"data: {json.dumps(EVENT)}\n\n".encode()] * CHUNKS + [b"data: [DONE]\n\n"]


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer is one packet: no waiting for acknowledgements

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        streamed = b'"stream":true' in body
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
        if not streamed:
            self.send_header("Content-Length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = [f"{len(event):x}\r\n".encode() + event + b"\r\n" for event in EVENTS]
        self.wfile.write(b"".join(pieces) + b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


class Watching:
    """Keeps what it is shown, as a recorder must; answers where it is told to."""

    def __init__(self, answer: ModelAnswer | None = None) -> None:
        self.answer = answer
        self.kept: list[tuple[bytes, bytes]] = []

    def model(self, request: ModelRequest) -> ModelAnswer | None:  # noqa: ARG002
        return self.answer

    def model_answered(self, request: ModelRequest, answer: ModelAnswer) -> None:
        self.kept.append((request.body, answer.body))

    def tool(self, request: ToolRequest) -> ToolAnswer | None:  # noqa: ARG002
        return None

    def tool_answered(self, request: ToolRequest, answer: ToolAnswer) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def idle() -> Iterator[None]:
    """Somebody else's run is active."""
    context = Context()
    run = intercepting(Watching())
    context.run(run.__enter__)
    try:
        yield
    finally:
        context.run(run.__exit__, None, None, None)


def messages(size: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x" * 512}] * (size // 512)


@contextmanager
def sync_calls(url: str, size: int, *, stream: bool) -> Iterator[Callable[[int], None]]:
    asked: Any = messages(size)

    def call(count: int) -> None:
        for _ in range(count):
            answer = model.chat.completions.create(model="m", messages=asked, stream=stream)
            if stream:
                for _ in answer:
                    pass

    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as model:
        yield call


@contextmanager
def async_calls(url: str, size: int, *, stream: bool) -> Iterator[Callable[[int], None]]:
    model = openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0)
    asked: Any = messages(size)

    async def calls(count: int) -> None:
        for _ in range(count):
            answer: Any = await model.chat.completions.create(model="m", messages=asked, stream=stream)
            if stream:
                async for _ in answer:
                    pass

    with asyncio.Runner() as runner:
        yield lambda count: runner.run(calls(count), context=copy_context())
        runner.run(model.close())


def measure(call: Callable[[int], None], calls: int, *, stream: bool) -> dict[str, float]:
    """Microseconds of CPU a call, the median over rounds, for each way."""
    given = ModelAnswer(b"".join(EVENTS), content_type="text/event-stream") if stream else ModelAnswer(ANSWER)
    ways: dict[str, Callable[[], Any]] = {
        "bare": nullcontext,
        "idle": idle,
        "watched": lambda: intercepting(Watching()),
        "answered": lambda: intercepting(Watching(given)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    call(10)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            with way():
                start = time.thread_time()
                call(max(1, calls // ROUNDS))
                times[name].append((time.thread_time() - start) / max(1, calls // ROUNDS) * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


def rows(calls: int) -> Iterator[dict[str, Any]]:
    with serving() as url:
        for kind, make in (("sync", sync_calls), ("async", async_calls)):
            for stream in (False, True):
                for size in (2048, 32768):
                    with make(url, size, stream=stream) as call:
                        found = measure(call, calls, stream=stream)
                    ratios = {name: round(found[name] / found["bare"], 3) for name in ("idle", "watched", "answered")}
                    yield {"client": kind, "streamed": stream, "prompt_bytes": size, "bare_us": round(found["bare"]), **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = list(rows(arguments.calls))
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{'client':8}{'streamed':>10}{'prompt':>9}{'bare us':>10}{'idle':>8}{'watched':>9}{'answered':>10}")
    for row in found:
        print(
            f"{row['client']:8}{row['streamed']!s:>10}{row['prompt_bytes']:>9}{row['bare_us']:>10}"
            f"{row['idle']:>8}{row['watched']:>9}{row['answered']:>10}"
        )


if __name__ == "__main__":
    main()
