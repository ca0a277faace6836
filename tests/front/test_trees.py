"""`counterplay tree`: a search of a store as text, Graphviz or JSON."""

import json

import pytest
from typer.testing import CliRunner

from counterplay import cli, trees
from counterplay.commands import trees as _command  # noqa: F401  registers the command
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Score, State, Step, ToolCall
from counterplay.core.store import Store
from counterplay.search.tree import SearchTree


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
