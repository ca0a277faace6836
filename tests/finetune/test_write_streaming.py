"""Datasets from rows that come bit by bit: the same as from all at once, with little in memory, and nothing left behind."""

import gc
import json
import os
import random
import subprocess
import sys
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.balance import Caps
from counterplay.finetune.exactness import RecordedRow
from counterplay.finetune.gates.held_out import HeldOut, entry
from counterplay.finetune.gates.near import NearDuplicates, NearTies, near_ties
from counterplay.finetune.gates.secrets import Secrets
from counterplay.finetune.kto import KTORow
from counterplay.finetune.records import make_records
from counterplay.finetune.rows import DPORow, Drop, Harvest, Lineage, SFTRow
from counterplay.finetune.splits import distinct
from counterplay.finetune.spool import NAMED, Dropped, Objects, Spool
from counterplay.finetune.write import read_dataset, write_dataset
from tests.finetune.disks import files_of_at_most

ALL = {"train": 1.0}
HALVES = {"train": 0.5, "test": 0.5}


def scan(value):
    text = json.dumps(value)
    return (json.loads(text.replace("hunter2", "[x]")), {"password": 1}) if "hunter2" in text else (value, {})


def words(start, count, swapped=None):
    return " ".join("other" if place == swapped else f"word{place}" for place in range(start, start + count))


def sft(task, asked, answered, **fields):
    lineage = Lineage(task, (f"trace-{task}",), verifiers=("judge@1",), agent="ann")
    return SFTRow((Message.user(asked), Message.assistant(answered)), (False, True), score=1.0, lineage=lineage, **fields)


def planted():
    """Rows of which every gate has something to say, some of them more than one."""
    rows = []
    for place in range(24):
        asked, answered = words(100 * place, 40), words(5000 + 100 * place, 40)
        rows.append(sft(f"t{place}", asked, answered))
        if place % 4 == 0:
            rows.append(sft(f"again{place}", asked.upper(), answered))  # a duplicate
        if place % 4 == 1:
            rows.append(sft(f"near{place}", asked, words(5000 + 100 * place, 40, swapped=5000 + 100 * place)))
        if place % 4 == 2:
            rows.append(sft(f"t{place}", asked, f"{words(9000 + 100 * place, 40)} hunter2"))
        if place % 4 == 3:
            rows.append(sft(f"near{place}", asked, f"{answered} \ud800"))  # near another, and not to be written
    return rows


GATES = (
    [Secrets(scan), HeldOut([entry("f:1", words(300, 40)), entry("f:2", words(5600, 20))]), NearDuplicates()],
    [NearDuplicates(), Secrets(scan)],
    [NearDuplicates(), Caps(per_task=1, per_tool=3), HeldOut([entry("f:1", words(700, 40))])],
    [],
)


def one_by_one(rows, drops=()):
    yield Harvest((), tuple(drops))
    for row in rows:
        yield Harvest((row,))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def through_each(rows, gates):
    """What a dataset is by definition: all rows through one gate after the other, then made into records."""
    kept, drops = distinct(rows)
    for gate in gates:
        kept, refused = gate(kept)
        drops += refused
    made = make_records(kept)
    return [record for _, record in made.kept], [*drops, *made.drops]


@pytest.mark.parametrize("gates", GATES)
def test_what_comes_bit_by_bit_passes_the_gates_as_all_at_once_does(tmp_path, gates):
    rows = planted()
    for name, given_rows in (("list", rows), ("bits", one_by_one(rows))):
        report = write_dataset(given_rows, tmp_path / name / "d", split=ALL, gates=gates)
        records, drops = through_each(rows, gates)
        assert json.dumps(read_dataset(tmp_path / name / "d")[1]) == json.dumps(records)
        clean = [replace(drop, name=scan(drop.name)[0]) for drop in drops]
        assert [(drop.reason, drop.name, drop.detail) for drop in report.drops] == [(d.reason, d.name, d.detail) for d in clean]
    assert files_of(tmp_path / "list" / "d") == files_of(tmp_path / "bits" / "d")


def pair(task, start, probability):
    prompt = (Message.user(words(start, 20)),)
    sides = (Message.assistant(words(start + 100 + side * 40, 10)) for side in range(2))
    return DPORow(prompt, *((side,) for side in sides), probability=probability, lineage=Lineage(task, (f"trace-{task}",)))


