"""Whatever a search meets, it ends; and it says what its statistics are evidence of."""

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Step
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import SourcedTree
from counterplay.search.counts import COUNTS, OPINIONS, lines
from counterplay.search.mcts import mcts
from counterplay.search.registry import LOGGED, SEARCHES, UNSTOPPABLE
from counterplay.search.stopping import StopWhen, certainty, stopping
from counterplay.search.tree import SearchTree
from tests.search.game import Enumerator, Game, Sampler, action, moves, random_game, start
from tests.search.test_searches import run


class Silent:
    def __init__(self, game, after=0):
        self.policy, self.left = Sampler(game), after

    async def propose(self, state, n):
        self.left -= 1
        return [] if self.left < 0 else await self.policy.propose(state, n)


class Failing(Game):
    """Every step after the first `left` fails as machinery does."""

    left = 3

    async def step(self, state, action):
        self.left -= 1
        return await super().step(state, action) if self.left >= 0 else Step(action, error="down")


ODD = {
    "the policy falls silent": lambda game: {"policy": Silent(game, after=3)},
    "the policy has nothing": lambda game: {"policy": Silent(game)},
    "no budget at all": lambda game: {"budget": Budget.of(simulations=0, model_calls=0, tokens=0, tool_calls=0)},
    "no model calls": lambda game: {"budget": Budget.of(model_calls=0)},
    "no tool calls": lambda game: {"budget": Budget.of(tool_calls=0)},
    "no simulations": lambda game: {"budget": Budget.of(simulations=0)},
    "one model call": lambda game: {"budget": Budget.of(model_calls=1)},
    "no opinion on anything": lambda game: {"verifier": lambda _: None},
    "everything is worthless": lambda game: {"verifier": lambda _: 0.0},
    "one step": lambda game: {"max_steps": 1},
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", SEARCHES)
async def test_every_search_ends_whatever_it_meets(name, odd):
    game = Game()
    options = ODD[odd](game)
    if name in LOGGED:
        options.pop("max_steps", None)
    tree = await run(name, game, **options)
    assert tree.stopped
    assert all(child.parent is node for node in tree.nodes for child in node.children)
    budget = options.get("budget")
    if budget is not None:
        for kind in ("model_calls", "tool_calls", "simulations"):
            limit = getattr(budget.limits, kind)
            assert limit is None or getattr(budget.used, kind) <= limit
    if odd.startswith("no opinion") and name != "mcts_star":
        assert all(node.visits == 0 for node in tree.nodes if node.finished and not node.logged)


@pytest.mark.parametrize("name", SEARCHES)
async def test_every_search_ends_where_all_branches_fail(name):
    tree = await run(name, Failing())
    assert tree.stopped
    assert not [node for node in tree.nodes if node.step and node.step.error and node.visits]
    assert not [node for node in tree.nodes if node.step and node.step.error and node.children]


@pytest.mark.parametrize("name", [name for name in SEARCHES if name not in LOGGED])
async def test_a_finished_root_is_left_alone(name, game):
    state = start().extend(await game.step(start(), action("hurry"))).extend(Step(Message.assistant("Done."), terminated=True))
    asked = Sampler(game)
    tree = await SEARCHES[name](state, asked, game, lambda _: 0.5, Budget())
    assert len(tree.nodes) == 1
    assert not asked.asked
    assert tree.stopped


NOTHING_TO_DO = {
    "self_consistency": {"batches": ()},
    "dvts": {"num_subtrees": 0},
    "rebase": {"width": 0},
    "particle_filter": {"num_particles": 0},
    "best_first": {"num_expansions": 0},
    "depth_first": {"num_expansions": 0},
    "mcts_star": {"num_actions": 0},
    "gumbel": {"num_simulations": 0},
    "lats": {"num_iterations": 0},
    "archive": {"num_lines": 0},
    "receding_horizon": {"horizon": 0},
}


@pytest.mark.parametrize("name", NOTHING_TO_DO)
async def test_a_search_needs_something_to_do(name, game):
    with pytest.raises(UserError):
        await run(name, game, **NOTHING_TO_DO[name])


def test_every_search_says_what_its_statistics_are():
    assert set(SEARCHES) == COUNTS | OPINIONS
    assert not COUNTS & OPINIONS


@pytest.mark.parametrize("name", sorted(COUNTS - LOGGED - {"archive"}))
@pytest.mark.parametrize("verifier", ["outcome", "exact"])
async def test_where_statistics_are_counts_only_ends_of_lines_are_counted(name, verifier):
    for seed in range(4):
        game = Game(random_game(seed, depth=5))
        tree = await run(name, game, verifier=getattr(game, verifier))
        for node in tree.nodes:
            if not node.finished:
                assert node.visits == sum(child.visits for child in node.children)
                assert node.value_sum == pytest.approx(sum(child.value_sum for child in node.children))


@pytest.mark.parametrize("name", sorted(OPINIONS))
async def test_opinions_on_unfinished_states_make_no_pairs(name):
    game = Game({m: (0.25, {"x": (1.0, {"y": (1.0, {"z": (1.0, value)})})}) for m, value in zip("abcd", (1.0, 0.0, 0.9, 0.1), strict=True)})
    tree = await run(name, game, verifier=lambda s: game.best(moves(s)) if not s.finished else None, policy=Enumerator(game))
    assert sum(node.visits for node in tree.nodes) > 0
    assert not dpo_rows([SourcedTree(tree)], tau=0.51).rows
    assert not any(visits for visits, _ in lines(tree).values())


async def test_each_end_is_one_line_however_often_it_was_selected(game):
    tree = await mcts(start(), Enumerator(game), game, game.outcome, Budget(), num_simulations=300, num_actions=3)
    counted = lines(tree)
    assert tree.root.visits > 100
    assert counted[0] == (len(tree.finished()), pytest.approx(sum(leaf.score.value for leaf in tree.finished())))
    merged = SearchTree.from_record(tree.to_record("id"))
    merged.algorithm = "stitch"
    assert lines(merged)[0] == (merged.root.visits, merged.root.value_sum)


@pytest.mark.parametrize("name", sorted(OPINIONS))
async def test_ends_are_counted_as_they_come_in(name, monkeypatch):
    """What the tree, walked anew after every wave, would say."""
    seen = []

    def reason(_, tree, ends):
        known = lines(tree)
        walked = {node.index: known[node.index] for node in tree.root.children if known[node.index][0]}
        assert ends.played.keys() == walked.keys()
        assert [ends.played[i] for i in walked] == [pytest.approx(n_w) for n_w in walked.values()]
        assert certainty(tree, ends) == pytest.approx(certainty(tree))
        seen.append(len(walked))
        return ""

    monkeypatch.setattr(StopWhen, "reason", reason)
    for game in (Game(), *(Game(random_game(seed, depth=3)) for seed in range(3))):
        for verifier in (game.exact, game.outcome):
            with stopping(StopWhen(decided=0.9)):
                await run(name, game, verifier=verifier)
    assert max(seen) > 0 or name == "lookahead"


@pytest.mark.parametrize("name", SEARCHES)
async def test_it_is_known_which_searches_a_condition_can_end(name):
    """Every end is poor, so that none stops of itself."""
    ended = []
    for seed in range(6):
        game = Game(random_game(seed, depth=5))
        with stopping(StopWhen(finished=1)):
            tree = await run(name, game, verifier=lambda state: 0.1 + 0.4 * (len(state) < 2))
        ended.append(tree.stopped.endswith("branches finished"))
    assert any(ended) == (name not in UNSTOPPABLE)
