"""Folders that are read again and again: only what is new is read, and the store is what it would be had everything been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from counterplay import incremental, loop
from counterplay.core.errors import SourceError, UserError
from counterplay.core.store import Store, compact


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    monkeypatch.setattr(incremental, "_LOCAL_TICK_NS", -(10**18))  # what a test has just written counts as settled


@pytest.fixture
def store():
    with Store.open(":memory:") as found:
        yield found


@pytest.fixture
def read(monkeypatch):
    """What was opened to be read since the list was cleared: (name, first byte)."""
    found = []

    def paths(file, starts):
        start = starts.get(str(file.path))
        found.append((file.path.name, start.end if start else 0))
        return original(file, starts)

    original = incremental._path
    monkeypatch.setattr(incremental, "_path", paths)
    return found


def run(name, answer="ok"):
    return json.dumps({"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": answer}], "task": name}) + "\n"


def call(session, *words):
    """A model call whose prompt repeats all earlier words."""
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": word} for i, word in enumerate(words[:-1])]
    answer = {"choices": [{"message": {"role": "assistant", "content": words[-1]}}]}
    return json.dumps({"session_id": session, "request": {"model": "m", "messages": messages}, "response": answer}) + "\n"


def tasks(store):
    return sorted(row.task for row in store.traces())


def same_as_at_once(store, folder):
    with Store.open(":memory:") as fresh:
        loop.ingest([folder], fresh)
        return sorted(row.id for row in store.traces()) == sorted(row.id for row in fresh.traces())


def test_what_has_not_changed_is_not_read(store, tmp_path, read):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text(run(name))
    assert loop.ingest([tmp_path], store).traces_added == 3
    read.clear()
    report = loop.ingest([tmp_path], store)
    assert (report.files_unchanged, report.traces_known, read) == (3, 0, [])
    (tmp_path / "d.jsonl").write_text(run("d"))
    (tmp_path / "a.jsonl").unlink()
    report = loop.ingest([tmp_path], store)
    assert (report.files_unchanged, report.traces_added, read) == (2, 1, [("d.jsonl", 0)])
    assert tasks(store) == ["a", "b", "c", "d"], "what was deleted stays stored"
    assert loop.ingest([tmp_path], store, again=True).traces_known == 3


def test_a_growing_log_is_read_from_where_it_ended(store, tmp_path, read):
    log = tmp_path / "log.jsonl"
    log.write_text(run("a") + run("b") + '{"messages": [{"role"')
    report = loop.ingest([tmp_path], store)
    assert (report.traces_added, report.rejected_added) == (2, 1)
    with log.open("a") as stream:
        stream.write(': "user", "content": "c"}, {"role": "assistant", "content": "x"}], "task": "c"}\n{bad\n' + run("d"))
    read.clear()
    report = loop.ingest([tmp_path], store)
    assert (report.traces_added, report.traces_known, report.rejected_added) == (2, 0, 1)
    assert read == [("log.jsonl", len(run("a") + run("b")))]
    assert [(row.task, trace.source.line) for row, trace in zip(store.traces(), store.load(), strict=True)] == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 5),
    ]
    bad = store.rejected()[-1]
    assert (bad.line, log.read_bytes()[bad.byte_offset :][:4]) == (4, b"{bad")


def test_an_unfinished_last_line_is_no_reason_to_read_all_again(store, tmp_path, read):
    log = tmp_path / "log.jsonl"
    log.write_text(run("a") + run("b").rstrip("\n"))
    assert loop.ingest([tmp_path], store).traces_added == 2
    with log.open("a") as stream:
        stream.write("\n" + run("c"))
    read.clear()
    report = loop.ingest([tmp_path], store)
    assert (report.traces_added, report.traces_known, read) == (1, 1, [("log.jsonl", len(run("a")))])


@pytest.mark.parametrize("change", ["rewritten", "replaced", "shortened", "edited"])
def test_a_log_that_is_another_is_read_whole(store, tmp_path, read, change):
    log = tmp_path / "log.jsonl"
    log.write_text(run("a") + run("b"))
    loop.ingest([tmp_path], store)
    if change == "rewritten":
        log.write_text(run("x") + run("y") + run("z"))
    elif change == "replaced":
        other = tmp_path / "other"
        other.write_text(run("a") + run("b") + run("x"))
        other.replace(log)
    elif change == "shortened":
        log.write_text(run("x"))
    else:
        log.write_text(run("b") + run("a"))
    read.clear()
    loop.ingest([tmp_path], store)
    assert read == [("log.jsonl", 0)]
    assert {*tasks(store)} == {"a", "b", "x", "y", "z"} if change == "rewritten" else {"a", "b"} <= {*tasks(store)}


def test_calls_of_one_run_are_joined_over_the_files_of_two_nights(store, tmp_path, read):
    (tmp_path / "1.jsonl").write_text(call("s", "q", "a1") + call("other", "o", "p"))
    loop.ingest([tmp_path], store)
    (tmp_path / "2.jsonl").write_text(call("s", "q", "a1", "q2", "a2"))
    read.clear()
    report = loop.ingest([tmp_path], store)
    assert [name for name, _ in read] == ["1.jsonl", "2.jsonl"]
    assert report.files_unchanged == 0
    assert sorted(row.steps for row in store.traces()) == [1, 2]
    assert same_as_at_once(store, tmp_path)


def test_calls_that_join_a_folder_of_whole_runs_are_read_without_those(store, tmp_path, read):
    (tmp_path / "1.jsonl").write_text(run("a"))
    loop.ingest([tmp_path], store)
    (tmp_path / "2.jsonl").write_text(call("s", "q", "a1"))
    loop.ingest([tmp_path], store)
    (tmp_path / "3.jsonl").write_text(call("s", "q", "a1", "q2", "a2"))
    read.clear()
    report = loop.ingest([tmp_path], store)
    assert [name for name, _ in read] == ["2.jsonl", "3.jsonl"]
    assert report.files_unchanged == 1
    assert same_as_at_once(store, tmp_path)


def test_together_says_which_files_may_hold_one_run(tmp_path):
    for day, words in (("date=2026-01-01", ("q", "a1")), ("date=2026-01-02", ("q", "a1", "q2", "a2"))):
        (tmp_path / day).mkdir()
        (tmp_path / day / "x.jsonl").write_text(call("s", *words))
    steps = {}
    for together in (None, "all", "partition", "file"):
        with Store.open(":memory:") as store:
            report = loop.ingest([tmp_path], store, together=together)
            steps[together] = (report.traces_added, report.traces_updated, [row.steps for row in store.traces()])
    assert steps[None] == steps["all"] == (1, 0, [2])
    assert steps["partition"] == steps["file"] == (1, 1, [2])
    with pytest.raises(UserError, match="all, partition or file"), Store.open(":memory:") as store:
        loop.ingest([tmp_path], store, together="day")


def test_asked_for_otherwise_everything_is_read_again(store, tmp_path):
    (tmp_path / "a.jsonl").write_text(run("a"))
    loop.ingest([tmp_path], store)
    assert loop.ingest([tmp_path], store).files_unchanged == 1
    effects = tmp_path.with_suffix(".toml")
    effects.write_text('[tools]\nlook = "pure"\n')
    assert loop.ingest([tmp_path], store, effects=effects).files_unchanged == 0
    assert loop.ingest([tmp_path], store, effects=effects).files_unchanged == 1
    assert loop.ingest([tmp_path], store, redact=()).files_unchanged == 0
    assert loop.ingest([tmp_path], store, redact=(), format="chatlog").files_unchanged == 0


def test_a_file_that_is_named_is_read_unless_only_the_new_is_asked_for(store, tmp_path):
    log = tmp_path / "a.jsonl"
    log.write_text(run("a"))
    assert loop.ingest([log], store).traces_added == 1
    assert loop.ingest([log], store).traces_known == 1
    assert loop.ingest([log], store, again=False).traces_known == 1
    report = loop.ingest([log], store, again=False)
    assert (report.traces_known, report.files_unchanged) == (0, 1)


def test_what_can_not_be_read_is_told_once_and_read_again_when_it_changes(store, tmp_path):
    (tmp_path / "a.jsonl").write_text(run("a"))
    (tmp_path / "strange.bin").write_bytes(b"\0\1" * 50)
    (tmp_path / "README.md").write_text("words\n")
    first, second = loop.ingest([tmp_path], store), loop.ingest([tmp_path], store)
    assert (first.rejected_added, first.files_unchanged) == (1, 0)
    assert (second.rejected_added, second.rejected_known, second.files_unchanged) == (0, 0, 3)
    (tmp_path / "strange.bin").write_text(run("b"))
    assert loop.ingest([tmp_path], store).traces_added == 1


def test_an_empty_folder_is_named(store, tmp_path):
    with pytest.raises(SourceError, match="holds no files"):
        loop.ingest([tmp_path], store)


def test_a_file_changed_a_moment_ago_is_read_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(incremental, "_LOCAL_TICK_NS", 50_000_000)
    (tmp_path / "a").write_text("x")
    assert incremental._local(tmp_path / "a").stamp == ""
    time.sleep(0.06)
    assert incremental._local(tmp_path / "a").stamp


def test_marks_are_not_content_and_not_shown(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(run("a"))
    with Store.open(tmp_path / "1.db") as one, Store.open(tmp_path / "2.db") as other:
        loop.ingest([tmp_path / "in"], one)
        loop.ingest([tmp_path / "in/a.jsonl"], other)
        assert one.content_digest() == other.content_digest()
        assert one.stats().watermarks == {}


def test_marks_outlive_compaction_and_what_was_forgotten_stays_so(tmp_path):
    logs, path = tmp_path / "logs", tmp_path / "s.db"
    logs.mkdir()
    (logs / "old.jsonl").write_text(json.dumps({**json.loads(run("old")), "calls": [{"started_at_us": 1_000_000}]}) + "\n")
    (logs / "new.jsonl").write_text(run("new"))
    with Store.open(path) as store:
        loop.ingest([logs], store)
    assert compact(str(path), before_us=10**15).traces_dropped == 1
    with Store.open(path) as store:
        report = loop.ingest([logs], store)
        assert (report.files_unchanged, report.traces_added, tasks(store)) == (2, 0, ["new"])


def test_the_command_says_what_was_left_alone(cli, tmp_path):
    logs, store = tmp_path / "logs", tmp_path / "s.db"
    logs.mkdir()
    (logs / "a.jsonl").write_text(run("a"))
    assert cli("ingest", logs, "--store", store, "--json").json["traces_added"] == 1
    assert cli("ingest", logs, "--store", store, "--json").json["files_unchanged"] == 1
    assert cli("ingest", logs, "--again", "--store", store, "--json").json["traces_known"] == 1
    assert cli("ingest", logs / "a.jsonl", "--only-new", "--store", store, "--json").json["files_unchanged"] == 1


INGEST = """
import sys
from pathlib import Path
from counterplay import incremental, loop
from counterplay.core.store import Store, compact
incremental._CHUNK_UNITS = 2
incremental._LOCAL_TICK_NS = -(10**18)
with Store.open(sys.argv[2]) as store:
    for _ in range(2):
        loop.ingest([Path(sys.argv[1])], store, together="file", processes=0, on_item=lambda: print("item", flush=True))
"""


def test_killed_at_any_time_and_made_again_it_is_as_if_it_had_not_been(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(12):
        (logs / f"{number:02}.jsonl").write_text("".join(run(f"{number}-{i}") for i in range(3)) + "{bad\n")
    with Store.open(tmp_path / "whole.db") as whole:
        loop.ingest([logs], whole, together="file")
        wanted = whole.content_digest()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for after in (1, 9, 22, 30):
        command = [sys.executable, "-c", INGEST, str(logs), str(tmp_path / "killed.db")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()
    with Store.open(tmp_path / "killed.db") as killed:
        report = loop.ingest([logs], killed, together="file")
        assert killed.content_digest() == wanted
        assert killed.verify() == []
        assert report.files_unchanged >= 6, "what was marked before a kill was not read again"
