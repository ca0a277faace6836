"""What a job says while its model's server is down: soon, which and why, once, and when it is back."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from counterplay import Store
from counterplay.jobs import running, waiting
from counterplay.jobs.progress import Progress
from counterplay.jobs.waiting import Waiting, problem_with, servers_of
from tests.jobs.batch import loaded, make


class Handler(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Mine", (Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        handler.url = f"http://127.0.0.1:{served.server_port}/v1"
        yield handler
        served.shutdown()
        thread.join()


DOWN = "http://127.0.0.1:9/v1"


def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def quick(monkeypatch):
    for name in ("_FIRST_S", "_LOOK_S", "_SELDOM_S"):
        monkeypatch.setattr(waiting, name, 0.02)


def test_what_is_wrong_with_a_server(server):
    assert problem_with(server.url) == ""
    for server.status in (404, 501):
        assert problem_with(server.url) == "", "it answers, though it lists no models"
    server.status = 503
    assert problem_with(server.url) == f"{server.url} answers 503"
    assert DOWN in problem_with(DOWN)
    assert "can't be reached" in problem_with(DOWN)


def test_it_is_said_once_and_that_it_is_over(server, quick, tmp_path):
    server.status = 502
    progress, said = Progress(tmp_path / "s", "j", {"pending": 1}), []
    with Waiting([server.url], progress, said.append).meanwhile():
        until(lambda: said)
        time.sleep(0.2)
        assert said == [f"waiting: {server.url} answers 502; it is asked again and again"]
        assert progress.now().doing == f"waiting: {server.url} answers 502"
        assert list(progress.errors) == [f"{server.url} answers 502"]
        server.status = 200
        until(lambda: len(said) > 1)
    assert said[1] == "the server answers again"
    assert progress.waiting == ""


def test_after_a_while_it_is_said_again(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(waiting, "_AGAIN_S", 0.05)
    said = []
    with Waiting([DOWN], Progress(tmp_path / "s", "j", {}), said.append).meanwhile():
        until(lambda: len(said) == 2)


def test_nothing_is_asked_while_something_moves_or_where_one_server_is_well(server, quick, tmp_path):
    progress, said = Progress(tmp_path / "s", "j", {"pending": 9}), []
    with Waiting([DOWN, server.url], progress, said.append).meanwhile():
        time.sleep(0.3)
    assert said == []
    with Waiting([DOWN], progress, said.append).meanwhile():
        for _ in range(40):
            progress.charged({}, 1)
            time.sleep(0.005)
    assert said == []


def test_which_servers_a_job_waits_for(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    servers = 'base_urls = ["http://a/v1", "http://b/v1"]'
    assert servers_of(loaded(make(tmp_path, policy="openai:m", servers=servers))) == ("http://a/v1", "http://b/v1")
    assert servers_of(loaded(make(tmp_path, policy="openai:m"))) == ("https://api.openai.com/v1",)
    monkeypatch.setenv("OPENAI_BASE_URL", DOWN)
    assert servers_of(loaded(make(tmp_path, policy="openai:m"))) == (DOWN,)
    assert servers_of(loaded(make(tmp_path))) == ()


def test_a_job_that_is_stopped_while_it_waits_says_why_its_units_are_not_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    job = loaded(
        make(tmp_path, policy="openai:m", servers=f'base_urls = ["{DOWN}"]', tasks=1), budget={"total": "model_calls=100,seconds=2"}
    )
    said = []
    report = running.run(job, say=said.append)
    sys.modules.pop("moves", None)
    assert report.ended == "its time is over"
    assert "can't be reached" in said[0]
    with Store.open(job.job.store, read_only=True) as store:
        assert {(unit.state, unit.error_class, DOWN in unit.reason) for unit in store.units(report.job)} == {("pending", "server", True)}
