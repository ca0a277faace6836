"""Options that look for nothing are refused, by name, in Python and as text; a budget is fitted to any number of draws."""

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Usage
from counterplay.search.engine import Engine
from counterplay.search.registry import SEARCHES, find, parse_options
from counterplay.search.registry import options as options_of
from counterplay.search.tree import SearchTree
from tests.search.game import Game, Sampler, start

NONE = {
    "fork_best_of_n": {"n": 0},
    "repair": {"n": 0},
    "best_of_n": {"n": -3},
    "independent": {"n": 0},
    "greedy": {"num_samples": 0},
    "beam": {"width": 0},
    "lookahead": {"num_actions": 0},
}


@pytest.mark.parametrize("name", NONE)
async def test_a_search_for_nothing_is_refused_in_python(name):
    game = Game()
    with pytest.raises(UserError, match="at least 1"):
        await SEARCHES[name](start(), Sampler(game), game, game.exact, Budget(), **NONE[name])


@pytest.mark.parametrize("name", SEARCHES)
def test_the_defaults_of_every_search_may_be_written_out(name):
    known = options_of(find(name))
    given = {option.name: option.default for option in known.values() if isinstance(option.default, int | float | str)}
    assert parse_options(find(name), {key: str(value) for key, value in given.items()}) == given
    for option in known.values():
        if option.kind == "int" and option.name != "seed":
            with pytest.raises(UserError, match=f"got option {option.name}=-1; wanted at least"):
                parse_options(find(name), {option.name: "-1"})
        if option.kind == "float":
            with pytest.raises(UserError, match=f"got option {option.name}=nan; wanted a finite number"):
                parse_options(find(name), {option.name: "nan"})


def test_yes_and_no_can_be_written():
    assert parse_options(find("rebase"), {"directions": "false"}) == {"directions": False}
    with pytest.raises(UserError, match="directions='maybe'; wanted bool"):
        parse_options(find("rebase"), {"directions": "maybe"})


class Counting(Sampler):
    """Counts how often it is asked what draws would use."""

    priced = 0

    def estimate(self, _, n):
        self.priced += 1
        return Usage(10, 5 * n)


async def test_a_budget_is_fitted_to_a_million_draws_in_a_few_questions():
    game = Game()
    policy = Counting(game)
    engine = Engine(policy, game, game.exact, Budget.parse("tokens=1000"))
    tree = SearchTree.start(start(), "none", {})
    (proposals,) = await engine.propose([(tree.root, 1_000_000)])
    assert len(proposals) == 198
    assert policy.priced < 100
