"""Object stores as sources: a real S3 API on loopback, and a server before it that fails as networks do."""

import gzip
import io
import json
import logging
import pickle
import random
import socket
from collections import Counter

import pytest
import zstandard

from counterplay import incremental, loop, object_paths, objects, reading
from counterplay.core.errors import SourceError, UserError
from counterplay.core.store import Store
from counterplay.objects import Entry, Location, location_of
from tests.front.object_server import Bucket, faulty, serving_objects

SECRET = "sekrit-of-the-test"


@pytest.fixture(scope="module")
def endpoint():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serving_objects() as found:
        yield found


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(incremental, "_OBJECT_TICK_US", -(10**12))  # what a test has just written counts as settled
    monkeypatch.setattr(objects, "WAIT_S", 0.001)


@pytest.fixture
def bucket(endpoint, request):
    found = Bucket(endpoint, f"logs-{abs(hash(request.node.name)) % 10**9}")
    yield found
    found.close()


@pytest.fixture
def store():
    with Store.open(":memory:") as found:
        yield found


def run(name, *, steps=1, answer="ok"):
    messages = [{"role": "user", "content": f"do {name}"}]
    for step in range(steps):
        messages += [{"role": "assistant", "content": f"{answer} {step}"}, {"role": "user", "content": "go on"}]
    return (json.dumps({"messages": messages[:-1], "task": name, "id": name}) + "\n").encode()


@pytest.fixture
def small_pieces(monkeypatch):
    """Objects come in pieces as those of some hundred megabytes do."""
    monkeypatch.setattr(object_paths, "_SMALL_BYTES", 1 << 15)
    monkeypatch.setattr(object_paths, "_FIRST_BYTES", 1 << 18)
    monkeypatch.setattr(object_paths, "_PIECE_BYTES", 1 << 18)


def large(count, seed=0):
    """Runs of four kilobytes that do not compress."""
    draws = random.Random(seed)
    return b"".join(run(f"{seed}-{i}", answer=draws.randbytes(2000).hex()) for i in range(count))


def tasks(store):
    return sorted(row.task for row in store.traces())


def test_every_form_of_a_line_log_is_read_from_keys_with_spaces_and_letters(bucket, store):
    forms = {
        "plain.jsonl": run("plain"),
        "z ü+&%20=1/a b.gz": gzip.compress(run("zipped")),
        "日本.zst": zstandard.compress(run("standard")),
    }
    for key, data in forms.items():
        bucket.put(f"a prefix/{key}", data)
    bucket.put("a prefix/_SUCCESS", b"")
    bucket.put("a prefix/_temporary/half.jsonl", b"{")
    bucket.put("other/x.jsonl", run("other"))
    report = loop.ingest([bucket.uri("a prefix/")], store)
    assert (report.traces_added, report.rejected_added, report.tasks) == (3, 0, 3)
    assert sorted(row.uri for row in store.traces()) == sorted(f"s3://{bucket.name}/a prefix/{key}" for key in forms)
    assert tasks(store) == ["plain", "standard", "zipped"]


def test_an_object_store_gives_what_a_folder_of_the_same_files_gives(bucket, tmp_path):
    files = {
        f"day={day}/part-{part}.jsonl": b"".join(run(f"{day}{part}{i}") for i in range(3)) + b"{bad\n" for day in "ab" for part in "12"
    }
    for name, data in files.items():
        bucket.put(f"logs/{name}", data)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with Store.open(":memory:") as one, Store.open(":memory:") as other:
        far, near = loop.ingest([bucket.uri("logs")], one), loop.ingest([tmp_path], other)
        assert far == near
        assert [(trace.id, trace.trajectory, trace.source.line) for trace in one.load()] == [
            (trace.id, trace.trajectory, trace.source.line) for trace in other.load()
        ]
        assert [(r.line, r.byte_offset, r.reason) for r in one.rejected()] == [(r.line, r.byte_offset, r.reason) for r in other.rejected()]
        assert {r.uri.partition("/logs/")[2] for r in one.rejected()} == {*files}
        assert one.rejected()[0].uri.startswith(f"s3://{bucket.name}/logs/")


def test_more_objects_than_a_page_are_listed(bucket, store):
    from moto.s3.models import s3_backends

    kept = next(iter(s3_backends["123456789012"].values()))
    for number in range(1003):
        kept.put_object(bucket.name, f"many/{number:05}.jsonl", b"\n")
    (files,) = incremental.Tree(location_of(bucket.uri("many")), together="partition")._groups()
    assert [file.uri for file in files] == [f"s3://{bucket.name}/many/{number:05}.jsonl" for number in range(1003)]


