"""Localisation on a synthetic agent whose pivotal step and success rates are known."""

import random

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Proposal, State, Step, ToolCall, Trajectory
from counterplay.core.protocols import first_draw
from counterplay.search.engine import Engine
from counterplay.search.localise import first_drop, localise, log_odds_of
from counterplay.search.posterior import Probe, prior_of
from counterplay.search.probing import Localisation, free_probes


class Agent:
    """Ends any prefix in one step, counted as the steps it stands for; the success rate falls after each of the errors."""

    def __init__(self, errors, rates, seed=0, length=100):
        self.errors, self.rates, self.seed, self.length = errors, rates, seed, length
        self.steps = 0

    def wins(self, state, draw):
        rate = self.rates[sum(len(state) > error for error in self.errors)]
        return random.Random(f"{self.seed} {state.key} {draw}").random() < rate

    async def propose(self, state, n):
        first = first_draw.get()
        words = ["won" if self.wins(state, i) else "lost" for i in range(first, first + n)]
        self.steps += n * (self.length - len(state))
        return [Proposal(Message.assistant(f"{word} {i}")) for i, word in enumerate(words, first)]

    async def step(self, state, action):
        return Step(action, terminated=True, reward=float(action.content_text.startswith("won")))


class Walker(Agent):
    """The same agent, who walks to the end step by step: whether it succeeds is settled where it leaves the log."""

    async def propose(self, state, n):
        first = first_draw.get()
        self.steps += n
        return [Proposal(self.word(state, i)) for i in range(first, first + n)]

    def word(self, state, draw):
        last = state.steps[-1].action.content_text if state.steps else ""
        if last.startswith(("won", "lost")):
            return Message.assistant(last)
        return Message.assistant(f"{'won' if self.wins(state, draw) else 'lost'} {draw}")

    async def step(self, state, action):
        over = len(state) + 1 == self.length
        return Step(action, terminated=over, reward=float(action.content_text.startswith("won")) if over else None)


def outcome(state):
    return state.steps[-1].reward if state.finished else None


def failed_run(length, seed=0):
    steps = [Step(Message.assistant(f"step {t} of {seed}"), (Message.user("and then?"),)) for t in range(length - 1)]
    return Trajectory((), (Message.user(f"task {seed}"),), (*steps, Step(Message.assistant("end"), terminated=True, reward=0.0)))


async def find(pivot, p_ok, p_bad, *, length=100, seed=0, budget=None, agent=Agent, **options):
    made = agent([pivot], [p_ok, p_bad], seed, length)
    found = await localise(failed_run(length, seed), made, made, outcome, budget or Budget(), seed=seed, **options)
    return found, made


def likeliest(found):
    return max(range(len(found.posterior)), key=found.posterior.__getitem__) if found.posterior else found.step


async def near(p_ok, p_bad, trials, **options):
    """The share of runs found within one step, and the mean cost in agent steps."""
    hits = steps = 0
    for seed in range(trials):
        pivot = random.Random(seed).randrange(100)
        found, agent = await find(pivot, p_ok, p_bad, seed=seed, **options)
        best = likeliest(found)
        hits += best is not None and abs(best - pivot) <= 1
        steps += agent.steps
    return hits / trials, steps / trials


@pytest.mark.parametrize(
    ("p_ok", "p_bad", "least", "most_steps"), [(0.9, 0.05, 0.95, 3200), (0.75, 0.1, 0.9, 4200), (0.6, 0.002, 0.9, 4200)]
)
async def test_the_pivotal_step_is_found_though_agents_recover(p_ok, p_bad, least, most_steps):
    share, steps = await near(p_ok, p_bad, 40)
    assert share >= least
    assert steps <= most_steps


async def test_omega_is_exact_where_nobody_recovers_and_lost_where_they_do():
    exact, steps = await near(0.9, 0.0, 20, method="omega")
    assert exact == 1.0
    assert 2000 < steps < 3200  # 8 lines of about 50 steps for each of log2 100 probes
    recovering, _ = await near(0.9, 0.1, 20, method="omega")
    assert recovering <= 0.5
    found, _ = await find(30, 0.9, 0.0, method="omega")
    assert (found.step, found.posterior, found.p_ok) == (30, (), None)
    assert [probe.length for probe in found.probes][:2] == [50, 25]


