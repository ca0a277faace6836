"""`counterplay tree`: a search of a store as text, Graphviz or JSON."""

import json

import pytest
from typer.testing import CliRunner

from counterplay import cli, trees
from counterplay.commands import trees as _command  # noqa: F401  registers the command
from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Score, State, Step, ToolCall
from counterplay.core.store import Store
from counterplay.naming import short_ids, whole_id, whole_trace_ids
from counterplay.search.tree import SearchTree
from tests.front.moves import logged


def searched():
    tree = SearchTree.start(State((), (Message.user("Book it."),)), "by_hand", {"n": 2})
    for number, (tool, value) in enumerate((("post", 0.0), ("convert", 1.0))):
        step = Step(Message.assistant(None, [ToolCall("c", tool, '{"amount": 3}')]), (Message.tool("done", "c"),), terminated=True)
        node = tree.add(tree.root, step, logged=number == 0)
        node.visits, node.value_sum, node.score = 4, 4 * value, Score(value, "the books")
    tree.stop("both ended")
    return tree


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "s.duckdb"
    with Store.open(path) as opened:
        for search_id in ("aaaa1111", "aaaa2222", "bbbb3333"):
            opened.put_search(searched().to_record(search_id, trace="trace-1", task="books"))
    return path


def run(store, *arguments):
    return CliRunner().invoke(cli.app, ["tree", *arguments, "--store", str(store)])


def test_text(store):
    done = run(store, "bbbb3333", "--width", "80")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert lines[0] == "search bbbb3333 of trace trace-1, task books"
    assert lines[1] == "by_hand: 3 nodes, both ended"
    assert any(line.startswith(" +.      0   convert(amount=3)") for line in lines)
    assert any(line.startswith("* .      0   post(amount=3)") for line in lines)
    assert max(map(len, lines)) <= 80


def test_dot_and_json(store):
    assert run(store, "bbbb", "--format", "dot").stdout.count(" -> ") == 2
    read = json.loads(run(store, "bbbb", "--format", "json").stdout)
    assert (read["id"], read["trace"], read["task"], read["fork_step"]) == ("bbbb3333", "trace-1", "books", 0)
    assert read["best"] == [0, 2]
    assert [node["value"] for node in read["nodes"]] == [None, 0.0, 1.0]
    assert read["contested"] == []


def test_depth_is_passed_on(store):
    assert "2 nodes more" in run(store, "bbbb", "--max-depth", "0").stdout
    assert "1 node more" not in run(store, "bbbb", "--max-children", "1").stdout  # the logged and the best one are always shown


def test_searches_are_listed(store):
    done = run(store)
    assert done.exit_code == 0
    assert "3 searches" in done.stdout
    rows = json.loads(run(store, "--format", "json").stdout)
    assert (rows["searches"], [row["id"] for row in rows["latest"]]) == (3, ["bbbb3333", "aaaa2222", "aaaa1111"])


def test_the_latest_are_listed_with_ids_that_can_be_pasted(tmp_path):
    path, ids = tmp_path / "many.duckdb", [content_key(str(i)) for i in range(30)]
    ids += [ids[0][:20] + "0" * 12, "x" * 40]
    with Store.open(path) as opened:
        for number, search_id in enumerate(ids):
            task = f"a task of many words, number {number}, which is longer than a line has place for " * 2
            opened.put_search(searched().to_record(search_id, trace=f"trace-{number % 2}", task=task))
    shown = run(path).stdout
    assert "the latest 20 of 32 searches (--all lists them)" in " ".join(shown.split())
    begun = [line.split()[0] for line in shown.splitlines() if line.strip()]
    named = [word for word in begun if word.isalnum() and len(word) >= 12]
    assert named == [each[:21] if each.startswith(ids[0][:20]) else each[:12] for each in ids[::-1][:20]]
    with Store.open(path, read_only=True) as opened:
        assert [trees.find(opened, short).id for short in named] == ids[::-1][:20]
    assert run(path, named[0]).exit_code == 0
    everything = run(path, "--all").stdout
    assert "32 searches" in everything
    assert all(each[:12] in everything for each in ids)
    half = json.loads(run(path, "--format", "json", "--trace", "trace-1", "--all").stdout)
    assert (half["searches"], half["latest"][0]["id"]) == (16, ids[31])
    assert "no search of trace trace-7" in run(path, "--trace", "trace-7").stderr


def test_what_can_not_be_shown_is_said(store, tmp_path):
    with Store.open(store, read_only=True) as opened:
        with pytest.raises(UserError, match="which 2 ids begin with"):
            trees.find(opened, "aaaa")
        with pytest.raises(UserError, match="no search 'cccc'"):
            trees.find(opened, "cccc")
        assert trees.find(opened, "aaaa2222").id == "aaaa2222"
        with pytest.raises(UserError, match="one of text, dot, json"):
            trees.drawn(opened.search("bbbb3333"), format="pdf")
    with Store.open(tmp_path / "empty.duckdb") as empty, pytest.raises(UserError, match="without searches"):
        trees.listed(empty)
    assert run(store, "aaaa").exit_code == 2
    assert run(tmp_path / "none.duckdb", "aaaa").exit_code == 2


def test_ids_are_told_by_how_they_begin(tmp_path):
    path = tmp_path / "s.duckdb"
    with Store.open(path) as opened:
        opened.ingest([logged("t", name=name) for name in ("alpha-1", "alpha-12", "beta-1")])
        assert whole_trace_ids(opened, ["b", "alpha-1", "alpha-12", "gamma"]) == ["beta-1", "alpha-1", "alpha-12", "gamma"]
        assert whole_trace_ids(opened, None) == []
        with pytest.raises(
            UserError, match=r"got trace 'alpha', which 2 ids begin with; wanted one of them. For example: alpha-1, alpha-12"
        ):
            whole_trace_ids(opened, ["alpha"])
    replayed = CliRunner().invoke(cli.app, ["replay", "--trace", "bet", "--store", str(path), "--json"])
    assert json.loads(replayed.stdout)["traces"] == 1
    refused = CliRunner().invoke(cli.app, ["search", "--trace", "alpha", "--policy", "logged", "--store", str(path)])
    assert (refused.exit_code, "which 2 ids begin with" in refused.stderr) == (2, True)


def test_short_ids_tell_every_id_from_every_other():
    ids = ["a" * 32, "a" * 31 + "b", "a" * 13 + "c" * 19, "b", "ba" * 9]
    short = short_ids(ids)
    assert short == {ids[0]: "a" * 32, ids[1]: "a" * 31 + "b", ids[2]: "a" * 13 + "c", "b": "b", ids[4]: "bababababab" + "a"}
    for each, beginning in short.items():
        assert whole_id(beginning, ids, "search") == each
    assert short_ids(["f" * 32]) == {"f" * 32: "f" * 12}
