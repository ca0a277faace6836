"""One limit over many searches: it holds, it is fair, it prefers what is warm, it keeps to rates; and no budget is ever exceeded."""

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from counterplay.core.budget import Budget
from counterplay.core.errors import CounterplayError, PolicyError, UserError
from counterplay.core.journal import JournaledPolicy, MemoryJournal
from counterplay.core.nouns import Message, Proposal, Score, State, Step, Usage
from counterplay.core.protocols import first_draw
from counterplay.core.turns import turns
from counterplay.search.best_of_n import best_of_n
from counterplay.search.engine import Engine
from counterplay.search.fairness import Limiter, shared
from counterplay.search.mcts import mcts
from counterplay.search.reading import contested
from counterplay.search.registry import LOGGED, SEARCHES
from counterplay.search.render import to_dict
from counterplay.search.stopping import StopWhen, certainty, stopping
from counterplay.search.tree import SearchTree
from tests.search.game import Game, Sampler, start
from tests.search.test_searches import first_line, logged_run, run


def asked(text: str, steps: int = 0) -> State:
    state = start(text)
    for number in range(steps):
        state = state.extend(Step(Message.assistant(f"step {number}")))
    state.key  # noqa: B018
    return state


class Watched(Sampler):
    """Counts what is in flight over all searches, and who was asked."""

    flying = most = 0
    order: list = []  # noqa: RUF012  reset by each test

    async def propose(self, state, n):
        Watched.flying += 1
        Watched.most = max(Watched.most, Watched.flying)
        Watched.order.append(state.prompt[-1].content_text)
        for _ in range(3):
            await asyncio.sleep(0)
        try:
            return await super().propose(state, n)
        finally:
            Watched.flying -= 1


@pytest.fixture(autouse=True)
def _fresh():
    Watched.flying = Watched.most = 0
    Watched.order = []


async def many(game: Game, count: int, **options) -> list[SearchTree]:
    """The same search from `count` prompts, all at once."""
    games = [(start(f"Play {i}."), Watched(game)) for i in range(count)]
    return await asyncio.gather(*(best_of_n(state, policy, game, game.outcome, Budget(), **options) for state, policy in games))


async def test_many_searches_together_keep_to_one_limit(game):
    await many(game, 6, n=6)
    assert Watched.most > 5
    Watched.most = 0
    with shared(Limiter(5)) as limiter:
        await many(game, 6, n=6)
    assert Watched.most == 5
    assert limiter.in_flight == 0


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_limiter_changes_no_tree(name):
    trees = []
    for limit in (None, 1, 3):
        game = Game(jitter=True)
        if limit is None:
            trees.append(to_dict(await run(name, game)))
            continue
        with shared(Limiter(limit, tokens_per_minute=1e9, requests_per_minute=1e9)):
            both = await asyncio.gather(run(name, game), run(name, game))
        trees += map(to_dict, both)
    assert all(tree == trees[0] for tree in trees[1:])


async def test_a_search_with_one_request_does_not_wait_for_one_with_many():
    limiter, done = Limiter(1), []

    async def one(name, states):
        lane = limiter.lane()

        async def ask(state):
            turn = await lane.take(state)
            await asyncio.sleep(0)
            done.append(name)
            turn.end()

        await asyncio.gather(*(ask(state) for state in states))

    await asyncio.gather(one("wide", [asked(f"{i}") for i in range(20)]), one("narrow", [asked("a"), asked("b"), asked("c")]))
    assert [at for at, name in enumerate(done) if name == "narrow"] == [1, 3, 5]


async def test_who_comes_late_does_not_get_back_what_it_did_not_ask_for():
    limiter, done = Limiter(1), []
    early, late = asyncio.Event(), asyncio.Event()

    async def one(name, count, wait, then):
        await wait.wait()
        lane = limiter.lane()

        async def ask(number):
            turn = await lane.take(asked(f"{name} {number}"))
            await asyncio.sleep(0)
            done.append(name)
            if name == "early" and number == 9:
                then.set()
            turn.end()

        await asyncio.gather(*(ask(number) for number in range(count)))

    early.set()
    await asyncio.gather(one("early", 20, early, late), one("late", 10, late, late))
    assert Counter(done[12:20])["early"] in (4, 3, 5)


