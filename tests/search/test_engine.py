"""Waves, budgets, failures, resuming; and the search defects of other implementations, each by name."""

import asyncio
import contextlib
import json
from collections import Counter

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import DivergenceError, PolicyError, StoreError, UserError, VerifierError
from counterplay.core.journal import JournaledEnvironment, JournaledPolicy, JournaledVerifier, MemoryJournal
from counterplay.core.nouns import Message, Proposal, State, Step, Usage
from counterplay.core.protocols import first_draw
from counterplay.search.beam import beam
from counterplay.search.best_of_n import best_of_n
from counterplay.search.draws import merge
from counterplay.search.engine import Engine
from counterplay.search.mcts import mcts
from counterplay.search.registry import SEARCHES
from counterplay.search.render import to_dict
from counterplay.search.rollout import rollout
from counterplay.search.tree import Node, SearchTree
from counterplay.search.wave import Wave
from tests.search.game import Enumerator, Game, Sampler, action, moves, start
from tests.search.test_searches import run


class Killed(BaseException):
    """Ends the process, as far as a search can tell."""


class DyingJournal(MemoryJournal):
    def __init__(self, entries, left):
        super().__init__(entries)
        self.left = left

    def put(self, key, kind, answer):
        if self.left == 0:
            raise Killed
        self.left -= 1
        super().put(key, kind, answer)


