"""What must hold for every search, on a game whose best play is known."""

import asyncio
import random

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Proposal, Step, Trajectory, Usage
from counterplay.search.beam import beam
from counterplay.search.best_of_n import answer, best_of_n, weighted_best
from counterplay.search.fork import fork_best_of_n, spread
from counterplay.search.mcts import mcts
from counterplay.search.registry import LOGGED, SEARCHES
from counterplay.search.render import to_dict
from counterplay.search.rollout import greedy, play, rollout
from counterplay.search.tree import SearchTree
from tests.search.game import BEST_LINE, Enumerator, Game, Sampler, action, moves, random_game, start

SMALL = {"mcts": {"num_simulations": 30}, "beam": {"width": 2}, "fork_best_of_n": {"rollouts_per_alternative": 3, "num_pivots": 2}}


async def logged_run(game: Game, line: tuple[str, ...] = ("plan", "read", "skim")) -> Trajectory:
    state = start()
    for number, move in enumerate(line):
        state = state.extend(await game.step(state, action(move, f"logged_{number}")))
    game.executed.clear()
    return state


async def run(name: str, game: Game, *, verifier=None, budget=None, policy=None, **options) -> SearchTree:
    state = await logged_run(game, first_line(game)) if name in LOGGED else start()
    policy = policy or Sampler(game)
    if name == "receding_horizon":
        options.setdefault("world_model", Game(game.tree, jitter=game.jitter))
    return await SEARCHES[name](state, policy, game, verifier or game.outcome, budget or Budget(), **{**SMALL.get(name, {}), **options})


def first_line(game: Game) -> tuple[str, ...]:
    path: tuple[str, ...] = ()
    while isinstance(game.at(path), dict):
        path = (*path, next(iter(game.at(path))))
    return path


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("verifier", ["outcome", "exact"])
async def test_concurrency_does_not_change_the_tree(name, verifier):
    trees = []
    for concurrency, jitter in ((1, False), (1, True), (3, True), (64, True), (64, False)):
        game = Game(jitter=jitter)
        trees.append(to_dict(await run(name, game, verifier=getattr(game, verifier), concurrency=concurrency)))
    assert all(tree == trees[0] for tree in trees[1:])


@pytest.mark.parametrize("name", SEARCHES)
async def test_no_action_is_executed_twice_in_a_state(name):
    if name in ("independent", "lookahead"):
        pytest.skip("independent lines execute for themselves; what look-ahead does not choose is a child that was not executed")
    for seed in range(5):
        game = Game(random_game(seed, depth=5))
        tree = await run(name, game)
        assert not game.executed or max(game.executed.values()) == 1
        assert sum(game.executed.values()) == sum(not node.logged for node in tree.nodes[1:])
        for node in tree.nodes:
            signatures = [child.step.action.signature for child in node.children]
            assert len(signatures) == len(set(signatures))


@pytest.mark.parametrize("name", SEARCHES)
async def test_children_extend_their_parents_and_branches_start_from_their_own_state(name):
    game = Game()
    tree = await run(name, game)
    for node in tree.nodes[1:]:
        if name == "lookahead" and not node.step.observations:
            continue
        assert node.state.key == node.parent.state.extend(node.step).key
        assert node.step.observations[0].content_text.startswith('{"at": "' + "/".join(moves(node.state)))
        assert node.depth == len(node.state) - len(tree.root.state)


@pytest.mark.parametrize("name", ["rollout", "greedy", "best_of_n", "beam", "mcts"])
async def test_visits_and_values_are_conserved(name):
    for seed in range(8):
        game = Game(random_game(seed, depth=4))
        for verifier in (game.outcome, game.exact):
            tree = await run(name, game, verifier=verifier)
            for node in tree.nodes:
                own = node.visits - sum(child.visits for child in node.children)
                own_value = node.value_sum - sum(child.value_sum for child in node.children)
                assert own >= 0
                assert own_value == pytest.approx(own * (node.score.value if node.score else 0))
                if own:
                    assert node.score is not None


async def test_a_node_of_mcts_evaluates_itself_once(game):
    tree = await run("mcts", game, verifier=game.exact, num_simulations=50)
    assert tree.root.visits == 50
    for node in tree.nodes[1:]:
        if node.children:
            assert node.visits == 1 + sum(child.visits for child in node.children)


