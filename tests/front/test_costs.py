"""The ledger: what was paid is what servers answered, what was charged is what trees say, and the two add up."""

import json
import sys

import pytest
from typer.testing import CliRunner

from counterplay import Store
from counterplay.cli import app
from counterplay.core.journal import JournaledPolicy
from counterplay.core.nouns import Call, Message, Proposal, State, Usage
from counterplay.jobs import running
from tests.front.moves import logged
from tests.jobs.batch import answer, loaded, make
from tests.replay.loopback import Loopback


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    yield tmp_path
    sys.modules.pop("moves", None)


def lines(store, by):
    return {line.key: line for line in store.costs(by)}


def test_two_jobs_over_the_same_logs_pay_once_for_the_same_question(folder):
    with Loopback(default=answer) as server:
        file = make(folder, policy="openai:m", servers=f'base_urls = ["{server.base_url}"]', tasks=1)
        job = loaded(file)
        first = running.run(job)
        between = len(server.requests)
        second = running.run(loaded(file, search={"options": {"n": 4}}))
        served = len(server.requests)
    with Store.open(job.job.store, read_only=True) as store:
        (whole,), models, traces, jobs = store.costs(""), lines(store, "model"), lines(store, "trace"), lines(store, "job")
        agents, days = lines(store, "agent"), lines(store, "day")
    charged = first.used["model_calls"] + second.used["model_calls"]
    assert first.live_calls == between
    assert whole.paid.calls == served == first.live_calls + second.live_calls
    assert whole.charged.calls == charged
    assert whole.reused_calls == charged - served > 0
    assert whole.paid.input_tokens == 10 * served
    assert whole.paid.output_tokens == 5 * served
    assert whole.paid.cached_tokens == 3 * served
    assert whole.paid.usd == pytest.approx(served * (10 * 1 + 5 * 2) / 1e6)
    assert whole.charged.usd == pytest.approx(charged * (10 * 1 + 5 * 2) / 1e6)
    assert whole.reused_usd == pytest.approx(whole.charged.usd - whole.paid.usd)
    model = models["scripted-1"]
    assert (model.paid, model.charged.calls) == (whole.paid, charged)
    for found in (models, traces, agents, days):
        assert sum(line.paid.calls for line in found.values()) == served
        assert sum(line.logged.calls for line in found.values()) == whole.logged.calls == 36
    for found in (models, traces, agents):
        assert sum(line.charged.calls for line in found.values()) == charged
        assert sum(line.charged.input_tokens for line in found.values()) == 10 * charged
    assert set(agents) == {"mover"}
    assert all(line.charged is None for line in days.values())
    assert [jobs[one.job].paid.calls for one in (first, second)] == [first.live_calls, second.live_calls]
    assert [jobs[one.job].charged.calls for one in (first, second)] == [one.used["model_calls"] for one in (first, second)]
    assert [jobs[one.job].charged.input_tokens for one in (first, second)] == [10 * one.used["model_calls"] for one in (first, second)]
    assert [jobs[one.job].charged.output_tokens for one in (first, second)] == [5 * one.used["model_calls"] for one in (first, second)]
    assert jobs[second.job].reused_calls == whole.reused_calls
    assert sum(jobs[one.job].paid.input_tokens for one in (first, second)) == 10 * served
    assert jobs[first.job].budget == "model_calls=400"


def test_what_was_paid_for_nothing_is_told_of_every_try(folder):
    broken = {"id": "x", "choices": []}

    def flaky(request, counts={"left": 4}):  # noqa: B006  the same for all requests
        counts["left"] -= 1
        return (500, {"error": "no"}) if counts["left"] >= 0 and counts["left"] % 2 else broken if counts["left"] >= 0 else answer(request)

    with Loopback(default=flaky) as server:
        job = loaded(make(folder, policy="openai:m", servers=f'base_urls = ["{server.base_url}"]', tasks=1), engine={"at_once": 1})
        report = running.run(job)
        served = len(server.requests)
    assert report.exit_code == 0
    with Store.open(job.job.store, read_only=True) as store:
        (line,) = store.costs("job")
        (whole,) = store.costs("")
    assert line.wasted["unusable"] == 2
    assert line.paid.calls == whole.paid.calls == served - 4


class Says:
    fingerprint = "says:1"

    def propose(self, state, n):
        message = Message.assistant("\ud800 lone", [])
        return [Proposal(message, usage=Usage(100, 10, 40, 0, 0.5), model="m-1") for _ in range(n)]


async def test_answers_that_wait_in_the_side_file_count_once_and_relative_to_the_log(tmp_path):
    trace = logged("t0", "ab")
    calls = tuple(Call(step, model="m-0", usage=Usage(50, 5, 0, 0, 0.1)) for step in range(len(trace.trajectory)))
    from dataclasses import replace

    trace = replace(trace, calls=calls)
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([trace])
        policy = JournaledPolicy(Says(), store.journal(f"search/{trace.id}"))
        state = State(trace.trajectory.prompt, ())
        await policy.propose(state, 2)
        (line,) = store.costs("trace")
        assert (line.key, line.paid.calls, line.paid.cached_tokens, line.paid.usd) == (trace.id, 2, 80, 1.0)
        assert line.logged.usd == pytest.approx(0.1 * len(calls))
        assert line.relative == pytest.approx(1.0 / (0.1 * len(calls)))
    with Store.open(tmp_path / "s.duckdb") as store:
        await JournaledPolicy(Says(), store.journal("evaluate/x")).propose(state, 1)
        for _, key, kind, told in list(store.journal_entries([f"search/{trace.id}"])):
            store.journal(f"search/{trace.id}").put(key, kind, told.replace("0.5", "0.25"))  # told again, it waits beside what is held
        found = lines(store, "trace")
        assert found[trace.id].paid.usd == 0.5
        assert (found[trace.id].paid.calls, found[None].paid.calls) == (2, 1)
        assert {key: line.paid.calls for key, line in lines(store, "model").items()} == {"m-0": 0, "m-1": 3}
        assert [line.key for line in store.costs("model", limit=1)] == ["m-1"]


def test_the_command(folder):
    job = loaded(make(folder, tasks=1))
    running.run(job)
    told = CliRunner().invoke(app, ["costs", "--store", "s.duckdb", "--by", "job", "--json"])
    result = json.loads(told.stdout)
    assert result["all"]["paid"]["calls"] == result["lines"][0]["paid"]["calls"] > 0
    assert "against budgets" in CliRunner().invoke(app, ["costs", "--store", "s.duckdb", "--by", "job"]).stdout
    wrong = CliRunner().invoke(app, ["costs", "--store", "s.duckdb", "--by", "modle"])
    assert (wrong.exit_code, "Did you mean model?" in wrong.stderr.replace("\n", " ")) == (2, True)