def test_only_what_is_new_or_changed_is_fetched(bucket, store):
    for number in range(3):
        bucket.put(f"in/{number}.jsonl", run(f"t{number}"))
    with faulty(bucket.endpoint, lambda *_: None) as (proxy, seen):
        uri = bucket.uri("in/", proxy)
        assert loop.ingest([uri], store).traces_added == 3
        seen.clear()
        report = loop.ingest([uri], store)
        assert (report.files_unchanged, report.traces_known) == (3, 0)
        assert not [path for _, path, _ in seen if path.endswith(".jsonl")]
        bucket.put("in/1.jsonl", run("t1", steps=2))
        bucket.put("in/new.jsonl", run("new"))
        bucket.delete("in/0.jsonl")
        report = loop.ingest([uri], store)
        assert (report.files_unchanged, report.traces_added) == (1, 2)
        assert {path.rpartition("/")[2] for _, path, _ in seen if path.endswith(".jsonl")} == {"1.jsonl", "new.jsonl"}
        assert loop.ingest([uri], store, again=True).traces_known == 3


def test_one_object_is_read_by_name(bucket, store):
    bucket.put("x/one.jsonl", run("one"))
    bucket.put("x/two.jsonl", run("two"))
    assert loop.ingest([bucket.uri("x/one.jsonl")], store).traces_added == 1
    assert tasks(store) == ["one"]
    bucket.put("x/strange.bin", b"\0\1\2" * 40)
    with pytest.raises(SourceError, match="binary file of no known kind"):
        loop.ingest([bucket.uri("x/strange.bin")], store)


def test_a_server_that_dies_in_the_middle_of_reads_costs_requests_not_traces(bucket, store, small_pieces):
    bucket.put("in/big.jsonl", large(400))
    bucket.put("in/small.jsonl", run("small"))
    tries = Counter()

    def fault(method, path, asked):
        """Every request for content fails twice, each time in another way."""
        if method != "GET" or not path.endswith(".jsonl"):
            return None
        tries[path, asked] += 1
        return ("cut", "reset", "503:SlowDown")[len(tries) % 3] if tries[path, asked] <= 2 else None

    with faulty(bucket.endpoint, fault) as (proxy, _):
        report = loop.ingest([bucket.uri("in", proxy)], store, processes=0)
    assert (report.traces_added, report.rejected_added) == (401, 0)
    assert len([asked for path, asked in tries if path.endswith("big.jsonl")]) >= 5, "in pieces"
    assert {*tries.values()} == {3}, "what had come was not asked for again"


