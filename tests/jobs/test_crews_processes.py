"""Processes of their own: the same trees as in one process, whoever is killed, and nothing that was answered is asked again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay import Store
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.jobs.crews import InProcess
from counterplay.jobs.processes import Processes
from counterplay.jobs.team import Silence, divided
from counterplay.jobs.work import WorkerLostError
from counterplay.parts import Asked
from counterplay.plan import Pace, Plan
from tests.front.moves import answer, logged
from tests.jobs.game import MCTS, asked, draws, driven, modules, paid, runs, told, trees, worked, works
from tests.replay.loopback import Loopback


@pytest.fixture
def notes(tmp_path, monkeypatch):
    return modules(tmp_path, monkeypatch)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as opened:
        opened.ingest(runs())
        yield opened


async def in_process(asked, plan, traces=None):
    with Store.open(":memory:") as store:
        store.ingest(runs() if traces is None else traces)
        return await worked(InProcess(store, asked, plan), works(store, asked, plan))


async def by_two(store, asked, plan, **given):
    return await worked(Processes(store, asked, plan, workers=2), works(store, asked, plan, **given))


async def until(done):
    while not done():  # noqa: ASYNC110  what is waited for happens in other processes
        await asyncio.sleep(0.01)


async def test_two_processes_come_to_the_trees_of_one(notes, store, tmp_path):
    wanted = await in_process(asked(), MCTS)
    one_process = Counter(draw for draw, _ in draws(notes))
    (notes / "draws").unlink()
    made = await by_two(store, asked(), MCTS)
    assert trees(made) == trees(wanted)
    assert {unit: (one.used["model_calls"], one.live_calls, one.improved, one.solved) for unit, one in made.items()} == {
        unit: (one.used["model_calls"], one.live_calls, one.improved, one.solved) for unit, one in wanted.items()
    }
    really = draws(notes)
    assert Counter(draw for draw, _ in really) == one_process
    assert len({pid for _, pid in really} - {str(os.getpid())}) == 2, "both worked, and this process did not"
    assert list(tmp_path.glob("s.duckdb.journal.*")) == [], "what they were answered is in the store"
    (notes / "draws").unlink()
    again = await worked(InProcess(store, asked(), MCTS), works(store, asked(), MCTS))
    assert (draws(notes), trees(again)) == ([], trees(made))


async def test_siblings_recordings_and_stitched_tasks_come_to_the_same(notes, store):
    for parts, plan in (
        (asked(environment="recorded"), Plan("fork_best_of_n", {"n": 2}, fork="rare_state")),
        (asked("logged", "recorded"), replace(MCTS, fork="1")),
        (Asked(), Plan("stitch")),
    ):
        assert trees(await by_two(store, parts, plan)) == trees(await in_process(parts, plan))


async def test_a_model_on_a_server_is_asked_at_one_pace_and_the_tally_is_whole(notes, store):
    with Loopback(default=answer) as server:
        parts = Asked("openai:m", "moves:World", ("outcome",), base_url=server.base_url)
        plan = Plan("best_of_n", {"n": 2}, fork="start", pace=Pace(3))
        made = await by_two(store, parts, plan)
        assert server.most_in_flight <= 3
        assert sum(one.tally.get("calls", 0) for one in made.values()) == server.served["calls"] == len(server.bodies)
        assert sum(one.tally.get("input_tokens", 0) for one in made.values()) == server.served["prompt_tokens"]
        assert trees(made) == trees(await in_process(parts, plan))


async def test_a_worker_that_is_killed_costs_what_was_not_answered_yet(notes, store, monkeypatch):
    wanted = await in_process(asked(), MCTS)
    needed = Counter(draw for draw, _ in draws(notes))
    (notes / "draws").unlink()
    monkeypatch.setenv("DELAY_S", "0.02")
    crew, made, lost, killed = Processes(store, asked(), MCTS, workers=2), {}, Counter(), []

    async def kept_at(work):
        while work.unit not in made:
            try:
                made[work.unit] = await crew.submit(work)
            except WorkerLostError:
                lost[work.unit] += 1

    async def killer():
        for share in (0.25, 0.5):
            await until(lambda: len(draws(notes)) >= share * sum(needed.values()))  # noqa: B023
            killed.append(crew.pids[0])
            os.kill(killed[-1], signal.SIGKILL)
            await until(lambda: killed[-1] not in crew.pids and len(crew.pids) == 2)

    await asyncio.gather(killer(), *(kept_at(work) for work in works(store, asked(), MCTS)))
    await crew.close()
    assert trees(made) == trees(wanted)
    assert len(set(killed)) == 2
    assert sum(lost.values()) >= 1
    repeated = Counter(draw for draw, _ in draws(notes)) - needed
    assert sum(repeated.values()) <= 2 * sum(lost.values()), "only what was in flight, a wave of 2 a unit, may be asked again"


async def test_a_unit_that_kills_its_worker_takes_no_other_with_it(notes, store):
    store.ingest([logged("poison", name="poison")])
    crew, found = Processes(store, asked(), MCTS, workers=1), {}

    async def tried(work):
        attempts = []
        while len(attempts) < 5:
            try:
                await crew.submit(work)
            except WorkerLostError as error:
                attempts.append(str(error))
            else:
                break
        found[work.unit] = attempts

    await asyncio.gather(*(tried(work) for work in works(store, asked(), MCTS)))
    await crew.close()
    assert len(found.pop("poison")) == 5
    assert all(len(attempts) <= 1 for attempts in found.values()), "its companions fell once, and were not with it again"


async def test_those_beside_a_unit_that_kills_its_worker_or_lets_it_stand_still_are_not_charged_for_it(notes, store):
    store.ingest([logged("poison", name="poison"), logged("stuck", name="stuck")])
    crew = Processes(store, asked(), MCTS, workers=1, silent_s=1.5)
    units, progress = await driven(store, crew, asked(), MCTS, attempts=1)
    lost = {name: units.pop(name) for name in ("poison", "stuck")}
    assert {(unit.state, unit.error_class) for unit in lost.values()} == {("parked", "lost")}
    assert "ended by signal 9" in lost["poison"].reason
    assert "did not answer for 1.5 s" in lost["stuck"].reason
    assert {unit.state for unit in units.values()} == {"done"}
    assert paid(store) == told([*units.values(), *lost.values()])
    assert progress.live_calls == paid(store)[0]


async def test_what_workers_that_were_killed_had_paid_for_is_counted(notes, store, monkeypatch):
    monkeypatch.setenv("DELAY_S", "0.02")
    crew, killed = Processes(store, asked(), MCTS, workers=2), []

    async def killer():
        for many in (20, 60):
            await until(lambda: len(draws(notes)) >= many)  # noqa: B023
            killed.append(crew.pids[0])
            os.kill(killed[-1], signal.SIGKILL)
            await until(lambda: killed[-1] not in crew.pids)

    (units, progress), _ = await asyncio.gather(driven(store, crew, asked(), MCTS), killer())
    assert {unit.state for unit in units.values()} == {"done"}
    assert max(unit.attempts for unit in units.values()) > 1
    assert paid(store) == told(units.values())
    assert progress.live_calls == paid(store)[0]


async def test_answers_are_signs_of_life_where_the_event_loop_does_not_turn(notes, store):
    parts, plan = asked(verifiers=("game_parts:slow",)), Plan("best_of_n", {"n": 4}, fork="start")
    made = await worked(Processes(store, parts, plan, workers=1, silent_s=1.0), works(store, parts, plan, ["t0-bbaaaa"]))
    assert {one.state for one in made.values()} == {"done"}


async def test_silence_is_not_counted_while_nobody_listened():
    silence = Silence(0.4)
    waiting = asyncio.create_task(silence.too_long())
    await asyncio.sleep(0)
    time.sleep(1.0)  # noqa: ASYNC251  the driver itself stands still
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    silence.broken()
    await waiting


async def test_another_worker_knows_what_a_failed_attempt_was_answered(notes, store):
    with Loopback(default=answer) as server:
        parts = Asked("openai:m", "moves:World", ("outcome",), base_url=server.base_url)
        plan = Plan("best_of_n", {"n": 2}, fork="start")
        ok, server.default = server.default, lambda request: answer(request) if len(request["messages"]) < 6 else (400, {"error": "no"})
        crew, (work, *_) = Processes(store, parts, plan, workers=2), works(store, parts, plan)
        failed = await crew.submit(work)
        assert (failed.state, failed.error_class) == ("failed", "refused")
        answered = server.served["calls"]
        assert answered >= 1
        server.default = ok
        done = await crew.submit(work)
        await crew.close()
        assert done.state == "done"
        assert done.live_calls + answered == done.used["model_calls"]


async def test_trees_that_are_kept_are_sent_where_they_are_wanted(notes, store):
    first = await by_two(store, asked(), MCTS)
    for one in first.values():
        store.put_search(one.records[0])
    (notes / "draws").unlink()
    again = await by_two(store, asked(), MCTS)
    assert all(one.held for one in again.values())
    assert {unit: one.records for unit, one in again.items()} == {unit: one.records for unit, one in first.items()}
    assert draws(notes) == []


async def test_growing_trees_are_in_the_store_while_they_grow(notes, store, monkeypatch):
    monkeypatch.setenv("DELAY_S", "0.1")
    crew, (work, *_) = Processes(store, asked(), MCTS, workers=1), works(store, asked(), MCTS)
    working = asyncio.create_task(crew.submit(work))
    while not (seen := store.searches()):
        assert not working.done()
        await asyncio.sleep(0.02)
    assert [(row.trace, row.stopped) for row in seen] == [(work.unit, "")]
    done = await working
    await crew.close()
    assert done.records[0].id == seen[0].id


async def test_a_unit_that_is_given_up_is_given_up_by_its_worker(notes, store, monkeypatch):
    monkeypatch.setenv("DELAY_S", "0.05")
    crew, (work, other, *_) = Processes(store, asked(), MCTS, workers=1), works(store, asked(), MCTS)
    working = asyncio.create_task(crew.submit(work))
    await until(lambda: draws(notes))
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    begun = len(draws(notes))
    done = await crew.submit(other)
    await crew.close()
    assert done.state == "done"
    assert len(draws(notes)) - begun <= done.live_calls // 4 + 2, "4 draws a call"


DRIVER = """
import asyncio, sys
from counterplay import Store
from counterplay.jobs.processes import Processes
from tests.jobs.game import MCTS, asked, works