async def journalled(name: str, game: Game, policy: Sampler, journal: MemoryJournal, concurrency: int) -> SearchTree:
    from tests.search.test_searches import LOGGED, SMALL, first_line, logged_run

    state = await logged_run(game, first_line(game)) if name in LOGGED else start()
    parts = JournaledPolicy(policy, journal), JournaledEnvironment(game, journal), JournaledVerifier(game.outcome, journal)
    return await SEARCHES[name](state, *parts, Budget.of(model_calls=60), concurrency=concurrency, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_killed_search_resumes_to_the_same_tree_and_repeats_no_answered_call(name, concurrency):
    whole = Game(jitter=True)
    expected = to_dict(await journalled(name, whole, Sampler(whole), MemoryJournal(), concurrency))
    for left in (0, 1, 2, 5, 9, 17):
        game, entries = Game(jitter=True), {}
        policy = Sampler(game)
        with contextlib.suppress(Killed):
            await journalled(name, game, policy, DyingJournal(entries, left), concurrency)
        asked_before, known = len(policy.asked), dict(entries)
        resumed = to_dict(await journalled(name, game, policy, MemoryJournal(entries), concurrency))
        assert resumed == expected
        # only calls under way at the kill may have been asked twice: their answers had not been journalled
        assert sum(1 for count in Counter(policy.asked).values() if count > 1) <= min(concurrency, asked_before)
        assert all(entries[key] == value for key, value in known.items())
        if concurrency == 1 and name not in ("receding_horizon", "independent"):  # one plans again in every state, the other shares nothing
            assert max(Counter(policy.asked).values(), default=0) <= 2
            assert sum(count - 1 for count in Counter(policy.asked).values()) <= 1
            assert sum(count - 1 for count in game.executed.values()) <= 1


async def test_a_finished_search_run_again_asks_nothing(game):
    journal = MemoryJournal()
    policy = Sampler(game)
    first = await journalled("mcts", game, policy, journal, 8)
    calls, executed = len(policy.asked), sum(game.executed.values())
    again = await journalled("mcts", game, policy, journal, 8)
    assert (len(policy.asked), sum(game.executed.values())) == (calls, executed)
    assert to_dict(again) == to_dict(first)


async def test_at_most_concurrency_calls_are_in_flight_and_they_begin_in_order():
    for limit in (1, 3, 64):
        wave = Wave(limit)
        for _ in range(2):
            begun, most = await watched(wave)
            assert begun == list(range(20))
            assert most == min(limit, 20)


async def watched(wave: Wave) -> tuple[list[int], int]:
    begun, flying, most = [], 0, 0

    async def call(i):
        nonlocal flying, most
        begun.append(i)
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        flying -= 1

    await wave.run(call, 20)
    return begun, most


async def test_a_wave_that_never_waits_makes_no_task():
    wave, made, done = Wave(64), [], []
    loop = asyncio.get_running_loop()

    def factory(loop, coroutine, **options):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def call(i):
        done.append(i)

    await wave.run(call, 10)
    loop.set_task_factory(factory)
    await wave.run(call, 10)
    await asyncio.sleep(0)
    loop.set_task_factory(None)
    assert done == [*range(10), *range(10)]
    assert made == []


async def test_a_wave_that_waits_after_ones_that_did_not_is_as_wide():
    wave = Wave(8)

    async def at_once(_):
        pass

    for _ in range(3):
        await wave.run(at_once, 20)
        begun, most = await watched(wave)
        assert most == 8
        assert begun == list(range(20))


async def test_every_call_sees_the_context_of_its_own_wave():
    wave, seen, waiting = Wave(8), [], asyncio.Event()

    async def call(_):
        if waiting.is_set():
            await asyncio.sleep(0)
        seen.append(first_draw.get())

    await wave.run(call, 20)
    for number in (1, 2, 3):  # the second arms, the third lets the event loop turn
        if number == 3:
            waiting.set()
        token = first_draw.set(number)
        await wave.run(call, 20)
        first_draw.reset(token)
    assert seen == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20


async def test_the_calls_of_a_wave_are_seen_together_by_a_batching_policy():
    """A local model collects what is asked in one turn of the event loop and answers it in one batch."""
    batches, queue = [], []

    def flush():
        batches.append(len(queue))
        for future in queue:
            future.set_result(None)
        queue.clear()

    async def call(_):
        if not queue:
            asyncio.get_running_loop().call_soon(flush)
        future = asyncio.get_running_loop().create_future()
        queue.append(future)
        await future

    wave = Wave(64)
    for _ in range(3):
        await wave.run(call, 20)
    assert batches == [20, 20, 20]


async def test_cancelling_a_search_cancels_its_calls():
    begun, cancelled = [], []

    class Slow:
        async def propose(self, state, n):
            begun.append(n)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(n)
                raise

    game, budget = Game(), Budget.of(model_calls=100)
    engine = Engine(Slow(), game, game.outcome, budget)
    tree = SearchTree.start(start())
    task = asyncio.ensure_future(engine.propose([(tree.root, 1)] * 5))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert len(begun) == len(cancelled) == 5
    assert budget._reserved["model_calls"] == 0


async def test_the_part_of_a_wave_that_does_not_fit_is_not_started(game):
    policy = Sampler(game)
    engine = Engine(policy, game, game.outcome, Budget.of(model_calls=7))
    root = SearchTree.start(start()).root
    answers = await engine.propose([(root, 3), (root, 3), (root, 3), (root, 1)])
    assert [len(answer) for answer in answers] == [3, 3, 1, 0]
    assert engine.exhausted == "budget: model_calls"
    assert [first for _, first, _ in policy.asked] == [0, 3, 6]


async def test_what_comes_after_the_first_item_that_does_not_fit_is_not_started_though_it_would_fit(game):
    class Estimating(Sampler):
        def estimate(self, state, n):
            return Usage(100 * n if state.steps else 10 * n)

    tree = SearchTree.start(start())
    child = tree.add(tree.root, await game.step(start(), action("plan")))
    engine = Engine(Estimating(game), game, game.outcome, Budget.of(tokens=50))
    answers = await engine.propose([(tree.root, 2), (child, 1), (tree.root, 1)])
    assert [len(answer) for answer in answers] == [2, 0, 0]


async def test_a_policy_that_gives_more_than_it_is_asked_for_is_cut_short(game):
    class Generous(Sampler):
        async def propose(self, state, n):
            return await super().propose(state, n + 3)

    tree = await rollout(start(), Generous(game), game, game.outcome, Budget())
    assert tree.used.model_calls == len(tree.nodes) - 1
    assert all(node.draws == 1 for node in tree.nodes)


async def test_seconds_end_a_search_between_waves(game):
    tree = await run("mcts", game, budget=Budget.of(seconds=0))
    assert tree.stopped == "budget: seconds"
    assert len(tree.nodes) == 1


async def test_without_an_estimate_the_largest_proposal_so_far_is_reserved(game):
    policy = Sampler(game, tokens=10)
    budget = Budget.of(tokens=300)
    await best_of_n(start(), policy, game, game.outcome, budget, n=6)
    asked = []

    class Watching(Sampler):
        async def propose(self, state, n):
            asked.append(budget._reserved["tokens"])
            return await super().propose(state, n)

    budget = Budget.of(tokens=1000)
    await best_of_n(start(), Watching(game, tokens=10), game, game.outcome, budget, n=6)
    assert asked[0] == 6
    assert max(asked[1:]) > 60


async def test_an_estimate_is_found_through_a_wrapper(game):
    class Estimating(Sampler):
        def estimate(self, _state, n):
            return Usage(100 * n)

    budget = Budget.of(tokens=250)
    tree = await rollout(start(), JournaledPolicy(Estimating(game), MemoryJournal()), game, game.outcome, budget)
    assert tree.stopped != "budget: tokens"
    tree = await best_of_n(start(), JournaledPolicy(Estimating(game), MemoryJournal()), game, game.outcome, Budget.of(tokens=250), n=3)
    assert tree.used.model_calls == 2
    assert tree.stopped == "budget: tokens"


async def test_a_failed_branch_is_data(game):
    class Flaky(Sampler):
        async def propose(self, state, n):
            if moves(state)[:1] == ("ask",):
                raise PolicyError("the server answered 500", "a completion")
            return await super().propose(state, n)

    class Fragile(Game):
        async def step(self, state, action):
            if "grab" in action.signature:
                raise DivergenceError("another result", "the recorded one", step=1)
            return await super().step(state, action)

    failed_branches_seen = []

    def moody(state):
        failed_branches_seen.extend(step for step in state.steps if step.error)
        if state.finished and moves(state)[0] == "plan":
            raise ZeroDivisionError("by zero")
        return state.steps[-1].reward

    fragile = Fragile()
    for name in ("best_of_n", "mcts", "beam"):
        policy = Enumerator(fragile)
        if name != "beam":
            policy = Flaky(fragile)
        options = {"best_of_n": {"n": 40}, "mcts": {"num_simulations": 80}, "beam": {"width": 5}}[name]
        tree = await SEARCHES[name](start("Play well."), policy, fragile, moody, Budget(), **options)
        errors = [node for node in tree.nodes if node.step and node.step.error]
        assert errors
        assert all(node.finished and node.score is None and node.visits == 0 for node in errors)
        assert failed_branches_seen == []
        assert tree.failures["environment"]["count"] >= 1
        assert "another result" in tree.failures["environment"]["first"]
        if name != "beam":
            assert "the server answered 500" in tree.failures["policy"]["first"]
            assert any("[no proposal" in node.step.action.content_text and not node.step.sampled for node in errors)
        if name != "mcts":
            assert "verifier moody failed on a trajectory of" in tree.failures["verifier"]["first"]
        assert tree.root.visits > 0
        assert SearchTree.from_record(tree.to_record("x")).failures == tree.failures


async def test_where_everything_fails_the_first_error_is_raised(game):
    class Dead:
        async def propose(self, state, n):
            raise ConnectionError("refused")

    class Nonsense:
        async def propose(self, state, n):
            return ["move"]

    class Broken:
        async def step(self, state, action):
            raise DivergenceError("the prefix differs", "the recording")

    def bad(_):
        return 7.0

    with pytest.raises(PolicyError, match="ConnectionError: refused"):
        await run("best_of_n", game, policy=Dead())
    with pytest.raises(PolicyError, match="wanted a sequence of Proposal"):
        await run("best_of_n", game, policy=Nonsense())
    with pytest.raises(DivergenceError, match="the prefix differs"):
        await best_of_n(start(), Sampler(game), Broken(), game.outcome, Budget())
    with pytest.raises(VerifierError, match=r"verifier bad failed .* got score 7.0"):
        await run("best_of_n", game, verifier=bad)
    with pytest.raises(VerifierError, match=r"^verifier bad failed"):
        await run("best_of_n", game, verifier=JournaledVerifier(bad, MemoryJournal()))


async def test_a_full_disk_is_not_a_failed_branch(game):
    class Full(MemoryJournal):
        def put(self, key, kind, answer):
            if len(self.entries) > 20:
                raise StoreError("the disk is full")
            super().put(key, kind, answer)

    for part in range(3):
        journals = [MemoryJournal(), MemoryJournal(), MemoryJournal()]
        journals[part] = Full({str(i): "" for i in range(19)})
        parts = (
            JournaledPolicy(Sampler(game), journals[0]),
            JournaledEnvironment(game, journals[1]),
            JournaledVerifier(game.exact, journals[2]),
        )
        with pytest.raises(StoreError, match="the disk is full"):
            await mcts(start(), *parts, Budget())


async def test_an_environment_that_answers_nonsense_is_a_failed_branch(game):
    class Silent:
        async def step(self, state, action):
            return None

    tree = await rollout(start(), Sampler(game), Silent(), game.outcome, Budget())
    assert tree.nodes[1].step.error == "got NoneType from the environment, wanted a Step"


async def test_wrong_options_are_refused(game):
    for options in ({"concurrency": 0}, {"max_steps": 0}, {"selection": "best"}, {"rollouts": "never"}):
        with pytest.raises(UserError, match="wanted"):
            await mcts(start(), Sampler(game), game, game.outcome, Budget(), **options)
    with pytest.raises(UserError, match="last, min"):
        await beam(start(), Sampler(game), game, game.outcome, Budget(), aggregation="sum")


# --- defects found elsewhere ---------------------------------------------------------------------------------------------------


async def test_defect_1_the_requested_action_is_executed_not_the_last_historical_one(game):
    class Shadowed(Game):
        async def step(self, state, action):
            done = await super().step(state, action)
            return done if not state.steps else Step(state.steps[-1].action, done.observations)

    shadowed = Shadowed()
    tree = await best_of_n(start(), Sampler(shadowed), shadowed, game.outcome, Budget(), n=4)
    below = [node for node in tree.nodes if node.depth == 2]
    assert below
    assert all("instead of" in node.step.error for node in below)
    for node in (await best_of_n(start(), Sampler(game), game, game.outcome, Budget(), n=20)).nodes[1:]:
        assert moves(node.state) == (*moves(node.parent.state), node.step.action.tool_calls[0].args["to"])


async def test_defect_2_every_branch_acts_on_the_state_of_its_own_node():
    """A world with one live state that is told which state to be in: interleaved branches must never see each other."""
    game, seen = Game(jitter=True), []

    class Live:
        async def step(self, state, action):
            await asyncio.sleep(0)
            seen.append((state.key, len(state)))
            return await game.step(state, action)

    tree = await best_of_n(start(), Sampler(game), Live(), game.outcome, Budget(), n=30)
    parents = {(node.parent.state.key, len(node.parent.state)) for node in tree.nodes[1:]}
    assert set(seen) == parents
    for node in tree.nodes[1:]:
        assert json.loads(node.step.observations[0].content_text)["at"] == "/".join(moves(node.state))


async def test_defect_3_q_is_w_over_n_and_values_belong_to_the_children_they_were_given_for(game):
    asked = {}

    def remember(state):
        asked[state.key] = game.best(moves(state))
        return asked[state.key]

    tree = await mcts(start(), Enumerator(game), game, remember, Budget(), num_simulations=40, num_actions=3)
    for node in tree.nodes[1:]:
        assert node.score.value == asked[node.state.key]
        own = node.visits - sum(child.visits for child in node.children)
        values = own * node.score.value + sum(child.visits * child.value for child in node.children)
        assert node.value == pytest.approx(values / node.visits)


async def test_defect_4_the_text_that_is_scored_is_the_text_that_is_kept(game):
    scored = set()

    def remember(state):
        scored.add(state.key)
        return state.steps[-1].reward if state.finished else None

    tree = await mcts(start(), Sampler(game), game, remember, Budget(), num_simulations=30, rollouts="always")
    assert scored == {node.state.key for node in tree.finished()}
    assert {node.state.key for node in tree.nodes if node.score is not None} == scored


async def test_defect_4_beam_uses_the_aggregation_it_was_given():
    """`good` starts high and then falls, `steady` never falls: the last score prefers one, the minimum the other."""
    falls = {"falls": (0.5, {"x": (1.0, {"y": (1.0, 0.0)})}), "steady": (0.5, {"x": (1.0, {"y": (1.0, 0.0)})})}
    values = {"falls": [0.1, 0.9, 0.9], "steady": [0.5, 0.6, 0.6]}
    game = Game(falls)

    def process(state):
        return values[moves(state)[0]][len(state) - 1]

    for how, first in (("last", {"steady", "falls"}), ("min", {"steady"}), ("product", {"steady"})):
        tree = await beam(start(), Enumerator(game), game, process, Budget(), width=2, num_actions=2, aggregation=how)
        kept = [moves(node.state)[0] for node in tree.nodes if node.depth == 3]
        assert set(kept) >= first
        narrow = await beam(
            start(), Enumerator(game), game, lambda s: 0.5 if len(s) == 1 else process(s), Budget(), width=1, aggregation=how
        )
        assert len([node for node in narrow.nodes if node.depth == 3]) == 1


async def test_defect_5_visits_count_selections_only(game):
    tree = await mcts(start(), Enumerator(game), game, game.exact, Budget(), num_simulations=37, num_actions=3)
    assert tree.root.visits == tree.used.simulations == 37
    proposed_not_executed = [child for node in tree.nodes for child in node.children if child.visits == 0]
    assert proposed_not_executed == []


@pytest.mark.parametrize("selection", ["puct", "uct"])
async def test_defect_6_a_visited_child_does_not_starve_the_unvisited(selection):
    flat = {f"m{i}": (0.2, {"go": (1.0, 0.5)}) for i in range(5)}
    game = Game(flat)
    tree = await mcts(
        start(),
        Enumerator(game),
        game,
        game.exact,
        Budget(),
        num_simulations=40,
        num_actions=5,
        wave_size=1,
        selection=selection,
        root_exploration_fraction=0,
    )
    assert len(tree.root.children) == 5


async def test_defect_10_samples_are_independent_draws(game):
    numbers = []

    class Counting(Sampler):
        async def propose(self, state, n):
            numbers.extend((state.key, first_draw.get() + i) for i in range(n))
            return await super().propose(state, n)

    await best_of_n(start(), Counting(game), game, game.outcome, Budget(), n=20)
    assert len(numbers) == len(set(numbers))
    numbers.clear()
    await run("fork_best_of_n", game, policy=Counting(game))
    assert len(numbers) == len(set(numbers))


async def test_defect_10_an_empty_completion_does_not_erase_its_siblings(game):
    class Empty(Sampler):
        async def propose(self, state, n):
            proposals = await super().propose(state, n)
            return [Proposal(Message.assistant("")), *proposals[1:]]

    class Room(Game):
        async def step(self, state, action):
            return await super().step(state, action) if action.tool_calls else Step(action, terminated=True, reward=0.0)

    room = Room()
    tree = await best_of_n(start(), Empty(room), room, room.outcome, Budget(), n=10)
    silent = [child for child in tree.root.children if not child.step.action.tool_calls]
    assert len(silent) == 1
    assert silent[0].value == 0.0
    assert tree.root.visits == 10


def test_defect_11_arguments_in_another_key_order_are_the_same_action():
    def call(text, call_id):
        fields = {"role": "assistant", "content": None}
        fields["tool_calls"] = [{"id": call_id, "type": "function", "function": {"name": "move", "arguments": text}}]
        return Proposal(Message.from_openai(fields))

    draws = merge([call('{"a": 1, "b": 2}', "x"), call('{"b":2,"a":1}', "y"), call('{"a": 2}', "z")])
    assert [(draw.count, draw.prior) for draw in draws] == [(2, 2 / 3), (1, 1 / 3)]


def test_merge_sums_and_normalises_given_priors():
    draws = merge([Proposal(action("a"), 0.3), Proposal(action("b"), 0.1), Proposal(action("a", "other"), 0.2)])
    assert [draw.prior for draw in draws] == pytest.approx([5 / 6, 1 / 6])
    assert [draw.prior for draw in merge([Proposal(action("a"), 0.0), Proposal(action("b"), 0.0)])] == [0.5, 0.5]
    assert [draw.prior for draw in merge([Proposal(action("a"), 0.9), Proposal(action("b"))])] == [0.5, 0.5]
    assert merge([]) == []


async def test_defect_13_nothing_of_a_search_outlives_it(game):
    before = to_dict(await run("mcts", game))
    await run("beam", game)
    assert to_dict(await run("mcts", game)) == before
    assert first_draw.get() == 0


async def test_defect_16_limits_hold_before_spending():
    flying, most = 0, 0

    class Counting(Sampler):
        async def propose(self, state: State, n: int):
            nonlocal flying, most
            flying += n
            most = max(most, flying)
            await asyncio.sleep(0)
            return await super().propose(state, n)

    game = Game()
    tree = await best_of_n(start(), Counting(game), game, game.outcome, Budget.of(model_calls=5), n=64)
    assert most == 5
    assert tree.stopped == "budget: model_calls"


async def test_an_unfinished_line_is_not_a_failure(game):
    """What the budget cut off has no score: that is not zero."""
    tree = await best_of_n(start(), Sampler(game), game, game.exact, Budget.of(model_calls=9), n=8)
    cut = [node for node in tree.leaves() if not node.finished]
    assert cut
    assert all(node.score is None and node.visits == 0 for node in cut)
    assert isinstance(tree.root, Node)