@pytest.mark.parametrize("seed", range(10))
async def test_beam_of_width_one_with_exact_values_is_optimal(seed):
    game = Game(random_game(seed, depth=5)) if seed else Game()
    tree = await beam(start(), Enumerator(game), game, game.exact, Budget(), width=1, num_actions=3)
    assert tree.best().score.value == game.best()


async def test_finished_beams_leave_the_pool(game):
    tree = await beam(start(), Enumerator(game), game, game.exact, Budget(), width=3, num_actions=3)
    assert moves(tree.best().state) == BEST_LINE
    expanded = [node for node in tree.nodes if node.children]
    assert sum(1 for node in expanded if node.depth == 1) == 3
    assert sum(1 for node in expanded if node.depth == 4) == 1


async def test_a_finished_beam_takes_its_place_with_it():
    game = Game({"end": (0.5, 0.9), **{m: (0.1, {"a": (0.5, {"x": (1.0, 0.5)}), "b": (0.5, {"x": (1.0, 0.4)})}) for m in "pqr"}})
    tree = await beam(start(), Enumerator(game), game, game.exact, Budget(), width=2, num_actions=4)
    assert [len([node for node in tree.nodes if node.depth == depth]) for depth in (1, 2, 3)] == [4, 2, 1]


async def test_a_child_without_an_opinion_ranks_in_the_middle():
    game = Game({m: (0.25, {"go": (1.0, 0.5)}) for m in ("low", "unknown", "high", "mean")})
    values = {"low": 0.1, "high": 0.9, "mean": 0.5}
    tree = await beam(start(), Enumerator(game), game, lambda s: values.get(moves(s)[0]), Budget(), width=3, num_actions=4)
    assert {moves(node.state)[0] for node in tree.nodes if node.depth == 2} == {"high", "unknown", "mean"}


async def test_beam_without_any_opinion_keeps_the_likeliest(game):
    tree = await beam(start(), Enumerator(game), game, lambda _: None, Budget(), width=1, num_actions=3)
    assert moves(tree.nodes[-1].state)[:1] == ("hurry",)
    assert all(node.visits == 0 for node in tree.nodes)


@pytest.mark.parametrize("selection", ["puct", "uct"])
@pytest.mark.parametrize("verifier", ["exact", "outcome"])
async def test_mcts_with_enough_simulations_contains_the_best_line(game, selection, verifier):
    tree = await mcts(
        start(), Enumerator(game), game, getattr(game, verifier), Budget(), num_simulations=200, num_actions=3, selection=selection
    )
    assert moves(tree.best().state) == BEST_LINE
    assert max(tree.root.children, key=lambda child: child.visits).step.action.signature == action("plan").signature


async def test_mcts_finds_the_best_line_of_random_games():
    for seed in range(10):
        game = Game(random_game(seed, depth=4))
        tree = await mcts(start(), Enumerator(game), game, game.outcome, Budget(), num_simulations=200, num_actions=3, selection="uct")
        assert tree.best().score.value == game.best()


async def test_rollouts_always_evaluates_by_play(game):
    asked = []

    def verifier(state):
        asked.append(state.finished)
        return state.steps[-1].reward if state.finished else 0.5

    await mcts(start(), Sampler(game), game, verifier, Budget(), num_simulations=20, rollouts="always")
    assert all(asked)


async def test_best_of_n_counts_lines(game):
    tree = await best_of_n(start(), Sampler(game), game, game.outcome, Budget(), n=40)
    assert tree.root.visits == 40
    assert sum(leaf.visits for leaf in tree.finished()) == 40
    assert sum(child.draws for child in tree.root.children) == 40
    for child in tree.root.children:
        assert child.prior == child.draws / 40
        assert child.draws == child.visits
    assert tree.root.value == pytest.approx(sum(leaf.visits * leaf.score.value for leaf in tree.finished()) / 40)


async def test_weighted_best_sums_over_equal_answers():
    sure = {"a": (0.5, {"sell": (1.0, 0.6)}), "b": (0.3, {"sell": (1.0, 0.6)}), "c": (0.2, {"buy": (1.0, 0.7)})}
    game = Game(sure)
    tree = await best_of_n(start(), Sampler(game), game, game.outcome, Budget(), n=30)
    assert moves(tree.best().state)[-1] == "buy"
    assert moves(weighted_best(tree).state)[-1] == "sell"
    assert answer(tree.root) == ""
    assert weighted_best(SearchTree.start(start())) is None


