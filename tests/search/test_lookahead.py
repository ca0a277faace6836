"""Searches for environments that can't be gone back to: a look one step ahead, and lines that share nothing."""

from collections import Counter

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import PolicyError
from counterplay.core.nouns import Grade, Message, Proposal, Step
from counterplay.search.independent import independent
from counterplay.search.lookahead import lookahead
from counterplay.search.render import to_dict
from counterplay.search.tree import SearchTree
from tests.search.game import BEST_LINE, Enumerator, Game, Sampler, action, moves, random_game, start


class OneWay:
    """A game that nobody can go back in: it is at one place for each line, and a step from anywhere else is refused."""

    def __init__(self, game: Game) -> None:
        self.game, self.at = game, Counter()

    async def step(self, state, action):
        if state.steps:
            assert self.at[state.key] > 0, "there is no instance in this state"
            self.at[state.key] -= 1
        step = await self.game.step(state, action)
        self.at[state.extend(step).key] += 1
        return step


@pytest.mark.parametrize("seed", range(10))
async def test_with_exact_values_the_line_is_optimal_and_only_it_is_executed(seed):
    game = Game(random_game(seed, depth=5)) if seed else Game()
    weighed = []

    async def exact(state):
        if not state.finished:
            weighed.append(state)
        return await game.exact(state)

    tree = await lookahead(start(), Enumerator(game), OneWay(game), exact, Budget())
    assert tree.best().score.value == game.best()
    assert seed or moves(tree.best().state) == BEST_LINE
    played = tree.best().path()
    assert sum(game.executed.values()) == len(played) - 1 == tree.used.tool_calls
    assert all(not state.steps[-1].observations for state in weighed)
    passed_over = [node for node in tree.nodes[1:] if node not in played]
    assert all(node.step.observations == () and not node.finished and node.visits == 1 for node in passed_over)
    assert [node.visits for node in played] == [1, *[2 if len(node.parent.children) > 1 else 1 for node in played[1:]]]
    assert tree.finished() == [played[-1]]


async def test_the_score_of_the_action_is_its_value_and_the_end_is_scored_as_an_end(game):
    tree = await lookahead(start(), Enumerator(game), game, game.exact, Budget())
    for node in tree.nodes[1:]:
        if not node.children and not node.finished:
            assert (node.value, node.score.value) == (game.best(moves(node.state)), game.best(moves(node.state)))
    assert tree.nodes[-1].root.value == tree.best().score.value
    again = SearchTree.from_record(tree.to_record("id"))
    assert to_dict(again) == to_dict(tree)


async def test_without_an_opinion_on_actions_the_likeliest_is_played(game):
    tree = await lookahead(start(), Enumerator(game), game, game.outcome, Budget())
    assert moves(tree.best().state) == ("hurry", "grab")
    assert tree.best().score.value == 0.3


async def test_equal_draws_are_weighed_once_and_counted(game):
    tree = await lookahead(start(), Sampler(game), game, game.exact, Budget(), num_actions=16)
    for node in tree.nodes:
        if node.children:
            assert sum(child.draws for child in node.children) == 16
            assert sum(child.prior for child in node.children) == pytest.approx(1)


async def test_a_proposal_that_failed_is_not_chosen_while_there_is_another(game):
    class Half:
        async def propose(self, state, n):
            raise_in = len(state) == 1
            if raise_in:
                raise PolicyError("the server answered 500")
            return await Enumerator(game).propose(state, n)

    tree = await lookahead(start(), Half(), game, game.exact, Budget())
    assert tree.failures["policy"]["count"] == 1
    assert tree.nodes[-1].step.error
    assert sum(game.executed.values()) == 1


async def test_a_budget_ends_the_line(game):
    tree = await lookahead(start(), Enumerator(game), game, game.exact, Budget.of(model_calls=9))
    assert tree.stopped == "budget: model_calls"
    assert tree.used.model_calls <= 9
    fresh = Game()
    cut = await lookahead(start(), Enumerator(fresh), fresh, fresh.exact, Budget.of(tool_calls=2))
    assert (cut.stopped, sum(fresh.executed.values())) == ("budget: tool_calls", 2)
    assert cut.best() is None


@pytest.mark.parametrize("seed", range(5))
async def test_independent_lines_are_each_executed_from_their_first_step(seed):
    game = Game(random_game(seed, depth=4), jitter=True)
    environment = OneWay(game)
    tree = await independent(start(), Sampler(game), environment, game.outcome, Budget(), n=12)
    lines = [leaf for leaf in tree.finished() for _ in range(leaf.visits)]
    assert len(lines) == 12 == tree.root.visits
    assert sum(game.executed.values()) == sum(len(leaf.state) for leaf in lines)
    assert tree.root.value_sum == pytest.approx(sum(leaf.score.value for leaf in lines))
    assert tree.best().score.value == max(leaf.score.value for leaf in lines)
    for node in tree.nodes[1:]:
        assert node.state.key == node.parent.state.extend(node.step).key
        assert node.visits == node.draws


async def test_equal_lines_are_one_path_and_unequal_answers_are_two():
    class Fixed:
        async def propose(self, state, n):
            return [Proposal(action("go"))] * n

    class Moody:
        asked = 0

        async def step(self, state, taken):
            Moody.asked += 1
            seen = Message.tool("fine" if len(state) or Moody.asked % 2 else "odd", "c")
            return Step(taken, (seen,), terminated=len(state) == 1, reward=1.0 if len(state) == 1 else None, grades=(Grade.EXECUTED,))

    tree = await independent(start(), Fixed(), Moody(), lambda t: t.steps[-1].reward, Budget(), n=6)
    assert [(child.draws, child.visits, child.prior) for child in tree.root.children] == [(3, 3, 0.5), (3, 3, 0.5)]
    assert [len(child.children) for child in tree.root.children] == [1, 1]
    assert Moody.asked == 12


async def test_the_tree_is_the_same_at_any_concurrency():
    trees = []
    for concurrency, jitter in ((1, False), (3, True), (64, True)):
        game = Game(jitter=jitter)
        trees.append(
            [
                to_dict(await search(start(), Sampler(game), game, game.exact, Budget(), concurrency=concurrency))
                for search in (lookahead, independent)
            ]
        )
    assert all(tree == trees[0] for tree in trees)


async def test_an_action_that_promised_much_is_scored_by_how_it_ended(game):
    def promised(state):
        return game.at(moves(state)) if state.finished else 0.9

    tree = await lookahead(start(), Enumerator(game), game, promised, Budget())
    end = tree.best()
    assert moves(end.state) == ("hurry", "grab")
    assert (end.score.value, end.visits, end.value_sum) == (0.3, 2, pytest.approx(0.9 + 0.3))
