"""Reading files record by record: what is good comes out, what is not is named with its place, and nothing is held whole."""

import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.connectors import strict
from counterplay.connectors.base import lines, parse_line
from counterplay.connectors.facts import parse
from counterplay.connectors.lines import (
    Entry,
    Line,
    entries,
    entries_of,
    leading_objects,
    open_bytes,
    parse_json,
    quick_json,
    sample_of,
)
from counterplay.core.errors import SourceError
from counterplay.core.records import Rejected

GOOD = [{"n": i, "text": f"zeile {i} ä"} for i in range(5)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in GOOD).encode()


def put(tmp_path, data, name="log.jsonl"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def read(tmp_path, data, **options):
    found = list(entries(put(tmp_path, data), **options))
    return [x.value for x in found if isinstance(x, Entry)], [x for x in found if isinstance(x, Rejected)]


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT.rstrip(b"\n"),
        TEXT.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + TEXT,
        TEXT.replace(b"\n", b"\n\n  \n"),
        gzip.compress(TEXT),
        gzip.compress(TEXT[:40]) + gzip.compress(TEXT[40:]),
        json.dumps(GOOD).encode(),
        json.dumps(GOOD, indent=2).encode(),
        b"\xef\xbb\xbf" + json.dumps(GOOD, indent=2).encode(),
        gzip.compress(json.dumps(GOOD).encode()),
        "\n".join(json.dumps(row, indent=1) for row in GOOD).encode(),
        b"[\n" + b",\n".join(TEXT.splitlines()) + b"\n]\n",
    ],
    ids=[
        "plain",
        "no-eol",
        "crlf",
        "bom",
        "blanks",
        "gz",
        "gz-members",
        "array",
        "indented",
        "bom-indented",
        "gz-array",
        "concatenated",
        "line-array",
    ],
)
def test_every_container_gives_the_same_records(tmp_path, data):
    assert read(tmp_path, data) == (GOOD, [])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"n": 1', "not JSON"),
        (b"[1, 2]", "array, wanted an object"),
        (b"17", "number, wanted an object"),
        (b'{"n": 1, "n": 2}', "'n' stands twice"),
        (b'{"x": {"n": 1, "n": 2}}', "'n' stands twice"),
        (b'{"n": "\xff"}', "not UTF-8: byte 0xff at byte 7"),
        (b'{"n": NaN}', "NaN"),
        (b'{"n": 1e999}', "too large"),
        (b'{"n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "digits"),
        (b"\0\0\0\0", "not JSON"),
        (b'{"n": 1} trailing', "not JSON"),
    ],
)
def test_one_bad_line_among_good_ones_is_named_with_its_place(tmp_path, bad, reason):
    rows = TEXT.splitlines()
    data = b"\n".join([*rows[:2], bad, *rows[2:]])
    good, rejected = read(tmp_path, data)
    assert good == GOOD
    assert len(rejected) == 1
    assert reason in rejected[0].reason
    assert (rejected[0].line, rejected[0].byte_offset) == (3, data.index(b"\n" + bad + b"\n") + 1)
    assert rejected[0].uri.endswith("log.jsonl")
    assert rejected[0].raw


def test_offsets_find_the_lines(tmp_path):
    data = b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n\r\n")
    for line in lines(put(tmp_path, data)):
        assert isinstance(line, Line)
        assert data[line.offset : line.offset + len(line.data)] == line.data
        assert data[: line.offset].count(b"\n") == line.number - 1


def test_lone_surrogates_are_kept(tmp_path):
    assert read(tmp_path, b'{"n": "\\ud83d"}\n')[0] == [{"n": "\ud83d"}]


def test_a_line_over_the_limit_is_rejected_without_being_held(tmp_path):
    huge = b'{"n": "' + b"x" * 5_000_000 + b'"}'
    data = b"\n".join([TEXT.splitlines()[0], huge, TEXT.splitlines()[1]])
    good, rejected = read(tmp_path, data, max_bytes=1000)
    assert good == GOOD[:2]
    assert (rejected[0].line, rejected[0].byte_offset) == (2, data.index(huge))
    assert f"{len(huge) + 1} bytes" in rejected[0].reason
    assert len(rejected[0].raw) <= 400


def test_a_document_over_the_limit_is_rejected(tmp_path):
    good, rejected = read(tmp_path, json.dumps(GOOD, indent=1).encode(), max_bytes=50)
    assert good == []
    assert "JSON lines" in rejected[0].reason


