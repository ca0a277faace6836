"""A job that is killed at any moment and run again makes the same bytes, and asks nothing twice that was answered and kept."""

import json
import os
import random
import signal
import time

import pytest

from counterplay import Store
from tests.jobs import batch, killing
from tests.jobs.batch import digests
from tests.jobs.killing import Server, finish, kill_after, make, used
from tests.replay.loopback import Loopback, completion


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The datasets and the requests of a job that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Server() as server:
        make(folder, server, tasks=2)
        code, _, err = finish(folder)
        assert code == 0, err
    return digests(folder / "out"), server.asked


def test_killed_at_random_moments_the_datasets_are_the_same_bytes(undisturbed, tmp_path):
    datasets, whole = undisturbed
    rng = random.Random(7)
    with Server(0.02, whole) as server:
        make(tmp_path, server, tasks=2)
        kills = 0
        while kills < 3 and kill_after(tmp_path, 20, server, requests=rng.randrange(1, 25)):
            server.begins(tmp_path / "s.duckdb")
            kills += 1
        code, _, err = finish(tmp_path, "--json")
        assert code == 0, err
    assert digests(tmp_path / "out") == datasets
    assert kills == 3
    assert not server.again
    assert set(server.asked) == set(whole)
    charged, shares, states = used(tmp_path / "s.duckdb")
    assert charged["model_calls"] <= shares["model_calls"] <= killing.total(tmp_path)["model_calls"]
    assert set(states) == {"done"}
    paid, costs, models = accounts(tmp_path)
    assert paid == costs.paid.calls == models["calls"]
    assert models["input_tokens"] == costs.paid.input_tokens == 10 * paid
    assert paid <= sum(server.asked.values()), "what had no answer when its process was killed is nobody's"


def accounts(folder):
    """What the journal knows to be paid for; what the ledger and the report say of it."""
    with Store.open(folder / "s.duckdb", read_only=True) as store:
        (whole,), (costs,) = store.costs(""), store.costs("job")
    return whole.paid.calls, costs, json.loads((folder / "out" / "report.json").read_text())["models"]["openai:scripted"]


def test_interrupted_it_says_how_to_go_on(undisturbed, tmp_path):
    """It is started as a shell starts what is to go on in the background: Ctrl-C is ignored by inheritance, and heeded all the same."""
    with Server(0.05) as server:
        make(tmp_path, server, tasks=2)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = killing.command(tmp_path)
        finally:
            signal.signal(signal.SIGINT, before)
        while sum(server.asked.values()) < 15 and process.poll() is None:
            time.sleep(0.01)
        status = json.loads((tmp_path / "s.duckdb.status.json").read_text())
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "run the same command to go on" in err
        told = json.loads((tmp_path / "out" / "report.json").read_text())["live_calls"]
        assert "Traceback" not in err
        assert (status["pid"], status["doing"]) == (process.pid, "working")
        server.delay_s = 0.0
        code, out, err = finish(tmp_path, "--json")
        told += json.loads(out)["live_calls"]
    assert code == 0, err
    paid, costs, models = accounts(tmp_path)
    assert told == paid == costs.paid.calls == models["calls"], "by both commands together"
    assert not (tmp_path / "s.duckdb.status.json").exists()
    assert json.loads(out)["states"] == {"done": 10}
    assert digests(tmp_path / "out") == undisturbed[0]


def together(request):
    """A server that honours `n`: as many moves as are asked for."""
    said = [batch.answer({**request, "seed": request["seed"] + at})["choices"][0]["message"] for at in range(request.get("n", 1))]
    body = completion(*(message["content"] for message in said))
    for choice, message in zip(body["choices"], said, strict=True):
        choice["message"]["tool_calls"] = message["tool_calls"]
    return body


def test_where_tokens_bind_the_pace_changes_nothing(tmp_path):
    """A search ends where the next proposal does not fit into its share, whatever this process has been answered before."""
    found = []
    with Loopback(default=together) as server:
        for at_once in (1, 16):
            servers = f'base_urls = ["{server.base_url}"]'
            file = batch.make(tmp_path / str(at_once), policy="openai:scripted", servers=servers, calls="4000, tokens = 90000", tasks=2)
            file.write_text(file.read_text().replace("at_once = 4", f"at_once = {at_once}"))
            code, _, err = finish(file.parent)
            assert code == 0, err
            found.append((digests(file.parent / "out"), used(file.parent / "s.duckdb")))
    assert found[0] == found[1]
    assert any(request.get("n", 1) > 1 for request in server.requests)
    report = json.loads((tmp_path / "1" / "out" / "report.json").read_text())
    assert [stop["kind"] for stop in report["stopped"]] == ["tokens"], "or the budget binds nothing"
