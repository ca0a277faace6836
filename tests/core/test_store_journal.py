"""The persistent journal and kill -9: what was acknowledged is there, whatever happened to the process."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from counterplay.core.errors import StoreError
from counterplay.core.store import Store
from counterplay.core.store.journal import JournalFile

CHILD = """
import sys
from counterplay.core.nouns import *
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.core.store import Store
path, kind, start = sys.argv[1], sys.argv[2], int(sys.argv[3])

def trace(i):
    steps = tuple(Step(Message.assistant(f"say {i} {k}"), (Message.user("on"),), terminated=k == 9) for k in range(10))
    return Trace(f"t{i}", Trajectory((), (Message.user("hi"),), steps), Source("test"), calls=tuple(Call(k) for k in range(10)))

with Store.open(path) as store:
    journal = store.journal("s")
    print("ready", flush=True)
    for i in range(start, 10**9):
        if kind == "put":
            journal.put(f"k{i}", "propose", f"answer {i}" * 20)
        elif kind == "ingest":
            store.ingest([trace(i), trace(i + 10**9)])
        else:
            root = trace(0).trajectory.prefix(0)
            nodes = [NodeRecord(0, None, None)] + [NodeRecord(n, n - 1, trace(0).trajectory.steps[n - 1]) for n in range(1, 2 + i % 9)]
            store.put_search(SearchRecord("s", "beam", root, tuple(nodes), fork_step=i))
        print(i, flush=True)
"""


def killed_at_random(path, kind, start, delay_s):
    """Run a child, kill it in the midst of its work, and give the last thing it acknowledged."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, path, kind, str(start)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    timer = threading.Timer(delay_s, child.send_signal, [signal.SIGKILL])
    timer.start()
    lines = child.stdout.read().splitlines(keepends=True)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    timer.join()
    return max((int(line) for line in lines if line.endswith("\n")), default=start - 1)


def test_no_acknowledged_answer_is_lost_by_kill_9(tmp_path):
    path, rng, last = tmp_path / "s.duckdb", random.Random(1), -1
    for _ in range(3):
        last = killed_at_random(path, "put", last + 1, rng.uniform(0.01, 0.25))
        with Store.open(path, read_only=True) as store:
            assert store.journal("s").get(f"k{last}") == f"answer {last}" * 20, "a reader sees the side file"
    with Store.open(path) as store:
        journal = store.journal("s")
        assert last > 0
        assert all(journal.get(f"k{i}") == f"answer {i}" * 20 for i in range(last + 1))
        assert store.verify() == []
        assert store.stats().journal in (last + 1, last + 2), "one more may have been written and not yet reported"


@pytest.mark.parametrize("kind", ["ingest", "search"])
def test_no_acknowledged_batch_is_lost_or_halved_by_kill_9(tmp_path, kind):
    path, rng, last = tmp_path / "s.duckdb", random.Random(2), -1
    for _ in range(3):
        last = killed_at_random(path, kind, last + 1, rng.uniform(0.05, 0.4))
        with Store.open(path) as store:
            assert store.verify() == []
            if kind == "ingest":
                held = {row.id for row in store.traces()}
                assert {f"t{i}" for i in range(last + 1)} <= held
                assert all((name in held) == (f"t{int(name[1:]) + 10**9}" in held) for name in held if int(name[1:]) < 10**9)
                last = max([int(name[1:]) for name in held if int(name[1:]) < 10**9], default=-1)
            elif last >= 0:
                search = store.search("s")
                assert search.fork_step in (last, last + 1)
                assert len(search.nodes) == 2 + search.fork_step % 9
                last = search.fork_step


def test_a_fold_that_was_interrupted_before_emptying_the_file_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "s.duckdb"
    side_file = tmp_path / "s.duckdb.journal"
    with Store.open(path) as store:
        for i in range(5):
            store.journal("a").put(f"k{i}", "x", str(i))
        saved = side_file.read_bytes()
    assert not side_file.exists()
    side_file.write_bytes(saved)
    with Store.open(path) as store:
        assert store.stats().journal == 5
        assert [store.journal("a").get(f"k{i}") for i in range(6)] == ["0", "1", "2", "3", "4", None]