async def test_threshold_bisection_needs_many_lines():
    share, steps = await near(0.9, 0.1, 10, method="threshold")
    assert share == 1.0
    assert 8500 < steps < 12500
    found, _ = await find(30, 0.9, 0.1, method="threshold")
    assert found.p_ok == pytest.approx(0.9, abs=0.2)
    assert {probe.lines for probe in found.probes} == {24}
    hopeless, _ = await find(30, 0.0, 0.0, method="threshold")
    assert hopeless.step is None
    assert "succeeded" in hopeless.reason


async def test_monte_carlo_on_every_step_costs_forty_thousand_steps():
    found, agent = await find(40, 0.9, 0.05, method="every")
    assert found.step == 40
    assert agent.steps == 8 * sum(range(1, 100)) == 39_600
    assert found.p_two is None
    assert [probe.length for probe in found.probes] == list(range(1, 100))
    with pytest.raises(UserError, match="one of bayes, threshold, omega, every"):
        await find(40, 0.9, 0.05, method="guess")


async def test_costs_are_those_of_an_agent_that_walks():
    for method in ("bayes", "omega"):
        budget = Budget()
        (told, short), (walked, agent) = [
            await find(11, 0.9, 0.05, length=20, agent=kind, budget=budget, method=method) for kind in (Agent, Walker)
        ]
        assert (told.step, told.posterior, told.probes) == (walked.step, walked.posterior, walked.probes)
        assert short.steps == agent.steps


async def test_two_errors_are_told_from_one():
    found, _ = await run_with([20, 70], [0.95, 0.5, 0.02], p_two=0.5)
    assert abs(found.step - 20) <= 1
    assert abs(found.second - 70) <= 1
    assert found.p_two > 0.9
    assert "two errors" in found.reason
    assert sum(found.second_posterior) == pytest.approx(1)
    one, _ = await run_with([20, 70], [0.95, 0.5, 0.02], p_two=0.0)
    assert one.second is None
    assert one.second_posterior == ()
    assert one.p_two is None
    single, _ = await find(40, 0.9, 0.05)
    assert single.p_two < 1 / 3
    assert single.second is None


async def run_with(errors, rates, *, seed=0, **options):
    agent = Agent(errors, rates, seed)
    return await localise(failed_run(100, seed), agent, agent, outcome, Budget(), seed=seed, **options), agent


async def test_a_rate_near_the_least_is_looked_at_twice_before_it_is_refused():
    """Of agents with p_ok .45 sixteen lines refuse about one in twelve; three times as many hardly any."""
    refused = [found for seed in range(60) if not (found := (await find(40, 0.45, 0.0, seed=seed, max_lines=17))[0]).posterior]
    assert len(refused) <= 2
    low = [(await find(40, 0.18, 0.0, seed=seed, max_lines=17))[0] for seed in range(30)]
    looked = [sum(probe.lines for probe in found.probes if probe.length == 0) for found in low]
    assert max(looked) == 48
    assert sum(not found.posterior for found in low) >= 20


async def test_an_agent_that_rarely_succeeds_is_refused():
    found, _ = await find(30, 0.1, 0.01)
    assert found.step is None
    assert found.posterior == ()
    assert found.p_ok <= 0.15
    assert "below 0.3" in found.reason
    assert sum(probe.lines for probe in found.probes) <= 24


async def test_too_little_evidence_is_undetermined_and_gives_the_posterior():
    found, _ = await find(50, 0.8, 0.3, max_lines=24)
    assert found.step is None
    assert found.reason.startswith("undetermined")
    assert sum(found.posterior) == pytest.approx(1)
    assert max(found.posterior) < 0.9


async def test_the_budget_ends_a_localisation():
    budget = Budget.of(model_calls=40)
    found, _ = await find(50, 0.9, 0.05, budget=budget)
    assert budget.used.model_calls <= 40
    assert "budget: model_calls" in found.reason or found.step is not None
    none, _ = await find(50, 0.9, 0.05, budget=Budget.of(model_calls=0))
    assert none.step is None
    assert "budget: model_calls" in none.reason