@pytest.mark.parametrize("cut", [30, 100, 130])
def test_a_truncated_gzip_gives_its_good_lines_and_says_where_it_breaks(tmp_path, cut):
    noise = "".join(json.dumps({"n": i, "text": str(hash(str(i)) ** 3)}) + "\n" for i in range(2000)).encode()
    data = gzip.compress(noise)
    good, rejected = read(tmp_path, data[: len(data) * cut // 150])
    assert 0 < len(good) < 2000
    assert [row["n"] for row in good] == list(range(len(good)))
    assert rejected[-1].line == len(good) + 1
    assert "cut short" in rejected[-1].reason


def test_a_truncated_plain_file_gives_its_good_lines(tmp_path):
    good, rejected = read(tmp_path, TEXT[:-10])
    assert good == GOOD[:-1]
    assert rejected[0].line == 5


def test_a_damaged_array_gives_the_elements_that_are_whole(tmp_path):
    text = json.dumps(GOOD)
    good, rejected = read(tmp_path, text[: text.index('{"n": 3') + 5].encode())
    assert good == GOOD[:3]
    assert [("not JSON" in row.reason, "torn off" in row.reason) for row in rejected] == [(True, True)]
    good, rejected = read(tmp_path, b'[{"n": 1}, {"n": NaN}')
    assert ["torn off" in row.reason or "closing bracket" in row.reason for row in rejected] == [False, True]
    bad = text.replace('"n": 2', '"n": NaN').encode()
    good, rejected = read(tmp_path, bad)
    assert good == [*GOOD[:2], *GOOD[3:]]
    assert [row.byte_offset for row in rejected] == [bad.index(b'{"n": NaN')]
    bad = text.encode().replace(b"zeile 2 ", b"zeile \xff ")
    good, rejected = read(tmp_path, bad)
    assert good == [*GOOD[:2], *GOOD[3:]]
    assert "0xff" in rejected[0].reason


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_that_is_cut_off_is_one_loss_for_each_file(tmp_path, indent):
    whole = json.dumps([{"a": i, "text": "x" * 20, "parts": [{}, {}]} for i in range(3)], indent=indent)
    last = whole.rindex('{"a"' if indent is None else '{\n  "a"')
    for cut in range(last + 1, len(whole) - 2):
        path = tmp_path / "cut.json"
        path.write_text(whole[:cut])
        found = list(entries(path))
        rejected = [row for row in found if isinstance(row, Rejected)]
        assert len(rejected) == 1, whole[last:cut]
        assert len(found) == 3, "the two whole records are given out"
        assert "at at" not in rejected[0].reason
    path.write_text(whole[: last - 2])
    assert ["closing bracket" in row.reason for row in entries(path) if isinstance(row, Rejected)] == [True]


def test_offsets_in_a_document_count_bytes_not_characters(tmp_path):
    rows = [{"text": "ääää"}, 5, {"text": "ü"}]
    data = b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False, indent=1).encode()
    found = list(entries(put(tmp_path, data)))
    assert [(x.byte_offset if isinstance(x, Rejected) else x.offset) for x in found] == [
        data.index(b'{\n  "text": "\xc3\xa4'),
        data.index(b"5"),
        data.index(b'{\n  "text": "\xc3\xbc'),
    ]


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\0\0\0", b"SQLite format 3\0" + bytes(100), gzip.compress(bytes(1000)), TEXT.decode().encode("utf-16")]
)
def test_a_binary_file_is_a_source_error_that_names_it(tmp_path, data):
    with pytest.raises(SourceError, match=r"log\.jsonl.*(binary|UTF-16)"):
        read(tmp_path, data)


def test_what_can_not_be_opened_is_a_source_error(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "nul\0byte"):
        with pytest.raises(SourceError):
            list(lines(path))


def test_one_unreadable_file_of_several_is_a_rejection(tmp_path):
    paths = [put(tmp_path, TEXT, "a"), put(tmp_path, bytes(100), "b"), tmp_path / "none", put(tmp_path, TEXT, "c")]
    found = list(entries_of(paths))
    assert sum(isinstance(x, Entry) for x in found) == 10
    assert [x.uri for x in found if isinstance(x, Rejected)] == [str(paths[1]), str(paths[2])]


def test_empty_and_blank_files_hold_nothing(tmp_path):
    for data in (b"", b"\n\n", b"\xef\xbb\xbf", gzip.compress(b"")):
        assert read(tmp_path, data) == ([], [])


@pytest.mark.parametrize("size", range(1, 200, 7))
def test_the_beginning_of_a_record_shows_its_structure(size):
    text = json.dumps({"a": 1, "b": {"c": ["x,]}", {"d": 'say "hi", \\'}], "e": None}, "f": "ü" * 50}).encode()
    (found,) = leading_objects(text[:size])
    whole = json.loads(text)
    assert list(found) == list(whole)[: len(found)]
    assert all(found[key] == whole[key] for key in found if key != "b")
    assert set(found.get("b", {})) <= set(whole["b"])
    assert leading_objects(text) == [whole]


def test_samples_are_uncompressed_and_bounded(tmp_path):
    assert sample_of(put(tmp_path, gzip.compress(b"\xef\xbb\xbf" + TEXT * 1000)), 100) == TEXT[:97]


def test_parse_line_is_the_same_for_lines_by_hand(tmp_path):
    path = tmp_path / "x"
    assert parse_line(path, Line(7, 99, b'{"a": 1}')).value == {"a": 1}
    assert parse_line(path, Line(7, 99, b"{")).byte_offset == 99


