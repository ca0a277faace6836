"""Trees in the store while they grow: shown, never exported, replaced by the finished one; and what a kill leaves, which goes on."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from counterplay import Store, growing
from counterplay.core.errors import StoreError, UserError
from counterplay.exporting import export_sft, trees
from counterplay.looking import copied, looked_at
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.replay.recorder import Recorder
from counterplay.searching import search
from tests.front import moves
from tests.front.moves import Mover, World, answer, logged, sound
from tests.replay.loopback import Loopback

PARTS = SimpleNamespace(policy=None, World=World, sound=sound)
MCTS = {"num_simulations": 30, "wave_size": 2}


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "front_parts", PARTS)
    return Asked("front_parts:policy", "front_parts:World", ("outcome", "front_parts:sound"))


@pytest.fixture
def eager(monkeypatch):
    """Every wave may be written."""
    monkeypatch.setattr(growing, "_EVERY_S", 0.0)
    monkeypatch.setattr(growing, "_SHARE", 1e9)


class Dying(Mover):
    """Gives `left` answers and no more."""

    def __init__(self, left=10**9):
        super().__init__()
        self.left, self.calls = left, 0

    async def propose(self, state, n):
        self.calls += 1
        if self.calls > self.left:
            raise asyncio.CancelledError
        return await super().propose(state, n)


@pytest.mark.parametrize("algorithm", ["mcts", "beam", "fork_best_of_n", "repair", "receding_horizon"])
async def test_a_search_that_is_cut_off_leaves_what_it_has_and_goes_on_to_the_same_tree(algorithm, asked, eager):
    trace, plan = logged("t"), Plan(algorithm, MCTS if algorithm == "mcts" else {})
    with Store.open(":memory:") as whole:
        PARTS.policy = counted = Dying()
        whole.ingest([trace])
        wanted = await search(whole, [trace], asked, plan)
    with Store.open(":memory:") as store:
        PARTS.policy = Dying(counted.calls * 2 // 3)
        store.ingest([trace])
        with pytest.raises(asyncio.CancelledError):
            await search(store, [trace], asked, plan)
        (row,) = store.searches()
        assert (row.id, row.stopped) == (wanted.searches[0], "")
        left = store.search(row.id)
        assert len(left.nodes) > 1
        assert (left.trace, left.task, left.config["policy"]) == ("t-bbaaaa", "t", "mover-0.5")
        assert store.verify() == []
        PARTS.policy = Mover()
        report = await search(store, [trace], asked, plan)
        assert (report.searches, report.digest, report.resumed) == (wanted.searches, wanted.digest, 0)
        assert report.live_calls < wanted.live_calls
        (row,) = store.searches()
        assert row.stopped
        assert store.verify() == []


async def test_a_tree_that_has_ended_is_not_lost_to_one_that_is_cut_off(asked, eager):
    with Store.open(":memory:") as store:
        PARTS.policy, trace, plan = Mover(), logged("t"), Plan("mcts", MCTS)
        store.ingest([trace])
        report = await search(store, [trace], asked, plan)
        hurt = replace(store.search(report.searches[0]), stopped="budget: seconds")  # so it is searched again
        store.put_search(hurt)
        PARTS.policy = Mover()
        with pytest.MonkeyPatch.context() as cut:
            cut.setattr("counterplay.searching.usage_config", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await search(store, [trace], asked, plan)
        assert store.search(hurt.id) == hurt
        assert (await search(store, [trace], asked, plan)).resumed == 0
        assert store.search(hurt.id).stopped == "30 simulations"


async def test_exporters_leave_out_what_is_not_finished(asked, eager, tmp_path):
    with Store.open(":memory:") as store:
        PARTS.policy, trace = Mover(0.9), logged("t")
        plan = Plan("mcts", MCTS)
        store.ingest([trace])
        report = await search(store, [trace], asked, plan)
        assert export_sft(store, tmp_path / "finished", source="searched").rows["train"] >= 1
        record = store.search(report.searches[0])
        store.put_search(replace(record, stopped=""))
        with pytest.raises(UserError, match="got no search of these traces"):
            trees(store, [trace])
        with pytest.raises(UserError, match="no row is left"):
            export_sft(store, tmp_path / "growing", source="both")


async def test_a_tree_is_not_written_at_every_wave(asked, monkeypatch):
    put, written = Store.put_search, []
    monkeypatch.setattr(Store, "put_search", lambda store, record: written.append(record.stopped) or put(store, record))
    with Store.open(":memory:") as store:
        PARTS.policy, trace = Mover(), logged("t")
        store.ingest([trace])
        await search(store, [trace], asked, Plan("mcts", MCTS))
    assert written == ["", "30 simulations"], "after the first wave, and in the end"


# --- the command line, killed ----------------------------------------------------------------------------------------------------------

EAGER = "from counterplay import growing; growing._EVERY_S = 0.05; growing._SHARE = 10; from counterplay.cli import main; main()"


class Shell:
    """A folder with logs, the game's module and a model on a loopback server."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        shutil.copy(moves.__file__, folder / "moves.py")
        with Recorder(folder / "logs.jsonl") as recorder:
            for i in range(3):
                recorder.write(logged(f"t{i}").trajectory, task=f"t{i}")

    def words(self, *words, eager=False):
        return [sys.executable, *(["-c", EAGER] if eager else ["-m", "counterplay.cli"]), *map(str, words)]

    def search(self, store, **given):
        options = ["--search", "mcts", "--option", "num_simulations=40", "--option", "wave_size=2", "--verifier", "outcome"]
        options += ["--verifier", "moves:sound", "--policy", "openai:m", "--base-url", self.server.base_url, "--environment", "moves:World"]
        return self.words("search", *options, "--fork", "start", "--store", store, "--json", **given)

    def run(self, words):
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_a_killed_job_is_seen_growing_and_goes_on_to_the_identical_trees(tmp_path, monkeypatch):
    with Loopback(default=answer) as server:
        shell = Shell(tmp_path, server)
        shell.run(shell.words("ingest", "logs.jsonl", "--store", "cut.duckdb"))
        monkeypatch.syspath_prepend(tmp_path)
        parts = Asked("openai:m", "moves:World", ("outcome", "moves:sound"), base_url=server.base_url)
        with Store.open(":memory:") as store, looked_at(tmp_path / "cut.duckdb") as logs:
            store.ingest(logs.load())
            options = {"num_simulations": 40, "wave_size": 2}
            whole = asyncio.run(search(store, list(store.load()), parts, Plan("mcts", options, fork="start")))
        needed = Counter(server.bodies)
        server.bodies.clear()
        slow = {**os.environ, "MOVES_DELAY_S": "0.05"}
        job = subprocess.Popen(
            shell.search("cut.duckdb", eager=True), cwd=tmp_path, env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not (server.bodies and (seen := growing_in(tmp_path / "cut.duckdb"))):
                assert job.poll() is None, "the job ended before a growing tree was seen"
                time.sleep(0.05)
            assert job.poll() is None
            shown = shell.run(shell.words("tree", seen[0], "--store", "cut.duckdb"))
            assert job.poll() is None, "what was shown was shown while the job ran"
        finally:
            job.send_signal(signal.SIGKILL)
            job.wait()
        assert "running" in shown
        assert "mcts" in shown
        asked_before = len(server.bodies)
        left = shell.run(shell.words("tree", "--store", "cut.duckdb"))
        assert "not finished" in left
        cut = json.loads(shell.run(shell.search("cut.duckdb")))
        assert (cut["digest"], cut["searches"]) == (whole.digest, list(whole.searches))
        assert 0 < asked_before < sum(needed.values())
        repeated = Counter(server.bodies) - needed
        assert sum(repeated.values()) <= 3 * 2 * 4, "only what was in flight may be asked again: 4 draws in each of 2 states a trace"
        with looked_at(tmp_path / "cut.duckdb") as store:
            assert all(row.stopped for row in store.searches())
            assert store.verify() == []


def growing_in(path):
    """The unfinished searches of a store that may be under the hands of another process."""
    try:
        with looked_at(path) as store:
            return [row.id for row in store.searches() if not row.stopped]
    except StoreError:
        return []


WRITER = """
import sys
from counterplay import Store
from moves import logged
with Store.open(sys.argv[1]) as store:
    for i in range(10_000):
        store.ingest([logged(f"t{i}", name=f"{i}/{k}") for k in range(20)])
        print(i, flush=True)
"""


def test_a_store_that_is_being_written_is_looked_at_as_of_one_moment(tmp_path):
    shutil.copy(moves.__file__, tmp_path / "moves.py")
    words = [sys.executable, "-c", WRITER, "s.duckdb"]
    writer = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        seen = []
        for _ in range(4):
            written = int(writer.stdout.readline())
            with looked_at(tmp_path / "s.duckdb") as store:
                seen.append(len(store.traces()))
                assert store.verify() == []
            assert seen[-1] % 20 == 0, "no batch is seen half"
            assert seen[-1] >= 20 * (written + 1)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert seen == sorted(seen)
    with looked_at(tmp_path / "s.duckdb") as store:
        assert str(store.path) == str(tmp_path / "s.duckdb")


def test_what_is_no_store_or_is_open_here_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello, this is no store")
    with pytest.raises(StoreError, match="not a DuckDB file"), looked_at(tmp_path / "text"):
        pass
    with (
        Store.open(tmp_path / "mine.duckdb"),
        pytest.raises(StoreError, match="in this process"),
        looked_at(tmp_path / "mine.duckdb"),
    ):
        pass
    with pytest.raises(UserError, match="does not exist"), looked_at(tmp_path / "none"):
        pass


def test_a_store_that_another_clock_dates_ahead_is_copied(tmp_path):
    path = tmp_path / "s.duckdb"
    path.write_bytes(b"x")
    os.utime(path, ns=(0, time.time_ns() + 3600 * 10**9))
    (tmp_path / "copies").mkdir()
    assert copied(path, tmp_path / "copies").read_bytes() == b"x"


def test_a_store_that_never_rests_is_not_copied(tmp_path, monkeypatch):
    path = tmp_path / "s.duckdb"
    path.write_bytes(b"x")
    monkeypatch.setattr("counterplay.looking._TICK_S", 1e-3)
    copy = shutil.copyfile

    def touched(source, target):
        copy(source, target)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    monkeypatch.setattr(shutil, "copyfile", touched)
    os.utime(path, ns=(0, 0))
    with pytest.raises(StoreError, match="written without a pause"):
        copied(path, tmp_path / "copies") if (tmp_path / "copies").mkdir() is None else None