async def main(store):
    crew = Processes(store, asked(), MCTS, workers=2)
    print("begun", flush=True)
    made = await asyncio.gather(*(crew.submit(work) for work in works(store, asked(), MCTS)))
    await crew.close()

with Store.open(sys.argv[1]) as store:
    asyncio.run(main(store))
"""


def test_workers_end_with_a_driver_that_is_killed_and_what_they_were_answered_stays(notes, tmp_path):
    wanted = asyncio.run(in_process(asked(), MCTS))
    needed = Counter(draw for draw, _ in draws(notes))
    (notes / "draws").unlink()
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest(runs())
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "DELAY_S": "0.05"}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "s.duckdb")], env=environment, stdout=subprocess.DEVNULL)
    while len(draws(notes)) < sum(needed.values()) // 2:
        assert driver.poll() is None
        time.sleep(0.01)
    workers = {int(pid) for _, pid in draws(notes)}
    driver.kill()
    driver.wait()
    gone_by = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/environ").exists() and alive(pid) for pid in workers):
        assert time.monotonic() < gone_by, "a worker goes on without its driver"
        time.sleep(0.01)
    at_the_kill = draws(notes)
    assert len(workers) == 2
    with Store.open(tmp_path / "s.duckdb") as store:
        made = asyncio.run(by_two(store, asked(), MCTS))
    assert trees(made) == trees(wanted)
    repeated = Counter(draw for draw, _ in draws(notes)) - needed
    assert sum(repeated.values()) <= 2 * len(made), "only what was in flight is asked again"
    assert sum(repeated.values()) < len(at_the_kill)
    assert list(tmp_path.glob("s.duckdb.journal.*")) == []


def alive(pid):
    """Whether it runs still; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_what_cannot_begin_is_told(notes, store):
    wrong = asked(policy="game_parts:nobody")
    crew, (work, *_) = Processes(store, wrong, MCTS, workers=2), works(store, wrong, MCTS)
    with pytest.raises(UserError, match="has no 'nobody'"):
        await crew.submit(work)
    await crew.close()
    with pytest.raises(UserError, match="got 0 workers"):
        Processes(store, asked(), MCTS, workers=0)
    with pytest.raises(UserError, match=r"can't be sent to another process: .* module:attr"):
        Processes(store, asked(comparable=lambda text: text), MCTS, workers=2)
    with pytest.raises(UserError, match="auto for a job"):
        Processes(store, asked(), Plan("auto"), workers=2)


