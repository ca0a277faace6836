"""Choices over finished trees and over tasks: perplexity consistency, the bandit, difficulty."""

import json
import math
import random
from collections import Counter

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Proposal, Step, ToolCall
from counterplay.search.bandit import Strategies, by_difficulty, confidence
from counterplay.search.best_of_n import best_of_n, weighted_best
from counterplay.search.perplexity import log_probability, pruned, rpc_best
from counterplay.search.tree import SearchTree
from tests.search.game import Enumerator, Sampler, start


def call(name: str, **arguments) -> Message:
    return Message.assistant(None, [ToolCall("c", name, json.dumps(arguments))])


def finished_lines(*rows):
    """A tree of one-step lines (answer, log-probability)."""
    tree = SearchTree.start(start())
    for number, (name, logprob) in enumerate(rows):
        first = tree.add(tree.root, Step(call(f"think{number}")), Proposal(call(f"think{number}"), logprob=logprob))
        tree.add(first, Step(call(name), terminated=True), Proposal(call(name), logprob=0.0))
    return tree


def test_rpc_sums_the_probability_of_the_distinct_lines_of_an_answer():
    tree = finished_lines(("a", math.log(0.30)), ("b", math.log(0.20)), ("b", math.log(0.20)), ("c", math.log(0.05)))
    chosen = rpc_best(tree)
    assert chosen.step.action == call("b")
    assert log_probability(chosen) == pytest.approx(math.log(0.2))
    again = finished_lines(("a", math.log(0.50)), ("b", math.log(0.20)), ("b", math.log(0.20)))
    assert rpc_best(again).step.action == call("a")


def test_rpc_prunes_lines_that_are_improbable_beside_the_others():
    likely = [math.log(p) for p in (0.30, 0.28, 0.25, 0.31)]
    unlikely = [math.log(p) for p in (1e-4, 2e-4, 1.5e-4, 3e-4)]
    assert pruned([*likely, *unlikely]) == [True] * 4 + [False] * 4
    assert all(pruned([0.0, 0.0, 0.0]))
    assert pruned([0.0]) == [True]
    assert pruned([0.0, -800.0]) == [True, False]
    many = [*(("a", math.log(0.02)) for _ in range(30)), ("b", math.log(0.3)), ("b", math.log(0.28)), ("b", math.log(0.25))]
    assert rpc_best(finished_lines(*many)).step.action == call("b")


async def test_rpc_needs_log_probabilities(game):
    assert rpc_best(SearchTree.start(start())) is None
    assert rpc_best(await best_of_n(start(), Sampler(game), game, game.outcome, Budget())) is None
    assert rpc_best(finished_lines(("a", None), ("b", -3.0))).step.action == call("b")
    tree = await best_of_n(start(), Enumerator(game), game, game.outcome, Budget())
    assert rpc_best(tree) in tree.finished()
    assert weighted_best(tree) in tree.finished()


def test_the_bandit_finds_the_best_strategy_of_each_class():
    truth = {"refund": {"greedy": 0.2, "best_of_n": 0.4, "mcts": 0.8}, "look-up": {"greedy": 0.9, "best_of_n": 0.6, "mcts": 0.3}}
    known, generator, chosen = Strategies(("greedy", "best_of_n", "mcts")), random.Random(5), Counter()
    for trace in range(600):
        task_class = ("refund", "look-up")[trace % 2]
        strategy = known.choose(task_class, seed=trace)
        chosen[task_class, strategy] += 1
        known = known.after(task_class, strategy, float(generator.random() < truth[task_class][strategy]))
    assert (known.first("refund"), known.first("look-up")) == ("mcts", "greedy")
    assert chosen["refund", "mcts"] > 200 < chosen["look-up", "greedy"]
    again = Strategies.from_json(json.loads(json.dumps(known.to_json())))
    assert again == known
    assert [again.choose("refund", seed=i) for i in range(20)] == [known.choose("refund", seed=i) for i in range(20)]
    assert known.first("never seen") == "greedy"
    with pytest.raises(UserError, match="greedy, best_of_n, mcts"):
        known.after("refund", "beam", 1.0)
    with pytest.raises(UserError, match="0, 1"):
        known.after("refund", "mcts", 2.0)


def test_the_unsure_are_worked_on():
    strategies = ("greedy", "best_of_n", "mcts")
    assert confidence([]) == 0
    assert confidence("aab") == pytest.approx(2 / 3)
    assert by_difficulty("aaaaaaaab", strategies) == "greedy"
    assert by_difficulty("aabb", strategies) == "best_of_n"
    assert by_difficulty("abcd", strategies) == "mcts"
    with pytest.raises(UserError, match="falling"):
        by_difficulty("a", strategies, bounds=(0.2, 0.9))
