"""Damaged and random input: never an exception but SourceError, and never a line that is neither in a trace nor named."""

import asyncio
import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterplay.connectors.base import get, ingest_items
from counterplay.connectors.testing import check_item
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected

NAMES = ("chatlog", "tau-bench")
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CHAT = [
    {"role": "system", "content": "be göod"},
    {"role": "user", "content": "look"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    {"role": "assistant", "content": "done"},
]
TAU = {"task_id": 1, "trial": 0, "reward": 1.0, "info": {"task": {"actions": []}, "reward_info": {"reward": 1.0}}, "traj": CHAT}


def calls():
    for run in range(2):
        start = [CHAT[0], {"role": "user", "content": f"look {run}"}]
        first = {"id": f"a{run}", "choices": [{"index": 0, "message": CHAT[2]}], "usage": {"prompt_tokens": 3}}
        second = {"id": f"b{run}", "choices": [{"index": 0, "message": CHAT[4]}]}
        yield {"request": {"messages": start}, "response": first, "timestamp": 1.5, "metadata": {"trace_id": f"t{run}"}}
        yield {"request": {"messages": [*start, *CHAT[2:4]]}, "response": second, "metadata": {"trace_id": f"t{run}"}}
        yield {
            "call_type": "completion",
            "messages": start,
            "response": {"error": "429"},
            "status": "failure",
            "model_parameters": {"tools": []},
        }


RECORDS = [
    {"messages": CHAT, "id": f"r{i}", "outcome": {"reward": i}, "calls": [{"usage": {}}], "tags": ["a"], "metadata": {}} for i in range(3)
]
GOOD = {
    "records": ("chatlog", "".join(json.dumps(r) + "\n" for r in RECORDS)),
    "calls": ("chatlog", "".join(json.dumps(r) + "\n" for r in calls())),
    "tau": ("tau-bench", json.dumps([TAU, {**TAU, "trial": 1}], indent=1)),
}
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(name, data):
    """What a connector makes of a file: its items, or None where it refuses the file as a whole."""

    async def go(path):
        return [item async for item in get(name).read(path)]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log")
        path.write_bytes(data)
        get(name).detect(data, path)
        try:
            items = asyncio.run(go(path))
        except SourceError as error:
            return None if str(path) in str(error) else pytest.fail(f"{error} does not name the file")
    for item in items:
        check_item(item)
    return items


def accounted(items):
    """How many rows the items stand for."""
    rows = 0
    for item in items:
        if isinstance(item, Rejected) or item.source.dialect == "messages":
            rows += 1
        else:
            rows += len({c.response_id or i for i, c in enumerate(item.calls)})
            rows += len(item.metadata.get("failed_calls", ())) + item.metadata.get("repeated_rows", 0)
    return rows


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "id", "function", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@QUICK
@given(data=st.binary(max_size=300), name=st.sampled_from(NAMES))
def test_random_bytes(data, name):
    items = read(name, data)
    assert items is None or items or not data.removeprefix(b"\xef\xbb\xbf").strip()
    assert not any(isinstance(item, Trace) for item in items or ())


@QUICK
@given(kind=st.sampled_from(sorted(GOOD)), place=st.floats(0, 1), cut=st.integers(0, 40), new=st.binary(max_size=12))
def test_good_files_with_bytes_replaced(kind, place, cut, new):
    name, text = GOOD[kind]
    data = text.encode()
    at = int(place * len(data))
    damaged = data[:at] + new + data[at + cut :]
    items = read(name, damaged)
    if items is not None and kind != "tau" and damaged.lstrip()[:2] == b'{"' and not set(new) & set(b"[{\n"):
        assert accounted(items) == sum(bool(line.strip()) for line in damaged.split(b"\n"))


@QUICK
@given(kind=st.sampled_from(sorted(GOOD)), size=st.floats(0, 1))
def test_good_files_cut_off_anywhere(kind, size):
    name, text = GOOD[kind]
    data = text.encode()
    items = read(name, data[: int(size * len(data))])
    whole = read(name, data)
    assert items is not None
    ids = {item.id for item in whole if isinstance(item, Trace)}
    if kind != "calls":
        assert {item.id for item in items if isinstance(item, Trace)} <= ids
        assert all(isinstance(item, Trace) for item in items[:-2])


def paths_in(value, prefix=()):
    yield prefix
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths_in(inner, (*prefix, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@settings(QUICK, max_examples=400)
@given(data=st.data())
def test_any_value_of_any_type_anywhere_in_a_record(data):
    name, rows = data.draw(st.sampled_from([("chatlog", RECORDS), ("chatlog", list(calls())), ("tau-bench", [TAU, {**TAU, "trial": 1}])]))
    index = data.draw(st.integers(0, len(rows) - 1))
    path = data.draw(st.sampled_from(sorted(paths_in(rows[index]), key=repr)))
    rows = replaced(rows, (index, *path), data.draw(json_values))
    items = read(name, "".join(json.dumps(row) + "\n" for row in rows).encode())
    dialects = {item.source.dialect for item in items if isinstance(item, Trace)}
    if "calls" in dialects:
        assert accounted(items) >= len(rows)
    else:
        assert len(items) == len(rows)


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("wrap", ["crlf", "bom", "gz", "plain"])
def test_containers_change_nothing(kind, wrap):
    name, text = GOOD[kind]
    data = text.encode()
    wrapped = {"crlf": data.replace(b"\n", b"\r\n"), "bom": b"\xef\xbb\xbf" + data, "gz": gzip.compress(data), "plain": data}[wrap]
    found, plain = read(name, wrapped), read(name, data)
    assert [getattr(item, "id", item) for item in found if isinstance(item, Trace)] == [
        item.id for item in plain if isinstance(item, Trace)
    ]
    assert accounted(found) == accounted(plain)


def test_every_row_of_the_good_calls_is_accounted_for():
    items = read("chatlog", GOOD["calls"][1].encode())
    assert accounted(items) == 6
    assert [type(item).__name__ for item in items].count("Trace") == 2


def test_a_bad_line_among_calls_costs_one_call():
    rows = GOOD["calls"][1].splitlines()
    rows[1] = rows[1][:-7]
    items = read("chatlog", "\n".join(rows).encode())
    assert accounted(items) == 6
    (bad,) = [item for item in items if isinstance(item, Rejected) and item.line == 2]
    assert "not JSON" in bad.reason


@pytest.mark.parametrize("name", NAMES)
def test_deep_nesting_anywhere(name):
    deep = "[" * 3000 + "]" * 3000
    arguments = {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": deep}}]}
    row = {**TAU, "traj": [*CHAT, arguments]} if name == "tau-bench" else {"messages": [*CHAT, arguments]}
    text = json.dumps(row)
    assert len(read(name, text.encode())) == 1
    assert isinstance(read(name, text.replace('"a cat"', deep).encode())[0], Rejected | Trace)


async def test_one_bad_file_of_a_folder_loses_nothing_of_the_others(tmp_path):
    (tmp_path / "a.jsonl").write_text(GOOD["records"][1])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(GOOD["records"][1].replace("r1", "s1").encode() * 50)[:-20])
    (tmp_path / "c.sqlite").write_bytes(b"SQLite format 3\0" + bytes(500))
    (tmp_path / "d.json").write_text(GOOD["tau"][1])
    (tmp_path / "e.json").write_text("")
    items = [item async for item in ingest_items(tmp_path)]
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert {row.uri.rsplit("/", 1)[1] for row in rejected} == {"b.jsonl.gz", "c.sqlite", "e.json"}
    assert sum(item.source.format == "tau-bench" for item in items if isinstance(item, Trace)) == 2
    assert sum(item.source.uri.endswith("a.jsonl") for item in items if isinstance(item, Trace)) == 3
