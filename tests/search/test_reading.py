"""Aggregation, and the registry's options."""

import pytest

from counterplay.core.errors import UserError
from counterplay.search import registry
from counterplay.search.aggregate import AGGREGATIONS, aggregate, mean
from counterplay.search.localise import localise
from counterplay.search.mcts import mcts
from counterplay.search.registry import SEARCHES, find, options, parse_options


def test_aggregations_by_hand():
    scores = [0.9, 0.5, 0.8]
    wanted = {"last": 0.8, "min": 0.5, "product": 0.36, "mean": 2.2 / 3, "max_drop": 0.6}
    assert {how: aggregate(scores, how) for how in AGGREGATIONS} == pytest.approx(wanted)
    assert aggregate([None, 0.5, None], "product") == 0.5
    assert aggregate([None, None]) is None
    assert aggregate([]) is None
    assert aggregate([0.3], "max_drop") == 1.0
    with pytest.raises(UserError, match="last, min, product, mean, max_drop"):
        aggregate(scores, "sum")


def test_defect_7_gamma_makes_the_last_steps_weigh_most():
    assert mean([0.0, 0.0, 1.0], gamma=0.5) == pytest.approx(1 / 1.75)
    assert mean([1.0, 0.0, 0.0], gamma=0.5) == pytest.approx(0.25 / 1.75)
    assert mean([1.0, 0.0], gamma=1.0) == 0.5


def test_every_search_has_the_common_options():
    for search in SEARCHES.values():
        assert {"seed", "concurrency", "max_steps"} <= set(options(search))
        assert "on_wave" not in options(search)
    assert set(SEARCHES) >= registry.LOGGED
    assert find("mcts") is mcts
    with pytest.raises(UserError, match="beam"):
        find("mtcs")


def test_options_are_read_from_text():
    fork = SEARCHES["fork_best_of_n"]
    given = {"n": "8", "pivots": "3, 7", "localisation": "pivot", "max_steps": "none"}
    assert parse_options(fork, given) == {"n": 8, "pivots": [3, 7], "localisation": "pivot", "max_steps": None}
    assert parse_options(mcts, {"c_init": "2.5"}) == {"c_init": 2.5}
    assert parse_options(fork, {"pivots": "none"}) == {"pivots": None}
    assert options(fork)["pivots"].kind == "int,int,... or none"
    assert options(mcts)["selection"].kind == '"puct" or "uct"'
    assert options(mcts)["num_simulations"].default == 64
    assert "max_lines" in options(localise)
    with pytest.raises(UserError, match="num_simulations"):
        parse_options(mcts, {"simulations": "3"})
    with pytest.raises(UserError, match=r"got option n='many'; wanted int"):
        parse_options(fork, {"n": "many"})
    with pytest.raises(UserError, match='"puct" or "uct"'):
        parse_options(mcts, {"selection": "best"})
    with pytest.raises(UserError, match="siblings"):
        parse_options(localise, {"siblings": "x"})
