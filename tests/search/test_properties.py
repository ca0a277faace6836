"""What the paper of each search promises, on games whose best play and probabilities are known."""

import json
import math
import random
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from counterplay.core.budget import Budget
from counterplay.core.journal import JournaledEnvironment, JournaledPolicy, JournaledVerifier, MemoryJournal
from counterplay.core.nouns import Message, Proposal, Score, Step, ToolCall, Usage
from counterplay.core.protocols import first_draw
from counterplay.search.archive import Archive, archive
from counterplay.search.beam import beam
from counterplay.search.best_first import best_first, promise
from counterplay.search.counts import lines
from counterplay.search.dvts import dvts
from counterplay.search.engine import Engine
from counterplay.search.gumbel import gumbel, waves
from counterplay.search.lats import lats
from counterplay.search.lookahead import lookahead
from counterplay.search.mcts import mcts
from counterplay.search.mcts_star import mcts_star
from counterplay.search.particles import particle_filter, resample, sweep, systematic
from counterplay.search.rebase import rebase, share
from counterplay.search.receding import elected, receding_horizon
from counterplay.search.registry import SEARCHES
from counterplay.search.render import to_dict
from counterplay.search.tot import depth_first
from counterplay.search.tree import SearchTree
from counterplay.search.vote import certainty, self_consistency
from tests.search.game import BEST_LINE, TRAP, Enumerator, Game, Sampler, action, moves, random_game, start
from tests.search.test_searches import run


class Scripted:
    """Draws actions from a list for each path of moves, in order; its last one over and over."""

    def __init__(self, script):
        self.script, self.drawn = script, Counter()

    async def propose(self, state, n):
        here = self.script[moves(state)] if isinstance(self.script, dict) else self.script
        first = first_draw.get()
        self.drawn[moves(state)] += n
        return [Proposal(here[min(i, len(here) - 1)]) for i in range(first, first + n)]


class Over:
    """An environment in which every action ends the episode."""

    def __init__(self):
        self.executed = []

    async def step(self, state, action):
        self.executed.append(action.signature)
        return Step(action, (), terminated=True, reward=1.0)


def call(name: str, **arguments) -> Message:
    return Message.assistant(None, [ToolCall("c", name, json.dumps(arguments))])


def at(*path):
    """A verifier from a table of move paths to values; no opinion elsewhere."""
    table = dict(path)
    return lambda state: table.get(moves(state))


def played(game: Game, path=()) -> float:
    """The value of playing on by the priors."""
    here = game.at(path)
    return here if not isinstance(here, dict) else sum(p * played(game, (*path, move)) for move, (p, _) in here.items())


def ends(game: Game, path=(), p=1.0):
    """Every line with its probability and reward."""
    here = game.at(path)
    if not isinstance(here, dict):
        yield path, p, here
        return
    for move, (share_, _) in here.items():
        yield from ends(game, (*path, move), p * share_)


# Voting


def test_the_beta_stop():
    assert certainty(4, 0) == pytest.approx(0.96875)
    assert certainty(3, 0) == pytest.approx(0.9375)
    assert certainty(2, 2) == 0.5
    assert certainty(5, 1) == pytest.approx(1 - (1 + 7) / 2**7)


@pytest.mark.parametrize(("names", "draws"), [("aaaaaaaa", 4), ("abaaaaaaaa", 7), ("abababababababab", 8)])
async def test_self_consistency_stops_at_four_to_none_and_not_at_three_to_none(names, draws):
    policy = Scripted([call(name) for name in names])
    tree = await self_consistency(start(), policy, Over(), lambda _: 1.0, Budget(), batches=(1,) * 8)
    assert policy.drawn[()] == draws == tree.used.model_calls
    assert tree.nodes[1].step.action == call("a")


async def test_the_default_batches_ask_for_two_four_and_eight():
    asked = []

    class Torn(Scripted):
        async def propose(self, state, n):
            asked.append(n)
            return await super().propose(state, n)

    await self_consistency(start(), Torn([call(name) for name in "abababab"]), Over(), lambda _: 1.0, Budget())
    assert asked == [2, 2, 4]


async def test_a_hierarchical_vote_elects_the_tool_first_and_then_its_arguments():
    drawn = [
        call("find", x=1),
        call("find", x=2),
        call("find", x=3),
        call("find", x=3),
        call("buy", x=9),
        call("buy", x=9),
        call("buy", x=9),
    ]
    elected_by = {}
    for vote_on in ("hierarchical", "signature", "name", "arguments"):
        tree = await self_consistency(start(), Scripted(drawn), Over(), lambda _: 1.0, Budget(), vote_on=vote_on, batches=(7,))
        elected_by[vote_on] = tree.nodes[1].step.action
    assert elected_by == {
        "hierarchical": call("find", x=3),
        "signature": call("buy", x=9),
        "name": call("find", x=1),
        "arguments": call("buy", x=9),
    }


