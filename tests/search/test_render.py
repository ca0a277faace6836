"""Reading a tree: text, Graphviz and JSON of trees whose contents are known."""

import json
import re

import pytest

from counterplay.core.budget import Budget
from counterplay.core.nouns import Message, Proposal, Score, Step, ToolCall
from counterplay.search.counts import lines
from counterplay.search.draw import reading_of, to_dict, to_dot, to_json
from counterplay.search.mcts import mcts
from counterplay.search.reading import action_of, contest, contested, size, visible
from counterplay.search.render import to_text
from counterplay.search.tree import SearchTree
from tests.search.game import Enumerator, Game, action, start


async def grown():
    game = Game()
    return await mcts(start(), Enumerator(game), game, game.exact, Budget(), num_simulations=30, num_actions=3)


def small():
    """A logged line of three steps that failed, and at its second step a branch of three that succeeded; the first is contested."""
    tree = SearchTree.start(start(), "by_hand")
    tree.root.visits, tree.root.value_sum = 2, 1.0

    def add(parent, move, *, visits, value_sum, logged=False, over=False, score=None, error=None):
        node = tree.add(parent, Step(action(move), terminated=over, error=error), Proposal(action(move), prior=0.5), logged=logged)
        node.visits, node.value_sum = visits, value_sum
        node.score = None if score is None else Score(score, "because")
        return node

    one = add(tree.root, "one", visits=2, value_sum=1.0, logged=True)
    two = add(one, "two", visits=1, value_sum=0.0, logged=True)
    add(two, "three", visits=1, value_sum=0.0, logged=True, over=True, score=0.0)
    node = other = add(one, "other", visits=1, value_sum=1.0)
    for move in ("more", "most"):
        node = add(node, move, visits=1, value_sum=1.0, over=move == "most", score=1.0 if move == "most" else None)
    add(one, "broken", visits=0, value_sum=0.0, error="TimeoutError")
    tree.stop("done")
    return tree, other


def body(text):
    lines = text.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("* logged")) + 1 :]


def test_the_text_of_a_small_tree():
    tree, _ = small()
    lines = to_text(tree, width=100).splitlines()
    assert lines[:3] == ["by_hand: 8 nodes, done", "best: 4 steps, score 1.00 (because)", "logged: 3 steps, score 0.00 (because)"]
    assert [line.split() for line in lines[3:]] == [
        ["*", "logged", "+", "best", ".", "end", "!", "failed", "N", "Q", "prior", "score", "P(best)"],
        ["+", "root", "2", "0.50"],
        ["*+", "0", "move(to=one)", "2", "0.50", "0.50"],
        ["*", ".", "1-2", "move(to=two)", ">", "move", "1", "0.00", "0.50", "0.00"],
        ["+.", "1-3", "move(to=other)", ">", "move", ">", "move", "1", "1.00", "0.50", "1.00", "0.83?"],
        ["!", "1", "[TimeoutError]", "0", "0.50"],
        ["contested,", "where", "the", "better", "action", "is", "not", "known", "with", "90%:", "1"],
        ["step", "1:", "0.83", "move(to=other)", "(1/1)", "or", "move(to=two)", "(0/1)"],
    ]
    assert len({line.index(" 0.50 ") for line in lines[6:8]}) == 1  # columns stand under one another


def test_unary_chains_are_folded_unless_asked_not_to():
    tree, _ = small()
    flat = to_text(tree, fold=False, width=100)
    assert len(body(flat)) == 8 + 2
    assert [line.split()[1] for line in body(flat) if "three" in line or "most" in line] == [".", "3"]
    # a chain is not folded over what a reader would miss: where the log or the best path leaves it, and at forks
    assert all(" > " not in line for line in body(to_text(tree, width=100)) if "to=one" in line)


def test_a_chain_ends_where_the_log_ends():
    tree = SearchTree.start(start())
    node = tree.root
    for at, move in enumerate("abcd"):
        node = tree.add(node, Step(action(move)), logged=at < 2)
    assert [line.split()[:2] for line in body(to_text(tree))[1:]] == [["*", "0-1"], ["2-3", "move(to=c)"]]


def test_a_chain_ends_where_alternatives_are_not_shown():
    tree = SearchTree.start(start())
    node = tree.add(tree.root, Step(action("a")))
    for move in "bcd":
        tree.add(node, Step(action(move))).visits = 1
    assert [line.split()[0] for line in body(to_text(tree, max_children=1))[1:3]] == ["0", "..."]


