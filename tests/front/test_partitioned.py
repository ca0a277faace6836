"""Sinks: the store as partitioned Parquet, and folders copied to an object store so that what has a manifest is whole."""

import json
import logging
import time
from hashlib import md5

import pyarrow.parquet as pq
import pytest

from counterplay import loop, objects, sinks
from counterplay.core.errors import SourceError, UserError
from counterplay.core.store import Store, compact
from tests.front.object_server import Bucket, faulty, serving_objects

DAY_US = 86_400_000_000
FIRST_US = 1_767_225_600_000_000  # 2026-01-01
VIEWS = ("traces", "steps", "calls", "messages")


@pytest.fixture(scope="module")
def endpoint():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serving_objects() as found:
        yield found


@pytest.fixture
def bucket(endpoint, request, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sekrit")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(objects, "WAIT_S", 0.001)
    found = Bucket(endpoint, f"out-{abs(hash(request.node.name)) % 10**9}")
    yield found
    found.close()


def run(name, day):
    row = {"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": f"did {name}"}], "task": name, "id": name}
    row["success"] = True
    return json.dumps(row | ({} if day is None else {"calls": [{"started_at_us": FIRST_US + day * DAY_US}]})) + "\n"


def take(store, folder, name, *runs):
    (folder / name).write_text("".join(run(*each) for each in runs))
    loop.ingest([folder / name], store)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "s.db") as found:
        take(found, tmp_path, "log.jsonl", *((f"t{day}-{i}", day) for day in range(3) for i in range(4)), ("never", None))
        yield found


def held(folder, view, key="date"):
    """task or text -> partition, as pyarrow reads the folder."""
    rows = {}
    for file in sorted((folder / view).glob("*/*.parquet")):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            rows.setdefault(row["trace"], set()).add(file.parent.name.removeprefix(f"{key}="))
    return rows


def test_every_row_is_in_the_partition_of_its_trace(store, tmp_path):
    out = tmp_path / "out"
    report = sinks.export_partitions(store, out)
    days = {f"2026-01-0{day + 1}" for day in range(3)}
    assert ({*report.written}, report.unchanged) == ({*days, "__HIVE_DEFAULT_PARTITION__"}, 0)
    whole = store.write_parquet(tmp_path / "whole")
    assert {view: report.rows.get(view, 0) for view in whole} == whole
    by_trace = {row.id: row.task for row in store.traces()}
    for view in VIEWS:
        for trace, parts in held(out, view).items():
            task = by_trace[trace]
            assert parts == ({"__HIVE_DEFAULT_PARTITION__"} if task == "never" else {f"2026-01-0{int(task[1]) + 1}"})
    one, many = pq.read_table(tmp_path / "whole/messages.parquet"), pq.read_table(out / "messages")
    assert sorted(one.column("text").to_pylist()) == sorted(many.column("text").to_pylist())
    assert many.schema.names == [*one.schema.names, "date"]


def test_only_what_is_new_is_written_again(store, tmp_path):
    out = tmp_path / "out"
    sinks.export_partitions(store, out)
    report = sinks.export_partitions(store, out, only_new=True)
    assert (report.written, report.unchanged) == ((), 4)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.parquet")}
    take(store, tmp_path, "more.jsonl", ("t1-new", 1), ("t9", 8))
    report = sinks.export_partitions(store, out, only_new=True)
    assert (report.written, report.unchanged) == (("2026-01-02", "2026-01-09"), 3)
    changed = {file.parent.name for file in out.rglob("*.parquet") if before.get(file) != file.stat().st_mtime_ns}
    assert changed == {"date=2026-01-02", "date=2026-01-09"}
    assert len(held(out, "traces")) == 15


def test_what_the_store_forgot_is_kept_where_only_the_new_is_written(store, tmp_path):
    out = tmp_path / "out"
    sinks.export_partitions(store, out)
    store.close()
    compact(str(tmp_path / "s.db"), before_us=FIRST_US + DAY_US)
    with Store.open(tmp_path / "s.db") as later:
        report = sinks.export_partitions(later, out, only_new=True)
        assert (report.written, report.unchanged, len(held(out, "traces"))) == ((), 4, 13)
        sinks.export_partitions(later, out)
        assert len(held(out, "traces")) == 9
        assert not list(out.rglob("date=2026-01-01/*"))