async def test_a_sure_tool_with_unsure_arguments_is_not_safe():
    policy = Scripted([call("find", x=i % 2) for i in range(8)])
    await self_consistency(start(), policy, Over(), lambda _: 1.0, Budget(), batches=(4, 4))
    assert policy.drawn[()] == 8
    sure = Scripted([call("find", x=i % 2) for i in range(8)])
    await self_consistency(start(), sure, Over(), lambda _: 1.0, Budget(), batches=(4, 4), vote_on="name")
    assert sure.drawn[()] == 4


async def test_arguments_without_meaning_are_left_out_of_the_vote():
    policy = Scripted([call("find", x=1, request_id=i) for i in range(8)])
    tree = await self_consistency(start(), policy, Over(), lambda _: 1.0, Budget(), batches=(4, 4), exclude_args=("request_id",))
    assert policy.drawn[()] == 4
    assert tree.nodes[1].step.action == call("find", x=1, request_id=0)


# Beams and their kin


async def test_lines_of_dvts_never_prune_each_other():
    game = Game(
        {
            "good": (0.5, {m: (0.5, v) for m, v in (("a", 0.9), ("b", 0.8))}),
            "bad": (0.5, {m: (0.5, v) for m, v in (("a", 0.2), ("b", 0.1))}),
        }
    )
    moved = [action("good")] * 4 + [action("bad")] * 4
    script = {(): moved, ("good",): [action("a"), action("b")], ("bad",): [action("b"), action("a")]}
    options = {"num_actions": 4, "max_steps": 10}
    tree = await dvts(start(), Scripted(script), game, game.exact, Budget(), num_subtrees=2, **options)
    assert {moves(leaf.state)[0] for leaf in tree.finished()} == {"good", "bad"}
    pruning = await beam(start(), Scripted(script), game, game.exact, Budget(), width=1, **options)
    assert {moves(leaf.state)[0] for leaf in pruning.finished()} == {"good"}


async def test_lines_of_dvts_part_where_the_verifier_cannot_tell_their_draws_apart():
    game = Game({"a": (0.5, {"x": (1.0, 0.1)}), "b": (0.5, {"x": (1.0, 0.9)})})
    script = {
        (): [action("a"), action("b"), action("b"), action("a"), action("a"), action("a")],
        ("a",): [action("x")],
        ("b",): [action("x")],
    }
    tree = await dvts(start(), Scripted(script), game, lambda _: 0.5, Budget(), num_subtrees=3, num_actions=2)
    assert {moves(leaf.state) for leaf in tree.finished()} == {("a", "x"), ("b", "x")}
    told = await dvts(start(), Scripted(script), game, game.exact, Budget(), num_subtrees=2, num_actions=2)
    assert {moves(leaf.state) for leaf in told.finished()} == {("b", "x")}


@pytest.mark.parametrize("seed", range(5))
async def test_each_line_of_dvts_goes_on_with_the_best_of_its_own_draws(seed):
    game = Game(random_game(seed, depth=5))
    tree = await dvts(start(), Enumerator(game), game, game.exact, Budget(), num_subtrees=1, num_actions=3)
    assert tree.best().score.value == game.best()
    for node in tree.nodes:
        if node.children and node.parent:
            assert node.score.value == max(sibling.score.value for sibling in node.parent.children)


@pytest.mark.parametrize("directions", [True, False])
@pytest.mark.parametrize("seed", range(6))
async def test_rebase_spends_exactly_its_budget_at_every_depth(seed, directions):
    game, width = Game(random_game(seed, depth=5)), 12
    tree = await rebase(start(), Sampler(game), game, game.exact, Budget(), width=width, directions=directions)
    depth, finished = 1, 0
    while finished < width:
        level = [node for node in tree.nodes if node.depth == depth]
        assert sum(node.draws for node in level) == width - finished
        finished += sum(node.draws for node in level if node.finished)
        depth += 1
    assert depth > max(node.depth for node in tree.nodes)


def siblings(*pairs):
    """Nodes for (last action, score)."""
    tree = SearchTree.start(start())
    for i, (name, score) in enumerate(pairs):
        above = tree.add(tree.root, Step(call(f"before{i}")))
        tree.add(above, Step(call(name))).score = None if score is None else Score(score)
    return [node for node in tree.nodes if node.depth == 2]


