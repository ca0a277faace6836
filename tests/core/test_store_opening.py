"""Every way a store can't be opened has its own clear message, and leaves the file as it was."""

import os
import sqlite3
import subprocess
import sys

import duckdb
import pytest

from counterplay.core.errors import StoreError, UserError
from counterplay.core.nouns import Message, Source, ToolSpec, Trace, Trajectory
from counterplay.core.records import Rejected
from counterplay.core.store import Store

TRACE = Trace("t", Trajectory((), (Message.user("hi"),)), Source("test"))


@pytest.fixture
def path(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([TRACE])
    return tmp_path / "s.duckdb"


def test_a_store_is_one_file_and_outlives_closing(path):
    assert [file.name for file in path.parent.iterdir()] == ["s.duckdb"]
    for read_only in (False, True):
        with Store.open(path, read_only=read_only) as store:
            assert store.trace("t") == TRACE
    store.close()


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([TRACE])
    assert [file.name for file in tmp_path.iterdir()] == ["s.duckdb"]


@pytest.mark.parametrize("content", [b"", b"hello", b"SQLite format 3\0" + b"\0" * 200, b'{"messages": []}\n'])
def test_a_file_of_another_kind_is_refused_and_kept(tmp_path, content):
    file = tmp_path / "s.duckdb"
    file.write_bytes(content)
    with pytest.raises(StoreError, match="is not a DuckDB file"):
        Store.open(file)
    assert file.read_bytes() == content


def test_sqlite_is_refused_without_reaching_for_the_network(tmp_path):
    with sqlite3.connect(tmp_path / "s.sqlite") as connection:
        connection.execute("CREATE TABLE a (b)")
    connection.close()
    with pytest.raises(StoreError, match="is not a DuckDB file"):
        Store.open(tmp_path / "s.sqlite")


def test_a_duckdb_file_of_someone_else_is_refused_and_kept(tmp_path):
    with duckdb.connect(str(tmp_path / "s.duckdb")) as connection:
        connection.execute("CREATE TABLE sales AS SELECT 1 AS a")
    with pytest.raises(StoreError, match="tables that counterplay did not make"):
        Store.open(tmp_path / "s.duckdb")
    with duckdb.connect(str(tmp_path / "s.duckdb")) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("sales",)]


def test_a_truncated_store_is_named(path):
    path.write_bytes(path.read_bytes()[: 64 * 1024])
    with pytest.raises(StoreError, match=r"can't be opened|damaged"):
        Store.open(path)