@pytest.mark.parametrize("by", ["month", "bucket"])
def test_other_partitions(store, tmp_path, by):
    buckets = {md5(row.task.encode(), usedforsecurity=False).hexdigest()[0] for row in store.traces()}
    count = {"month": 2, "bucket": len(buckets)}[by]
    report = sinks.export_partitions(store, tmp_path / "out", by=by)
    assert len(held(tmp_path / "out", "traces", by)) == 13
    assert len(report.written) == count
    with pytest.raises(UserError, match="which has them by"):
        sinks.export_partitions(store, tmp_path / "out", by="date")
    with pytest.raises(UserError, match="one of date, month, bucket"):
        sinks.export_partitions(store, tmp_path / "other", by="year")


def test_scores_and_branches_without_a_trace_have_a_place(store, tmp_path):
    from counterplay.core.store.rows import ScoreRow

    store.put_scores([ScoreRow(key="0" * 32, verifier="v", version="1", value=0.5, reason="", error=None)])
    out = tmp_path / "out"
    sinks.export_partitions(store, out)
    assert [file.parent.name for file in (out / "scores").glob("*/*.parquet")] == ["date=__HIVE_DEFAULT_PARTITION__"]
    store.put_scores([ScoreRow(key="0" * 32, verifier="v", version="1", value=0.7, reason="", error=None)])
    assert sinks.export_partitions(store, out, only_new=True).written == ("__HIVE_DEFAULT_PARTITION__",)


def test_partitions_go_to_an_object_store_and_the_manifest_names_what_is_whole(store, bucket):
    fail = [True]

    def fault(method, path, _range):
        return "403:AccessDenied" if fail[0] and method in ("PUT", "POST") and "date=2026-01-03" in path.replace("%3D", "=") else None

    with faulty(bucket.endpoint, fault) as (proxy, _):
        with pytest.raises(SourceError, match="no access to"):
            sinks.export_partitions(store, bucket.uri("lake", proxy))
        told = json.loads(bucket.get("lake/_manifest.json"))
        assert told == {"by": "date", "partitions": {}}
        fail[0] = False
        report = sinks.export_partitions(store, bucket.uri("lake", proxy))
    told = json.loads(bucket.get("lake/_manifest.json"))
    named = {file for part in told["partitions"].values() for file in part["files"]}
    assert {f"lake/{file}" for file in named} | {"lake/_manifest.json"} == {*bucket.keys("lake/")}
    assert len(report.written) == 4
    again = sinks.export_partitions(store, bucket.uri("lake"), only_new=True)
    assert (again.written, again.unchanged) == ((), 4)


