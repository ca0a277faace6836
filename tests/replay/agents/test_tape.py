"""The tape: events as they were sent, whole lines whatever happens, and an agent that never notices."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Outcome
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest, ToolAnswer, ToolRequest
from counterplay.replay.agents.calls import INSIDE_TOOL, covering
from counterplay.replay.agents.tape import RecordingFailed, Tape, TapeFile, read_tape
from counterplay.replay.appending import append

ROOT = Path(__file__).parents[3]
SUFFIXES = (".jsonl", ".jsonl.gz")
BODY = b'{"model": "m","messages":[{"role":"user","content":"\xc3\xbc 1.50e3"}],"top_p":1.0e0}'
ANSWER = b'{"choices": [{"message": {"role": "assistant","content":"ok"}}]}'


class Lines:
    def __init__(self):
        self.lines = []

    def write(self, line, /):
        self.lines.append(line)

    @property
    def events(self):
        return [json.loads(line) for line in self.lines]


def taped(sink, body=BODY, answer=ANSWER, *, url="/v1/chat/completions", **fields):
    """One model call on a tape of its own."""
    tape = Tape(sink, run="r")
    request = ModelRequest("chat", body, url)
    tape.model(request)
    tape.model_answered(request, ModelAnswer(answer, **fields))
    return tape


def one(body=BODY, answer=ANSWER, **fields):
    lines = Lines()
    taped(lines, body, answer, **fields)
    (line,) = lines.lines
    return line, json.loads(line)


def call(tape, number=0):
    request = ModelRequest("chat", BODY.replace(b"1.50e3", str(number).encode()), "/v1/chat/completions")
    tape.model(request)
    tape.model_answered(request, ModelAnswer(ANSWER))


# --- what an event holds -------------------------------------------------------------------------------------------------------------


def test_request_and_answer_stand_in_it_byte_for_byte():
    line, event = one(status=200, started_at_us=17, latency_s=0.25, first_token_s=0.125)
    assert BODY in line
    assert ANSWER in line
    assert line.count(b"\n") == 1
    assert {key: event[key] for key in ("kind", "run", "n", "at", "api", "url", "attempt", "status", "latency_s", "first_token_s")} == {
        "kind": "model", "run": "r", "n": 0, "at": 17, "api": "chat", "url": "/v1/chat/completions", "attempt": 0, "status": 200,
        "latency_s": 0.25, "first_token_s": 0.125,
    }  # fmt: skip


def test_line_breaks_between_tokens_go_and_all_else_stays():
    pretty = json.dumps({"choices": [{"message": {"content": "a\nb  c"}}], "x": [1.50, {}]}, indent=2).encode().replace(b"\n", b"\r\n")
    line, event = one(answer=pretty)
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert event["response"] == json.loads(pretty)
    assert b'"content": "a\\nb  c"' in line


def test_a_stream_keeps_its_text():
    sse = 'data: {"a": 1}\n\n: still here\n\ndata: "ü"\n\ndata: [DONE]\n\n'
    assert one(answer=sse.encode(), content_type="text/event-stream; charset=utf-8")[1]["events"] == sse
    assert one(answer=sse.encode())[1]["events"] == sse
    assert "response" not in one(answer=sse.encode())[1]


def test_what_is_no_json_is_kept_as_text_and_what_is_no_text_by_its_size():
    assert one(body=b"plain")[1]["request"] == "plain"
    assert one(body=b'{"x": NaN}')[1]["request"] == '{"x": NaN}'
    assert one(body=b'{"x": "\\ud800"}')[1]["request"] == '{"x": "\\ud800"}'
    event = one(answer=b"\xff\xfe\0", content_type="audio/mpeg")[1]
    assert event["response_bytes"] == 3
    assert "response" not in event
    assert "response" not in one(answer=b"")[1]


@pytest.mark.parametrize("status", [401, 403])
def test_an_answer_that_refuses_a_key_is_not_kept(status):
    line, event = one(answer=b'{"error": {"message": "Incorrect API key provided: hunter2"}}', status=status)
    assert b"hunter2" not in line
    assert event["status"] == status
    assert str(status) in event["error"]


def test_of_the_address_the_path_is_kept():
    line, event = one(url="https://me:hunter2@api.example.com/v1/messages?key=hunter2#x")
    assert event["url"] == "/v1/messages"
    assert b"hunter2" not in line


def test_tool_runs():
    lines = Lines()
    tape = Tape(lines, run="r")
    for value, error, replayable in (({"b": 1, "a": [None, "ü"]}, None, True), (None, "KeyError: 'x'", True), (float("nan"), None, True)):
        request = ToolRequest("look", {"id": "17"}, Effect.parse("read(order:{id})"))
        tape.tool(request)
        tape.tool_answered(request, ToolAnswer(value, error, replayable, started_at_us=5, latency_s=0.5))
    told, failed, nan = lines.events
    assert told == {
        "kind": "tool", "run": "r", "n": 0, "at": 5, "name": "look", "arguments": {"id": "17"}, "effect": "read(order:{id})",
        "value": {"b": 1, "a": [None, "ü"]}, "replayable": True, "latency_s": 0.5,
    }  # fmt: skip
    assert (failed["error"], "value" in failed) == ("KeyError: 'x'", False)
    assert (nan["value"], nan["replayable"]) == ("nan", False)


def test_a_value_that_is_no_json_data_costs_nothing_else():
    lines = Lines()
    tape = Tape(lines, run="r")
    request = ToolRequest("look", {"odd": {1, 2}.__class__, "text": "\ud800"})
    tape.tool(request)
    tape.tool_answered(request, ToolAnswer("\udfff"))
    (event,) = lines.events
    assert event["value"] == "\udfff"
    assert "set" in str(event["arguments"])
    lines.lines[0].decode()


def test_calls_inside_of_a_tool_say_so():
    lines = Lines()
    tape = Tape(lines)
    with covering(INSIDE_TOOL):
        call(tape)
    call(tape)
    assert [event.get("inside_tool") for event in lines.events] == [True, None]


def test_numbers_are_given_when_calls_begin_and_events_written_when_they_end():
    lines = Lines()
    tape = Tape(lines)
    first, second = ModelRequest("chat", BODY), ModelRequest("chat", BODY)
    assert first == second
    tape.model(first)
    tape.model(second)
    tape.model_answered(second, ModelAnswer(b'{"which": 2}'))
    tape.model_answered(first, ModelAnswer(b'{"which": 1}'))
    assert [(event["n"], event["response"]["which"]) for event in lines.events] == [(1, 2), (0, 1)]


def test_who_tells_of_a_call_only_when_it_is_answered_is_heard_too():
    lines = Lines()
    tape = Tape(lines)
    tape.model_answered(ModelRequest("chat", BODY), ModelAnswer(ANSWER, started_at_us=3))
    tape.tool_answered(ToolRequest("look", {}), ToolAnswer("x"))
    assert [(event["kind"], event["n"]) for event in lines.events] == [("model", 0), ("tool", 1)]
    assert lines.events[0]["at"] == 3


def test_a_run_from_its_first_line_to_its_last():
    lines = Lines()
    tape = Tape(lines, task="17", session="s", agent="a", tags=("t",), metadata={"k": 1}, pins={"seed": 7})
    tape.begin()
    call(tape)
    tape.end(error="ValueError: x", outcome=Outcome(0.5, None, "judge", {"why": "so"}), scores=[{"name": "n", "value": 1}], tags=["late"])
    first, _, last = lines.events
    assert first.pop("at") > 1_700_000_000_000_000
    assert first == {
        "counterplay": "tape/1", "kind": "run", "run": tape.run, "task": "17", "session": "s", "agent": "a", "tags": ["t"],
        "metadata": {"k": 1}, "pins": {"seed": 7},
    }  # fmt: skip
    assert last.pop("at") >= first.get("at", 0)
    assert last == {
        "kind": "end", "run": tape.run, "error": "ValueError: x", "outcome": {"reward": 0.5, "source": "judge", "details": {"why": "so"}},
        "scores": [{"name": "n", "value": 1}], "tags": ["late"],
    }  # fmt: skip
    assert len(tape.run) == 32


def test_calls_in_flight_at_the_end_are_written_as_unanswered_and_what_comes_later_is_not_of_this_run():
    lines = Lines()
    tape = Tape(lines)
    request, tool = ModelRequest("chat", BODY), ToolRequest("look", {})
    tape.model(request)
    tape.tool(tool)
    tape.end()
    tape.model_answered(request, ModelAnswer(ANSWER))
    tape.tool_answered(tool, ToolAnswer("late"))
    call(tape)
    model, look, end = lines.events
    assert (model["status"], model["error"], "response" in model) == (0, "the run ended before it was answered", False)
    assert (look["error"], look["replayable"]) == ("the run ended before it was answered", False)
    assert end["kind"] == "end"


def test_run_ids_are_not_drawn_from_what_may_be_pinned():
    import random
    import uuid

    random.seed(1)
    one = Tape(Lines()).run
    random.seed(1)
    assert Tape(Lines()).run != one
    assert uuid.UUID(one).version == 4


# --- what can't be written -----------------------------------------------------------------------------------------------------------


class Full(Lines):
    """A disk that is full for some writes."""

    def __init__(self, *failing):
        super().__init__()
        self.failing, self.asked = failing, 0

    def write(self, line, /):
        self.asked += 1
        if self.asked in self.failing:
            raise OSError(28, "No space left on device")
        super().write(line)


def test_a_full_disk_is_warned_of_once_and_named_at_the_end():
    sink = Full(2, 3)
    tape = Tape(sink)
    tape.begin()
    with pytest.warns(RuntimeWarning, match="not complete.*No space"):
        call(tape, 1)
    call(tape, 2)  # a second warning would be an error here
    call(tape, 3)
    tape.end()
    assert [event["kind"] for event in sink.events] == ["run", "model", "end"]
    assert "No space left" in sink.events[-1]["incomplete"]


def test_a_strict_tape_ends_the_agent_even_where_it_catches_every_exception():
    tape = Tape(Full(1), strict=True)
    with pytest.raises(RecordingFailed, match="No space"):
        call(tape)
    assert not issubclass(RecordingFailed, Exception)


def test_a_cleaner_may_change_events_on_their_way():
    lines = Lines()
    tape = Tape(lines, clean=lambda event: {**event, "request": event["request"].replace(b"1.50e3", b"x")})
    request = ModelRequest("chat", BODY)
    tape.model(request)
    tape.model_answered(request, ModelAnswer(ANSWER))
    assert BODY.replace(b"1.50e3", b"x") in lines.lines[0]


# --- files ---------------------------------------------------------------------------------------------------------------------------


def lines_of(path):
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


@pytest.fixture
def opened():
    files = []

    def go(path):
        files.append(TapeFile(path))
        return files[-1]

    yield go
    for file in files:
        file.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tape_is_read_as_it_was_written_from_any_event_on(tmp_path, suffix, opened):
    path = tmp_path / "new" / f"t{suffix}"
    file = opened(path)
    places = []
    for number in range(3):
        tape = Tape(file, run=f"r{number}")
        tape.begin()
        places.append(file.write(b'{"kind":"mark","run":"%d"}\n' % number))
        call(tape, number)
    assert list(read_tape(path)) == lines_of(path)
    assert [event["run"] for event in read_tape(path, start=places[1])][:2] == ["1", "r1"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whoever_writes_next_cuts_off_what_a_killed_process_left_torn(tmp_path, suffix, opened):
    path = tmp_path / f"t{suffix}"
    first = opened(path)
    call(Tape(first, run="a"))
    torn = (gzip.compress if suffix.endswith("gz") else bytes)(b'{"kind":"model","run":"b","request":{"messages":[' + b"x" * 300)[:-12]
    with path.open("ab") as other:
        other.write(torn)
    assert [event["run"] for event in read_tape(path)] == ["a"]
    call(Tape(first, run="c"))  # this one had the file open
    assert [event["run"] for event in lines_of(path)] == ["a", "c"]
    with path.open("ab") as other:
        other.write(torn)
    call(Tape(opened(path), run="d"))  # this one opens it
    assert [event["run"] for event in lines_of(path)] == ["a", "c", "d"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_tear_is_mended(tmp_path, suffix, opened):
    path = tmp_path / f"t{suffix}"
    file = opened(path)
    for run in "ab":
        tape = Tape(file, run=run)
        tape.begin()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        fresh = opened(path)
        Tape(fresh, run="c").begin()
        fresh.close()
        assert [event["run"] for event in lines_of(path)] in (["c"], ["a", "c"], ["a", "b", "c"]), cut
        assert [event["run"] for event in lines_of(path)][-1] == "c"


def test_a_last_line_without_its_line_break_is_kept(tmp_path, opened):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"counterplay":"tape/1","kind":"run","run":"a"}')
    Tape(opened(path), run="b").begin()
    assert [event["run"] for event in lines_of(path)] == ["a", "b"]


@pytest.mark.parametrize("content", [b"hello", b'{"a": 1}\n', b'{"id": "x"}\n{"kind":"run"}\n', b"\x1f\x8b\x08nonsense", b"# notes\n" * 40])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_foreign_file_is_left_alone(tmp_path, content, suffix, opened):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a tape"):
        opened(path).write(b"{}\n")
    with pytest.warns(RuntimeWarning, match="not a tape"):
        Tape(opened(path)).begin()
    assert path.read_bytes() == content


def test_reading_something_else_is_an_error(tmp_path):
    (tmp_path / "t.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match="not an event"):
        list(read_tape(tmp_path / "t.jsonl"))
    with pytest.raises(UserError, match="can't be read"):
        list(read_tape(tmp_path / "none.jsonl"))


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path, opened):
    path = tmp_path / "t.jsonl"
    file = opened(path)
    Tape(file, run="a").begin()
    path.rename(tmp_path / "t.jsonl.1")
    Tape(file, run="b").begin()
    assert [event["run"] for event in lines_of(tmp_path / "t.jsonl.1")] == ["a"]
    assert [event["run"] for event in lines_of(path)] == ["b"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_threads_share_a_file(tmp_path, suffix, opened):
    path = tmp_path / f"t{suffix}"
    files = [opened(path), opened(path)]

    def work(number):
        tape = Tape(files[number % 2], run=str(number))
        for at in range(20):
            call(tape, at)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = lines_of(path)
    assert {run: [event["n"] for event in events if event["run"] == run] for run in map(str, range(6))} == {
        str(run): list(range(20)) for run in range(6)
    }


def test_whoever_writes_holds_the_file_against_other_processes(tmp_path, opened):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "t.jsonl"
    file = opened(path)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writing = threading.Thread(target=Tape(file, run="a").begin)
        writing.start()
        writing.join(0.2)
        assert writing.is_alive()
        assert path.read_bytes() == b""
    writing.join()
    assert [event["run"] for event in lines_of(path)] == ["a"]


def test_a_write_that_a_full_disk_cuts_short_is_taken_back(tmp_path):
    class Disk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if len(data) <= 5:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:5])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with (tmp_path / "t").open("ab+", buffering=0) as file:
        append(file, b"whole\n")
        with pytest.raises(OSError, match="No space"):
            append(Disk(file), b"cut short\n")
    assert (tmp_path / "t").read_bytes() == b"whole\n"


def test_a_forked_process_writes_for_itself(tmp_path, opened):
    path = tmp_path / "t.jsonl"
    file = opened(path)
    Tape(file, run="parent").begin()
    with file._file._lock, warnings.catch_warnings():  # a thread of the parent is writing
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if not child:
            try:
                Tape(file, run="child").begin()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    Tape(file, run="again").begin()
    assert [event["run"] for event in lines_of(path)] == ["parent", "child", "again"]


CHILD = """
import os, signal, sys
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest
from counterplay.replay.agents.tape import Tape, TapeFile

