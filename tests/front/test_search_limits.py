"""One pace for all traces of a job, and conditions that end a search, on the command line against a loopback server."""

import asyncio
import json
import shutil
import subprocess
import sys
import time

import pytest

from counterplay import Store
from counterplay.core.errors import UserError
from counterplay.evaluation import evaluate
from counterplay.loop import localise
from counterplay.parts import Asked
from counterplay.plan import Pace, Plan
from counterplay.search.fairness import Limiter, limiting
from counterplay.search.registry import UNSTOPPABLE
from counterplay.search.stopping import StopWhen
from counterplay.searching import Searching, search
from tests.front import moves
from tests.front.moves import Mover, answer, logged
from tests.replay.loopback import Loopback


class Crowd(Loopback):
    """Every answer takes so long that others are asked for meanwhile; `most` were, at once."""

    together = most = 0

    def __init__(self):
        super().__init__(default=answer)

    def _handler(self):
        crowd = self

        class Slow(super()._handler()):
            def _answer(self, given):
                with crowd._lock:
                    crowd.together += 1
                    crowd.most = max(crowd.most, crowd.together)
                time.sleep(0.02)
                with crowd._lock:
                    crowd.together -= 1
                super()._answer(given)

        return Slow


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(moves.__file__, tmp_path / "moves.py")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        opened.ingest([logged(f"t{i}") for i in range(6)])
        yield opened


def asked_of(server):
    return Asked("openai:m", "moves:World", ("outcome",), base_url=server.base_url)


def test_the_command_line_keeps_to_one_pace_over_all_traces(folder):
    logs = [logged(f"t{i}") for i in range(4)]
    with Store.open(folder / "s.duckdb") as store:
        store.ingest(logs)
    with Crowd() as server:
        parts = ["--policy", "openai:m", "--base-url", server.base_url, "--environment", "moves:World"]
        limits = ["--in-flight", "3", "--requests-per-minute", "100000", "--tokens-per-minute", "1e9"]
        plan = ["search", "--search", "best_of_n", "--option", "n=4", "--fork", "start", *limits, *parts, "--store", "s.duckdb", "--json"]
        command = [sys.executable, "-m", "counterplay.cli", *plan]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        few = json.loads(done.stdout)
        assert few["tally"]["calls"] == len(server.bodies)
        assert server.most == 3
    with Crowd() as server, Store.open(":memory:") as store:
        store.ingest(logs)
        many = asyncio.run(search(store, logs, asked_of(server), Plan("best_of_n", {"n": 4}, fork="start")))
        assert 3 < server.most <= 64
    assert few["digest"] == many.digest


async def test_a_server_s_retry_after_holds_for_all_traces(folder, store, monkeypatch):
    paused, pause = [], Limiter.pause
    monkeypatch.setattr(Limiter, "pause", lambda limiter, seconds: paused.append(seconds) or pause(limiter, seconds))
    busy = (429, {"error": "slow down"}, {"Retry-After": "0.2"})
    with Loopback(busy, default=answer) as server:
        traces = list(store.load())
        report = await search(store, traces, asked_of(server), Plan("best_of_n", {"n": 2}, fork="start", pace=Pace(4)))
    assert paused == [0.2]
    assert len(report.searches) == 6
    assert len(server.bodies) == report.tally["calls"] + 1


async def test_localising_and_evaluating_keep_to_it_too(folder, store):
    with Crowd() as server:
        found = await localise(store, list(store.load())[:3], asked_of(server), method="bisect", budget="model_calls=60", pace=Pace(2))
        assert server.bodies
        assert server.most <= 2
        assert found.traces == 3
    with Crowd() as server:
        tasks = [f"t{i}" for i in range(4)]
        both = {"a": "openai:m"}
        await evaluate(both, "moves:World", tasks, base_url=server.base_url, temperature=1.0, max_steps=3, pace=Pace(2))
        assert len(server.bodies) == 12
        assert server.most <= 2


class Together(Mover):
    """Notes how many of its answers are awaited at once."""

    now = most = 0

    async def propose(self, state, n):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return await super().propose(state, n)


async def test_a_policy_of_one_s_own_is_asked_at_that_pace(folder, store):
    import moves as parts

    traces, tasks = list(store.load()), [f"t{i}" for i in range(8)]
    for pace, bound in ((Pace(2), 2), (Pace(), 8)):
        parts.policy = played = Together()
        await evaluate({"a": "moves:policy"}, "moves:World", tasks, max_steps=3, pace=pace)
        assert played.most == bound
        parts.policy = searched = Together()
        searched.fingerprint = f"together-{bound}"  # so that no journal answers
        await search(store, traces, Asked("moves:policy", "moves:World"), Plan("best_of_n", {"n": 2}, fork="start", pace=pace))
        assert searched.most == min(bound, 6)