def test_a_process_of_its_own_reads_a_large_object(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_LARGE_BYTES", 1 << 20)
    (tmp_path / "big.jsonl").write_bytes(data := large(600))
    bucket.put("in/big.jsonl", data)
    with Store.open(":memory:") as one, Store.open(":memory:") as other:
        assert loop.ingest([bucket.uri("in")], one).traces_added == 600
        loop.ingest([tmp_path], other, processes=0)
        assert [row.id for row in one.traces()] == [row.id for row in other.traces()]


def test_a_server_that_stays_away_is_named_and_the_rest_is_stored(bucket, store):
    bucket.put("in/a.jsonl", run("a"))
    bucket.put("in/b.jsonl", run("b"))
    away = [True]

    def fault(method, path, _range):
        return "500:InternalError" if away[0] and method == "GET" and path.endswith("b.jsonl") else None

    with faulty(bucket.endpoint, fault) as (proxy, _):
        with pytest.raises(SourceError, match=r"in/b.jsonl was not read to its end.*What was read is stored") as told:
            loop.ingest([bucket.uri("in", proxy)], store)
        assert SECRET not in str(told.value)
        assert "sekrit" not in str(told.value)
        assert (tasks(store), store.rejected()) == (["a"], [])
        away[0] = False
        report = loop.ingest([bucket.uri("in", proxy)], store)
        assert (report.traces_added, report.files_unchanged) == (1, 1)


def test_an_object_of_which_only_a_beginning_came_is_read_again_whole(bucket, store, small_pieces):
    bucket.put("in/big.jsonl", large(200))
    bucket.put("in/small.jsonl", run("small"))
    away = [True]

    def fault(method, path, asked):
        return "500:InternalError" if away[0] and path.endswith("big.jsonl") and method == "GET" and "bytes=0-" not in asked else None

    with faulty(bucket.endpoint, fault) as (proxy, _):
        with pytest.raises(SourceError, match=r"big.jsonl was not read to its end: got an error of the server"):
            loop.ingest([bucket.uri("in", proxy)], store, processes=0, together="file")
        assert (0 < len(tasks(store)) < 201, store.rejected()) == (True, [])
        away[0] = False
        report = loop.ingest([bucket.uri("in", proxy)], store, processes=0, together="file")
    assert (len(tasks(store)), report.files_unchanged) == (201, 1)


def test_an_object_that_changes_while_it_is_read_is_read_again(bucket, store, small_pieces):
    first, second = large(400), large(400, seed=1)
    bucket.put("in/big.jsonl", first)
    changed = []

    def fault(method, path, asked):
        if not changed and method == "GET" and path.endswith("big.jsonl") and not asked.startswith("bytes=0-"):
            changed.append(asked)
            bucket.put("in/big.jsonl", second)

    with faulty(bucket.endpoint, fault) as (proxy, _):
        report = loop.ingest([bucket.uri("in", proxy)], store, processes=0)
    assert changed
    assert {f"1-{i}" for i in range(400)} <= {*tasks(store)}
    assert report.rejected_added == 0
    whole = {row["id"]: row for row in map(json.loads, (first + second).splitlines())}
    assert all(trace.trajectory.steps[0].action.content == whole[trace.task]["messages"][1]["content"] for trace in store.load())


def test_a_truncated_gzip_gives_what_is_whole_and_is_named(bucket, store):
    data = gzip.compress(b"".join(run(f"t{i}", answer=random.Random(i).randbytes(3000).hex()) for i in range(50)))
    bucket.put("in/cut.jsonl.gz", data[: len(data) // 2])
    packed = zstandard.compress(b"".join(run(f"z{i}", answer=random.Random(i).randbytes(200_000).hex()) for i in range(5)))
    bucket.put("in/cut.zst", packed[: len(packed) * 3 // 4])
    report = loop.ingest([bucket.uri("in")], store)
    assert 10 < report.traces_added < 50
    assert {(row.uri.rpartition("/")[2], "cut short or damaged" in row.reason) for row in store.rejected()} == {
        ("cut.jsonl.gz", True),
        ("cut.zst", True),
    }


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403:AccessDenied", "no access to"),
        ("403:InvalidAccessKeyId", "no access to"),
        ("403:SignatureDoesNotMatch", "no access to"),
        ("404:NoSuchBucket", "there is no bucket"),
        ("400:ExpiredToken", "expired credentials"),
    ],
)
def test_refusals_are_named_without_the_servers_words(bucket, store, fault, words):
    with faulty(bucket.endpoint, lambda *_: fault) as (proxy, _), pytest.raises(SourceError, match=words) as told:
        loop.ingest([bucket.uri("in/", proxy)], store)
    assert "sekrit" not in str(told.value)
    assert "AKIATEST" not in str(told.value)


def test_missing_things_are_named(bucket, store):
    with pytest.raises(SourceError, match="there is no bucket no-such-bucket"):
        loop.ingest([f"s3://no-such-bucket/in?endpoint={bucket.endpoint}"], store)
    with pytest.raises(SourceError, match="no object and no prefix"):
        loop.ingest([bucket.uri("nothing/here/")], store)


def test_no_credentials_and_no_network_are_named(bucket, store, monkeypatch):
    monkeypatch.setattr("counterplay.objects._TIMEOUT_S", 1.0)
    with faulty(bucket.endpoint, lambda *_: "403:AccessDenied") as (proxy, _):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(SourceError, match="no credentials in the environment"):
            loop.ingest([bucket.uri("in/", proxy) + "&anonymous=true"], store)


def test_a_server_that_is_not_there_is_named_with_what_to_set_and_soon_given_up(store, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    asked = []
    monkeypatch.setattr(objects.time, "sleep", asked.append)
    with pytest.raises(SourceError) as told:
        loop.ingest([f"s3://some-logs/in?endpoint=http://{nobody}"], store)
    assert (nobody in told.value.got, "bucket some-logs" in told.value.got, "AWS_ENDPOINT_URL_S3" in told.value.do) == (True, True, True)
    assert len(asked) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://me:{SECRET}@{nobody}")
    with pytest.raises(SourceError) as told:
        loop.ingest(["s3://some-logs/in"], store)
    assert (nobody in told.value.got, SECRET in str(told.value)) == (True, False)


def test_without_a_way_to_amazon_nobody_is_asked_for_a_region(store, monkeypatch):
    from pyarrow import fs

    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    def no_way(address, timeout):
        raise OSError(f"no way to {address} within {timeout}")

    monkeypatch.setattr(socket, "create_connection", no_way)
    monkeypatch.setattr(fs, "resolve_s3_region", lambda _: pytest.fail("asks again and again by itself"))
    with pytest.raises(SourceError, match=r"no answer from Amazon S3 .*bucket some-logs.*AWS_ENDPOINT_URL_S3"):
        loop.ingest(["s3://some-logs/in"], store)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{SECRET}@bucket/key",
        f"s3://bucket/key?secret_key={SECRET}",
        f"s3://bucket/key?X-Amz-Signature={SECRET}",
        f"s3://bucket/key?endpoint=http://me:{SECRET}@host",
        "s3://",
        "s3:///key",
    ],
)
def test_a_uri_with_secrets_or_without_a_bucket_is_refused_and_not_repeated(uri):
    with pytest.raises(UserError) as told:
        location_of(uri)
    assert SECRET not in str(told.value)


def test_a_question_mark_may_be_of_the_key():
    assert location_of("s3://b/is it?.jsonl") == Location("s3", "b/is it?.jsonl")
    found = location_of("S3://b/p/?region=eu-west-1&endpoint=http://h:1")
    assert (found.uri, dict(found.options)) == ("s3://b/p", {"region": "eu-west-1", "endpoint": "http://h:1"})


def test_the_endpoint_may_come_from_the_environment_and_nothing_of_it_is_stored(bucket, store, monkeypatch):
    bucket.put("in/a.jsonl", run("a") + b"{bad\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.endpoint)
    loop.ingest([f"s3://{bucket.name}/in"], store)
    assert store.traces()[0].uri == f"s3://{bucket.name}/in/a.jsonl"
    kept = str([*store.load(), *store.rejected(), store._records("SELECT * FROM watermark")])
    assert SECRET not in kept
    assert "127.0.0.1" not in kept


def test_memory_holds_some_pieces_of_an_object_and_the_beginnings_of_the_next(bucket):
    bucket.put("big", bytes(30 << 20))
    path = object_paths.in_order([object_paths.Remote(location_of(bucket.uri("big")), 30 << 20)])[0]
    with path.open("rb") as stream:
        stream.read(20 << 20)
        raw = stream.raw
        assert len(raw._data) <= 8 << 20
    assert path.stat().st_size == 30 << 20
    assert sum(size for size, _ in object_paths._KEPT._held.values()) <= 64 << 20


def test_a_path_of_an_object_is_a_path(bucket):
    bucket.put("f/a.jsonl", b"0123456789")
    remote = object_paths.Remote(location_of(bucket.uri("f/a.jsonl")), 10)
    path, other = object_paths.in_order([remote, remote])
    assert (str(path), path.name, path.suffix, path.is_file(), path.is_dir()) == (
        f"s3://{bucket.name}/f/a.jsonl",
        "a.jsonl",
        ".jsonl",
        True,
        False,
    )
    assert path == other == pickle.loads(pickle.dumps(path))
    assert len({path, other}) == 1
    assert not path.parent.exists()
    assert not path.with_name("b.jsonl").is_file()
    with pytest.raises(FileNotFoundError):
        path.with_name("b.jsonl").open("rb")
    with path.open("rb") as stream:
        assert (stream.seek(-3, io.SEEK_END), stream.read(), stream.seek(2), stream.read(3)) == (7, b"789", 2, b"234")


def test_databases_and_archives_are_read_from_objects(bucket, store, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": json.loads(run(f"p{i}"))["messages"], "id": f"p{i}", "task": f"p{i}"} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=100)
    bucket.put("tables/agent=support/date=2026-01-31/part 0.parquet", (tmp_path / "t.parquet").read_bytes())
    report = loop.ingest([bucket.uri("tables")], store)
    assert (report.traces_added, report.rejected_added) == (300, 0)
    assert {row.agent for row in store.traces()} == {"support"}


def test_partitions_are_read_one_by_one_and_the_rest_together(bucket):
    keys = ["a/x", "a/b/y", "2026/11/21/p", "2026/11/21/q", "svc/date=2026-01-01/r", "svc/date=2026-01-01/sub/s", "svc/t"]
    for key in keys:
        bucket.put(f"in/{key}", b"1")

    def groups(together):
        return sorted(sorted(file.uri.partition("/in/")[2] for file in group) for group in tree(together)._groups())

    def tree(together):
        return incremental.Tree(location_of(bucket.uri("in")), together=together)

    assert groups("all") == [sorted(keys)]
    wanted = [["2026/11/21/p", "2026/11/21/q"], ["a/b/y", "a/x", "svc/t"], ["svc/date=2026-01-01/r", "svc/date=2026-01-01/sub/s"]]
    assert groups("partition") == wanted


def test_an_object_written_a_moment_ago_is_read_once_more(monkeypatch):
    monkeypatch.setattr(incremental, "_OBJECT_TICK_US", 2_000_000)
    young = Entry(Location("s3", "b/k"), 5, 10**18)
    assert incremental._objects([young])[0].stamp == ""
    assert incremental._objects([Entry(Location("s3", "b/k"), 5, 1)])[0].stamp == "5 1"