async def test_a_successful_run_has_no_pivotal_step():
    run = failed_run(10)
    won = Trajectory(run.tools, run.prompt, (*run.steps[:-1], Step(Message.assistant("end"), terminated=True, reward=1.0)))
    agent = Agent([3], [0.9, 0.1])
    found = await localise(won, agent, agent, outcome, Budget())
    assert found.step is None
    assert "succeeded" in found.reason
    assert found.probes == ()


async def test_a_prior_saves_lines():
    def played(found):
        return sum(probe.lines for probe in found.probes)

    log_odds = [4.0 if t == 40 else -4.0 for t in range(100)]
    plain = [played((await find(40, 0.8, 0.1, seed=seed))[0]) for seed in range(8)]
    told = [played((await find(40, 0.8, 0.1, seed=seed, prior_log_odds=log_odds))[0]) for seed in range(8)]
    assert sum(told) < sum(plain)
    misled, _ = await find(40, 0.9, 0.02, prior_log_odds=[3.0 if t == 70 else -1.0 for t in range(100)])
    assert misled.step == 40
    with pytest.raises(UserError, match="one for each of the 100 steps"):
        await find(40, 0.8, 0.1, prior_log_odds=[0.0])


async def test_an_opinion_of_the_verifier_is_a_prior():
    seen = {"process_verifier": lambda state: 0.9 if len(state) <= 40 else 0.2}
    plain = [(await find(40, 0.8, 0.1, seed=seed))[1].steps for seed in range(8)]
    told = [(await find(40, 0.8, 0.1, seed=seed, **seen))[1].steps for seed in range(8)]
    assert sum(told) < 0.8 * sum(plain)
    misled, _ = await find(70, 0.9, 0.02, **seen)
    assert misled.step == 70
    silent, _ = await find(40, 0.9, 0.02, process_verifier=lambda _: 0.5)
    assert silent.step == 40


def test_trust_bounds_what_an_opinion_can_do():
    found = Localisation(2, (0.0, 0.0, 1.0, 0.0), None, (), "")
    assert prior_of(log_odds_of(found, trust=0.5), 4) == pytest.approx([0.125, 0.125, 0.625, 0.125])
    assert prior_of(log_odds_of(found, trust=0.0), 4) == pytest.approx([0.25] * 4)
    assert log_odds_of(Localisation(None, (), None, (), "")) is None
    with pytest.raises(UserError, match="trust=1"):
        log_odds_of(found, trust=1)


def called(tool, call_id, answer):
    return Step(Message.assistant(None, [ToolCall(call_id, tool, '{"x": 1}')]), (Message.tool(answer, call_id),))


async def test_logged_siblings_are_free_probes():
    run = failed_run(20)
    end = Step(Message.assistant("elsewhere"), terminated=True, reward=1.0)
    branch = (*run.steps[:12], end)
    silent_end = Step(Message.assistant("elsewhere"), terminated=True)
    engine = Engine(None, None, outcome, Budget())
    siblings = [
        Trajectory((), run.prompt, branch),
        Trajectory((), (Message.user("another"),), branch),
        Trajectory((), run.prompt, (*run.steps[:5], silent_end)),
        Trajectory((), run.prompt, run.steps[:5]),
        run,
    ]
    assert await free_probes(engine, run, siblings) == [Probe(12, 1, 1.0, logged=True)]
    agent = Agent([15], [0.9, 0.05])
    found = await localise(run, agent, agent, outcome, Budget(), siblings=[Trajectory((), run.prompt, branch)] * 3)
    assert likeliest(found) >= 12
    assert [probe for probe in found.probes if probe.logged] == [Probe(12, 1, 1.0, logged=True)] * 3