def answer(task, start, *, label):
    return KTORow((Message.user(words(start, 20)),), (Message.assistant(words(start + 50, 10)),), label, lineage=Lineage(task))


ROWS = {
    "sft": planted,
    "dpo": lambda: [pair(f"t{place % 30}", 300 * place, 0.9 + place / 1000) for place in range(90)],
    "kto": lambda: [answer(f"t{place % 9}", 100 * place, label=place % 5 == 0) for place in range(40)],
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("formats", [("parquet", "jsonl"), ("jsonl", "sharegpt")])
def test_each_kind_streams_to_the_same_files(tmp_path, kind, formats):
    rows = ROWS[kind]()
    options = {"split": HALVES, "formats": formats, "gates": [NearDuplicates()], "seed": 3}
    write_dataset(rows, tmp_path / "list" / "d", ties=near_ties, **options)
    report = write_dataset(one_by_one(rows), tmp_path / "bits" / "d", ties=NearTies(), **options)
    assert files_of(tmp_path / "list" / "d") == files_of(tmp_path / "bits" / "d")
    assert min(report.rows.values()) > 0
    assert (report.noise is not None) == (kind == "dpo")
    if kind == "kto":
        labels = [record["label"] for record in read_dataset(tmp_path / "bits" / "d")[1]]
        apart = [place for place, label in enumerate(labels) if label]
        assert all(later - earlier > 1 for earlier, later in pairwise(apart)), "the rarer label is spread"


def test_rows_are_let_go_of(tmp_path):
    alive = []

    def giving():
        for place in range(40):
            row = sft(f"t{place}", words(100 * place, 40), words(100 * place + 50, 40))
            alive.append(weakref.ref(row))
            yield Harvest((row,))
            del row
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 3

    write_dataset(giving(), tmp_path / "d", gates=[Secrets(scan), NearDuplicates(), Caps(per_task=5)], ties=NearTies())
    assert len(alive) == 40


def test_a_gate_that_is_a_mere_function_is_given_all_rows(tmp_path):
    rows = planted()[:6]

    def every_other(rows):
        return list(rows[::2]), [Drop("odd", row.name) for row in rows[1::2]]

    report = write_dataset(one_by_one(rows), tmp_path / "d", split=ALL, gates=[every_other])
    assert (report.rows, report.dropped["odd"]) == ({"train": 3}, 2)
    assert [record["name"] for record in read_dataset(tmp_path / "d")[1]] == [row.name for row in distinct(rows)[0]][::2]
    with pytest.raises(UserError, match="that was not given it"):
        write_dataset(one_by_one(rows), tmp_path / "e", gates=[lambda rows: ([replace(rows[0])], [])])


def test_rows_of_a_class_that_can_not_be_pickled(tmp_path):
    class Local(SFTRow):
        pass

    rows = [Local(**{name: getattr(row, name) for name in SFTRow.__dataclass_fields__}) for row in planted()]
    report = write_dataset(one_by_one(rows), tmp_path / "d", gates=[NearDuplicates()], ties=near_ties)
    assert report.dropped["a near-duplicate"] > 0


def test_ids_that_only_some_rows_have_are_a_column_of_all(tmp_path):
    plain, other = planted()[0], planted()[3]
    recorded = RecordedRow(**{name: getattr(other, name) for name in SFTRow.__dataclass_fields__}, token_ids=(None, (1, 2)))
    for rows in ([plain, recorded], [recorded, plain]):
        write_dataset(rows, tmp_path / "d", split=ALL)
        records = read_dataset(tmp_path / "d")[1]
        assert {record["name"]: record["token_ids"] for record in records} == {plain.name: "[null,null]", other.name: "[null,[1,2]]"}
        assert [list(record) for record in records] == [list(records[0])] * 2
    write_dataset([plain], tmp_path / "d", split=ALL)
    assert "token_ids" not in read_dataset(tmp_path / "d")[1][0]


def test_the_names_of_very_many_things_left_out_are_in_a_file_of_their_own(tmp_path):
    many = [Drop("no good", f"thing-{place}") for place in range(NAMED)]
    report = write_dataset(one_by_one(planted()[:1], many), tmp_path / "d", split=ALL)
    assert report.all_named
    assert not (tmp_path / "d" / "dropped.jsonl").exists()
    assert "Every one is named in `counterplay.json`" in (tmp_path / "d" / "README.md").read_text()
    odd = [*many, Drop("odd", "of \ud800"), Drop("odd", "hunter2")]
    report = write_dataset(one_by_one(planted()[:1], odd), tmp_path / "d", split=ALL, gates=[Secrets(scan)])
    assert (report.dropped, report.drops) == ({"no good": NAMED, "odd": 2}, tuple(many))
    lines = [json.loads(line) for line in (tmp_path / "d" / "dropped.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [*(drop.name for drop in many), "of \ud800", "[x]"]
    assert f"the first {NAMED} are named in `counterplay.json`" in (tmp_path / "d" / "README.md").read_text()
    assert read_dataset(tmp_path / "d")[0] == "sft"
    write_dataset(planted()[:1], tmp_path / "d", split=ALL)
    assert not (tmp_path / "d" / "dropped.jsonl").exists()


def test_nothing_is_left_behind_whatever_happens(tmp_path):
    def broken():
        yield Harvest(tuple(planted()))
        raise OSError("no more logs")

    with pytest.raises(OSError, match="no more logs"):
        write_dataset(broken(), tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_more_can_be_set_aside_is_told(tmp_path):
    messages = tuple(Message.user(random.Random(n).randbytes(50_000).hex()) for n in range(60))
    rows = (
        Harvest((SFTRow((message, Message.assistant("yes")), (False, True), lineage=Lineage(str(n))),))
        for n, message in enumerate(messages)
    )
    with files_of_at_most(1000), pytest.raises(UserError, match=r"nothing more can be set aside in .*File too large"):
        write_dataset(rows, tmp_path / "d", split=ALL)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_tidied(tmp_path):
    rows = planted()[:2]
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    dead = int(gone.stdout)
    write_dataset(rows, tmp_path / "d", split=ALL)
    (tmp_path / "d").rename(tmp_path / f".d.old-{dead}")  # killed between the two renames
    (tmp_path / f".d.new-{dead}").mkdir()
    (tmp_path / f".d.new-{os.getppid()}").mkdir()
    (tmp_path / ".d.new-mine").mkdir()
    report = write_dataset(rows, tmp_path / "d", split=ALL)
    assert report.replaced
    assert {path.name for path in tmp_path.iterdir()} == {"d", f".d.new-{os.getppid()}", ".d.new-mine"}


def test_a_replaced_dataset_is_told_and_not_in_its_files(tmp_path):
    rows = planted()[:2]
    assert not write_dataset(rows, tmp_path / "d", split=ALL).replaced
    before = files_of(tmp_path / "d")
    assert write_dataset(rows, tmp_path / "d", split=ALL).replaced
    assert files_of(tmp_path / "d") == before


@given(st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=3), max_size=60), st.data())
def test_a_spool_gives_back_what_it_was_given(tmp_path_factory, items, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("counterplay.finetune.spool.PAGE_BYTES", 700)
        spool = Spool(tmp_path_factory.getbasetemp())
        assert [spool.add(*parts) for parts in items] == list(range(len(items)))
        for _ in range(20 if items else 0):
            number = data.draw(st.integers(0, len(items) - 1))
            index = data.draw(st.integers(0, len(items[number]) - 1))
            assert spool.part(number, index) == items[number][index]
        assert len(spool) == len(items)


def test_a_spool_has_no_name_and_what_is_dropped_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr("counterplay.finetune.spool.PAGE_BYTES", 1000)
    objects = Objects(tmp_path)
    for place in range(300):
        objects.add({"place": place}, [place] * 5)
        assert objects.get(place // 2)["place"] == place // 2, "what is read in between does not disturb"
    assert [objects.get(place)["place"] for place in range(300)] == list(range(300))
    assert objects.get(7, 1) == [7] * 5
    assert list(tmp_path.iterdir()) == []
    stage = Dropped(tmp_path, str.upper)
    for place in range(NAMED + 5):
        stage.add(Drop(f"r{place % 2}", f"n{place}"))
    assert [drop.name for drop in stage] == [f"N{place}" for place in range(NAMED + 5)]
    assert (len(stage), stage.counts) == (NAMED + 5, {"r0": 503, "r1": 502})
