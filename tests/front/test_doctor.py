"""What the doctor finds: real stores and servers, whole and damaged, and never the value of a variable."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint

import duckdb
import pytest
from typer.testing import CliRunner

from counterplay import Store, doctor
from counterplay.cli import app
from counterplay.doctor_servers import server
from counterplay.doctor_store import store_findings
from tests.front.moves import logged


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def path(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([logged(f"t{number}", "abab") for number in range(3)])
    return tmp_path / "s.duckdb"


@pytest.fixture
def serving():
    """Start a model server: what it is asked goes to `asked`, the rest is as told."""
    started = []

    def start(*, seed=True, logprobs=True, usage=True, status=200, date=None):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def _say(self, body, code=200):
                data = json.dumps(body).encode()
                self.send_response_only(code)
                if date:
                    self.send_header("Date", date)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self._say({"data": [{"id": "tiny"}, {"id": "other"}]}, status)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked.append(body)
                if "seed" in body and not seed:
                    return self._say({"error": "no seed"}, 400)
                choice = {"message": {"role": "assistant", "content": "x"}, "logprobs": {"content": []} if logprobs else None}
                told = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
                return self._say({"choices": [choice], **({"usage": told} if usage else {})})

            def log_message(self, *_):
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        started.append(made)
        return f"http://127.0.0.1:{made.server_port}/v1", asked

    yield start
    for made in started:
        made.shutdown()
        made.server_close()


def test_a_store_that_is_well_and_one_that_is_not_there(path, tmp_path):
    found = by_name(store_findings(path, full=False))
    assert {finding.state for finding in found.values()} == {"well"}
    assert "3 traces" in found["file"].said
    assert by_name(store_findings(path, full=True))["content"].state == "well"
    (nothing,) = store_findings(tmp_path / "none.duckdb", full=False)
    assert (nothing.state, "counterplay ingest" in nothing.do) == ("absent", True)


@pytest.mark.parametrize("full", [False, True])
def test_a_damaged_store(path, full):
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE node SET wire = replace(wire, 'assistant', 'user') WHERE role = 'assistant'")
    found = by_name(store_findings(path, full=full))["content"]
    assert (found.state, "problems, the first" in found.said) == ("broken", True)


def test_a_file_that_is_no_store_and_leftovers(path, tmp_path):
    (tmp_path / "x.duckdb").write_text("something else")
    (found,) = store_findings(tmp_path / "x.duckdb", full=False)
    assert (found.state, "not a DuckDB file" in found.said) == ("broken", True)
    path.with_name("s.duckdb.journal.w1").touch()
    path.with_name("s.duckdb.999999.new").touch()
    left = by_name(store_findings(path, full=False))
    assert (left["journal files"].state, left["leftovers"].state, left["content"].state) == ("odd", "odd", "well")


def test_who_has_the_store_is_named(path):
    code = "import sys; from counterplay import Store; store = Store.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as holder:
        assert holder.stdout.readline() == "open\n"
        found = by_name(store_findings(path, full=False))["file"]
        holder.communicate("")
    assert (found.state, f"process {holder.pid}" in found.said) == ("odd", True)


def test_a_server_and_what_it_supports(serving):
    url, asked = serving()
    found = by_name(server(url))
    assert {name: finding.state for name, finding in found.items()} == {
        "clock": "absent",
        "models": "well",
        "answer": "well",
        "usage": "well",
        "cached tokens": "well",
        "seed": "well",
        "logprobs": "well",
    }
    assert {body["model"] for body in asked} == {"tiny"}
    assert {body["max_tokens"] for body in asked} == {1}


def test_a_server_that_lacks_much(serving):
    url, _ = serving(seed=False, logprobs=False, usage=False, date="Mon, 01 Jan 2024 00:00:00 GMT")
    found = by_name(server(url, model="unknown"))
    states = {name: finding.state for name, finding in found.items()}
    assert states == {
        "clock": "odd",
        "models": "well",
        "model": "odd",
        "answer": "well",
        "usage": "odd",
        "cached tokens": "absent",
        "seed": "odd",
        "logprobs": "absent",
    }
    assert "behind" in found["clock"].said


def test_a_server_that_refuses_or_is_not_there(serving):
    url, asked = serving(status=401)
    assert by_name(server(url))["models"].state == "broken"
    assert asked == []
    (gone,) = server("http://127.0.0.1:9/v1", timeout_s=2)
    assert (gone.name, gone.state) == ("reachable", "broken")


def test_versions_against_what_is_needed():
    needed = ["duckdb<3,>=2.0", "numpy>=999", "no-such-thing>=1; extra == 'x'", "rich>=13 ; extra == 'y'", "rich<13; extra == 'z'"]
    found = by_name(doctor.versions(needed))
    assert [found[name].state for name in ("version", "needed", "x", "y", "z")] == ["well", "odd", "absent", "well", "odd"]
    assert "numpy" in found["needed"].said
    assert found["x"].do == "pip install 'counterplay[x]'"
    assert by_name(doctor.versions(["no-such-thing"]))["needed"].state == "broken"
    assert [doctor._fits("2.13.0+cpu", bounds) for bounds in (">=2.13", ">=2.2,<3", "<2.13", "~=2.10", "~=2.10.1", "==2.13.0", "")] == [
        True,
        True,
        False,
        True,
        False,
        True,
        True,
    ]


def test_a_plugin_that_can_t_be_imported_is_named(monkeypatch):
    points = [EntryPoint("good", "json:loads", "counterplay.verifiers"), EntryPoint("bad", "no_such_module:x", "counterplay.connectors")]
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda group: [point for point in points if point.group == group])
    found = by_name(doctor.plugins())
    assert (found["verifiers: good"].state, found["connectors: bad"].state) == ("well", "broken")
    assert "no_such_module" in found["connectors: bad"].said


def test_the_command_s_exit_code_and_no_value_of_a_variable(path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    well = CliRunner().invoke(app, ["doctor", "--store", str(path), "--json"])
    assert well.exit_code == 0
    found = {finding["name"]: finding for finding in json.loads(well.stdout)["findings"]}
    assert found["OPENAI_API_KEY"]["state"] == "well"
    assert "very-secret" not in well.stdout
    broken = CliRunner().invoke(app, ["doctor", "--store", str(path), "--base-url", "http://127.0.0.1:9/v1"])
    assert (broken.exit_code, "BROKEN" in broken.stdout) == (1, True)


def test_nothing_heavy_is_imported(path):
    code = f"""import sys
from counterplay import doctor
from pathlib import Path
list(doctor.examined(Path({str(path)!r})))
print([name for name in ("torch", "transformers", "openai", "ray", "opentelemetry.sdk") if name in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