async def test_siblings_are_compared_by_what_they_did_and_scored_by_the_verifier():
    prompt = (Message.user("task"),)
    run = Trajectory(
        (), prompt, (called("a", "id1", "1"), called("b", "id2", "2"), Step(Message.assistant("end"), terminated=True, reward=0.0))
    )
    other = Trajectory(
        (), prompt, (called("a", "id7", "1"), called("b", "id8", "3"), Step(Message.assistant("other"), terminated=True, reward=1.0))
    )
    for verifier, value in ((lambda _: 0.25, 0.25), (lambda _: None, 1.0)):
        assert await free_probes(Engine(None, None, verifier, Budget()), run, [other]) == [Probe(1, 1, value, logged=True)]
    unfinished = Trajectory((), prompt, (called("a", "id7", "1"), called("b", "id8", "3")))
    said = Trajectory(
        (), prompt, (Step(run.steps[0].action, (Message.user("1"),)), Step(Message.assistant("end"), terminated=True, reward=1.0))
    )
    engine = Engine(None, None, lambda _: 0.25, Budget())
    assert await free_probes(engine, run, [unfinished, said]) == [Probe(0, 1, 0.25, logged=True)]


@pytest.mark.parametrize("method", ["bayes", "threshold"])
async def test_logged_runs_from_the_start_are_not_played_again(method):
    run = failed_run(100)
    ends = [Step(Message.assistant("won"), terminated=True, reward=float(i % 8 > 0)) for i in range(24)]
    others = [Trajectory((), run.prompt, (*run.steps[: 5 * (i % 2)], end)) for i, end in enumerate(ends)]
    agent = Agent([60], [0.9, 0.05])
    found = await localise(run, agent, agent, outcome, Budget(), siblings=others, method=method)
    assert found.p_ok == pytest.approx(21 / 24)
    assert abs(likeliest(found) - 60) <= 1
    assert not [probe for probe in found.probes if probe.length == 0 and not probe.logged]


async def test_logged_lines_from_a_prefix_are_not_played_again():
    run = failed_run(100)
    others = [Trajectory((), run.prompt, (*run.steps[:50], Step(Message.assistant("won"), terminated=True, reward=1.0)))] * 20
    agent = Agent([60], [0.9, 0.0])
    found = await localise(run, agent, agent, outcome, Budget(), siblings=others, method="threshold")
    assert found.step == 60
    assert [probe.lines for probe in found.probes if probe.length == 50 and not probe.logged] == [4]
    assert [probe.lines for probe in found.probes if probe.length == 0] == [4]


@pytest.mark.parametrize("wrong", [{"mass": 0.5}, {"root_lines": 0}, {"lines_per_probe": 0}, {"p_two": 1.0}, {"min_p_ok": -0.1}])
async def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        await find(3, 0.9, 0.1, length=10, **wrong)


async def test_every_line_played_is_in_the_tree():
    found, _ = await find(5, 0.9, 0.1, length=12)
    tree = found.tree
    assert sum(leaf.visits for leaf in tree.finished() if not leaf.logged) == sum(probe.lines for probe in found.probes)
    assert [node.state.steps[-1] for node in tree.nodes if node.logged] == list(failed_run(12).steps)
    assert tree.stopped == found.reason


async def test_localising_is_deterministic():
    assert (await find(33, 0.7, 0.1, concurrency=1))[0] == (await find(33, 0.7, 0.1, concurrency=64))[0]


async def test_first_drop():
    values = [0.9, 0.9, 0.85, 0.3, 0.35, 0.1]
    found = await first_drop(failed_run(5), lambda state: values[len(state)])
    assert found.step == 2
    assert found.posterior == pytest.approx([0, 0.05 / 0.85, 0.55 / 0.85, 0, 0.25 / 0.85])
    gaps = await first_drop(failed_run(5), lambda state: None if len(state) in (0, 3) else values[len(state)])
    assert gaps.step == 3
    level = await first_drop(failed_run(5), lambda _: 0.5)
    assert level.step is None
    assert level.posterior == ()
    twice = [1.0, 0.5, 1.0, 0.5, 1.0, 1.0]
    assert (await first_drop(failed_run(5), lambda state: twice[len(state)])).step == 0
    small = await first_drop(failed_run(5), lambda state: 0.9 - 0.01 * len(state))
    assert small.step is None
    assert "never falls by 0.2" in small.reason


async def test_trajectories_without_steps_are_refused():
    with pytest.raises(UserError, match="without steps"):
        await first_drop(State(), lambda _: 0.5)