async def test_long_requests_count_for_more_where_tokens_are_limited():
    limiter, done = Limiter(1, tokens_per_minute=1e12), []

    async def one(name, tokens):
        lane = limiter.lane()

        async def ask(number):
            turn = await lane.take(asked(f"{name} {number}"), tokens)
            await asyncio.sleep(0)
            done.append(name)
            turn.end()

        await asyncio.gather(*(ask(number) for number in range(12)))

    await asyncio.gather(one("long", 300), one("short", 100))
    assert Counter(done[:12]) == {"long": 3, "short": 9}


async def test_the_prefix_used_last_goes_first():
    limiter, done = Limiter(1), []
    lane = limiter.lane()
    cold, warm, warmest = asked("cold"), asked("warm"), asked("warmest")

    async def ask(state, name):
        turn = await lane.take(state)
        await asyncio.sleep(0)
        done.append(name)
        turn.end()

    for state in (warm, warmest):
        await ask(state, "before")
    holding = await lane.take(cold)
    step = Step(Message.assistant("on"))
    waiting = [(asked("new"), "new"), (warm.extend(step), "warm"), (warmest.extend(step), "warmest"), (warm.extend(step), "warm")]
    asking = [asyncio.ensure_future(ask(state, name)) for state, name in waiting]
    await asyncio.sleep(0)
    holding.end()
    await asyncio.gather(*asking)
    assert done[2:] == ["warmest", "warm", "warm", "new"]


def test_the_longest_known_prefix_decides():
    limiter, root = Limiter(1), asked("a")
    first, second = root.extend(Step(Message.assistant("first"))), root.extend(Step(Message.assistant("second")))
    assert limiter.warmth(first) == (0, 0)
    limiter._begin(first, 0)
    limiter._begin(second, 0)
    on = Step(Message.assistant("on"))
    assert [limiter.warmth(state) for state in (first.extend(on), root.extend(on), second.extend(on))] == [(1, 1), (2, 0), (2, 1)]


def test_only_the_latest_prefixes_are_remembered(monkeypatch):
    monkeypatch.setattr("counterplay.search.fairness._PREFIXES", 4)
    limiter = Limiter(1)
    for number in range(9):
        limiter._begin(asked(f"{number}"), 0)
    assert [bool(limiter.warmth(asked(f"{number}"))[0]) for number in range(9)] == [False] * 5 + [True] * 4


async def test_a_request_given_up_takes_no_turn():
    limiter = Limiter(1)
    lane = limiter.lane()
    holding = await lane.take(asked("a"))
    waiting = [asyncio.ensure_future(lane.take(asked(text))) for text in "bcd"]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    holding.end()
    waiting[1].cancel()  # its turn has come already
    turn = await waiting[2]
    assert limiter.in_flight == 1
    turn.end()
    assert limiter.in_flight == 0
    assert [task.cancelled() for task in waiting] == [True, True, False]
    assert not lane.waiting


async def test_a_request_given_up_in_the_moment_another_ends_takes_no_turn():
    limiter = Limiter(1)
    lane = limiter.lane()
    holding = await lane.take(asked("a"))
    given_up, waiting = (asyncio.ensure_future(lane.take(asked(text))) for text in "bc")
    await asyncio.sleep(0)
    given_up.cancel()
    holding.end()  # before the cancelled task has run
    (await waiting).end()
    assert limiter.in_flight == 0
    assert given_up.cancelled()
    assert not lane.waiting