def test_paths_that_can_not_be_a_store(tmp_path):
    with pytest.raises(UserError, match="got a folder as store"):
        Store.open(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Store.open(tmp_path / "none" / "s.duckdb")
    with pytest.raises(UserError, match="does not exist"):
        Store.open(tmp_path / "s.duckdb", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_names_its_holder(path):
    attempt = "import sys; from counterplay.core.store import Store; Store.open(sys.argv[1], read_only=len(sys.argv) > 2)"
    with Store.open(path):
        for arguments in ([], ["read"]):
            done = subprocess.run([sys.executable, "-c", attempt, path, *arguments], capture_output=True, text=True, check=False)
            assert f"is in use by process {os.getpid()}" in done.stderr
            assert "StoreError" in done.stderr
    with Store.open(path, read_only=True):
        done = subprocess.run([sys.executable, "-c", attempt, path, "read"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, "readers share"


OTHER = "import sys; from counterplay.core.store import Store; Store.open(sys.argv[1], read_only=len(sys.argv) > 2)"


def elsewhere(path, *arguments):
    """What another process is told that opens the store; empty where it gets it."""
    return subprocess.run([sys.executable, "-c", OTHER, path, *arguments], capture_output=True, text=True, check=False).stderr


@pytest.fixture
def holder(path):
    """Another process that has the store open for writing, with an answer in its journal."""
    code = f"{OTHER.rpartition(';')[0]}; s = Store.open(sys.argv[1]); s.journal().put('k', 'x', '1'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.stdin.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_holder_is_named_by_pid_and_program_and_its_journal_left_alone(path, holder, read_only):
    side_file = path.with_name("s.duckdb.journal")
    before = side_file.read_bytes()
    with pytest.raises(StoreError) as refused:
        Store.open(path, read_only=read_only)
    assert f"is in use by process {holder.pid} ({sys.executable} -c import sys; from" in str(refused.value)
    assert side_file.read_bytes() == before


@pytest.mark.parametrize("read_only", [True, False])
def test_a_lock_outlives_other_attempts_of_its_own_process(path, read_only):
    with Store.open(path, read_only=read_only):
        for mode in (True, False):
            if not (read_only and mode):
                with pytest.raises(StoreError):
                    Store.open(path, read_only=mode)
        if read_only:
            Store.open(path, read_only=True).close()
        assert f"is in use by process {os.getpid()}" in elsewhere(path)
        assert ("is in use by process" in elsewhere(path, "read")) is not read_only
    assert elsewhere(path) == ""


def test_a_journal_that_can_not_be_read_is_named(path):
    path.with_name("s.duckdb.journal").mkdir()
    with pytest.raises(StoreError, match=r"s.duckdb.journal can't be read"):
        Store.open(path)
    path.with_name("s.duckdb.journal").rmdir()
    Store.open(path).close()


def test_texts_larger_than_a_block_are_kept(tmp_path):
    long = "".join(f"{i} " for i in range(100_000))
    trajectory = Trajectory((ToolSpec.function("f", long, {}),), (Message.user(long), Message.user("é" * 200_000)))
    trace = Trace("t" + long, trajectory, Source("test", long), task=long, metadata={"k": long}, tags=(long,))
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([trace, Rejected("f", long, raw=long)])
    with Store.open(tmp_path / "s.duckdb", read_only=True) as store:
        assert (list(store.load()), store.verify()) == ([trace], [])
        assert store.rejected()[0].reason == long


def test_memory_is_bounded_and_what_does_not_fit_goes_beside_the_store(path):
    with Store.open(path, memory="48MB") as store:
        assert store._records("SELECT current_setting('memory_limit') AS held")[0]["held"] == "45.7 MiB"
        store._connection.execute(
            "CREATE TEMP TABLE wide AS SELECT i, md5(i::VARCHAR) AS a, md5((i * 7)::VARCHAR) AS b FROM range(900000) t(i)"
        )
        assert [file.name for file in path.parent.iterdir() if file.is_dir()] == [f"s.duckdb.{os.getpid()}.tmp"]
        assert store.trace("t") == TRACE
    assert [file.name for file in path.parent.iterdir()] == ["s.duckdb"]
    with Store.open(path, read_only=True, memory="48 MiB") as store:
        assert store.trace("t") == TRACE
    Store.open(":memory:", memory="0.1GB").close()


@pytest.mark.parametrize("memory", ["", "much", "12", "1GB; DROP TABLE trace", "-1GB"])
def test_memory_that_is_no_size_is_refused(path, memory):
    with pytest.raises(UserError, match='as memory for the store; wanted a size such as "512MB"'):
        Store.open(path, memory=memory)
    assert Store.open(path).close() is None, "it was let go of"


def test_what_killed_processes_left_beside_the_store_is_removed(path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [path.with_name(f"s.duckdb.{dead.pid}.{kind}") for kind in ("new", "new.wal", "compact")]
    kept = [path.with_name(name) for name in (f"s.duckdb.{os.getpid()}.new", f"t.duckdb.{dead.pid}.new", f"s.duckdb.{dead.pid}.bak")]
    for file in (*gone, *kept):
        file.touch()
    spilled = path.with_name(f"s.duckdb.{dead.pid}.tmp")
    spilled.mkdir()
    (spilled / "duckdb_temp_storage-0.tmp").touch()
    Store.open(path, read_only=True).close()
    assert spilled.exists(), "a reader changes nothing"
    Store.open(path).close()
    assert sorted(path.parent.iterdir()) == sorted([path, *kept])


def test_one_writer_in_a_process(path):
    with Store.open(path):
        with pytest.raises(StoreError, match="already open for writing in this process"):
            Store.open(path)
        with pytest.raises(StoreError, match="in another mode"):
            Store.open(path, read_only=True)
    with Store.open(path, read_only=True), pytest.raises(StoreError, match="in another mode"):
        Store.open(path)
    Store.open(path).close()


def test_a_reader_can_not_write(path):
    with Store.open(path, read_only=True) as store:
        for write in (lambda: store.ingest([TRACE]), lambda: store.put_scores([]), lambda: store.journal().put("k", "x", "1")):
            with pytest.raises(StoreError, match="read-only"):
                write()


def test_a_newer_store_is_refused(path):
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO migration VALUES (99, 0)")
    with pytest.raises(StoreError, match=r"schema version 99; wanted at most 4.*upgrade"):
        Store.open(path)


def test_text_columns_are_compressed_and_attributes_can_be_queried(tmp_path):
    from dataclasses import replace

    with Store.open(tmp_path / "s.duckdb") as store:
        wordy = [
            replace(TRACE, id=f"t{i}", trajectory=Trajectory((), (Message.user(f"{i} " * 300),)), metadata={"tenant": {"n": i}})
            for i in range(300)
        ]
        store.ingest(wordy)
        store._connection.execute("CHECKPOINT")
        kinds = store._records(
            "SELECT DISTINCT compression FROM pragma_storage_info('node') WHERE column_name = 'wire' AND segment_type = 'VARCHAR'"
        )
        assert kinds == [{"compression": "ZSTD"}]
        assert store._records("SELECT id FROM trace WHERE attributes.tenant.n::INTEGER = 7") == [{"id": "t7"}]
        assert store._records("SELECT DISTINCT role FROM messages") == [{"role": "user"}]


@pytest.mark.parametrize("room", [1 << 12, 1 << 15, 1 << 18])
def test_a_full_disk_is_said_and_what_was_there_before_stays(tmp_path, room):
    program = f"""
import resource, signal
from counterplay.core.errors import StoreError
from counterplay.core.store import NewUnit, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    with Store.open("s.db") as store:
        store.put_job("j", "j", "{{}}")
        for n in range(100):
            store.add_units("j", [NewUnit(f"{{n}}-{{i}}" * 20, ("t",)) for i in range(100)])
except StoreError as error:
    print("said", error)
"""
    ran = subprocess.run([sys.executable, "-c", program], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith("said"), ran.stderr
    assert not list(tmp_path.glob("*.new*"))
    with Store.open(tmp_path / "s.db") as store:
        held = sum(store.unit_counts(row.id)["pending"] for row in store.jobs())
        assert held % 100 == 0