async def test_greedy_takes_the_most_frequent_action(game):
    tree = await greedy(start(), Sampler(game), game, game.outcome, Budget(), num_samples=60)
    assert moves(tree.nodes[-1].state) == ("hurry", "grab")
    assert tree.nodes[1].draws > 20
    assert tree.used.tool_calls == 2


async def test_rollout_is_one_line(game):
    tree = await rollout(start(), Sampler(game), game, game.outcome, Budget())
    assert [len(node.children) for node in tree.nodes] == [1] * (len(tree.nodes) - 1) + [0]
    assert tree.used.model_calls == len(tree.nodes) - 1
    assert tree.root.visits == 1


async def test_play_moves_all_states_at_once_each_in_its_own_environment():
    games = [Game(random_game(seed, depth=4), jitter=True) for seed in range(20)]

    class Any:
        waves = 0

        async def propose(self, state, n):
            here = games[int(state.prompt[0].content_text)].at(moves(state))
            return [Proposal(action(next(iter(here))))]

    states = [start(str(i)) for i in range(20)]
    ends = await play(states, Any(), games, Budget())
    assert [moves(end) for end in ends] == [first_line(game) for game in games]
    assert all(end.finished for end in ends)
    assert [sum(game.executed.values()) for game in games] == [len(end) for end in ends]
    cut = await play(states, Any(), games, Budget.of(model_calls=25))
    assert sum(len(end) for end in cut) == 25
    assert not all(end.finished for end in cut)
    assert all(end.finished and len(end) <= 2 for end in await play(states, Any(), games, Budget(), max_steps=2))
    with pytest.raises(UserError, match="one environment for each state"):
        await play(states, Any(), games[:3], Budget())


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_branch_at_the_step_limit_is_truncated(name):
    endless = {}
    endless["on"] = (1.0, endless)
    game = Game(endless)
    if name in LOGGED:
        state = await logged_run(game, ("on", "on"))
        tree = await fork_best_of_n(state, Sampler(game), game, game.outcome, Budget(), pivots=[0], max_steps=6)
    else:
        tree = await run(name, game, max_steps=5)
    deepest = max(tree.nodes, key=lambda node: node.depth)
    assert deepest.depth == (2 if name in LOGGED else 5)
    assert name in LOGGED or deepest.step.truncated


async def test_fork_keeps_the_log_and_gives_siblings_comparable_values(game):
    run = await logged_run(game, ("plan", "read", "skim"))
    tree = await fork_best_of_n(run, Sampler(game), game, game.outcome, Budget(), n=12, pivots=[1, 2], rollouts_per_alternative=5)
    logged = [node for node in tree.nodes if node.logged]
    assert [moves(node.state) for node in logged] == [("plan",), ("plan", "read"), ("plan", "read", "skim")]
    assert logged[-1].score.value == 0.4
    first, second = tree.nodes[1], tree.nodes[2]
    assert len(first.children) > 1
    assert {child.visits for child in first.children} == {5}
    # lines of the logged action at the first fork pass through the second, and are fair samples of the actions there
    assert len(second.children) > 1
    assert sum(child.visits for child in second.children) == 5 * len(second.children) + 4
    # the log is the only line that counts above the first fork
    assert (tree.root.visits, tree.nodes[1].visits) == (1, 1)
    study = next(child for child in tree.nodes[2].children if not child.logged)
    assert study.value_sum == pytest.approx(sum(leaf.visits * leaf.score.value for leaf in tree.finished() if study in leaf.path()))
    assert tree.stopped == "forked at 1, 2"


async def test_fork_chooses_pivots_where_the_value_drops(game):
    run = await logged_run(game, ("plan", "read", "study", "rest"))
    tree = await fork_best_of_n(run, Sampler(game), game, game.exact, Budget(), num_pivots=1)
    assert tree.stopped == "forked at 3"
    spreading = await fork_best_of_n(run, Sampler(game), game, game.outcome, Budget(), num_pivots=2)
    assert spreading.stopped == "forked at 0, 2, even distances: value_drop found no step"
    with pytest.raises(UserError, match="a step of this run, 0 to 3"):
        await fork_best_of_n(run, Sampler(game), game, game.outcome, Budget(), pivots=[4])


