"""Compaction: the same content in a smaller file, and a good store whatever happens on the way."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from counterplay.core.errors import StoreError, UserError
from counterplay.core.nouns import Call, LoggedScore, Message, Outcome, Source, Step, ToolSpec, Trace, Trajectory
from counterplay.core.records import NodeRecord, Rejected, SearchRecord
from counterplay.core.store import NewUnit, ScoreRow, Store, compact
from counterplay.core.store.views import VIEWS

END = Step(Message.assistant("bye \udc80"), terminated=True, reward=1.0)


def logged(name, steps=3, system="be brief", **fields):
    played = tuple(Step(Message.assistant(f"say {name} {i} " + "x" * 500), (Message.user("on"),)) for i in range(steps))
    trajectory = Trajectory((ToolSpec(f'{{"name":"{system}"}}'),), (Message.system(system),), played)
    calls = tuple(Call(i, params={"t": i}) for i in range(steps))
    return Trace(name, trajectory, Source("test"), calls=calls, scores=(LoggedScore("s", 1.0, 1.0),), metadata={"k": name}, **fields)


def searched(trace, steps):
    open_end = NodeRecord(steps + 1, 0, Step(Message.assistant("and then")))
    nodes = [
        NodeRecord(0, None, None),
        *(NodeRecord(i + 1, 0, replace(END, action=Message.assistant(f"{i}"))) for i in range(steps)),
        open_end,
    ]
    return SearchRecord("s", "beam", trace.trajectory.prefix(1), tuple(nodes), trace.id, fork_step=1)


@pytest.fixture
def path(tmp_path):
    """A store with holes: searches replaced, revisions superseded."""
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([logged(f"t{i}") for i in range(20)])
        store.ingest([Rejected("f", "bad", 1), logged("t0", 5), logged("t1", system="another", outcome=Outcome(1.0))])
        store.put_scores([ScoreRow(logged("t3").trajectory.key, "v", "1", 0.5)])
        for count in (400, 300, 2):
            store.put_search(searched(logged("t2"), count))
        store.journal("a").put("k", "propose", "answer")
        store.set_watermark("here", "2025")
        store.count_redactions({"email": 3})
    return str(tmp_path / "s.duckdb")


def content(path):
    with Store.open(path, read_only=True) as store:
        assert store.verify() == []
        everything = [*store.load(), store.search("s"), *store.scores(), *store.rejected(), store.journal("a").get("k")]
        return everything, store.content_digest(), store.salt, store.watermark("here"), dict(store.stats().redactions)


def files(path):
    return sorted(file.name for file in Path(path).parent.iterdir())


def test_the_content_is_the_same_in_a_smaller_file(path):
    before, size = content(path), Path(path).stat().st_size
    Path(path).chmod(0o640)
    report = compact(path)
    assert content(path) == before
    assert (report.bytes_before, report.bytes_after, report.revisions_dropped) == (size, Path(path).stat().st_size, 0)
    assert report.bytes_after < report.bytes_before
    assert files(path) == ["s.duckdb"]
    assert Path(path).stat().st_mode & 0o777 == 0o640
    with Store.open(path) as store:
        assert len(store.revisions("t0")) == 2
        assert store.ingest([logged("t5"), logged("new")]).traces_known == 1
        assert store.verify() == []
        assert store._records("SELECT attributes.k AS k FROM traces WHERE trace = 't5'") == [{"k": "t5"}]


def test_old_revisions_go_only_if_asked(path):
    with Store.open(path) as store:
        current, nodes = list(store.load()), store.stats().nodes
    assert compact(path, drop_old_revisions=True).revisions_dropped == 2
    with Store.open(path) as store:
        assert store.verify() == []
        assert list(store.load()) == current
        assert len(store.revisions("t0")) == 1
        assert store.search("s") == searched(logged("t2"), 2)
        assert store.stats().nodes < nodes
        unused = "SELECT count(*) AS n FROM toolset WHERE id NOT IN (SELECT toolset FROM trajectory)"
        assert store._records(unused) == [{"n": 0}]
        again = store.ingest([logged("t0")])
        assert (again.traces_updated, store.trace("t0")) == (1, logged("t0", 5)), "a beginning of what is held stays superseded"


KILLED = """
import os, signal, sys
from counterplay.core.store import compacting
real = getattr(compacting, sys.argv[2])
def kill(*arguments, **named):
    if sys.argv[3] == "after":
        real(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(compacting, sys.argv[2], kill)
compacting.compact(sys.argv[1])
"""


@pytest.mark.parametrize("place", ["_attach_old", "bring_up", "_compare", "_place"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_leaves_a_good_store(path, place, when):
    before = content(path)
    done = subprocess.run([sys.executable, "-c", KILLED, path, place, when], check=False)
    assert done.returncode == -signal.SIGKILL
    assert content(path) == before
    compact(path)
    assert content(path) == before
    assert files(path) == ["s.duckdb"], "what the kill left is cleared away"


def test_a_copy_that_differs_is_not_put_in_its_place(path, monkeypatch):
    from counterplay.core.store import compacting

    compared = compacting._compare

    def tampering(connection, table, where):
        if table == "node":
            where = "role <> 'system'"
        compared(connection, table, where)

    before, identity = content(path), Path(path).stat().st_ino
    monkeypatch.setattr(compacting, "_compare", tampering)
    with pytest.raises(StoreError, match="copy of table node is not equal"):
        compact(path)
    assert (content(path), Path(path).stat().st_ino, files(path)) == (before, identity, ["s.duckdb"])


def test_one_changed_row_is_a_difference(path):
    from counterplay.core.store import compacting

    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{path}' AS old (READ_ONLY); ATTACH ':memory:' AS new; COPY FROM DATABASE old TO new; USE old")
        compacting._compare(connection, "trace", "true")
        connection.execute("UPDATE new.trace SET uri = 'x' WHERE number = 7")
        with pytest.raises(StoreError, match="copy of table trace"):
            compacting._compare(connection, "trace", "true")


def test_a_store_in_use_is_left_alone(path):
    attempt = "import sys; from counterplay.core.store import compact; compact(sys.argv[1])"
    with Store.open(path, read_only=True):
        with pytest.raises(StoreError, match="in another mode"):
            compact(path)
        done = subprocess.run([sys.executable, "-c", attempt, path], capture_output=True, text=True, check=False)
        assert f"in use by process {os.getpid()}" in done.stderr
    with pytest.raises(UserError, match="does not exist"):
        compact(path + ".none")
    assert files(path) == ["s.duckdb"]


def test_no_writer_gets_in_while_it_copies(path, monkeypatch):
    from counterplay.core.store import compacting

    attempt = "import sys; from counterplay.core.store import Store; Store.open(sys.argv[1])"
    said = []

    def place(draft, where):
        said.append(subprocess.run([sys.executable, "-c", attempt, where], capture_output=True, text=True, check=False).stderr)

    monkeypatch.setattr(compacting, "_place", place)
    compact(path)
    assert f"in use by process {os.getpid()}" in said[0]


def test_a_link_to_a_store_stays_a_link(path, tmp_path):
    link = tmp_path / "link.duckdb"
    link.symlink_to(path)
    compact(str(link))
    assert link.is_symlink()
    content(path)


def test_parquet_files_hold_the_views(path, tmp_path):
    out = tmp_path / "deep/out's"
    with Store.open(path, read_only=True) as store:
        rows = store.write_parquet(out)
        wanted = {view: store._records(f"SELECT count(*) AS n FROM {view}")[0]["n"] for view in VIEWS}
    assert rows == wanted
    assert sorted(file.name for file in out.iterdir()) == sorted(f"{view}.parquet" for view in VIEWS)
    table = pq.read_table(out / "branches.parquet")
    assert table.column("branch").to_pylist() == ["s/1", "s/2"]
    assert pq.ParquetFile(out / "messages.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    assert "attributes" not in pq.read_table(out / "traces.parquet").column_names


def test_a_parquet_export_that_fails_changes_nothing(path, tmp_path, monkeypatch):
    from counterplay.core.store import parquet

    with Store.open(path, read_only=True) as store:
        store.write_parquet(tmp_path / "out")
        before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
        monkeypatch.setattr(parquet, "VIEWS", (*VIEWS, "no_such_view"))
        with pytest.raises(StoreError, match="no_such_view"):
            store.write_parquet(tmp_path / "out")
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
        with pytest.raises(StoreError, match="can't be written"):
            store.write_parquet(path)


def at(hours, name, **fields):
    return logged(name, started_at_us=hours * 3_600_000_000, **fields)


def test_what_is_old_goes_with_all_that_was_made_of_it(tmp_path):
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.ingest(
            [at(1, "old", task="a"), at(9, "new", task="b"), logged("undated"), replace(at(2, "long"), ended_at_us=9 * 3_600_000_000)]
        )
        store.ingest([at(1, "old", steps=5, task="a")])
        for trace in ("old", "new"):
            store.put_search(replace(searched(logged(trace), 3), id=f"of-{trace}", trace=trace))
            store.journal(f"search/{trace}").put("k", "propose", trace)
            store.put_scores([ScoreRow(logged(trace).trajectory.key, "v", "1", 0.5)])
        for task in "ab":
            store.put_search(replace(searched(logged("new"), 2), id=f"stitched-{task}", trace=None, task=task))
    report = compact(str(path), before_us=5 * 3_600_000_000)
    assert (report.traces_dropped, report.revisions_dropped, report.searches_dropped, report.traces_undated) == (1, 2, 2, 1)
    with Store.open(path) as store:
        assert store.verify() == []
        assert {row.id for row in store.traces()} == {"new", "undated", "long"}
        assert {row.id for row in store.searches()} == {"of-new", "stitched-b"}
        assert store._records("SELECT count(*) AS n FROM node WHERE contains(wire, 'say old')") == [{"n": 0}]
        assert (store.journal("search/old").get("k"), store.journal("search/new").get("k")) == (None, "new")
        assert [score.key for score in store.scores()] == [logged("new").trajectory.key]
        assert store.ingest([at(1, "old", task="a")]).traces_added == 1
        assert store.verify() == []


def test_jobs_go_when_they_are_old_and_units_with_their_traces(tmp_path):
    path = str(tmp_path / "s.duckdb")
    with Store.open(path) as store:
        store.ingest([at(1, "old"), at(9, "new")])
        for job in ("ended", "goes on", "later"):
            store.put_job(job, job, "{}")
            store.add_units(job, [NewUnit("o", ("old", "new")), NewUnit("n", ("new",)), NewUnit("none", ())])
        store.end_job("ended", "done")
        store._connection.execute("UPDATE job SET ended_us = 3 WHERE id = 'ended'")
        store.end_job("later", "done")
        store.journal("search/old").put("k", "x", "1")
        store.journal("search/new").put("k", "x", "2")
        store.journal("job/ended").put("k", "x", "4")
        before = store.units("later"), store.jobs()
    compact(path, drop_old_revisions=True)
    with Store.open(path) as store:
        assert (store.units("later"), store.jobs()) == before
    compact(path, before_us=5 * 3_600_000_000)
    with Store.open(path) as store:
        assert [job.id for job in store.jobs()] == ["goes on", "later"]
        assert [(unit.job, unit.id) for job in store.jobs() for unit in store.units(job.id)] == [
            ("goes on", "n"), ("goes on", "none"), ("later", "n"), ("later", "none"),
        ]  # fmt: skip
        assert [store.journal(scope).get("k") for scope in ("search/old", "search/new", "job/ended")] == [None, "2", None]
        store.journal("search/old").put("k", "x", "3")
        assert store.add_units("goes on", [NewUnit("more", ())]) == 1
    with Store.open(path) as store:
        assert (store.journal("search/old").get("k"), store.journal("search/new").get("k")) == ("3", "2")
        assert len({unit.number for job in store.jobs() for unit in store.units(job.id)}) == 5


def test_nothing_is_old_before_the_first(path):
    before = content(path)
    assert compact(path, before_us=1).traces_dropped == 0
    assert content(path) == before