def test_rebase_shares_by_a_softmax_of_the_scores_and_a_direction_shares_one_portion():
    two = siblings(("a", 0.5), ("b", 0.5))
    assert share(two, 10, 0.1, directions=True) == [5, 5]
    copies = siblings(("a", 0.5), ("a", 0.5), ("a", 0.5), ("b", 0.5))
    assert share(copies, 12, 0.1, directions=True) == [2, 2, 2, 6]
    assert share(copies, 12, 0.1, directions=False) == [3, 3, 3, 3]
    odds = math.exp(0.1 / 0.1)
    uneven = siblings(("a", 0.6), ("b", 0.5))
    assert share(uneven, 1000, 0.1, directions=True) == [round(1000 * odds / (1 + odds)), round(1000 / (1 + odds))]
    assert share(siblings(("a", 0.2), ("b", None), ("c", 0.8)), 30, 1e6, directions=True) == [10, 10, 10]
    for draws in range(1, 40):
        assert sum(share(copies, draws, 0.1, directions=True)) == draws


# Particles


@pytest.mark.parametrize("seed", range(4))
def test_systematic_resampling_gives_every_particle_n_w_offspring_on_average(seed):
    generator = random.Random(seed)
    weights = [generator.random() ** 3 for _ in range(6)]
    weights = [weight / sum(weights) for weight in weights]
    offspring, rounds = Counter(), 4000
    for _ in range(rounds):
        counts = Counter(systematic(weights, 6, generator))
        assert sum(counts.values()) == 6
        assert all(math.floor(6 * w) <= counts[i] <= math.ceil(6 * w) for i, w in enumerate(weights))
        offspring.update(counts)
    for i, weight in enumerate(weights):
        assert offspring[i] / rounds == pytest.approx(6 * weight, abs=0.03)


def test_conditional_resampling_keeps_the_reference_and_draws_the_others_independently():
    generator, weights, rounds = random.Random(1), [0.1, 0.6, 0.3], 4000
    drawn = [resample(weights, generator, conditional=True) for _ in range(rounds)]
    assert all(kept[0] == 0 for kept in drawn)
    for i, weight in enumerate(weights):
        assert sum(kept[1:].count(i) for kept in drawn) / rounds == pytest.approx(2 * weight, abs=0.06)


def soft(game: Game):
    """Values of play by the priors, away from 0 and 1, so that odds are no larger than 4."""
    return lambda state: 0.2 + 0.6 * played(game, moves(state))


def odds(value: float) -> float:
    value = 0.2 + 0.6 * value
    return value / (1 - value)


async def evidence(seed: int, weighting: str) -> float:
    game = Game()
    tree = SearchTree.start(start())
    engine = Engine(Sampler(game, seed=seed), game, soft(game), Budget(), max_steps=20)
    return math.exp((await sweep(engine, tree, random.Random(seed), [], count=6, weighting=weighting))[1])


async def test_incremental_weights_estimate_the_normalising_constant_and_absolute_ones_do_not():
    exact = sum(p * odds(reward) for _, p, reward in ends(Game()))
    estimate = fmean([await evidence(seed, "incremental") for seed in range(400)])
    assert estimate == pytest.approx(exact, rel=0.03)
    absolute = fmean([await evidence(seed, "absolute") for seed in range(100)])
    assert abs(absolute / exact - 1) > 0.3


async def test_particle_gibbs_keeps_its_reference():
    game = Game()
    tree = SearchTree.start(start())
    engine = Engine(Sampler(game), game, soft(game), Budget(), max_steps=20)
    generator, reference = random.Random(2), []
    for _ in range(30):
        last, _ = await sweep(engine, tree, generator, reference, count=3)
        assert not reference or last[0] is reference[-1]
        reference = last[-1].path()


async def test_particle_gibbs_leaves_its_target_as_it_is():
    """A reference drawn from the target, one sweep, any particle of it: drawn from the target again."""
    game = Game()
    target = {path: p * odds(reward) for path, p, reward in ends(game)}
    tree = SearchTree.start(start())
    engine = Engine(Sampler(game), game, soft(game), Budget(), max_steps=20)
    generator, seen, rounds, total = random.Random(3), Counter(), 1200, sum(target.values())
    while len(tree.finished()) < len(target):
        await sweep(engine, tree, generator, [], count=32)
    nodes = {moves(leaf.state): leaf for leaf in tree.finished()}
    for _ in range(rounds):
        (path,) = generator.choices(list(target), target.values())
        last, _ = await sweep(engine, tree, generator, nodes[path].path(), count=4)
        seen[moves(generator.choice(last).state)] += 1
    assert sum(abs(p - target[path] / total) for path, p, _ in ends(game)) / 2 > 0.15  # what sampling without weights is off by
    assert sum(abs(seen[path] / rounds - mass / total) for path, mass in target.items()) / 2 < 0.06


