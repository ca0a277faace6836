"""The same hostile input for every connector: each row of it is named or refused, and the good ones beside it come out as before."""

import asyncio
import gzip
import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.fuzz import tells
from bench.fuzzing.checks import Reader, check
from bench.fuzzing.mutations import spots
from bench.fuzzing.samples import by_connector, hand_made, rendered
from counterplay.connectors import strict
from counterplay.connectors.base import CONNECTORS, detect, ingest_items
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected
from counterplay.core.store import Store

SAMPLES = [sample for sample in hand_made() if sample.connector != "langgraph" or find_spec("ormsgpack")]
TEXTS = [sample for sample in SAMPLES if sample.kind in ("lines", "document")]
LINES = [sample for sample in SAMPLES if sample.kind == "lines"]
BAD_LINES = {
    "a key twice": (b'{"id": 1, "id": 2}', "stands twice"),
    "a key twice, a colon apart": (b'{"id" : 1,"id":2}', "stands twice"),
    "not UTF-8": (b'{"id": "\xff\xfe"}', "not UTF-8"),
    "half a surrogate in UTF-8": (b'{"id": "\xed\xa0\x80"}', "not UTF-8"),
    "NaN": (b'{"id": NaN}', "NaN"),
    "infinity": (b'{"id": -Infinity}', "Infinity"),
    "a float too large": (b'{"id": 1e999}', "too large"),
    "an integer of 100,000 digits": (b'{"id": ' + b"9" * 100_000 + b"}", "digits"),
    "100,000 levels": (b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "NUL bytes": (b"\0" * 64, "not JSON"),
    "cut short": (b'{"id": [1, {"a"', "not JSON"),
    "a number": (b"17", ""),
}
DEEP = "[" * 100_000
HOSTILE = [
    DEEP,
    "[{'a': " * 20_000,
    "(" * 5000 + ")" * 5000,
    "Foo(a=" * 3000,
    '{"a":' * 300 + "1" + "}" * 300,
    "\ud800",
    "a\0b",
    "12345678901234567890",
    "9" * 5000,
    "1000000000-01-01T00:00:00Z",
    "NaN",
    1.8446744073709552e19,
    2**64,
    10**4000,
    -1,
    3.2e16,
    1e308,
    5e-324,
    [],
    {},
    [[]],
    [None],
    {"\ud800": "\udfff", "": None, "a": {}},
    None,
    True,
    json.loads("[" * 300 + "]" * 300),
]
PLACES = 50
PARENTS = {
    "parent_run_id": "id", "parentObservationId": "id", "parent_id": "id", "parentSpanId": "spanId", "parent_span_id": "span_id",
    "parentUuid": "uuid", "parent_checkpoint_id": "checkpoint_id", "cause": "id",
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """What comes out of a file, each item checked; None where it is refused."""
    reader = Reader(tmp_path / "log")

    def go(connector, data):
        items = reader.read(CONNECTORS[connector], data)
        check(items or ())
        return items

    yield go
    reader.close()


def ids(items):
    return sorted(item.id for item in items if isinstance(item, Trace))


def named(sample):
    return f"{sample.connector}/{sample.name}"


def changed(value, number, new):
    """A copy with something else in the place of that number."""
    copy = [json.loads(json.dumps(value))]
    holder, key = spots(copy)[number]
    holder[key] = new
    return copy[0]


def test_every_connector_is_here():
    assert {sample.connector for sample in hand_made()} == set(CONNECTORS)


@pytest.mark.parametrize("sample", SAMPLES, ids=named)
def test_the_samples_are_what_they_should_be(sample, read, tmp_path):
    data = rendered(sample.kind, sample.value)
    (tmp_path / "sample").write_bytes(data)
    assert detect(tmp_path / "sample").name == sample.connector
    items = read(sample.connector, data)
    assert any(isinstance(item, Trace) for item in items)


@pytest.mark.parametrize("sample", TEXTS, ids=named)
def test_a_byte_order_mark_windows_lines_and_gzip_change_nothing(sample, read):
    data = rendered(sample.kind, sample.value, indent=1 if sample.kind == "document" else None)
    plain = read(sample.connector, data)
    for wrapped in (b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), gzip.compress(data), data.rstrip(b"\n")):
        assert ids(read(sample.connector, wrapped)) == ids(plain)


@pytest.mark.parametrize("sample", TEXTS, ids=named)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused_or_named(sample, encoding, read):
    items = read(sample.connector, rendered(sample.kind, sample.value).decode().encode(encoding))
    assert items is None or (items and all(isinstance(item, Rejected) for item in items))


@pytest.mark.parametrize("sample", LINES, ids=named)
@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_named_and_costs_nothing_else(sample, bad, read):
    line, reason = BAD_LINES[bad]
    rows = rendered("lines", sample.value).splitlines()
    at = max(1, len(rows) // 2)
    items = read(sample.connector, b"\n".join([*rows[:at], line, *rows[at:], b""]))
    told = [item for item in items if isinstance(item, Rejected) and item.line == at + 1]
    assert len(told) == 1
    assert reason in told[0].reason
    assert told[0].raw
    assert ids(items) == ids(read(sample.connector, b"\n".join([*rows, b""])))


@pytest.mark.parametrize("sample", SAMPLES, ids=named)
def test_hostile_values_in_every_place(sample, read):
    """Place after place holds one of the values, each place another one; something always comes out."""
    if sample.kind == "bytes":
        pytest.skip("it has no places")
    count = len(spots([sample.value]))
    for number in range(sample.kind == "lines", count, max(1, count // PLACES)):
        value = changed(sample.value, number, HOSTILE[number * 7 % len(HOSTILE)])
        try:
            data = rendered(sample.kind, value)
        except (ValueError, OverflowError, RecursionError):  # this kind of file can't hold it
            continue
        items = read(sample.connector, data)
        assert items is None or items or not tells(sample.connector, data), number


@pytest.mark.parametrize("sample", SAMPLES, ids=named)
def test_parents_in_a_circle_and_parents_of_themselves(sample, read):
    for step in (0, 1):
        value = json.loads(json.dumps(sample.value)) if sample.kind != "bytes" else {}
        children = [
            (holder[key], parent, own)
            for holder, key in spots([value])
            if isinstance(holder[key], dict)
            for parent, own in PARENTS.items()
            if parent in holder[key] and own in holder[key]
        ]
        if not children:
            pytest.skip("nothing in it has a parent")
        for number, (child, parent, _own) in enumerate(children):
            after, _, its = children[(number + step) % len(children)]
            child[parent] = after[its]
        assert read(sample.connector, rendered(sample.kind, value))


@pytest.mark.parametrize("name", [name for name, _ in by_connector(LINES)])
def test_a_line_of_too_many_parts_is_named(name, read, monkeypatch):
    monkeypatch.setattr(strict, "MAX_PARTS", 5000)
    (sample, *_) = (sample for sample in LINES if sample.connector == name)
    rows = rendered("lines", sample.value).splitlines()
    items = read(name, b"\n".join([*rows, b'{"id": [' + b"[]," * 4000 + b"[]]}", b""]))
    assert [item.reason for item in items if isinstance(item, Rejected) and item.line == len(rows) + 1] == [
        "more than 5000 commas and brackets in one record, wanted several smaller ones"
    ]


def stored(folder):
    """The ids of the traces and the files of the quarantine that a folder leaves in a store."""

    async def go():
        return [item async for item in ingest_items(folder)]

    with Store.open(":memory:") as store:
        items = asyncio.run(go())
        store.ingest(items)
        assert store.verify() == []
        return sorted(row.id for row in store.traces()), {Path(item.uri).name for item in items if isinstance(item, Rejected)}


def test_of_a_folder_all_is_stored_but_the_hostile_files_which_are_named(tmp_path):
    good = tmp_path / "good"
    for sample in SAMPLES:
        file = good / sample.connector / sample.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(rendered(sample.kind, sample.value))
    ids_alone, rejected_alone = stored(tmp_path)
    record = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    hostile = {
        "utf-16": record.decode().encode("utf-16"),
        "cut.gz": gzip.compress(record * 90)[:40],
        "pickle": pickle.dumps({"messages": []}),
        "database": b"SQLite format 3\0" + bytes(4000),
        "archive": b"PK\x03\x04" + bytes(100),
        "parquet": b"PAR1" + bytes(64) + b"PAR1",
        "nul": bytes(5000),
        "unknown": b'{"colour": "blue"}\n',
        **{f"line {number}.jsonl": record + line + b"\n" for number, (line, _) in enumerate(BAD_LINES.values())},
    }
    bad = tmp_path / "bad"
    bad.mkdir()
    for name, data in hostile.items():
        (bad / name).write_bytes(data)
    ids_now, rejected_now = stored(tmp_path)
    assert rejected_now - rejected_alone == set(hostile)
    assert len(set(ids_now) - set(ids_alone)) == 1  # the one good record of the files with a bad line
    assert set(ids_alone) <= set(ids_now)