file = TapeFile(sys.argv[1])
for number in range(int(sys.argv[3])):
    tape = Tape(file, run=sys.argv[2] + str(number))
    tape.begin()
    for at in range(5):
        request = ModelRequest("chat", b'{"messages":[{"role":"user","content":"%s"}]}' % (b"x" * 5000))
        tape.model(request)
        if sys.argv[4:] == [f"{number}.{at}"]:
            os.kill(os.getpid(), signal.SIGKILL)
        tape.model_answered(request, ModelAnswer(b'{"id": "%d"}' % at))
    tape.end()
"""


def start(path, name, runs, *die):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), name, str(runs), *die], cwd=ROOT)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_processes_share_a_file_and_kill_9_loses_the_call_in_flight(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    children = [start(path, "a", 30), start(path, "b", 30), start(path, "c", 30, "20.3")]
    assert [child.wait() for child in children] == [0, 0, -signal.SIGKILL]
    events = lines_of(path)
    for name, runs in (("a", 30), ("b", 30), ("c", 20)):
        for number in range(runs):
            mine = [event["kind"] for event in events if event["run"] == f"{name}{number}"]
            assert mine == ["run", *["model"] * 5, "end"], (name, number)
    assert [event["kind"] for event in events if event["run"] == "c20"] == ["run", *["model"] * 3]
