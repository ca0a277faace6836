"""A real OpenAI-compatible server as the policy: `transformers serve` on the example model, through a relay that counts."""

import http.server
import json
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.serving import serving

MODEL = Path(__file__).parents[2] / "examples" / "ledger" / "model"


class Relay(http.server.BaseHTTPRequestHandler):
    """Passes requests on and adds up the usage in the answers."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        request = urllib.request.Request(self.upstream + self.path, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            data = answer.read()
        usage = json.loads(data)["usage"]
        for kind in ("prompt_tokens", "completion_tokens"):
            self.seen[kind] = self.seen.get(kind, 0) + usage[kind]
        self.seen["calls"] = self.seen.get("calls", 0) + 1
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def relay(tmp_path):
    with serving(tmp_path / "serve.log") as url:
        handler = type("Counting", (Relay,), {"upstream": url.removesuffix("/v1"), "seen": {}})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", handler.seen
        finally:
            server.shutdown()
            server.server_close()


def test_a_search_with_a_served_model_counts_what_the_server_counts(cli, store, relay):
    url, seen = relay
    ran = cli(
        *("search", "--policy", f"openai:{MODEL}", "--base-url", url, "--environment", "parts:world", "--store", store),
        *("--verifier", "outcome", "--verifier", "ledger", "--search", "repair", "--option", "n=3", "--option", "rounds=1"),
        *("--limit", 2, "--max-tokens", 64, "--max-steps", 40, "--trace-budget", "model_calls=40", "--price", "2,10", "--json"),
        env={"OPENAI_API_KEY": "none"},
        timeout=300,
    )
    assert ran.code == 0, ran.err
    report, tally = ran.json, ran.json["tally"]
    assert len(report["searches"]) == 2
    assert tally["calls"] == seen["calls"] > 10
    assert tally["input_tokens"] == seen["prompt_tokens"]
    assert tally["output_tokens"] == seen["completion_tokens"]
    assert tally["cost_usd"] == pytest.approx((2 * seen["prompt_tokens"] + 10 * seen["completion_tokens"]) / 1e6)
    assert report["used"]["tokens"] == seen["prompt_tokens"] + seen["completion_tokens"]
    assert report["used"]["usd"] == pytest.approx(tally["cost_usd"])
    calls = seen["calls"]
    again = cli(
        *("search", "--policy", f"openai:{MODEL}", "--base-url", url, "--environment", "parts:world", "--store", store),
        *("--verifier", "outcome", "--verifier", "ledger", "--search", "repair", "--option", "n=3", "--option", "rounds=1"),
        *("--limit", 2, "--max-tokens", 64, "--max-steps", 40, "--trace-budget", "model_calls=40", "--price", "2,10", "--json"),
        env={"OPENAI_API_KEY": "none"},
    ).json
    assert (again["digest"], seen["calls"]) == (report["digest"], calls)


def test_a_limit_in_dollars_needs_a_price(cli, store):
    ran = cli("search", "--policy", "openai:any", "--store", store, "--budget", "usd=5", env={"OPENAI_API_KEY": "none"})
    assert ran.code == 2
    assert "--price" in ran.err
