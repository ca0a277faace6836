"""What the store keeps in memory between pieces of work is little; what a piece of work needs may be more."""

import random
from string import ascii_letters

import pytest

from counterplay import Store
from counterplay.core.errors import StoreError
from counterplay.core.nouns import Message, Source, Step, Trace, Trajectory
from counterplay.core.store import room

KEPT = 24_000_000


def traces(count, size):
    rng = random.Random(0)
    for number in range(count):
        said = "".join(rng.choices(ascii_letters, k=size))
        trajectory = Trajectory((), (Message.user(f"task {number}"),)).extend(Step(Message.assistant(said), terminated=True))
        yield Trace(f"t{number}", trajectory, Source("test"))


def used(store):
    return store._connection.cursor().execute(room._USED).fetchone()[0]


def test_what_was_read_is_let_go_and_the_bound_stays_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "KEPT_BYTES", KEPT)
    monkeypatch.setattr(room, "_LOOKED_AT_S", 0.0)
    with Store.open(tmp_path / "s.duckdb", memory="512MB") as store:
        store.ingest(traces(60, 1_000_000))
        assert sum(len(trace.trajectory.steps) for trace in store.load(batch=8)) == 60
        assert used(store) <= KEPT
        assert store._connection.cursor().execute("SELECT current_setting('memory_limit')").fetchone()[0] == "488.2 MiB"


def test_a_store_without_a_bound_keeps_what_duckdb_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "KEPT_BYTES", 1)
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest(traces(20, 1_000_000))
        assert len(list(store.load())) == 20
        assert used(store) > 4_000_000


def test_too_little_for_one_row_is_told(tmp_path):
    with Store.open(tmp_path / "s.duckdb", memory="40MB") as store:
        with pytest.raises(StoreError, match=r"memory"):
            store.ingest(traces(3, 30_000_000))
        assert store.ingest(traces(1, 1000)).traces_added == 1