@pytest.mark.parametrize("weighting", ["incremental", "absolute"])
async def test_a_branch_that_failed_is_resampled_away(weighting):
    game = Game({"a": (0.5, {"x": (1.0, 0.5)}), "b": (0.5, {"x": (1.0, 0.5)})})

    class Half(Game):
        async def step(self, state, action):
            if moves(state) == () and "b" in action.signature:
                return Step(action, error="the machinery failed")
            return await super().step(state, action)

    half = Half(game.tree)
    tree = await particle_filter(start(), Sampler(game), half, half.exact, Budget(), num_particles=16, weighting=weighting)
    assert tree.nodes[1].parent.children[0].draws + tree.root.children[1].draws == 16
    (after,) = [node for node in tree.nodes if node.depth == 2]
    assert after.draws == 16  # all sixteen stand on the branch that did not fail


# Best first and depth first


async def expanded_order(search, game, verifier, **options):
    policy = Enumerator(game)
    order = []

    class Watching:
        async def propose(self, state, n):
            order.append(moves(state))
            return await policy.propose(state, n)

    tree = await search(start(), Watching(), game, verifier, Budget(), **options)
    return order, tree


@pytest.mark.parametrize("seed", range(6))
async def test_best_first_expands_in_the_order_of_value_over_the_whole_tree(seed):
    game = Game(random_game(seed, depth=5))
    order, tree = await expanded_order(best_first, game, game.exact, num_actions=3, gate=2.0, num_expansions=1000)
    by_path = {moves(node.state): node for node in tree.nodes}
    queue = {()}
    for path in order:
        best = max(queue, key=lambda p: (promise(by_path[p]) if p else 0.0, by_path[p].depth, -by_path[p].index))
        assert path == best
        queue.remove(path)
        queue |= {moves(child.state) for child in by_path[path].children if not child.finished}
    assert not queue


async def test_best_first_backtracks_as_far_as_it_pays():
    game = Game({"a": (0.5, {"x": (0.5, {"y": (1.0, 0.1)}), "z": (0.5, {"y": (1.0, 0.1)})}), "b": (0.5, {"x": (1.0, 1.0)})})
    verifier = at(((), 0.5), (("a",), 0.9), (("b",), 0.6), (("a", "x"), 0.3), (("a", "z"), 0.2), (("b", "x"), 1.0))
    order, tree = await expanded_order(best_first, game, verifier)
    assert order == [(), ("a",), ("b",)]
    assert tree.stopped == "a line scored 1"


async def test_depth_first_prunes_and_returns_to_the_next_best():
    game = Game(
        {
            "a": (0.3, {"x": (0.5, {"y": (1.0, 0.0)}), "z": (0.5, {"y": (1.0, 0.0)})}),
            "b": (0.3, {"x": (1.0, {"y": (1.0, 0.95)})}),
            "c": (0.4, {"x": (1.0, 1.0)}),
        }
    )
    values = {("a",): 0.9, ("b",): 0.6, ("c",): 0.1, ("a", "x"): 0.1, ("a", "z"): 0.2, ("a", "z", "y"): 0.0, ("b", "x"): 0.5}
    verifier = at(*values.items(), (("b", "x", "y"), 0.95))
    order, tree = await expanded_order(depth_first, game, verifier)
    assert order == [(), ("a",), ("a", "z"), ("b",), ("b", "x")]  # ("a", "x") and ("c",) are pruned, with all below them
    assert tree.stopped == "a line scored 0.95"
    order, tree = await expanded_order(depth_first, game, verifier, gate=1.0)
    assert tree.stopped == "everything is played or pruned"


# Tree search


async def test_mcts_star_backs_up_the_mean_of_its_children_weighed_by_visits():
    checked = 0
    for seed in range(6):
        game, options = Game(random_game(seed, depth=5)), {"gate": 2.0, "num_iterations": 20}
        tree = await mcts_star(start(), Enumerator(game), game, lambda s, g=game: played(g, moves(s)), Budget(), **options)
        assert tree.root.visits <= 20
        for node in tree.nodes:
            visited = [child for child in node.children if child.visits]
            if visited and node.visits:
                mean = sum(child.visits * child.value for child in visited) / sum(child.visits for child in visited)
                assert node.value == pytest.approx(mean)
                checked += 1
    assert checked > 40


