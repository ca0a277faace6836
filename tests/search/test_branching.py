"""Where to branch, and how to share a budget: known rankings of small runs."""

import itertools
import math
import random
from collections import Counter

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Message, Outcome, Proposal, Source, Step, ToolCall, Trace, Trajectory, Usage
from counterplay.core.tool_errors import is_error
from counterplay.search import archive, sharing
from counterplay.search.branching import Fork, choose, entropy, every, pivot, rare_state, tool_error, value_drop
from counterplay.search.draws import FailedProposal
from counterplay.search.engine import Engine
from counterplay.search.fork import fork_best_of_n
from counterplay.search.logged import logged_path
from counterplay.search.probing import Localisation
from counterplay.search.sharing import Estimate, estimates_of, split_budget
from tests.search.game import Enumerator, Game, Sampler, action, start


def step(*calls, answers=None, **fields):
    made = [ToolCall(f"c{i}", name, "{}") for i, name in enumerate(calls)]
    told = tuple(Message.tool(text, f"c{i}") for i, text in enumerate(answers or ["ok"] * len(calls)))
    return Step(Message.assistant(None if made else "done", made), told, **fields)


def run(*steps):
    return Trajectory((), (Message.user("task"),), steps)


def steps_of(forks):
    return [fork.step for fork in forks]


def test_pivot_ranks_by_the_posterior():
    one = Localisation(1, (0.1, 0.7, 0.2, 0.0), 0.9, (), "")
    forks = pivot(run(*[step("a")] * 4), one)
    assert steps_of(forks) == [1, 2, 0]
    assert forks[0] == Fork(1, 0.7, "pivotal with probability 0.70")
    two = Localisation(1, (0.1, 0.7, 0.2, 0.0), 0.9, (), "", second=3, second_posterior=(0.0, 0.0, 0.05, 0.95))
    assert steps_of(pivot(run(*[step("a")] * 4), two)) == [3, 1, 2, 0]
    assert steps_of(pivot(run(*[step("a")] * 4), Localisation(2, (), None, (), ""))) == [2]
    assert pivot(run(step("a")), Localisation(None, (), None, (), "")) == []


def test_value_drop_ranks_by_falls():
    forks = value_drop(run(*[step("a")] * 5), [0.9, 0.9, 0.8, None, 0.2, 0.5])
    assert steps_of(forks) == [3, 1]
    assert forks[0].weight == pytest.approx(0.6)
    assert forks[0].reason == "the value falls by 0.60"


def test_tool_errors_come_by_share_and_news():
    failed = step("pay", answers=["error: no such account"])
    log = run(step("look"), failed, step("look", "pay", answers=["fine", '{"error": "limit"}']), failed, step("look", error="TimeoutError"))
    forks = tool_error(log)
    assert steps_of(forks) == [1, 4, 2, 3]
    assert [fork.weight for fork in forks] == [1.0, 1.0, 0.5, 0.5]
    assert forks[0].reason == "a call failed: error: no such account"
    assert forks[1].reason == "a call failed: TimeoutError"
    assert tool_error(run(step("look", answers=["no errors were found"]))) == []


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({"content": "Error: x"}, True),
        ({"content": " Traceback (most recent call last):\n"}, True),
        ({"content": '{"error": "x"}'}, True),
        ({"content": '{"rows": [], "error": {"code": 1}}'}, True),
        ({"content": "all is well", "is_error": True}, True),
        ({"content": "all is well", "status": "error"}, True),
        ({"content": '{"error": null, "rows": []}'}, False),
        ({"content": '{"errors_seen": 3}'}, False),
        ({"content": "errors: none"}, False),
        ({"content": "0 errors"}, False),
        ({"content": "{broken"}, False),
    ],
)
def test_what_a_failed_call_says(fields, failed):
    assert is_error(Message.from_openai({"role": "tool", "tool_call_id": "c", **fields})) is failed


