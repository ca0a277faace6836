"""A job that is killed at any moment and run again makes the same bytes, and asks nothing twice that was answered and kept."""

import json
import os
import random
import signal
import time

import pytest

from counterplay import Store
from tests.jobs import killing
from tests.jobs.batch import digests
from tests.jobs.killing import Server, finish, kill_after, make, used


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
