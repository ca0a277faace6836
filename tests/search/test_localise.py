"""Localisation on a synthetic agent whose pivotal step and success rates are known."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Proposal, State, Step, Trajectory
from counterplay.core.protocols import first_draw
from counterplay.search.localise import P_BAD, P_OK, Probe, first_drop, free_probes, localise, next_probe, posterior_of


class Agent:
    """Ends any prefix in one step; succeeds at `p_ok` where the pivotal step is not yet taken, at `p_bad` after it."""

    def __init__(self, pivot, p_ok, p_bad, seed=0):
        self.pivot, self.p_ok, self.p_bad, self.seed = pivot, p_ok, p_bad, seed
        self.steps = 0
        self.length = 0

    async def propose(self, state, n):
        first = first_draw.get()
        rate = self.p_ok if len(state) <= self.pivot else self.p_bad
        proposals = []
        for i in range(first, first + n):
            won = random.Random(f"{self.seed} {state.key} {i}").random() < rate
            proposals.append(Proposal(Message.assistant(f"{'won' if won else 'lost'} {i}")))
        self.steps += n * (self.length - len(state))
        return proposals

    async def step(self, state, action):
        return Step(action, terminated=True, reward=float(action.content_text.startswith("won")))


def outcome(state):
    return state.steps[-1].reward if state.finished else None


def failed_run(length, seed=0):
    steps = [Step(Message.assistant(f"step {t} of {seed}"), (Message.user("and then?"),)) for t in range(length - 1)]
    return Trajectory((), (Message.user(f"task {seed}"),), (*steps, Step(Message.assistant("end"), terminated=True, reward=0.0)))


async def find(pivot, p_ok, p_bad, *, length=100, seed=0, budget=None, **options):
    agent = Agent(pivot, p_ok, p_bad, seed)
    agent.length = length
    found = await localise(failed_run(length, seed), agent, agent, outcome, budget or Budget(), seed=seed, **options)
    return found, agent


@pytest.mark.parametrize(("p_ok", "p_bad", "least"), [(0.9, 0.05, 0.95), (0.7, 0.1, 0.9), (0.6, 0.002, 0.9)])
async def test_the_pivotal_step_is_found_though_agents_recover(p_ok, p_bad, least):
    near, steps, trials = 0, 0, 40
    for seed in range(trials):
        pivot = random.Random(seed).randrange(100)
        found, agent = await find(pivot, p_ok, p_bad, seed=seed)
        best = max(range(100), key=lambda t: found.posterior[t]) if found.posterior else -99
        near += abs(best - pivot) <= 1
        steps += agent.steps
    assert near / trials >= least
    assert steps / trials < 7000  # Monte Carlo on every step takes about 40,000


async def test_an_agent_that_rarely_succeeds_is_refused():
    found, _ = await find(30, 0.1, 0.01)
    assert found.step is None
    assert found.posterior == ()
    assert found.p_ok < 0.3
    assert "below 0.3" in found.reason
    assert sum(probe.lines for probe in found.probes) == 16


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
    agent = Agent(3, 0.9, 0.1)
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


async def test_logged_siblings_are_free_probes():
    run = failed_run(20)
    branch = (*run.steps[:12], Step(Message.assistant("elsewhere"), terminated=True, reward=1.0))
    other_task = Trajectory((), (Message.user("another"),), branch)
    unlabelled = Trajectory((), run.prompt, (*run.steps[:5], Step(Message.assistant("elsewhere"), terminated=True)))
    probes = free_probes(run, [Trajectory((), run.prompt, branch), other_task, unlabelled, run])
    assert probes == [Probe(12, 1, 1.0, logged=True)]
    agent = Agent(15, 0.9, 0.05)
    found = await localise(run, agent, agent, outcome, Budget(), siblings=[Trajectory((), run.prompt, branch)] * 3)
    assert found.step == 15
    assert [probe for probe in found.probes if probe.logged] == [Probe(12, 1, 1.0, logged=True)] * 3


async def test_every_line_played_is_in_the_tree():
    found, _ = await find(5, 0.9, 0.1, length=12)
    tree = found.tree
    assert sum(leaf.visits for leaf in tree.finished() if not leaf.logged) == sum(probe.lines for probe in found.probes)
    assert [node.state.steps[-1] for node in tree.nodes if node.logged] == list(failed_run(12).steps)
    assert tree.stopped == found.reason


async def test_localising_is_deterministic():
    assert (await find(33, 0.7, 0.1, concurrency=1))[0] == (await find(33, 0.7, 0.1, concurrency=64))[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 8), st.floats(0, 1)), max_size=12))
def test_the_posterior_is_a_distribution(raw):
    probes = [Probe(length, lines, share * lines) for length, lines, share in raw]
    posterior = posterior_of(probes, [0.1] * 10)
    assert sum(posterior) == pytest.approx(1)
    assert all(0 <= mass <= 1 for mass in posterior)
    if not probes:
        assert posterior == pytest.approx([0.1] * 10)
    assert 0 <= next_probe(posterior, random.Random(0)) < 10


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.floats(0, 1)), min_size=1, max_size=6))
def test_the_posterior_is_that_of_the_formula(raw):
    probes = [Probe(length, lines, share * lines) for length, lines, share in raw]
    prior = [0.3, 0.1, 0.1, 0.1, 0.2, 0.2]
    weights = []
    for e in range(6):
        weight = 0.0
        for p_ok in P_OK:
            for p_bad in P_BAD:
                rates = [(p_ok if probe.length <= e else p_bad, probe) for probe in probes]
                if p_bad < p_ok:
                    weight += math.prod(p**probe.value * (1 - p) ** (probe.lines - probe.value) for p, probe in rates)
        weights.append(prior[e] * weight)
    assert posterior_of(probes, prior) == pytest.approx([weight / sum(weights) for weight in weights])


def test_probes_are_spread_over_the_middle_of_the_posterior():
    where = {next_probe([0.01] * 100, random.Random(seed)) for seed in range(200)}
    assert min(where) >= 34
    assert max(where) <= 66
    assert len(where) > 20
    # where one step holds nearly all, both its sides are asked about
    assert next_probe([0.05, 0.85, 0.1], random.Random(0)) == 2
    assert next_probe([0.1, 0.85, 0.05], random.Random(0)) == 1


def test_the_posterior_by_hand():
    """Success throughout up to length 4, failure from 6 on: the pivotal step is 4 or 5, and equally likely either."""
    posterior = posterior_of([Probe(0, 8, 8), Probe(4, 8, 8), Probe(6, 8, 0)], [0.1] * 10)
    assert posterior[4] == pytest.approx(posterior[5])
    assert posterior[4] > 0.49
    assert posterior_of([Probe(0, 8, 8), Probe(6, 8, 0)], [0, 1, *[0] * 8]) == [0, 1, *[0] * 8]


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