def drawn(*words, logprobs=None):
    return [Proposal(Message.assistant(word), logprob=None if logprobs is None else logprobs[i]) for i, word in enumerate(words)]


def test_entropy_from_draws():
    log = run(*[step("a")] * 3)
    forks = entropy(log, {0: drawn("x", "x", "x", "x"), 1: drawn("x", "y", "x", "y"), 2: drawn("x", "y", "z", "z")})
    assert steps_of(forks) == [2, 1]
    assert forks[1].weight == pytest.approx(math.log(2) + 1 / 8)
    assert forks[1].reason == "2 different actions in 4 draws, 0.82 nats"
    # with log-probabilities their mean is the entropy, and the draws of one action are not certain
    exact = entropy(log, {0: drawn("x", "x", logprobs=[-3.0, -3.0]), 1: drawn("x", "y", logprobs=[-1.0, -2.0])})
    assert [(fork.step, fork.weight) for fork in exact] == [(0, 3.0), (1, 1.5)]
    # where one is missing, none is used
    mixed = entropy(log, {0: drawn("x", "x", logprobs=[-3.0, None]), 1: drawn("x", "y", logprobs=[-1.0, -2.0])})
    assert steps_of(mixed) == [1]
    assert [(fork.step, fork.weight) for fork in entropy(log, {}, {0: -0.5, 2: -4.0})] == [(2, 4.0), (0, 0.5)]
    assert entropy(log, {0: []}) == []
    failed = FailedProposal.of("the server is down")  # says nothing of the policy, and takes nothing from what is known elsewhere
    certain = {0: drawn("x", "y", logprobs=[-1.0, -2.0]), 1: [*drawn("x", logprobs=[-0.5]), failed], 2: (failed,)}
    assert [(fork.step, fork.weight) for fork in entropy(log, certain)] == [(0, 1.5), (1, 0.5)]


@pytest.mark.parametrize("localisation", ["pivot", "entropy"])
async def test_looking_for_a_step_leaves_half_of_the_budget_to_branch_with(localisation):
    game = Game({"a": (0.5, {"x": (0.5, 0.0), "y": (0.5, 1.0)}), "b": (0.5, {"x": (0.5, 1.0), "y": (0.5, 0.0)})})
    log = start().extend(await game.step(start(), action("a")))
    log = log.extend(await game.step(log, action("x")))
    budget = Budget.of(model_calls=24)
    tree = await fork_best_of_n(log, Sampler(game), game, game.outcome, budget, num_pivots=1, localisation=localisation)
    assert budget.used.model_calls <= 24
    assert any(node.finished and node.score is not None and not node.logged for node in tree.nodes)
    assert tree.stopped.startswith("forked at")


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 20])
def test_every_is_spread_at_any_number(length):
    order = steps_of(every(run(*[step("a")] * length)))
    assert sorted(order) == list(range(length))
    assert order[0] == 0
    if length == 8:
        assert order == [0, 4, 2, 6, 1, 5, 3, 7]


def test_rare_states_come_first():
    common = run(step("look"), step("look"), step("pay"), step(terminated=True))
    odd = run(step("look"), step("cancel"), step("pay"), step(terminated=True))
    forks = rare_state(odd, [common, common, odd])
    assert steps_of(forks) == [2, 3, 0, 1]
    assert forks[0] == Fork(2, 1.0, "1 of 3 runs were in such a state")
    assert forks[2].weight == pytest.approx(1 / 3)
    assert rare_state(odd, [common, common]) == forks
    # a run that is in a state often counts once
    assert {fork.weight for fork in rare_state(run(*[step("look")] * 6), [])} == {1.0}


