"""The examples are short, and each does what it says when it is run as a user runs it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("quickstart", "my_verifier", "my_environment", "openai_agent", "langgraph_agent", "log_only", "fine_tune")
REAL_LOGS = Path(__file__).parents[3] / "shared" / "data"


def run(name, *arguments, cwd, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments], capture_output=True, text=True, cwd=cwd, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_a_page(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 66


def test_quickstart(tmp_path):
    assert "rows to train on" in run("quickstart", tmp_path, cwd=tmp_path)


def test_my_verifier(tmp_path):
    said = run("my_verifier", cwd=tmp_path)
    assert "it is content with" in said
    assert "have a better branch" in said


def test_my_environment(tmp_path):
    assert "which scores 1" in run("my_environment", cwd=tmp_path)


def test_langgraph_agent(tmp_path):
    pytest.importorskip("langgraph", reason="needs the extra counterplay[langgraph]")
    assert "(reused)" in run("langgraph_agent", cwd=tmp_path)


def test_log_only(tmp_path):
    said = run("log_only", cwd=tmp_path)
    assert said.startswith("400 traces; 0 pieces")
    assert "SFT rows in" in said


def test_log_only_on_real_logs(tmp_path):
    if not REAL_LOGS.is_dir():
        pytest.skip("the real logs are not beside this checkout")
    folder = next(path for path in sorted(REAL_LOGS.iterdir()) if path.is_dir() and "tau" in path.name)
    assert "traces;" in run("log_only", folder, cwd=tmp_path)


def test_fine_tune(tmp_path):
    pytest.importorskip("trl", reason="needs the extra counterplay[train]")
    assert "before" in run("fine_tune", tmp_path, "4", "6", cwd=tmp_path)


class Model(BaseHTTPRequestHandler):
    """Looks the order up, then says what it was told."""

    def do_POST(self):
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"order_id": "17"}'}}
        told = messages[-1].get("content") if messages[-1]["role"] == "tool" else None
        said = {"role": "assistant", "content": f"It is {told}."} if told else {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": said, "finish_reason": "stop" if told else "tool_calls"}
        body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_openai_agent(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            said = run("openai_agent", cwd=tmp_path, OPENAI_BASE_URL=url, OPENAI_API_KEY="none", MODEL="m")
        finally:
            server.shutdown()
    assert "faithful True, 0 model calls" in said
    assert "it says: It is refunded." in said