def test_only_forks_indent():
    tree, _ = small()
    rows = [line for line in body(to_text(tree, fold=False, width=100)) if "move(" in line and not line.startswith("  step")]
    wanted = {"one": 11, "other": 13, "more": 13, "most": 13, "two": 13, "three": 13}
    assert {re.search(r"to=(\w+)", line)[1]: line.index("move(") for line in rows} == wanted


async def test_width_and_depth_are_kept():
    tree = await grown()
    for width in (60, 90, 200):
        assert max(map(len, to_text(tree, width=width).splitlines())) <= width
    assert to_text(tree, width=10) == to_text(tree, width=60)
    full, short = to_text(tree, fold=False), to_text(tree, fold=False, max_depth=1)
    rows = [line for line in body(short) if not line.startswith(("contested", "  step"))]
    hidden = sum(int(found[1]) for line in rows if (found := re.search(r"\.\.\. (\d+) nodes? more", line)))
    assert hidden + 1 + len(tree.root.children) == len(tree.nodes)
    assert len([line for line in body(full) if not line.startswith(("contested", "  step"))]) == len(tree.nodes)


def test_few_children_keep_the_logged_and_the_best():
    tree, other = small()
    kept = {node.index: [child.index for child in children] for node, children, _ in visible(tree, None, 1)}
    assert kept[1] == [2, other.index]
    assert next(hidden for node, _, hidden in visible(tree, None, 1) if node.index == 1) == 1
    assert "... 1 node more" in to_text(tree, max_children=1)
    assert len(list(visible(tree, None, None))) == len(tree.nodes)
    assert size(tree.root) == len(tree.nodes) - 1


def test_contested_siblings():
    tree, other = small()
    made = contest(tree.nodes[1], lines(tree))
    assert (made.leader, made.rival) == (other, tree.nodes[2])
    # Beta(2, 1) against Beta(1, 2): 1 - E[(1 - x)^2] = 1 - 2 B(2, 3) = 5/6
    assert made.probability == pytest.approx(5 / 6)
    assert contested(tree) == contested(tree, tau=0.84) == [made]
    assert contested(tree, tau=0.83) == []
    assert contest(tree.root, lines(tree)) is None


def test_words_for_actions():
    tree, _ = small()
    odd = tree.add(
        tree.root, Step(Message.assistant(None, [ToolCall("c", "send", "not json"), ToolCall("d", "pay", '{"n": 3, "to": ["a"]}')]))
    )
    said = tree.add(tree.root, Step(Message.assistant("Hello\nthere")))
    assert action_of(odd) == 'send(not json); pay(n=3, to=["a"])'
    assert action_of(said) == '"Hello\nthere"'
    assert '"Hello there"' in to_text(tree)


def test_dot():
    tree, other = small()
    lines = to_dot(tree).splitlines()
    assert lines[0] == "digraph search {"
    assert lines[-1] == "}"
    drawn = {int(found[1]): line for line in lines if (found := re.match(r"  n(\d+) \[", line))}
    assert len(drawn) == len(tree.nodes)
    assert sum(" -> " in line for line in lines) == len(tree.nodes) - 1
    assert "bold" in drawn[2]
    assert "bold" not in drawn[other.index]
    assert 'color="blue"' in drawn[other.index]
    assert 'color="blue"' not in drawn[2]
    assert 'color="red"' in drawn[7]
    assert [index for index, line in drawn.items() if "shape=box" in line] == [3, 6, 7]
    assert "+1 nodes" in next(line for line in to_dot(tree, max_children=1).splitlines() if line.startswith("  n1 ["))


def test_dot_escapes_what_graphviz_would_read():
    tree = SearchTree.start(start())
    tree.add(tree.root, Step(Message.assistant('say "hi" \\ then\nleave')))
    label = re.search(r'n1 \[label="((?:[^"\\]|\\.)*)" shape', to_dot(tree))[1]
    assert label == '\\"say \\"hi\\" \\\\ then leave\\"\\nN=0 P=1.00'


async def test_json():
    tree = await grown()
    fields = json.loads(to_json(tree))
    assert fields == to_dict(tree)
    assert [node["parent"] for node in fields["nodes"]][1:] == [node.parent.index for node in tree.nodes[1:]]
    assert fields["nodes"][1]["value"] == tree.nodes[1].value
    by_hand, other = small()
    read = reading_of(by_hand)
    assert read["best"] == [0, 1, 4, 5, 6]
    assert reading_of(SearchTree.start(start())) == {"best": [], "contested": []}
    assert json.loads(json.dumps(read)) == read
    assert [(made["parent"], made["leader"], made["rival"]) for made in read["contested"]] == [(1, other.index, 2)]