async def logged(game, moves):
    state = start()
    for move in moves:
        state = state.extend(await game.step(state, action(move)))
    return state


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [("value_drop", [3]), ("entropy", [1, 2, 0, 3]), ("every", [0, 2, 1, 3]), ("tool_error", []), ("rare_state", [0, 1, 2, 3])],
)
async def test_choose_finds_out_what_a_strategy_needs(game, strategy, wanted):
    path = logged_path(await logged(game, ("plan", "read", "study", "rest")), "test")
    engine = Engine(Sampler(game), game, game.exact, Budget())
    forks = await choose(engine, path, strategy, draws=16)
    assert sorted(steps_of(forks)) == sorted(wanted)
    if strategy != "entropy":
        assert steps_of(forks) == wanted
    assert engine.used().model_calls == (64 if strategy == "entropy" else 0)
    assert len(path.tree.nodes) == 5


async def test_choose_plays_for_pivots_and_refuses_what_it_does_not_know(game):
    lenient = Game({"plan": (0.5, {"quit": (0.3, 0.0), "go": (0.7, 1.0)}), "go": (0.5, 1.0)})
    path = logged_path(await logged(lenient, ("plan", "quit")), "test")
    path.end.score = None
    engine = Engine(Sampler(lenient), lenient, lenient.outcome, Budget())
    assert steps_of(await choose(engine, path, "pivot"))[0] == 1
    with pytest.raises(UserError, match="one of pivot, value_drop, tool_error, entropy, every, rare_state"):
        await choose(engine, path, "guess")


@pytest.mark.parametrize(
    ("strategy", "stopped"),
    [
        ("value_drop", "forked at 3"),
        ("every", "forked at 0"),
        ("tool_error", "forked at 0, even distances: tool_error found no step"),
        ("rare_state", "forked at 0"),
    ],
)
async def test_forks_take_the_strategies(game, strategy, stopped):
    run_ = await logged(game, ("plan", "read", "study", "rest"))
    tree = await fork_best_of_n(run_, Enumerator(game), game, game.exact, Budget(), num_pivots=1, localisation=strategy)
    assert tree.stopped == stopped
    assert tree.config["localisation"] == strategy


async def test_forks_at_rare_states_look_at_other_runs(game):
    run_ = await logged(game, ("plan", "read", "study", "rest"))
    others = [await logged(game, ("plan", "read", "skim"))] * 3
    tree = await fork_best_of_n(
        run_, Enumerator(game), game, game.exact, Budget(), num_pivots=1, localisation="rare_state", siblings=others
    )
    assert tree.stopped == "forked at 0"
    windowed = rare_state(run_, others, window=3)
    assert windowed[0].step == 3


# --- shares ----------------------------------------------------------------------------------------------------------------------------


def trace(name, length=4, *, task=None, reward=None, success=None, usage=None):
    calls = tuple(Call(i, usage=usage) for i in range(length)) if usage else ()
    steps = [step("a", "b")] * (length - 1) + [step(terminated=True)]
    return Trace(name, run(*steps), Source("test"), task=task, outcome=Outcome(reward, success), calls=calls)


def test_estimates_pool_the_attempts_at_a_task():
    runs = [
        trace("a", task="t", reward=1.0),
        trace("b", task="t", success=False),
        trace("c", task="t"),
        trace("d", reward=0.25),
        trace("e"),
    ]
    estimates = estimates_of(runs)
    assert estimates["a"] == estimates["b"] == estimates["c"] == Estimate(1.0, 2)
    assert (estimates["d"], estimates["e"]) == (Estimate(0.25, 1), Estimate(0.0, 0))


def test_the_gain_is_the_formula():
    draw = random.Random(0)
    rates = [draw.betavariate(3, 5) for _ in range(200_000)]
    for lines in (0, 1, 4):
        wanted = sum((1 - p) * (1 - (1 - p) ** lines) for p in rates) / len(rates)
        assert Estimate(2, 6).gain(lines) == pytest.approx(wanted, abs=2e-3)