class Clock:
    """Time that passes only while the event loop waits for it."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        loop = asyncio.get_running_loop()

        def later(delay, call, *args):
            def passed():
                self.now_s += delay
                call(*args)

            return loop.call_soon(passed)

        monkeypatch.setattr(loop, "call_later", later)

    def __call__(self):
        return self.now_s


async def begun(limiter, clock, sizes):
    lane, times = limiter.lane(), []
    for size in sizes:
        turn = await lane.take(asked("a"), size)
        times.append(clock())
        turn.end()
    return times


@pytest.mark.parametrize("limit", [1, 2, 60, 300])
async def test_no_minute_holds_more_requests_than_the_limit(monkeypatch, limit):
    clock = Clock(monkeypatch)
    times = await begun(Limiter(64, requests_per_minute=limit, clock=clock), clock, [1] * (3 * limit))
    for first in times:
        assert sum(first <= at < first + 60 for at in times) <= limit
    assert times[-1] <= (60 * 3 * 1.2 if limit > 2 else 60 * 3 * limit)


async def test_no_minute_holds_more_tokens_than_the_limit_and_what_was_not_used_is_given_back(monkeypatch):
    clock, generator = Clock(monkeypatch), random.Random(0)
    sizes = [generator.randint(1, 400) for _ in range(300)]
    times = await begun(Limiter(64, tokens_per_minute=6000, clock=clock), clock, sizes)
    for first in times:
        assert sum(size for at, size in zip(times, sizes, strict=True) if first <= at < first + 60) <= 6000
    limiter = Limiter(64, tokens_per_minute=6000, clock=clock)
    lane = limiter.lane()
    for _ in range(20):
        began_s = clock()
        (await lane.take(asked("a"), 400)).end(1)
        assert clock() == began_s
    (await lane.take(asked("a"), 1)).end(5000)
    (await lane.take(asked("a"), 500)).end()
    assert clock() > began_s + 50


async def test_a_request_larger_than_the_bucket_goes_through(monkeypatch):
    clock = Clock(monkeypatch)
    times = await begun(Limiter(4, tokens_per_minute=120, clock=clock), clock, [100, 100])
    assert times[0] == 0
    assert 40 < times[1] < 70


async def test_after_retry_after_no_search_asks(monkeypatch):
    clock = Clock(monkeypatch)
    limiter = Limiter(4, clock=clock)
    lane = limiter.lane()
    lane.pause(30)
    lane.pause(10)
    assert await begun(limiter, clock, [1, 1]) == [30, 30]


async def test_a_policy_finds_its_turns_and_one_that_takes_them_is_given_none(game):
    seen = []

    class Own(Sampler):
        takes_turns = True

        async def propose(self, state, n):
            seen.append((turns.get() is not None, limiter.in_flight))
            return await super().propose(state, n)

    class Wrapped:
        def __init__(self, policy):
            self.policy = policy

        async def propose(self, state, n):
            return await self.policy.propose(state, n)

    with shared(Limiter(3)) as limiter:
        await best_of_n(start(), Wrapped(Own(game)), game, game.outcome, Budget(), n=2)
        assert set(seen) == {(True, 0)}
    assert turns.get() is None
    seen.clear()
    with shared(Limiter(3)) as limiter:
        await best_of_n(start(), JournaledPolicy(Own(game), MemoryJournal()), game, game.outcome, Budget(), n=2)
        assert set(seen) == {(True, 0)}


async def test_an_answer_from_the_journal_takes_no_turn(game):
    journal = MemoryJournal()
    first = await best_of_n(start(), JournaledPolicy(Sampler(game), journal), game, game.outcome, Budget(), n=4)
    with shared(Limiter(1)) as limiter:
        limiter.pause(3600)
        again = await best_of_n(start(), JournaledPolicy(Sampler(game), journal), game, game.outcome, Budget(), n=4)
    assert to_dict(again) == to_dict(first)


async def test_a_turn_ends_also_where_the_policy_fails(game):
    class Failing(Sampler):
        async def propose(self, state, n):
            if state.steps:
                raise PolicyError("no answer", "one")
            return await super().propose(state, n)

    with shared(Limiter(2)) as limiter:
        await best_of_n(start(), Failing(game), game, game.outcome, Budget(), n=4)
    assert limiter.in_flight == 0


def test_limits_are_checked():
    for options in ({"concurrency": 0}, {"requests_per_minute": 0}, {"tokens_per_minute": 0.5}):
        with pytest.raises(UserError, match="at least 1"):
            Limiter(**options)


# --- early stops ----------------------------------------------------------------------------------------------------------------------


async def test_a_branch_that_is_good_enough_ends_a_search(game):
    whole = await mcts(start(), Sampler(game), game, game.outcome, Budget(), num_simulations=200)
    with stopping(StopWhen(value=0.5)):
        tree = await mcts(start(), Sampler(game), game, game.outcome, Budget(), num_simulations=200)
    assert tree.stopped.startswith("a branch scored ")
    assert tree.best().score.value >= 0.5
    assert tree.used.simulations < whole.used.simulations
    assert [node.value_sum for node in tree.nodes if node.score and node.score.value >= 0.5]


async def test_enough_branches_end_a_search(game):
    with stopping(StopWhen(finished=5)):
        tree = await mcts(start(), Sampler(game), game, game.outcome, Budget(), num_simulations=200, wave_size=2)
    assert tree.stopped in ("5 branches finished", "6 branches finished")
    assert len([node for node in tree.finished() if node.score is not None]) in (5, 6)


async def test_a_decided_root_ends_a_search():
    def ends(value):
        return {f"end{i}": (1 / 8, value) for i in range(8)}

    game = Game({"good": (0.5, ends(1.0)), "bad": (0.5, ends(0.0))})
    with stopping(StopWhen(decided=0.95)):
        tree = await mcts(start(), Sampler(game), game, game.exact, Budget(), num_simulations=400, wave_size=2)
    assert tree.stopped.startswith("the best action is 0.9")
    assert 0.95 <= certainty(tree) < 0.999
    assert tree.root.visits < 40


async def test_opinions_and_ends_that_are_met_again_decide_nothing():
    game = Game({"good": (0.5, {"end": (1.0, 1.0)}), "bad": (0.5, {"end": (1.0, 0.0)})})
    with stopping(StopWhen(decided=0.95)):
        tree = await mcts(start(), Sampler(game), game, game.exact, Budget(), num_simulations=60, wave_size=2)
    assert tree.root.visits >= 60
    assert tree.stopped == "60 simulations"
    # one line each: Beta(2, 1) against Beta(1, 2)
    assert certainty(tree) == pytest.approx(5 / 6)
    assert [made.counts for made in contested(tree)] == [((1, 1.0), (1, 0.0))]


async def test_the_log_and_an_unset_condition_stop_nothing(game):
    with stopping(StopWhen(value=0.0)):
        engine = Engine(None, None, lambda _: 1.0, Budget())
        tree = SearchTree.start(start())
        done = tree.add(tree.root, Step(Message.assistant("x"), terminated=True), logged=True)
        await engine.score([done])
        assert engine.running(tree)
    plain = await run("mcts", game)
    with stopping(StopWhen()):
        assert to_dict(await run("mcts", game)) == to_dict(plain)


@pytest.mark.parametrize("name", SEARCHES)
async def test_every_search_asks_whether_to_go_on(name, monkeypatch, game):
    """A condition that holds from the start lets no search play its whole budget."""
    monkeypatch.setattr(StopWhen, "reason", lambda *_: "enough")
    policy = Sampler(game)
    with stopping(StopWhen(finished=1)):
        tree = await run(name, game, policy=policy, verifier=game.exact)
    assert tree.stopped == "enough"
    whole = Sampler(game)
    await run(name, game, policy=whole, verifier=game.exact)
    assert len(policy.asked) <= max(len(whole.asked) // 2, 1)


def test_conditions_are_checked():
    for options in ({"value": 1.5}, {"decided": -0.1}, {"finished": 0}):
        with pytest.raises(UserError, match="got "):
            StopWhen(**options)


# --- no budget is ever exceeded --------------------------------------------------------------------------------------------------------


class Wild:
    """Policy, environment and verifier whose costs, latencies and failures are arbitrary; tells an upper bound of what it will use."""

    def __init__(self, seed: int, game: Game, *, fails: float, waits: int) -> None:
        self.seed, self.game, self.fails, self.waits = seed, game, fails, waits
        self.spent: Counter[str] = Counter()
        self.flying = self.most = 0

    def drawn(self, *parts) -> random.Random:
        return random.Random(f"{self.seed} {parts}")

    def bound(self, state: State) -> tuple[int, float]:
        generator = self.drawn("bound", state.key)
        return generator.randint(1, 300), generator.random() / 4

    def estimate(self, state, n):
        tokens, usd = self.bound(state)
        return Usage(tokens * n, cost_usd=usd * n)

    async def pause(self, generator):
        for _ in range(generator.randint(0, self.waits)):
            await asyncio.sleep(0)

    async def propose(self, state, n):
        first = first_draw.get()
        generator = self.drawn("propose", state.key, first, n)
        self.flying += 1
        self.most = max(self.most, self.flying)
        self.spent["model_calls"] += n
        await self.pause(generator)
        self.flying -= 1
        if generator.random() < self.fails:
            raise PolicyError("no answer", "one")
        proposals = await Sampler(self.game, self.seed).propose(state, n)
        tokens, usd = self.bound(state)
        used = [Usage(generator.randint(0, tokens), cost_usd=generator.random() * usd) for _ in proposals]
        self.spent["tokens"] += sum(usage.tokens for usage in used)
        self.spent["usd"] += sum(usage.cost_usd for usage in used)
        return [Proposal(p.action, usage=usage) for p, usage in zip(proposals, used, strict=True)]

    async def step(self, state, action):
        generator = self.drawn("step", state.key, action.signature)
        self.spent["tool_calls"] += len(action.tool_calls)
        await self.pause(generator)
        if generator.random() < self.fails:
            raise ConnectionError("gone")
        return await self.game.step(state, action)

    async def verify(self, state):
        generator = self.drawn("verify", state.key)
        await self.pause(generator)
        if generator.random() < self.fails:
            raise ZeroDivisionError
        return Score(generator.random()) if state.finished or generator.random() < 0.7 else None


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "model_calls": st.integers(0, 40),
        "tokens": st.integers(0, 4000),
        "usd": st.floats(0, 4),
        "tool_calls": st.integers(0, 30),
        "simulations": st.integers(0, 20),
    },
)


@given(
    name=st.sampled_from(list(SEARCHES)),
    limits=LIMITS,
    seed=st.integers(0, 10**6),
    concurrency=st.sampled_from([1, 2, 7, 64]),
    fails=st.sampled_from([0.0, 0.1, 0.5]),
    limit=st.sampled_from([None, 1, 5]),
)
@example(name="mcts", limits={"model_calls": 7, "usd": 0.5}, seed=1, concurrency=64, fails=0.1, limit=None)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_no_budget_is_ever_exceeded(name, limits, seed, concurrency, fails, limit):  # noqa: PLR0917
    asyncio.run(within(name, limits, seed, concurrency, fails=fails, limit=limit))


async def within(name, limits, seed, concurrency, *, fails, limit):
    game = Game()
    wild, budget = Wild(seed, game, fails=fails, waits=4), Budget.of(**limits)
    state = await logged_run(game, first_line(game)) if name in LOGGED else start()
    failed = None
    with shared(Limiter(limit or 10**6)):
        try:
            tree = await SEARCHES[name](state, wild, wild, wild.verify, budget, concurrency=concurrency)
        except CounterplayError as error:  # where all of a first wave fails
            failed = error
    assert failed is None or fails
    for kind, most in limits.items():
        spent = wild.spent[kind] if kind != "simulations" else budget.used.simulations
        assert spent <= most + 1e-9, (kind, spent, most)
        assert (getattr(budget.used, kind) or 0) <= most + 1e-9
    assert all(abs(left) < 1e-9 for left in budget._reserved.values())
    assert wild.flying == 0
    if limit:
        assert wild.most <= limit
    if failed is None:
        assert tree.stopped
        assert budget.used.tool_calls == wild.spent["tool_calls"]
        assert budget.used.model_calls >= len(tree.nodes) - 1 - len(state) * (name in LOGGED) or name == "receding_horizon"


@pytest.mark.parametrize("name", SEARCHES)
async def test_each_search_spends_its_calls_and_not_one_more(name):
    for calls in (0, 1, 5, 13):
        await within(name, {"model_calls": calls}, calls, 64, fails=0.0, limit=None)