async def test_one_iteration_of_mcts_star_by_hand():
    game = Game({"a": (0.6, {"x": (1.0, {"y": (1.0, {"z": (1.0, {"end": (1.0, 1.0)})})})}), "b": (0.4, {"x": (1.0, 0.2)})})
    values = {(): 0.3, ("a",): 0.5, ("b",): 0.4, ("a", "x"): 0.2, ("a", "x", "y"): 0.8, ("a", "x", "y", "z"): 0.6}
    tree = await mcts_star(start(), Enumerator(game), game, at(*values.items()), Budget(), num_iterations=1)
    a, b = tree.root.children
    assert (a.visits, a.value) == (1, pytest.approx(0.5 * 0.5 + 0.5 * 0.8))
    assert (b.visits, b.value_sum) == (0, 0.0)
    assert (tree.root.visits, tree.root.value) == (1, pytest.approx(0.65))
    assert len(tree.nodes) == 6  # the look's states are kept
    down = await mcts_star(start(), Enumerator(game), game, at((("a",), 0.5), (("b",), 0.4), (("a", "x"), 0.1)), Budget(), num_iterations=1)
    assert down.root.value == pytest.approx(0.5 * 0.5 + 0.5 * 0.1)  # a look that sees only worse lowers the value


async def test_mcts_star_tries_every_child_before_it_returns_to_one():
    game = Game({m: (0.25, {"x": (1.0, {"y": (1.0, 0.5)})}) for m in "abc"})
    values = {(): 0.5, ("a",): 0.9, ("b",): 0.1, ("c",): 0.2}
    tree = await mcts_star(start(), Enumerator(game), game, at(*values.items()), Budget(), num_iterations=4, rollout_steps=0, gate=2.0)
    assert all(child.children for child in tree.root.children)


@pytest.mark.parametrize(("left", "turns", "candidates"), [(64, 4, 16), (7, 2, 4), (3, 2, 3), (1, 1, 1), (5, 1, 2), (9, 3, 2), (2, 3, 4)])
def test_the_waves_of_a_turn_are_of_equal_visits_and_spend_no_more_than_is_left(left, turns, candidates):
    sizes = waves(left, turns, candidates)
    assert sum(sizes) <= left
    assert turns > 1 or sum(sizes) == left
    assert all(size == candidates for size in sizes[:-1])


@pytest.mark.parametrize("num_simulations", [1, 2, 3, 5, 7, 16, 33, 64])
async def test_gumbel_spends_its_simulations_and_halves(num_simulations):
    game = Game(random_game(3, depth=5, branching=6))
    tree = await gumbel(start(), Enumerator(game), game, game.exact, Budget(), num_simulations=num_simulations, num_considered=4)
    assert tree.used.simulations == num_simulations == tree.root.visits
    visits = sorted((child.visits for child in tree.root.children), reverse=True)
    assert len(visits) <= min(4, num_simulations)
    if num_simulations == 64 and len(visits) == 4:
        assert visits == [24, 24, 8, 8]


def rough(seed: int, depth: int = 4, branching: int = 4):
    """A game in which good ends are rare."""
    generator = random.Random(seed)

    def grow(left: int):
        if left == 0 or (left < depth and generator.random() < 0.15):
            return round(generator.random() ** 3, 3)
        shares = [generator.random() ** 2 + 0.01 for _ in range(branching)]
        return {f"m{i}": (s / sum(shares), grow(left - 1)) for i, s in enumerate(shares)}

    return grow(depth)


def noisy(game: Game, sd: float, seed: int):
    best = cache(game.best)

    def verifier(state):
        noise = random.Random(f"{seed} {state.key}").gauss(0, sd)
        return min(1.0, max(0.0, best(moves(state)) + noise))

    return verifier


async def found(name: str, games, num_simulations: int, **options) -> float:
    """The mean reward of the best line by a noisy verifier, as a share of the best there is."""
    shares = []
    for seed, game in enumerate(games):
        given = {**options, "num_simulations": num_simulations, "num_actions": 4, "seed": seed}
        best = (await SEARCHES[name](start(), Enumerator(game), game, noisy(game, 0.1, seed), Budget(), **given)).best()
        shares.append(best.state.steps[-1].reward / game.best() if best else 0.0)
    return fmean(shares)