def dataset(folder, **texts):
    for name, text in texts.items():
        file = folder / name.replace("__", "/").replace("_json", ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_a_dataset_is_complete_once_it_has_a_manifest(bucket, tmp_path):
    folder = dataset(tmp_path / "d", train="1" * 100, data__test="2", counterplay_json="{}")
    away = ["counterplay.json"]

    def fault(method, path, _range):
        return "403:AccessDenied" if method in ("PUT", "POST") and away and path.partition("?")[0].endswith(away[0]) else None

    with faulty(bucket.endpoint, fault) as (proxy, seen):
        with pytest.raises(SourceError, match=r"no access to s3://.*/counterplay.json"):
            sinks.publish(folder, bucket.uri("set", proxy))
        assert {*bucket.keys("set/")} == {"set/train", "set/data/test", "set/_sending.json"}
        away.clear()
        seen.clear()
        report = sinks.publish(folder, bucket.uri("set", proxy))
        assert (report.files, report.sent) == (3, 1)
        sent = [path.partition("?")[0].rpartition("/")[2] for method, path, _ in seen if method == "PUT"]
        assert [name for name in sent if name and not name.startswith("_")] == ["counterplay.json"], "what was there is not sent again"
        assert [name for name in sent if name][-1] == "_manifest.json"
    assert {*bucket.keys("set/")} == {"set/train", "set/data/test", "set/counterplay.json", "set/_manifest.json"}
    assert bucket.get("set/train") == b"1" * 100
    assert sinks.publish(folder, bucket.uri("set")).sent == 0


def test_a_newer_dataset_replaces_what_changed_and_removes_what_is_no_more(bucket, tmp_path):
    sinks.publish(dataset(tmp_path / "1", a="1", b="2", c="3"), bucket.uri("set"))
    seen_without = []

    def fault(method, path, _range):
        if method == "PUT" and path.partition("?")[0].endswith("/b"):
            seen_without.append("set/_manifest.json" in bucket.keys("set/"))

    with faulty(bucket.endpoint, fault) as (proxy, _):
        report = sinks.publish(dataset(tmp_path / "2", a="1", b="two"), bucket.uri("set", proxy))
    assert (report.files, report.sent, report.bytes) == (2, 1, 3)
    assert seen_without == [False], "no manifest while it is half of each"
    assert {*bucket.keys("set/")} == {"set/a", "set/b", "set/_manifest.json"}
    assert bucket.get("set/b") == b"two"


def test_a_large_file_goes_in_parts_and_a_failing_part_leaves_nothing_that_looks_whole(bucket, tmp_path):
    (tmp_path / "d").mkdir()
    data = bytes(range(256)) * (25 << 12)
    (tmp_path / "d/big").write_bytes(data)
    fail = [True]

    def fault(method, path, _range):
        return "403:AccessDenied" if fail[0] and method == "PUT" and "partNumber=2" in path else None

    with faulty(bucket.endpoint, fault) as (proxy, seen):
        with pytest.raises(SourceError):
            sinks.publish(tmp_path / "d", bucket.uri("set", proxy))
        assert {*bucket.keys("set/")} == {"set/_sending.json"}
        fail[0] = False
        sinks.publish(tmp_path / "d", bucket.uri("set", proxy))
        assert len({path for _, path, _ in seen if "partNumber=" in path}) >= 2
    assert bucket.get("set/big") == data


def test_a_folder_is_a_sink_too(tmp_path):
    folder = dataset(tmp_path / "d", a="1", data__b="2")
    target = tmp_path / "t"
    assert sinks.publish(folder, target).sent == 2
    assert {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()} == {"a", "data/b", "_manifest.json"}
    assert json.loads((target / "_manifest.json").read_text())["files"]["a"]["bytes"] == 1
    before = (target / "a").stat().st_mtime_ns
    time.sleep(0.01)
    (folder / "data/b").write_text("3")
    assert sinks.publish(folder, target).sent == 1
    assert (target / "a").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds no files"):
        sinks.publish(tmp_path / "none", target)
    with pytest.raises(UserError, match="a folder, or s3://"):
        sinks.publish(folder, "ftp://host/x")


def test_what_lands_is_published_only_where_the_block_ends_well(bucket, tmp_path):
    landed = sinks.landing(bucket.uri("set"), beside=tmp_path / "s.db")
    dataset(landed.__enter__(), a="1")
    error = ZeroDivisionError()
    assert not landed.__exit__(ZeroDivisionError, error, None)
    assert bucket.keys("set/") == []
    with sinks.landing(bucket.uri("set"), beside=tmp_path / "s.db") as folder:
        dataset(folder, a="1")
    assert bucket.keys("set/") == ["set/_manifest.json", "set/a"]
    assert list(tmp_path.iterdir()) == []
    with sinks.landing(tmp_path / "x", beside=tmp_path / "s.db") as folder:
        assert folder == tmp_path / "x"


def test_exports_of_the_command_line_go_to_an_object_store(cli, bucket, store, tmp_path):
    store.close()
    path = tmp_path / "s.db"
    shown = cli("export", "sft", "--out", bucket.uri("sft"), "--source", "logged", "--store", path, "--json").json
    assert shown["folder"] == f"s3://{bucket.name}/sft"
    assert "sft/_manifest.json" in bucket.keys("sft/")
    assert "sft/counterplay.json" in bucket.keys("sft/")
    rows = cli("export", "parquet", "--out", bucket.uri("tables"), "--store", path, "--json").json
    assert rows["traces.parquet"] == 13
    assert "tables/traces.parquet" in bucket.keys("tables/")
    report = cli("export", "parquet", "--out", bucket.uri("lake"), "--by", "date", "--only-new", "--store", path, "--json").json
    assert len(report["written"]) == 4


@pytest.mark.parametrize("there", ["../mine.txt", "{tmp}/mine.txt", "sub/../../mine.txt"])
def test_a_manifest_that_somebody_else_wrote_removes_nothing_outside_its_folder(store, tmp_path, there):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    named, target = there.format(tmp=tmp_path), tmp_path / "out"
    target.mkdir()
    (target / sinks.MANIFEST).write_text(json.dumps({"files": {named: {"bytes": 4, "blake2b": "0"}, "old.txt": {}}}))
    (target / "old.txt").write_text("old")
    sinks.publish(dataset(tmp_path / "data", train="a"), target)
    assert (mine.exists(), (target / "old.txt").exists()) == (True, False)
    (target / sinks.MANIFEST).write_text(json.dumps({"by": "date", "partitions": {"date=1": {"digest": "0", "files": [named]}}}))
    sinks.export_partitions(store, target)
    assert mine.exists()
