"""Journal entries of other processes: taken in once, in any order, and never lost to a process that was killed."""

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from counterplay.core.errors import StoreError
from counterplay.core.store import Store, journal, journal_lines


def spool(path, *entries, end="\n"):
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + end)
    return path


def answers(store, *scopes):
    return sorted(store.journal_entries(scopes))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.duckdb"


def test_a_spool_is_taken_in_and_taken_in_again(path, tmp_path):
    file = spool(tmp_path / "w0", ["a", "k", "propose", "one", 5], ["b", "k", "step", "two", 6], ["a", "k", "propose", "three", 7])
    with Store.open(path) as store:
        assert store.fold_spool(file) == 2
        assert store.fold_spool(file) == 0
        assert answers(store, "a", "b") == [("a", "k", "propose", "three"), ("b", "k", "step", "two")]
        assert store.journal("a").get("k") == "three"
    with Store.open(path) as store:
        assert store.fold_spool(file) == 0
        assert answers(store, "b") == [("b", "k", "step", "two")]
        assert store.stats().journal == 2
    assert file.exists(), "it is left to whoever wrote it"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("closed", [False, True])
def test_the_later_answer_counts_whatever_order_they_are_taken_in(path, tmp_path, order, closed):
    files = [spool(tmp_path / f"w{i}", ["a", "k", "x", f"answer {i}", 10 + i], ["a", f"own {i}", "x", "y", 1]) for i in range(3)]
    store = Store.open(path)
    for i in order:
        store.fold_spool(files[i])
        if closed:
            store.close()
            store = Store.open(path)
    with store:
        assert store.journal("a").get("k") == "answer 2"
        assert len(answers(store, "a")) == 4
        store.journal("a").put("k", "x", "now")
        store.fold_spool(files[2])
        assert store.journal("a").get("k") == "now"


def test_what_was_folded_in_outlives_the_process_and_the_spool(path, tmp_path):
    file = spool(tmp_path / "w0", ["a", "k", "x", "one", 5])
    code = """
import os, signal, sys
from counterplay.core.store import Store
store = Store.open(sys.argv[1])
store.fold_spool(sys.argv[2])
os.unlink(sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, path, file], check=False).returncode == -signal.SIGKILL
    with Store.open(path) as store:
        assert store.journal("a").get("k") == "one"


def test_a_torn_last_line_waits_for_its_end_and_damaged_ones_are_kept(path, tmp_path):
    file = spool(tmp_path / "w0", ["a", "k", "x", "one", 5], ["a", "l", "x", "two", 6], end="")
    with Store.open(path) as store:
        assert store.fold_spool(file) == 1
        with file.open("a") as more:
            more.write("\n{}\n")
        assert store.fold_spool(file) == 1
        assert [(bad.uri, bad.line) for bad in store.rejected()] == [(str(file), 3)]
        assert store.fold_spool(file) == 0
        assert len(store.rejected()) == 1
        with pytest.raises(StoreError, match="w9 can't be read"):
            store.fold_spool(tmp_path / "w9")
    with Store.open(path, read_only=True) as store, pytest.raises(StoreError, match="read-only"):
        store.fold_spool(file)


def test_much_is_taken_in_a_few_lines_at_a_time(path, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_lines, "_BATCH_BYTES", 100)
    monkeypatch.setattr(journal, "_FOLD_BYTES", 1000)
    file = spool(tmp_path / "w0", *(["a", f"k{i}", "x", str(i), i] for i in range(200)))
    with Store.open(path) as store:
        assert store.fold_spool(file) == 200
        assert {key: answer for _, key, _, answer in store.journal_entries(["a"])} == {f"k{i}": str(i) for i in range(200)}
        assert path.with_name("s.duckdb.journal").stat().st_size < 2000


def test_spools_that_were_left_are_taken_in_when_the_store_is_opened(path):
    Store.open(path).close()
    files = [spool(path.with_name(f"s.duckdb.journal.w{i}.0"), ["a", f"k{i}", "x", str(i), 5]) for i in range(3)]
    other = spool(path.with_name("t.duckdb.journal.w0"), ["a", "other", "x", "y", 5])
    with Store.open(path, read_only=True) as store:
        assert len(answers(store, "a")) == 3
    assert all(file.exists() for file in files), "a reader changes nothing"
    with Store.open(path) as store:
        assert not any(file.exists() for file in files)
        assert len(answers(store, "a")) == 3
    assert other.exists()


def test_a_spool_that_is_being_written_is_waited_for(path):
    Store.open(path).close()
    file = spool(path.with_name("s.duckdb.journal.w0"), ["a", "early", "x", "1", 5])
    holder = os.open(file, os.O_WRONLY | os.O_APPEND)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def finish():
        time.sleep(0.3)
        os.write(holder, json.dumps(["a", "late", "x", "2", 6]).encode() + b"\n")
        os.close(holder)

    thread = threading.Thread(target=finish)
    thread.start()
    with Store.open(path) as store:
        assert [key for _, key, _, _ in answers(store, "a")] == ["early", "late"]
    thread.join()
    assert not file.exists()


def test_a_writer_that_never_ends_is_named_and_its_file_kept(path, monkeypatch):
    Store.open(path).close()
    file = spool(path.with_name("s.duckdb.journal.w0"), ["a", "k", "x", "1", 5])
    monkeypatch.setattr(journal_lines, "_WAIT_S", 0.1)
    with file.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"still writes to .*s.duckdb.journal.w0; wanted no other process"):
            Store.open(path)
    with Store.open(path) as store:
        assert store.journal("a").get("k") == "1"


def test_entries_of_many_scopes_folded_pending_and_answered_anew(path):
    with Store.open(path) as store:
        for scope in ("a", "b", "odd\udc80"):
            store.journal(scope).put("k", "x", f"old {scope}")
            store.journal(scope).put("l", "x", "folded")
    with Store.open(path) as store:
        store.journal("b").put("k", "y", "new")
        store.journal("c").put("m", "x", "pending")
        wanted = [("a", "k", "x", "old a"), ("a", "l", "x", "folded"), ("b", "k", "y", "new"), ("b", "l", "x", "folded")]
        assert answers(store, "a", "b") == wanted
        assert answers(store, "c", "odd\udc80", "none") == [
            ("c", "m", "x", "pending"), ("odd\udc80", "k", "x", "old odd\udc80"), ("odd\udc80", "l", "x", "folded"),
        ]  # fmt: skip
        assert answers(store) == []


def test_many_scopes_are_not_all_kept_in_memory(path, monkeypatch):
    monkeypatch.setattr(journal, "_INDEXED", 10)
    with Store.open(path) as store:
        for scope, key in itertools.product(range(20), range(3)):
            store.journal(f"s{scope}").put(f"k{key}", "x", f"{scope} {key}")
    with Store.open(path) as store:
        for scope, key in itertools.product(range(20), range(3)):
            assert store.journal(f"s{scope}").get(f"k{key}") == f"{scope} {key}"
            assert sum(map(len, store._journal._folded.values())) <= 10