@pytest.mark.parametrize(
    "data",
    [b'{"a" :1,"a":2}', b'{"a"\t:1,"a":2}', b'{"a"\n:1,"a":2}', b'{"b":{"a":1,"a" :2}}', b'{"\\u0061":1,"a":2}', b'{"a\\"":1,"a\\"":2}'],
)
def test_a_key_twice_is_seen_however_it_is_spelled(data):
    for reader in (quick_json, parse_json):
        with pytest.raises(ValueError, match="stands twice"):
            reader(data)


def spelled_and_read(parse, data):
    try:
        return repr(parse(data))
    except ValueError as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"{", b"}", b"[", b"]", b":", b",", b" ", b'"a"', b'"a\\"', b'"\\":"', b'"', b"\\", b"1", b"-0", b"1e400", b"1.0"])
        | st.sampled_from(
            [b"18446744073709551616", b"-9223372036854775809", b"9007199254740993", b"null", b'"\\ud800"', b'"\xc3\xa4"', b"\xff"]
        ),
        max_size=14,
    )
)
def test_quick_and_strict_reading_agree(parts):
    for data in (b"".join(parts), b'{"a":1,' + b"".join(parts) + b"}", b'{"a":[' + b"".join(parts) + b"]}"):
        assert spelled_and_read(quick_json, data) == spelled_and_read(parse_json, data)


def test_records_of_too_many_parts_are_refused_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(strict, "MAX_PARTS", 1000)
    dense = b'{"n": [' + b"[]," * 1000 + b"[]]}"
    text = json.dumps({"n": json.dumps([[]] * 1000)}).encode()  # JSON in a text counts: it will be parsed
    good, rejected = read(tmp_path, b"\n".join([TEXT.splitlines()[0], dense, text, TEXT.splitlines()[1]]))
    assert good == GOOD[:2]
    assert [row.line for row in rejected] == [2, 3]
    assert all("1000 commas and brackets" in row.reason for row in rejected)
    good, rejected = read(tmp_path, b"[\n" + b",\n".join([TEXT.splitlines()[0], dense, TEXT.splitlines()[1]]) + b"\n]")
    assert good == GOOD[:2]
    assert len(rejected) == 1
    with pytest.raises(ValueError, match="commas and brackets"):
        parse("[" + "[]," * 1000 + "[]]")
    assert read(tmp_path, json.dumps(GOOD * 300).encode()) == (GOOD * 300, [])  # many small records are none


MEASURED = """
import resource, sys
from pathlib import Path
from counterplay.connectors.lines import Entry, entries
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = list(entries(Path(sys.argv[1]), max_bytes=int(sys.argv[2])))
taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
print(sum(isinstance(row, Entry) for row in found), [row.reason for row in found if not isinstance(row, Entry)], taken >> 10)
"""


def measured(path, max_bytes=1 << 20):
    """How many good records a process of its own finds, what it rejects and how many MB it needs for that."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path), str(max_bytes)], capture_output=True, text=True, check=True)
    good, rest = done.stdout.split(" ", 1)
    reasons, taken = rest.rsplit(" ", 1)
    return int(good), reasons, int(taken)


@pytest.mark.parametrize("size", [1 << 30, 1 << 24])
def test_a_line_of_a_gigabyte_takes_no_memory(tmp_path, size):
    path = put(tmp_path, TEXT)
    with path.open("r+b") as file:
        file.seek(len(TEXT) + size)  # a hole: the file takes no room
        file.write(b"\n" + TEXT)
    good, reasons, taken = measured(path)
    assert good == 10
    assert f"a line of {size + 1} bytes, wanted at most {1 << 20}" in reasons
    assert taken < 40


@pytest.mark.parametrize("kind", ["one line", "one document", "many parts"])
def test_a_gzip_bomb_is_named_and_takes_no_memory(tmp_path, kind):
    """A file of some hundred kilobytes that unpacks to a thousand times as much."""
    piece = b"[]," * (1 << 18) if kind == "many parts" else b"x" * (1 << 20)
    path = tmp_path / "bomb"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(TEXT if kind != "one document" else b'[\n{"n": "')
        file.write(b'{"n": [' if kind == "many parts" else b'{"n": "')
        for _ in range(60 if kind == "many parts" else 200):
            file.write(piece)
        file.write(b"[]]}\n" if kind == "many parts" else b'"}\n')
        file.write(TEXT if kind != "one document" else b"]")
    assert path.stat().st_size < 2 << 20
    good, reasons, taken = measured(path, (256 if kind == "many parts" else 8) << 20)
    assert good == (0 if kind == "one document" else 10)
    assert {"one line": "a line of", "one document": "one JSON document of more than", "many parts": "commas and brackets"}[kind] in reasons
    assert taken < (200 if kind == "many parts" else 60)


@pytest.mark.parametrize("cut", [18, 60, 200])
def test_damage_in_a_gzip_stream_is_an_oserror_for_every_reader(tmp_path, cut):
    data = bytearray(gzip.compress(TEXT * 50))
    data[cut % len(data)] ^= 0xFF
    with open_bytes(put(tmp_path, bytes(data))) as stream, pytest.raises(OSError, match=r".+"):
        stream.read()