async def test_sequential_halving_does_not_get_worse_with_more_budget():
    games = [Game(rough(seed)) for seed in range(40)]
    halving = {n: await found("gumbel", games, n, num_considered=4) for n in (8, 16, 32, 64, 128, 256)}
    puct = {n: await found("mcts", games, n) for n in (8, 32, 128)}
    print("".join(f"\n{n:>4} simulations: halving {v:.3f}, PUCT {puct.get(n, math.nan):.3f}" for n, v in halving.items()))  # noqa: T201
    assert all(larger > smaller - 0.01 for smaller, larger in pairwise(halving.values()))
    assert halving[256] > 0.9


@pytest.mark.parametrize("num_simulations", [2, 4, 8])
async def test_gumbel_improves_on_the_policy_with_very_few_simulations(num_simulations):
    better, policy, puct = [], [], []
    for seed in range(80):
        game = Game(rough(seed))
        verifier = lambda state, game=game: played(game, moves(state))  # noqa: E731
        options = {"num_simulations": num_simulations, "num_actions": 4, "seed": seed}
        tree = await gumbel(start(), Enumerator(game), game, verifier, Budget(), num_considered=4, **options)
        better.append(played(game, moves(elected(tree).state)))
        tree = await mcts(start(), Enumerator(game), game, verifier, Budget(), **options)
        puct.append(played(game, moves(elected(tree).state)))
        policy.append(played(game))
    assert fmean(better) > fmean(policy) + 0.02
    assert fmean(better) > fmean(puct)


async def test_an_action_whose_machinery_fails_is_halved_away():
    game = Game({"a": (0.9, 0.5), "b": (0.05, {"x": (1.0, 0.3)}), "c": (0.05, {"x": (1.0, 0.2)})})

    class Broken(Game):
        async def step(self, state, action):
            return Step(action, error="down") if '"a"' in action.signature else await super().step(state, action)

    broken = Broken(game.tree)
    for seed in range(10):
        tree = await gumbel(start(), Enumerator(game), broken, broken.exact, Budget(), num_simulations=12, seed=seed)
        assert {"b"} <= {moves(leaf.state)[0] for leaf in tree.finished() if leaf.score}
        assert next(child for child in tree.root.children if moves(child.state) == ("a",)).visits == 0
        assert tree.root.visits == 10  # two rounds of three, of which it wastes one each; then the other two


# LATS


class Overheard:
    def __init__(self, policy):
        self.policy, self.prompts = policy, []

    async def propose(self, state, n):
        self.prompts.append([message.content_text for message in state.prompt])
        return await self.policy.propose(state, n)


def reasoned(game: Game):
    async def verifier(state):
        end = state.steps[-1].reward if state.finished else None
        return None if end is None else Score(end, f"it ended at {'/'.join(moves(state))}")

    return verifier


async def test_lessons_reach_the_prompt_of_later_lines_and_nothing_else(game):
    policy = Overheard(Sampler(game))
    tree = await lats(start(), policy, game, reasoned(game), Budget(), num_iterations=6, num_reflections=2, gate=2.0)
    lessons = [prompt[1:] for prompt in policy.prompts]
    assert lessons[0] == []
    assert lessons[-1]
    assert all(len(lesson) <= 1 for lesson in lessons)
    assert all(text.startswith("What went wrong") and text.count("\n- ") <= 2 for lesson in lessons for text in lesson)
    ended = {"/".join(moves(leaf.state)) for leaf in tree.finished()}
    assert {line.removeprefix("- it ended at ") for lesson in lessons for text in lesson for line in text.splitlines()[1:]} <= ended
    assert all(node.state.prompt == start().prompt for node in tree.nodes)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_reflections_are_the_callers_and_a_failed_one_teaches_nothing(kind):
    calls, game = [], Game(rough(0))

    def plain(trajectory):
        calls.append(moves(trajectory))
        if len(calls) == 2:
            raise RuntimeError("overloaded")
        return f"lesson {len(calls)}"

    async def waiting(trajectory):
        return plain(trajectory)

    policy = Overheard(Enumerator(game))
    reflect = plain if kind == "plain" else waiting
    tree = await lats(start(), policy, game, game.outcome, Budget(), num_iterations=5, reflect=reflect, gate=2.0)
    assert len(calls) == 4  # none after the last line
    assert "lesson 1\n- lesson 3" in policy.prompts[-1][1]
    assert tree.failures["reflection"] == {"count": 1, "first": "RuntimeError: overloaded"}


