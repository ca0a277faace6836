"""`counterplay show`: a trace in the terminal, readable, and harmless whatever its texts hold."""

import json

import pytest
from typer.testing import CliRunner

from counterplay import cli
from counterplay.core.nouns import Message, Source, Step, Trace, Trajectory
from counterplay.core.store import Store
from counterplay.showing import CUT, clipped, pretty, safe
from tests.viewing.contract import complaint
from tests.viewing.made import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("shown") / "s.duckdb"
    make_store(path, traces=4)
    return path


def show(store, *arguments):
    return CliRunner().invoke(cli.app, ["show", *arguments, "--store", str(store)], env={"COLUMNS": "160"})


def test_a_trace_reads_as_a_conversation(store):
    done = show(store, "trace-0")
    text = done.stdout
    assert done.exit_code == 0
    order = ["trace trace-0", "outcome failed, reward 0", "system  You keep books.", "user  Book document 0."]
    order += ["── step 0", "small", "100 in, 10 out", "→ look_up(account=", '← {"balance": 3}', "sound: 0.90"]
    order += ["── step 1", "tool error of post", "→ post(amount=4)", "← Error: out of balance", "books: 0.25"]
    order += ["┌ checker", "│ → post(amount=3)", "── step 2", "Booked as run 0."]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_one_step_alone_and_one_too_many(store):
    text = show(store, "trace-0", "--step", "1").stdout
    assert "post(amount=4)" in text
    assert "look_up" not in text
    assert show(store, "trace-0", "--step", "9").exit_code == 2


def test_trees_of_a_trace(store):
    done = show(store, "trace-0", "--tree", "--width", "100")
    assert done.stdout.startswith("search search-trace-0 of trace trace-0")
    assert "post(amount=9)" in done.stdout
    assert show(store, "trace-3", "--tree").exit_code == 2
    assert json.loads(show(store, "trace-0", "--tree", "--json").stdout)[0]["id"] == "search-trace-0"


def test_json_is_the_answer_of_the_api(store):
    assert complaint(json.loads(show(store, "trace-0", "--json").stdout), "TraceDetail") is None
    assert complaint(json.loads(show(store, "trace-0", "--json", "--step", "1").stdout), "StepView") is None


def test_an_id_that_is_none_or_several(store):
    assert show(store, "trace-").exit_code == 2
    assert show(store, "other").exit_code == 2


def test_what_a_terminal_would_obey_is_shown(tmp_path):
    said = "\x1b]0;owned\x07\x1b[2J[bold]markup[/]\r\x9b31m"
    path = tmp_path / "s.duckdb"
    with Store.open(path) as store:
        store.ingest([Trace("t", Trajectory((), (Message.user(said),), (Step(Message.assistant(said)),)), Source("made"))])
    text = show(path, "t").stdout
    assert not set(text) & {"\x1b", "\x07", "\r", "\x9b"}
    assert "\\x1b]0;owned\\x07" in text
    assert "[bold]markup[/]" in text


def test_long_texts_are_cut_and_counted():
    assert clipped("a" * (CUT + 5), CUT).endswith("a … 5 more characters (--full)")
    assert clipped("a" * (CUT + 5), None) == "a" * (CUT + 5)
    assert safe("a\tb\nc\u202e") == "a\tb\nc\\u202e"


def test_json_is_spread_over_lines_only_where_it_is_long():
    assert pretty('{"a": 1}') == '{"a": 1}'
    long = json.dumps({"a": list(range(60))})
    assert pretty(long) == json.dumps(json.loads(long), indent=2)
    assert pretty("{" + "x" * 200) == "{" + "x" * 200
