"""A search with a verifier of many grows the same tree as with one of each, and asks once a wave."""

import pytest

from counterplay.core.budget import Budget
from counterplay.core.journal import JournaledVerifier, MemoryJournal
from counterplay.core.protocols import calls_at_once
from counterplay.search.best_of_n import best_of_n
from counterplay.search.mcts import mcts
from counterplay.verifiers.combine import all_of, mean
from tests.search.game import Game, Sampler, start

SEARCHES = {"mcts": (mcts, {"num_simulations": 60, "wave_size": 8}), "best_of_n": (best_of_n, {"n": 12})}


class Exact:
    """The game's own values, alone or many at a time."""

    name, version = "exact", "1"

    def __init__(self, game, *, many, failing=2):
        self.game, self.waves, self.limits, self.singles, self.failing = game, [], [], 0, failing
        self.batch = self.several if many else None

    async def __call__(self, trajectory):
        self.singles += 1
        if len(trajectory) == self.failing:
            msg = "no opinion to be had"
            raise LookupError(msg)
        return await self.game.exact(trajectory)

    async def several(self, trajectories):
        self.waves.append(len(trajectories))
        self.limits.append(calls_at_once.get())
        return [LookupError("no opinion to be had") if len(t) == self.failing else await self.game.exact(t) for t in trajectories]


def shape(tree):
    return [(n.depth, n.visits, round(n.value_sum, 9), n.score and n.score.value, n.step and n.step.action.signature) for n in tree.nodes]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: JournaledVerifier(v, MemoryJournal()), all_of, lambda v: mean(v, lambda _: 1.0)])
async def test_the_tree_is_the_same_and_a_wave_is_one_question(name, wrap):
    search, options = SEARCHES[name]
    trees, verifiers = [], []
    for many in (False, True):
        game = Game()
        verifiers.append(Exact(game, many=many))
        trees.append(await search(start(), Sampler(game), game, wrap(verifiers[-1]), Budget(), concurrency=7, **options))
    assert shape(trees[0]) == shape(trees[1])
    assert trees[0].failures["verifier"]["count"] == trees[1].failures["verifier"]["count"] > 0
    assert "no opinion to be had" in trees[1].failures["verifier"]["first"]
    alone, together = verifiers
    assert together.singles == 0
    assert len(together.waves) < alone.singles / 2
    assert set(together.limits) == {7}
    assert calls_at_once.get() == 64


async def test_a_journal_answers_a_batch_the_second_time():
    journal = MemoryJournal()
    for calls in (None, 0):
        game = Game()
        verifier = Exact(game, many=True, failing=None)
        await mcts(start(), Sampler(game), game, JournaledVerifier(verifier, journal), Budget(), num_simulations=40, wave_size=8)
        assert calls is None or sum(verifier.waves) == calls
