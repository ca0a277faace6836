"""The recording proxy: real clients through a real server, and nothing that passes is another thing than without it."""

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import openai
import pytest

from counterplay import loop
from counterplay.connectors.base import detect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Outcome
from counterplay.core.store import Store
from counterplay.proxy import create_app, serve
from counterplay.replay.agents.tape import read_tape
from tests.replay.agents.seen import Streaming, delta, sse
from tests.replay.loopback import Loopback, completion

pytest.importorskip("uvicorn", reason="needs the extra counterplay[receive]")

KEY = "hunter2-no-known-form"
PROXY = """
import sys, json
from dataclasses import asdict
from pathlib import Path
from counterplay.core.errors import CounterplayError
from counterplay.proxy import serve

options = json.loads(sys.argv[1])
paths = {key: Path(options.pop(key)) for key in ("to", "store") if key in options}
try:
    report = serve(**options, **paths, say=lambda text: print(text, file=sys.stderr, flush=True))
except CounterplayError as error:
    sys.exit(str(error))
print(json.dumps(asdict(report)))
"""


class Passing:
    """A proxy in a process of its own."""

    def __init__(self, upstream, **options):
        asked = {
            "upstream": upstream,
            "port": 0,
            **{key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        }
        command = [sys.executable, "-c", PROXY, json.dumps(asked)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.process.stderr.read()
        self.url = found[0]

    def stop(self):
        """Its report, and what it complained of."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        return json.loads(out), err


@contextmanager
def passing(upstream, tape, **options):
    proxy = Passing(upstream, to=tape, **options)
    try:
        yield proxy
    finally:
        if proxy.process.poll() is None:
            proxy.process.kill()
        proxy.process.communicate()


class Anything:
    """A server that answers every request by a function of it; `seen` keeps (method, path, headers, body)."""

    def __init__(self, answer):
        self.seen = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.seen.append((self.command, self.path, dict(self.headers.items()), body))
                status, headers, data = answer(outer.seen[-1])
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def stored(tape, tmp_path):
    with Store.open(tmp_path / "s.duckdb") as store:
        loop.ingest([tape], store, processes=0)
        assert not store.rejected()
        return list(store.load())


def ask(sdk, *texts, headers=None, **options):
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return sdk.chat.completions.create(model="m", messages=messages, extra_headers=headers, **options)


@pytest.fixture
def tape(tmp_path):
    return tmp_path / "t.jsonl"


def test_runs_by_path_by_header_by_traceparent_and_by_growth(tape, tmp_path):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with Loopback() as server, passing(server.base_url, tape) as proxy:
        for path, headers in (
            ("/run/order%2017/v1", {"x-counterplay-task": "17", "x-counterplay-session": "s", "x-counterplay-agent": "shop"}),
            ("/v1", {"x-counterplay-run": "by header"}),
            ("/v1", {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}),
            ("/v1", {}),
        ):
            with openai.OpenAI(base_url=proxy.url + path, api_key=KEY, max_retries=0) as sdk:
                assert ask(sdk, f"{path} {headers}", headers=headers).choices[0].message.content == "answer 0"
                ask(sdk, f"{path} {headers}", "answer 0", "go on", headers=headers)
        report, said = proxy.stop()
    assert (report["requests"], report["calls"], report["runs"], report["failed"]) == (8, 8, 3, 0)
    assert said == ""
    assert detect(tape).name == "tape"
    traces = stored(tape, tmp_path)
    assert sorted(str(trace.metadata.get("run")) for trace in traces) == sorted(["order 17", "by header", trace_id, "None"])
    assert all(len(trace.trajectory) == 2 for trace in traces)
    named = next(trace for trace in traces if trace.metadata.get("run") == "order 17")
    assert (named.task, named.session, named.agent) == ("17", "s", "shop")
    for trace in traces:
        wires = ",".join(message.wire for message in trace.trajectory.messages[:-1])
        assert any(f"[{wires}]".encode() in body for body in server.bodies)
    assert not any("x-counterplay" in name.lower() for body in server.requests for name in body)


def test_what_passes_is_the_same_in_both_directions_and_keys_stay_out_of_the_tape(tape):
    packed = gzip.compress(json.dumps(completion("packed")).encode(), mtime=0)
    odd = b'{"choices" : [ {"message": {"role":"assistant","content":"\xc3\xbc"}} ]}'

    def answer(request):
        method, path, _, _ = request
        if path.startswith("/v1/models"):
            return 200, [("Content-Type", "application/json"), ("X-Two", "a"), ("X-Two", "b"), ("Set-Cookie", "s=1")], b'{"data": []}'
        if "packed" in path:
            return 200, [("Content-Type", "application/json"), ("Content-Encoding", "gzip")], packed
        return (200 if method == "POST" else 404), [("Content-Type", "application/json"), ("Date", "long ago")], odd

    body = b'{"model" : "m", "messages": [ {"role":"user","content":"\\u00fc"} ]}'
    key = {"authorization": f"Bearer {KEY}", "x-api-key": KEY}
    with Anything(answer) as server, passing(server.url + "/v1", tape) as proxy, httpx2.Client(base_url=proxy.url) as client:
        models = client.get("/run/r/v1/models?limit=2&x=%2F", headers=key)
        assert (models.json(), models.headers.get_list("x-two")) == ({"data": []}, ["a", "b"])
        assert server.seen[-1][:2] == ("GET", "/v1/models?limit=2&x=%2F")
        assert server.seen[-1][2]["authorization"] == f"Bearer {KEY}"
        post = client.post(f"/run/r/v1/chat/completions?key={KEY}", content=body, headers={**key, "x-other": "1"})
        assert (post.content, post.headers["date"]) == (odd, "long ago")
        assert server.seen[-1][3] == body
        assert server.seen[-1][2]["x-other"] == "1"
        assert server.seen[-1][2]["Host"] == server.url.removeprefix("http://")
        assert "Cookie" not in server.seen[-1][2], "a proxy has no cookies of its own"
        raw = client.post("/run/r/v1/packed/chat/completions", content=body, headers=key)
        assert raw.json() == completion("packed")
        assert int(raw.headers["content-length"]) == len(packed)
        assert client.delete("/v1/files/a%2Fb").status_code == 404
        assert server.seen[-1][:2] == ("DELETE", "/v1/files/a%2Fb")
        assert client.head("/v1/models").headers["content-length"] == "12"
        report, _ = proxy.stop()
    assert (report["requests"], report["calls"]) == (5, 2)
    data = tape.read_bytes()
    assert body in data
    assert odd in data
    assert KEY.encode() not in data
    assert b"authorization" not in data.lower()
    events = [event for event in read_tape(tape) if event["kind"] == "model"]
    assert [event["url"] for event in events] == ["/v1/chat/completions", "/v1/packed/chat/completions"]
    assert events[1]["response"] == completion("packed")


def test_errors_pass_and_what_refuses_a_key_is_not_kept(tape):
    script = [(401, {"error": {"message": f"bad key {KEY}"}}), (429, {"error": {"message": f"slow down, {KEY}"}}), (200, completion("ok"))]
    with Loopback(*script) as server, passing(server.base_url, tape) as proxy:
        with openai.OpenAI(base_url=f"{proxy.url}/run/r/v1", api_key=KEY, max_retries=1) as sdk:
            with pytest.raises(openai.AuthenticationError, match=KEY):
                ask(sdk, "x")
            assert ask(sdk, "x").choices[0].message.content == "ok"
        proxy.stop()
    assert KEY.encode() not in tape.read_bytes()
    events = [event for event in read_tape(tape) if event["kind"] == "model"]
    assert [(event["status"], event["attempt"]) for event in events] == [(401, 0), (429, 0), (200, 1)]
    assert events[1]["response"] == {"error": {"message": "slow down, [key:redacted]"}}


def test_streams_pass_chunk_by_chunk_as_they_come(tape, tmp_path):
    gate = threading.Event()
    last = delta(None) | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    pieces = sse(delta("Hel"), delta("lo ü"), last)
    with Streaming(pieces[0], gate, *pieces[1:]) as server, passing(server.base_url, tape) as proxy:
        with openai.OpenAI(base_url=f"{proxy.url}/run/r/v1", api_key=KEY, max_retries=0) as sdk:
            chunks = iter(ask(sdk, "x", stream=True))
            assert next(chunks).choices[0].delta.content == "Hel"  # the others are not sent yet
            gate.set()
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "lo ü"
        proxy.stop()
    (event,) = [event for event in read_tape(tape) if event["kind"] == "model"]
    assert event["events"].encode() == b"".join(pieces)
    assert 0 < event["first_token_s"] <= event["latency_s"]
    (trace,) = stored(tape, tmp_path)
    assert (trace.trajectory.steps[0].action.content, trace.calls[0].streamed) == ("Hello ü", True)


def test_a_client_that_goes_away_ends_the_upstream_s_work(tape):
    endless = [b"data: %s\n\n" % json.dumps(delta("x" * 10_000)).encode()] * 3000
    with Streaming(*endless) as server, passing(server.base_url, tape) as proxy:
        with openai.OpenAI(base_url=f"{proxy.url}/run/r/v1", api_key=KEY, max_retries=0) as sdk:
            stream = ask(sdk, "x", stream=True)
            next(iter(stream))
            stream.close()
        assert server.aborted.wait(10)
        proxy.stop()
    (event,) = [event for event in read_tape(tape) if event["kind"] == "model"]
    assert event["error"] == "closed early"
    assert event["events"].startswith("data: ")


def test_a_client_that_gives_up_before_the_answer(tape):
    with Loopback(1.5, completion("late")) as server, passing(server.base_url, tape) as proxy:
        sdk = openai.OpenAI(base_url=f"{proxy.url}/run/r/v1", api_key=KEY, max_retries=0, timeout=0.3)
        with sdk, pytest.raises(openai.APITimeoutError):
            ask(sdk, "x")
        deadline = time.monotonic() + 5
        while not tape.read_bytes().count(b"closed early"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        proxy.stop()


def test_an_upstream_that_is_down_or_breaks_off(tape):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with passing(nowhere, tape) as proxy, httpx2.Client() as client:
        answer = client.post(f"{proxy.url}/run/r/v1/chat/completions", json={"model": "m", "messages": []})
        assert answer.status_code == 502
        assert nowhere in answer.json()["error"]["message"]
        assert "ConnectError" in answer.json()["error"]["message"]
        assert client.get(f"{proxy.url}/v1/models").status_code == 502
        report, _ = proxy.stop()
    assert report["failed"] == 2
    (event,) = [event for event in read_tape(tape) if event["kind"] == "model"]
    assert (event["status"], event["error"].partition(":")[0]) == (0, "ConnectError")
    broken = tape.with_name("broken.jsonl")
    with Streaming(b"data: {}\n\n", None) as server, passing(server.base_url, broken) as proxy, httpx2.Client() as client:
        with pytest.raises(httpx2.TransportError):
            client.post(f"{proxy.url}/run/r/v1/chat/completions", json={"model": "m", "messages": [], "stream": True})
        proxy.stop()
    (event,) = [event for event in read_tape(broken) if event["kind"] == "model"]
    assert (event["events"], event["error"].partition(":")[0]) == ("data: {}\n\n", "RemoteProtocolError")


def test_what_came_of_a_run_is_told_at_its_end_and_it_may_go_on(tape, tmp_path):
    with Loopback() as server, passing(server.base_url, tape) as proxy, httpx2.Client(base_url=proxy.url) as client:
        with openai.OpenAI(base_url=f"{proxy.url}/run/r/v1", api_key=KEY, max_retries=0) as sdk:
            ask(sdk, "x")
            told = {
                "outcome": {"reward": 0.5, "source": "harness"},
                "scores": [{"name": "tone", "value": 3, "low": 1, "high": 5}],
                "tags": ["t"],
            }
            assert client.post("/run/r/end", json=told).json() == {"run": "r"}
            ask(sdk, "x", "answer 0", "more")
        assert client.post("/run/r/end", json={"outcome": {"success": True}}).status_code == 200
        for wrong in (b"{", b"[]", b'{"outcome": {"reward": "high"}}', b'{"scores": 3}'):
            refused = client.post("/run/r/end", content=wrong)
            assert refused.status_code == 400
            assert "wanted" in refused.json()["error"]["message"]
        proxy.stop()
    assert len(server.requests) == 2, "an end is not passed on"
    (trace,) = stored(tape, tmp_path)
    assert (len(trace.trajectory), trace.outcome, trace.tags) == (2, Outcome(None, True), ("t",))
    assert [score.scaled for score in trace.scores] == [0.5]
    assert trace.completeness.open_spans == 0


def test_with_a_store_the_tape_is_taken_in_at_the_end(tmp_path):
    store = tmp_path / "s.duckdb"
    with Loopback() as server:
        for number in range(2):
            proxy = Passing(server.base_url, store=store)
            with openai.OpenAI(base_url=f"{proxy.url}/run/{number}/v1", api_key=KEY, max_retries=0) as sdk:
                ask(sdk, f"run {number}")
            report, _ = proxy.stop()
            assert (report["traces_added"], report["tape"]) == (1, f"{store}.tape.jsonl")
    with Store.open(store) as opened:
        assert sorted(trace.metadata["run"] for trace in opened.load()) == ["0", "1"]


def test_redaction(tape):
    with Loopback() as server, passing(server.base_url, tape, redact=["email"]) as proxy:
        with openai.OpenAI(base_url=f"{proxy.url}/run/r/v1", api_key=KEY, max_retries=0) as sdk:
            ask(sdk, "I am joe@example.com")
        proxy.stop()
    assert b"joe@" not in tape.read_bytes()
    assert b"joe@" in server.bodies[0]


def test_an_address_that_is_taken_and_an_upstream_that_is_none(tape):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=r"nothing can listen.*--port"):
        serve("http://127.0.0.1:1", to=tape, port=taken.getsockname()[1])
    for upstream in ("api.openai.com", "ftp://x", "http://", ""):
        with pytest.raises(UserError, match="wanted a URL"):
            create_app(upstream, None)


@pytest.mark.parametrize(
    ("upstream", "path", "url"),
    [
        ("http://a/v1", "/v1/chat/completions", "http://a/v1/chat/completions"),
        ("http://a/v1/", "/v1/models", "http://a/v1/models"),
        ("http://a", "/v1/models", "http://a/v1/models"),
        ("http://a/openai/v1", "/v1/models", "http://a/openai/v1/models"),
        ("http://a/openai/v1", "/openai/v1/models", "http://a/openai/v1/models"),
        ("http://a/v1", "/models", "http://a/v1/models"),
        ("http://a/v1", "/v1beta/models", "http://a/v1/v1beta/models"),
        ("http://a/v1", "/v10", "http://a/v1/v10"),
    ],
)
def test_where_a_request_goes(upstream, path, url):
    app = create_app(upstream, None)
    assert app.url(path, b"") == url
    assert app.url(path, b"a=%2F") == f"{url}?a=%2F"