def test_a_pace_is_divided_and_never_exceeded_in_sum():
    plan = Plan(concurrency=7, pace=Pace(5, 100.0, 1000.0))
    parts = divided(plan, 3, local=False)
    assert [(part.concurrency, part.pace.in_flight) for part in parts] == [(3, 2), (2, 2), (2, 1)]
    assert sum(part.pace.requests_per_minute for part in parts) == pytest.approx(100)
    assert sum(part.pace.tokens_per_minute for part in parts) == pytest.approx(1000)
    assert sum(part.pace.requests for part in divided(Plan(), 4, local=False)) == 64
    assert len(divided(Plan(pace=Pace(2)), 4, local=False)) == len(divided(Plan(concurrency=2), 4, local=False)) == 2
    assert len(divided(Plan(pace=Pace(64, 3.0)), 4, local=False)) == 3
    assert {part.pace for part in divided(Plan(), 2, local=True)} == {Pace()}


async def test_large_works_go_through_while_others_go_on(notes, store):
    large = "x" * (24 << 20)
    long = logged("t0", name="long")
    first, *rest = long.trajectory.steps
    said = Step(first.action, (Message.tool(large, "c0"),))
    store.ingest([replace(long, trajectory=Trajectory(long.trajectory.tools, long.trajectory.prompt, (said, *rest)))])
    ticks = []

    async def clock():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.001)

    parts, plan = asked(environment="recorded"), replace(MCTS, fork="1")
    ticking = asyncio.create_task(clock())
    made = await worked(Processes(store, parts, plan, workers=1), works(store, parts, plan, ["long", "t0-bbaaaa"]))
    ticking.cancel()
    assert (made["long"].state, made["long"].reason[-300:]) == ("done", "")
    assert len(json.dumps(made["long"].records[0].root.steps[0].observations[0].wire)) > len(large)
    assert len(ticks) > 10