def test_the_unsure_and_the_nearly_solved_come_first():
    estimates = {"hopeless": Estimate(0, 20), "unsure": Estimate(5, 10), "nearly": Estimate(15, 20), "mastered": Estimate(40, 40)}
    shares = split_budget([trace(name) for name in estimates], estimates, Budget.of(model_calls=20))
    assert {share.trace: share.lines for share in shares} == {"hopeless": 0, "unsure": 3, "nearly": 2, "mastered": 0}
    one = split_budget([trace(name) for name in estimates], estimates, Budget.of(model_calls=4))
    assert [share.lines for share in one] == [0, 1, 0, 0]
    assert [share.gain for share in one][1] == pytest.approx(Estimate(5, 10).gain(1))


def test_a_split_is_the_best_there_is():
    estimates = {"a": Estimate(0, 3), "b": Estimate(2, 4), "c": Estimate(3, 4)}
    shares = split_budget([trace(name) for name in estimates], estimates, Budget.of(model_calls=32))
    splits = [split for split in itertools.product(range(9), repeat=3) if sum(split) == 8]
    best = max(sum(estimate.gain(n) for estimate, n in zip(estimates.values(), split, strict=True)) for split in splits)
    assert sum(share.gain for share in shares) == pytest.approx(best)


def test_longer_runs_cost_more():
    assert [share.lines for share in split_budget([trace("long", 20), trace("short", 2)], {}, Budget.of(model_calls=20))] == [0, 10]
    shares = split_budget([trace("short", 2), trace("long", 20)], {}, Budget.of(model_calls=60))
    assert [share.lines for share in shares] == [10, 2]  # the 10th short line adds 1/132 for 2 calls, the 2nd long one 1/12 for 20
    assert sum(share.limits.model_calls for share in shares) == 60
    assert shares[1].limits.model_calls == pytest.approx(
        60 * 20 * shares[1].lines / sum(s.lines * n for s, n in zip(shares, (2, 20), strict=True)), abs=1
    )


@pytest.mark.parametrize("seed", range(20))
def test_shares_never_sum_to_more_than_there_is(seed):
    draw = random.Random(seed)
    traces = [
        trace(str(i), draw.randint(2, 9), usage=Usage(draw.randint(1, 99), 1, cost_usd=draw.random())) for i in range(draw.randint(1, 9))
    ]
    estimates = {t.id: Estimate(draw.randint(0, 3), 3) for t in traces if draw.random() < 0.7}
    budget = Budget.of(model_calls=draw.randint(0, 90), tokens=draw.randint(0, 9000), usd=draw.random() * 30, seconds=60)
    shares = split_budget(traces, estimates, budget)
    for kind in ("model_calls", "tokens"):
        amounts = [getattr(share.limits, kind) for share in shares]
        assert sum(amounts) == (getattr(budget.limits, kind) if any(share.lines for share in shares) else 0)
        assert all(amount == int(amount) for amount in amounts)
    assert sum(share.limits.usd for share in shares) <= budget.limits.usd + 1e-9
    assert {share.limits.seconds for share in shares} == {60}
    assert {share.limits.tool_calls for share in shares} == {None}


def test_a_budget_without_countable_limits_gives_eight_lines_each():
    shares = split_budget([trace("a"), trace("b")], {}, Budget.of(seconds=5))
    assert [share.lines for share in shares] == [8, 8]
    assert split_budget([], {}, Budget.of(model_calls=5)) == []
    spent = Budget.of(model_calls=40)
    spent.reserve(model_calls=36)
    assert [share.lines for share in split_budget([trace("a"), trace("b")], {}, spent)] == [1, 0]
    assert [share.lines for share in split_budget([trace("a", usage=Usage(9, 1)), trace("b")], {}, Budget.of(tokens=200))] == [3, 2]