async def test_fork_by_bisection(game):
    run = await logged_run(game, ("plan", "quit"))
    lenient = {"plan": (0.5, {"quit": (0.3, 0.0), "go": (0.7, 1.0)}), "go": (0.5, 1.0)}
    tree = await fork_best_of_n(
        run, Sampler(Game(lenient)), Game(lenient), Game(lenient).outcome, Budget(), localisation="pivot", num_pivots=1
    )
    assert tree.stopped == "forked at 1"


def test_spread():
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == [0, 1]
    assert spread(1, 1) == [0]


def within(budget: Budget):
    """Checks the budget after every wave."""

    def on_wave(_tree: SearchTree) -> None:
        for kind in ("model_calls", "tool_calls", "simulations", "tokens"):
            limit = getattr(budget.limits, kind)
            assert limit is None or getattr(budget.used, kind) <= limit

    return on_wave


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("seed", range(6))
async def test_budgets_are_never_exceeded(name, seed):
    generator = random.Random(f"{name} {seed}")
    for kind in ("model_calls", "tool_calls", "simulations", "tokens"):
        game = Game(random_game(seed, depth=5), jitter=True)
        policy = Sampler(game, tokens=7)
        policy.estimate = lambda _state, n: Usage(7 * n, 7 * n)
        limit = generator.randint(0, 60)
        budget = Budget.of(**{kind: limit})
        planning = {"world_model": None} if name == "receding_horizon" else {}
        tree = await run(name, game, policy=policy, budget=budget, on_wave=within(budget), **planning)
        used = getattr(budget.used, kind)
        assert used <= limit
        assert getattr(tree.used, kind) == used
        assert budget._reserved.get(kind, 0) == 0
        if kind == "tool_calls":
            assert sum(game.executed.values()) == used
        if kind == "model_calls":
            assert sum(n for _, _, n in policy.asked) == used
        if tree.stopped.startswith("budget"):
            assert tree.stopped == f"budget: {kind}"


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_search_stops_after_the_wave_in_which_it_is_asked_to(name, game):
    shown = []

    def on_wave(tree: SearchTree) -> None:
        shown.append(len(tree.nodes))
        tree.stop("interrupted")

    tree = await run(name, game, verifier=game.exact, on_wave=on_wave)
    assert tree.stopped == "interrupted"
    assert len(shown) <= 3  # the wave, the end of the simulation it belongs to, the finished tree
    assert shown[-1] == len(tree.nodes)
    assert len(tree.nodes) < len((await run(name, game, verifier=game.exact)).nodes)


async def test_two_searches_at_once_are_independent():
    game = Game(jitter=True)
    names = [*SEARCHES, *SEARCHES]
    together = await asyncio.gather(*(run(name, game) for name in names))
    for name, tree in zip(names, together, strict=True):
        alone = await run(name, Game())
        assert to_dict(tree) == to_dict(alone)


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_tree_survives_its_record(name, game):
    tree = await run(name, game)
    again = SearchTree.from_record(tree.to_record("id"))
    assert to_dict(again) == to_dict(tree)


async def test_seeded_root_noise(game):
    first, same, other = [
        to_dict(await mcts(start(), Enumerator(game), game, game.exact, Budget(), num_simulations=10, seed=seed)) for seed in (1, 1, 2)
    ]
    assert first == same
    assert [node["prior"] for node in first["nodes"]] != [node["prior"] for node in other["nodes"]]
    quiet = await mcts(start(), Enumerator(game), game, game.exact, Budget(), num_simulations=10, root_exploration_fraction=0)
    assert {child.prior for child in quiet.root.children} <= {0.55, 0.3, 0.15}


async def test_a_policy_without_proposals_ends_the_search(game):
    class Silent:
        async def propose(self, state, n):
            return []

    for name in SEARCHES:
        tree = await run(name, game, policy=Silent())
        assert all(node.logged for node in tree.nodes[1:])
        assert tree.stopped


async def test_prose_only_actions_are_merged_by_text(game):
    class Speaker:
        async def propose(self, state, n):
            return [Proposal(Message.assistant(f"  hello{' ' * i} world")) for i in range(1, n + 1)]

    class Room:
        async def step(self, state, action):
            return Step(action, terminated=True, reward=1.0)

    tree = await best_of_n(start(), Speaker(), Room(), game.outcome, Budget(), n=5)
    assert len(tree.nodes) == 2
    assert tree.nodes[1].draws == tree.nodes[1].visits == 5