async def test_votes_stay_with_the_children_they_were_cast_for():
    game = Game({"a": (0.2, {"x": (1.0, 0.5)}), "b": (0.3, 0.4), "c": (0.5, {"x": (1.0, 0.5)})})
    script = {(): [action(m) for m in "abbccccccc"], ("a",): [action("x")], ("c",): [action("x")]}
    verifier = at((("a",), 0.9), (("b",), 0.4), (("c",), None), (("c", "x"), 0.3))
    tree = await lats(start(), Scripted(script), game, verifier, Budget(), num_iterations=1, num_actions=10, agreement=0.5)
    a, b, c = tree.root.children
    assert [child.draws for child in (a, b, c)] == [1, 2, 7]
    assert (b.visits, b.value) == (1, 0.4)  # an end is worth its score alone
    assert (a.visits, a.value) == (1, 0.5 * 0.9 + 0.5 * 0.1)
    assert (c.visits, c.value_sum) == (2, pytest.approx(0.7 + 0.3))  # without an opinion the votes count alone; then the line's end
    assert (tree.root.visits, tree.root.value_sum) == (1, 0.3)


async def test_lats_goes_past_what_is_played_out_and_what_has_no_action():
    game = Game({"a": (0.5, 0.1), "b": (0.3, {"x": (0.5, 0.2), "y": (0.5, 0.3)}), "c": (0.2, {"x": (1.0, 0.0)})})

    class Mute:
        def __init__(self):
            self.asked = Counter()

        async def propose(self, state, n):
            self.asked[moves(state)] += 1
            return [] if moves(state) == ("c",) else await Enumerator(game).propose(state, n)

    policy = Mute()
    tree = await lats(start(), policy, game, game.outcome, Budget(), num_iterations=30)
    assert set(policy.asked) == {(), ("b",), ("c",)}
    assert max(policy.asked.values()) == 1
    assert tree.used.simulations <= 3


async def test_the_bound_on_tokens_counts_the_lessons(game):
    policy = Sampler(game, tokens=5)
    seen = []

    def estimate(state, n):
        seen.append(len(state.prompt))
        return Usage(5 * n, 5 * n)

    policy.estimate = estimate

    class Wrapped:
        def __init__(self, policy):
            self.policy = policy

        async def propose(self, state, n):
            return await self.policy.propose(state, n)

    budget = Budget.of(tokens=400)
    await lats(start(), Wrapped(policy), game, reasoned(game), budget, num_iterations=4, gate=2.0)
    assert {1, 2} <= set(seen)


async def test_lats_resumes_with_its_lessons(game):
    entries = {}
    trees, asked = [], []
    for _ in range(2):
        journal, policy = MemoryJournal(entries), Sampler(game)
        parts = JournaledPolicy(policy, journal), JournaledEnvironment(game, journal), JournaledVerifier(reasoned(game), journal)
        trees.append(to_dict(await lats(start(), *parts, Budget(), num_iterations=5, gate=2.0)))
        asked.append(len(policy.asked))
    assert trees[0] == trees[1]
    assert asked[0] > 0 == asked[1]


# Archive and receding horizon


async def test_the_archive_prefers_rare_states(game):
    tree = SearchTree.start(start())
    known = Archive(window=1)
    common, rare = call("read", x=1), call("write", x=1)
    for number in range(9):
        middle = tree.add(tree.root, Step(call("read", x=number)))
        known.keep(tree.add(middle, Step(common, terminated=True)))
    known.keep(tree.add(tree.add(tree.root, Step(rare)), Step(common, terminated=True)))
    generator = random.Random(0)
    drawn = Counter(known.rare(generator).state.steps[-1].action.tool_calls[0].name for _ in range(2000))
    assert drawn["write"] / 2000 == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("explore", "fresh"), [(1.0, 24), (0.0, 4)])
async def test_a_share_of_the_lines_starts_afresh(game, explore, fresh):
    tree = await archive(start(), Sampler(game), game, game.outcome, Budget(), num_lines=24, explore=explore)
    assert sum(child.draws for child in tree.root.children) == fresh == tree.root.visits


async def test_failed_and_bad_lines_are_not_branched_from():
    game = Game({"good": (0.5, {"x": (0.5, 0.9), "y": (0.5, 0.8)}), "bad": (0.5, {"x": (0.5, 0.1), "y": (0.5, 0.0)})})
    tree = await archive(start(), Sampler(game), game, game.outcome, Budget(), num_lines=40, explore=0.0, wave_size=8, min_score=0.5)
    good, bad = sorted(tree.root.children, key=lambda child: moves(child.state), reverse=True)
    assert sum(child.draws for child in bad.children) == bad.draws
    assert sum(child.draws for child in good.children) == good.draws + 32