@pytest.mark.parametrize(("calls", "draws"), [(48, 2), (20, 2), (14, 2), (400, 4)])
async def test_entropy_under_a_short_budget_sees_the_whole_run(calls, draws):
    """The policy is undecided late; with draws for the first steps alone that is never seen."""
    length = 10

    class Late:
        def __init__(self):
            self.asked = Counter()

        async def propose(self, state, n):
            self.asked[len(state)] += n
            return drawn(*[f"w{i}" if len(state) >= 6 else "sure" for i in range(n)])

    log = run(*[step("a")] * length)
    policy = Late()
    engine = Engine(policy, None, lambda _: None, Budget.of(model_calls=calls))
    forks = await choose(engine, logged_path(log, "by_hand"), "entropy")
    assert forks[0].step >= 6
    assert set(policy.asked.values()) == {draws}
    assert policy.asked.total() <= calls // 2
    steps = sorted(policy.asked)
    assert max(after - before for before, after in itertools.pairwise([*steps, length])) <= math.ceil(length / len(steps)) + 2


def test_the_states_of_a_run_are_grouped_once(monkeypatch):
    grouped = []
    group = archive._group
    monkeypatch.setattr(archive, "_group", lambda last: grouped.append(1) or group(last))
    monkeypatch.setattr(archive, "_GROUPS", {})
    others = [run(*[step(name) for name in moves]) for moves in itertools.product("ab", repeat=4)]
    first = [rare_state(other, others) for other in others]
    assert len(grouped) == len(others) * 4
    assert first == [rare_state(run(*other.steps), [each for each in others if each is not other]) for other in others]
    assert len(grouped) == len(others) * 4
    monkeypatch.setattr(archive, "_KEPT", 3)
    monkeypatch.setattr(archive, "_GROUPS", {})
    assert first == [rare_state(other, others) for other in others]
    assert len(archive._GROUPS) <= 3
    assert [archive.groups(others[5], 2)[t] for t in range(4)] == [archive.abstraction(others[5].prefix(t), 2) for t in range(4)]


def traces_of(count, length=10):
    return [Trace(f"t{i}", run(*[step("a")] * (length + i % 3)), Source("test"), task=f"k{i}") for i in range(count)]


def test_a_budget_of_very_many_lines_is_split_as_well_in_bounded_work(monkeypatch):
    traces = traces_of(12)
    known = {trace.id: Estimate(i % 4, 4 + i % 5) for i, trace in enumerate(traces)}
    exact = {share.trace: share.lines for share in split_budget(traces, known, Budget.of(model_calls=130_000))}
    monkeypatch.setattr(sharing, "_BLOCKS", 512)
    rough = {share.trace: share.lines for share in split_budget(traces, known, Budget.of(model_calls=130_000))}
    assert sum(exact.values()) > 10_000
    for lines in (exact, rough):
        assert sum(lines[trace.id] * len(trace.trajectory) for trace in traces) <= 130_000
    gain = {kind: sum(known[t].gain(n) for t, n in lines.items()) for kind, lines in (("exact", exact), ("rough", rough))}
    assert gain["rough"] == pytest.approx(gain["exact"], rel=1e-5)
    assert all(abs(rough[t] - exact[t]) <= 0.1 * exact[t] + 30 for t in exact)
    pushed = []
    monkeypatch.setattr(sharing, "_BLOCKS", 1 << 15)
    push = sharing.heapq.heappush
    monkeypatch.setattr(sharing.heapq, "heappush", lambda *given: pushed.append(1) or push(*given))
    shares = split_budget(traces, known, Budget.of(usd=1e9, model_calls=1e12))
    assert len(pushed) < 3 * (1 << 15)
    assert sum(share.limits.model_calls for share in shares) <= 1e12
    assert min(share.lines for share in shares) > 0


@pytest.mark.parametrize("lines", [255, 256, 257, 3000])
def test_what_many_lines_leave_is_the_same_in_closed_form(lines):
    for rate in (Estimate(), Estimate(3, 4), Estimate(0, 9), Estimate(0.5, 100)):
        a, b = 1 + rate.successes, 1 + rate.attempts - rate.successes
        assert rate.left(lines) == pytest.approx(math.prod((b + k) / (a + b + k) for k in range(lines)), rel=1e-9)