def test_torn_and_damaged_lines(tmp_path):
    path = tmp_path / "s.duckdb"
    Store.open(path).close()
    whole = json.dumps(["", "k", "x", "answer", 1]).encode()
    (tmp_path / "s.duckdb.journal").write_bytes(
        whole + b"\n" + b"\xff\xfe damaged\n" + b'["not","enough"]\n' + whole.replace(b'"k"', b'"l"')[:-3]
    )
    with Store.open(path, read_only=True) as store:
        assert store.journal().get("k") == "answer"
    with Store.open(path) as store:
        assert store.journal().get("k") == "answer"
        assert store.journal().get("l") is None
        assert [(bad.line, bad.byte_offset) for bad in store.rejected()] == [(2, len(whole) + 1), (3, len(whole) + 1 + 11)]
        store.journal().put("l", "x", "again")
    with Store.open(path) as store:
        assert store.journal().get("l") == "again"
        assert len(store.rejected()) == 2


def test_scopes_do_not_meet_and_the_last_answer_counts(tmp_path):
    odd = "\udc80 json: \n \u2028 é"
    for path in (":memory:", tmp_path / "s.duckdb"):
        with Store.open(path) as store:
            store.journal("a").put("k", "x", "one")
            store.journal("b").put("k", "x", "two")
            store.journal(odd).put(odd, odd, odd)
            store.journal("a").put("k", "x", "three")
            assert [store.journal(scope).get("k") for scope in ("a", "b", "c")] == ["three", "two", None]
            assert store.stats().journal == 3
    with Store.open(path) as store:
        assert [store.journal(scope).get("k") for scope in ("a", "b", "c")] == ["three", "two", None]
        assert store.journal(odd).get(odd) == odd
        store.journal("a").put("k", "x", "four")
        assert store.journal("a").get("k") == "four"
        assert store.stats().journal == 3
    with Store.open(path, read_only=True) as store:
        assert store.journal("a").get("k") == "four"
        assert store.stats().journal == 3


def test_much_pending_is_folded_on_the_way_and_read_back_page_by_page(tmp_path, monkeypatch):
    monkeypatch.setattr("counterplay.core.store.journal._FOLD_BYTES", 5000)
    monkeypatch.setattr("counterplay.core.store.journal._PAGE", 7)
    monkeypatch.setattr("counterplay.core.store.journal._PAGES", 2)
    with Store.open(tmp_path / "s.duckdb") as store:
        journal = store.journal()
        for i in range(300):
            journal.put(f"k{i}", "x", "a" * 100 + str(i))
            assert journal.get(f"k{i}") == "a" * 100 + str(i)
        assert (tmp_path / "s.duckdb.journal").stat().st_size < 6000
        assert all(journal.get(f"k{i}") == "a" * 100 + str(i) for i in random.Random(0).sample(range(300), 300))
        assert journal.get("k300") is None


def test_threads_may_put_and_get_while_the_store_ingests(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as store:
        journal = store.journal()

        def work(name):
            for i in range(200):
                journal.put(f"{name}{i}", "x", name)
                assert journal.get(f"{name}{i}") == name

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            store.put_scores([])
            store.stats()
            time.sleep(0.001)
        assert len(journal) == 800


def test_a_write_that_fails_is_an_error_and_swallows_nothing(tmp_path, monkeypatch):
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        journal, real = store.journal(), os.write
        journal.put("a", "x", "1")
        state = {"calls": 0}

        def half(descriptor, data):
            state["calls"] += 1
            if state["calls"] > 1:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[: len(data) // 2])

        with monkeypatch.context() as changed:
            changed.setattr(os, "write", half)
            with pytest.raises(StoreError, match="can't be written: No space left"):
                journal.put("b", "x", "2")
        assert journal.get("b") is None
        journal.put("c", "x", "3")
        reread = JournalFile(store._connection, f"{path}.journal", read_only=True)
        assert [reread.get("", key) for key in "abc"] == ["1", None, "3"]