async def test_receding_horizon_plans_in_the_world_model_and_executes_only_its_line(game):
    world = Game(TRAP)
    tree = await receding_horizon(
        start(), Enumerator(game), game, game.exact, Budget(), world_model=world, num_simulations=40, confidence=0.0
    )
    assert moves(tree.nodes[-1].state) == BEST_LINE
    assert sum(game.executed.values()) == len(BEST_LINE) == len(tree.nodes) - 1
    assert sum(world.executed.values()) > len(BEST_LINE)
    assert tree.used.tool_calls == sum(world.executed.values()) + len(BEST_LINE)
    assert tree.used.simulations > 40


@pytest.mark.parametrize("horizon", [1, 2, 3])
async def test_the_plan_looks_no_further_than_its_horizon(game, horizon):
    depths = []

    class World(Game):
        async def step(self, state, action):
            depths.append(len(state))
            return await super().step(state, action)

    await receding_horizon(start(), Enumerator(game), game, game.exact, Budget(), world_model=World(), horizon=horizon, max_steps=1)
    assert max(depths) == 0  # one step is all there is to play
    depths.clear()
    await receding_horizon(start(), Enumerator(game), game, game.exact, Budget(), world_model=World(), horizon=horizon, max_steps=5)
    assert max(depths) <= 4
    assert len({depth for depth in depths if depth < horizon}) == horizon


async def test_a_world_model_that_holds_nothing_is_still_a_world_model(game):
    class Empty(Game):
        def __len__(self):
            return 0

    world = Empty(TRAP)
    await receding_horizon(start(), Enumerator(game), game, game.exact, Budget(), world_model=world)
    assert world.executed


async def test_what_could_not_be_proposed_is_never_executed(game):
    class Flaky:
        calls = 0

        async def propose(self, state, n):
            self.calls += 1
            if self.calls > 1:
                raise TimeoutError
            return await Enumerator(game).propose(state, n)

    tree = await receding_horizon(start(), Flaky(), game, game.exact, Budget(), num_simulations=1, world_model=Game())
    assert all("no proposal" not in signature for _, signature in game.executed)
    assert tree.stopped == "the plan failed"
    assert tree.failures["plan"]["count"] == 1


async def test_confidence_mixes_the_value_with_the_share_of_the_draws():
    game = Game({"a": (0.8, {"x": (1.0, 0.3)}), "b": (0.2, {"x": (1.0, 0.6)})})
    for a in (0.0, 0.5, 1.0):
        tree = await mcts(start(), Enumerator(game), game, game.exact, Budget(), num_simulations=2, wave_size=1, selection="uct",
                          root_exploration_fraction=0.0, confidence=a)  # fmt: skip
        for child in tree.root.children:
            assert child.value == pytest.approx(child.score.value ** (1 - a) * child.prior**a)


# Defects of other implementations that no test of the engine names


async def test_defect_12_priors_are_normalised_once(game):
    for name in ("mcts", "beam", "best_of_n", "lats", "rebase"):
        tree = await run(name, game, verifier=game.exact)
        for node in tree.nodes:
            known = [child.prior for child in node.children if child.visits or name != "mcts"]
            assert sum(known) <= 1 + 1e-9
            assert name == "mcts" or not known or sum(known) == pytest.approx(1.0)


async def test_defect_15_resampling_a_line_consumes_nothing_of_another():
    """What follows an action depends on the state alone: equal prefixes see equal answers, however often they were resampled."""
    game = Game()
    tree = await particle_filter(start(), Sampler(game), game, game.exact, Budget(), num_particles=16, iterations=3)
    assert max(game.executed.values()) == 1
    alone = Game()
    for leaf in tree.finished():
        state = start()
        for step in leaf.state.steps:
            state = state.extend(await alone.step(state, step.action))
        assert state.key == leaf.state.key


async def test_defect_2_what_look_ahead_passed_over_is_no_rejected_line(game):
    tree = await lookahead(start(), Enumerator(game), game, game.exact, Budget())
    passed = [node for node in tree.nodes if node.step and not node.step.observations]
    assert passed
    assert not any(lines(tree)[node.index][0] for node in passed)


def test_every_search_has_its_paper():
    text = (Path(__file__).parents[2] / "docs" / "papers.md").read_text()
    entries = {block.split("\n", 1)[0]: block for block in text.split("\n### ")[1:]}
    assert set(SEARCHES) <= set(entries)
    for name in set(SEARCHES) - {"rollout"}:
        assert "Default" in entries[name], name