def test_a_server_s_own_slots_are_as_many(store):
    asked = Asked("openai:m", "moves:World", base_url="http://127.0.0.1:1/v1")
    for pace in (Pace(40), Pace()):
        searching = Searching(store, [], asked, Plan(pace=pace), lambda: None)
        assert searching.policy.concurrency == pace.requests in (40, 64)


def test_a_model_in_this_process_is_not_limited_unless_asked():
    with Pace().kept(local=True) as limiter:
        assert limiter is limiting.get() is None
    with Pace(8).kept(local=True) as limiter:
        assert limiter.concurrency == 8
    with Pace(tokens_per_minute=100).kept(local=True) as limiter:
        assert limiter.concurrency == sys.maxsize
    with Pace().kept(local=False) as limiter:
        assert limiter is limiting.get()
        assert limiter.concurrency == 64
    for wrong in ({"in_flight": 0}, {"requests_per_minute": 0.5}, {"tokens_per_minute": 0}):
        with pytest.raises(UserError, match="at least 1"):
            Pace(**wrong)


# --- when to stop ----------------------------------------------------------------------------------------------------------------------


def test_conditions_are_read_from_text():
    assert StopWhen.parse("value=1, finished=8,decided=0.95") == StopWhen(1.0, 8, 0.95)
    assert StopWhen.parse("") == StopWhen()
    wrong = {"values=1": "value=number", "value=1,value=0": "at most once", "finished=1.5": "whole number", "value": "value=a number"}
    for text, said in wrong.items():
        with pytest.raises(UserError, match=f"got stop condition .*{said}"):
            StopWhen.parse(text)
    with pytest.raises(UserError, match="number in"):
        Plan(stop_when="decided=95")


async def test_a_search_stops_where_it_was_told_to(folder, store):
    import moves as parts

    parts.policy = Mover(0.8)
    asked, traces = Asked("moves:policy", "moves:World", ("outcome",)), list(store.load())[:1]
    options = {"num_simulations": 60, "wave_size": 2}
    whole = await search(store, traces, asked, Plan("mcts", options, fork="start"))
    assert whole.stopped == {"60 simulations": 1}
    told = {"value=1": "a branch scored 1", "finished=3": "3 branches finished"}
    ids = {whole.searches}
    for condition, said in told.items():
        plan = Plan("mcts", options, fork="start", stop_when=condition)
        report = await search(store, traces, asked, plan)
        assert report.stopped == {said: 1}
        assert report.used["model_calls"] < whole.used["model_calls"]
        assert report.live_calls == 0, "the journal has all of it"
        assert store.search(report.searches[0]).config["stop_when"][condition.partition("=")[0]] is not None
        assert (await search(store, traces, asked, plan)).resumed == 1
        ids.add(report.searches)
    assert len(ids) == 3


async def test_what_is_played_to_find_a_step_stops_no_search(folder, store):
    import moves as parts

    parts.policy = Mover(0.9)
    asked, traces = Asked("moves:policy", "moves:World", ("outcome",)), list(store.load())[:1]
    plan = Plan("mcts", {"num_simulations": 4, "wave_size": 2}, fork="pivot", stop_when="finished=9")
    report = await search(store, traces, asked, plan)
    assert report.stopped == {"4 simulations": 1}, "nine and more lines ended before it began"
    assert report.used["model_calls"] > 100
    assert store.search(report.searches[0]).fork_step == 2


async def test_a_condition_that_can_t_end_a_search_is_refused(folder, store):
    for name in UNSTOPPABLE:
        with pytest.raises(UserError, match=f"got --stop-when value=1 for {name}, which scores nothing before .*; wanted .*mcts"):
            Plan(name, stop_when="value=1")
    import moves as parts

    parts.policy, traces = Mover(0.8), list(store.load())[:1]
    chosen = Plan.parse(None, [], stop_when="value=1")
    with pytest.raises(UserError, match="for fork_best_of_n"):
        await search(store, traces, Asked("moves:policy", "moves:World", ("outcome",)), chosen)
    report = await search(store, traces, Asked("moves:policy", "moves:World", ("outcome", "moves:sound")), chosen)
    assert store.search(report.searches[0]).algorithm == "repair"


def test_the_command_line_takes_the_words_of_the_docs(folder):
    words = ["search", "--search", "mcts", "--stop-when", "decide=1", "--store", "none.duckdb", "--policy", "logged"]
    done = subprocess.run([sys.executable, "-m", "counterplay.cli", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "decided=number" in done.stderr


def test_asyncio_is_left_as_it_was():
    async def inside():
        with Pace(2).kept(local=False):
            task = asyncio.create_task(asyncio.sleep(0, limiting.get()))
        assert limiting.get() is None
        return await task

    assert asyncio.run(inside()).concurrency == 2
