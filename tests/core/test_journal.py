"""Resume is replay: the wrappers answer what was answered, ask what was not, and change nothing else."""

import asyncio

import pytest
from hypothesis import given

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import PolicyError, VerifierError
from counterplay.core.journal import (
    JournaledEnvironment,
    JournaledPolicy,
    JournaledVerifier,
    MemoryJournal,
    as_score,
    ask,
    step_from_json,
    step_to_json,
)
from counterplay.core.nouns import Message, Proposal, Score, Step, Trajectory, Usage
from counterplay.core.protocols import first_draw
from counterplay.core.store import Store
from tests.core.generated import steps

STATE = Trajectory(prompt=(Message.user("hi"),))
OTHER = Trajectory(prompt=(Message.user("ho"),))


class Drawing:
    """A policy that says which draws it was asked for."""

    fingerprint = "drawing-1"

    def __init__(self):
        self.asked = []

    async def propose(self, state, n):
        start = first_draw.get()
        self.asked.append((state.key, start, n))
        return [Proposal(Message.assistant(f"draw {start + i}"), 0.5, -1.0, Usage(3, 4, cost_usd=0.1), "m", "stop") for i in range(n)]


class Counting:
    def __init__(self):
        self.steps = 0

    async def step(self, state, action):
        self.steps += 1
        return Step(action, (Message.user(f"observed {self.steps}"),), reward=0.5)


@given(steps)
def test_a_step_reads_back_equal(step):
    assert step_from_json(loads(dumps(step_to_json(step)))) == step


@pytest.mark.parametrize("persistent", [False, True])
async def test_a_second_run_asks_nothing_and_gets_the_same(tmp_path, persistent):
    policy, environment, journal = Drawing(), Counting(), MemoryJournal()

    async def run(journal):
        proposals = [*await JournaledPolicy(policy, journal).propose(STATE, 2)]
        stepped = await JournaledEnvironment(environment, journal).step(STATE, proposals[0].action)
        return proposals, stepped, await JournaledVerifier(lambda t: len(t) / 4, journal)(STATE.extend(stepped))

    if not persistent:
        first, second = await run(journal), await run(journal)
    else:
        with Store.open(tmp_path / "s.duckdb") as store:
            first = await run(store.journal())
        with Store.open(tmp_path / "s.duckdb") as store:
            second = await run(store.journal())
    assert first == second
    assert (len(policy.asked), environment.steps) == (1, 1)


async def test_draws_of_a_state_go_on_and_are_told_apart():
    policy, journal = Drawing(), MemoryJournal()
    wrapped = JournaledPolicy(policy, journal)
    first = await wrapped.propose(STATE, 2)
    again = await wrapped.propose(STATE, 2)
    await wrapped.propose(OTHER, 1)
    assert [p.action.content for p in [*first, *again]] == ["draw 0", "draw 1", "draw 2", "draw 3"]
    assert [(start, n) for _, start, n in policy.asked] == [(0, 2), (2, 2), (0, 1)]
    assert first_draw.get() == 0
    assert wrapped.live_calls == 5


async def test_a_run_cut_short_goes_on_where_it_stopped():
    policy, journal = Drawing(), MemoryJournal()
    wrapped = JournaledPolicy(policy, journal)
    await wrapped.propose(STATE, 2)
    resumed = JournaledPolicy(policy, journal)
    both = [*await resumed.propose(STATE, 2), *await resumed.propose(STATE, 2)]
    assert [p.action.content for p in both] == ["draw 0", "draw 1", "draw 2", "draw 3"]
    assert resumed.live_calls == 2


async def test_another_configuration_asks_afresh():
    journal, environments = MemoryJournal(), (Counting(), Counting())
    environments[1].fingerprint = "v2"
    for environment in environments:
        await JournaledEnvironment(environment, journal).step(STATE, Message.assistant("x"))
        await JournaledEnvironment(environment, journal).step(STATE, Message.assistant("x"))
    assert [environment.steps for environment in environments] == [1, 1]


async def test_a_policy_that_fails_leaves_no_answer():
    class Failing(Drawing):
        async def propose(self, state, n):
            raise ConnectionError

    journal = MemoryJournal()
    with pytest.raises(ConnectionError):
        await JournaledPolicy(Failing(), journal).propose(STATE, 1)
    assert journal.entries == {}
    assert first_draw.get() == 0


async def test_verifier_answers_depend_on_how_the_trajectory_ended():
    asked = []

    def verifier(trajectory):
        asked.append(trajectory)
        return float(trajectory.steps[-1].terminated)

    wrapped = JournaledVerifier(verifier, MemoryJournal())
    action = Message.assistant("x")
    open_ended, ended = Trajectory(steps=(Step(action),)), Trajectory(steps=(Step(action, terminated=True),))
    assert open_ended.key == ended.key
    values = [(await wrapped(trajectory)).value for trajectory in (open_ended, ended, open_ended, ended)]
    assert (values, len(asked)) == ([0, 1, 0, 1], 2)


async def test_no_opinion_is_remembered_and_an_error_is_not():
    asked = []

    def verifier(trajectory):
        asked.append(trajectory)
        if len(asked) < 2:
            raise KeyError("boom")

    verifier.version = "3"
    wrapped = JournaledVerifier(verifier, MemoryJournal())
    with pytest.raises(VerifierError, match="KeyError: 'boom'"):
        await wrapped(STATE)
    assert [await wrapped(STATE), await wrapped(STATE), len(asked)] == [None, None, 2]


def test_what_is_a_score_and_what_is_not():
    assert as_score(True, "v", "1") == Score(1.0, "", "v", "1")
    assert as_score(0.25, "v", "1") == Score(0.25, "", "v", "1")
    assert as_score(Score(0.5, "why"), "v", "1") == Score(0.5, "why", "v", "1")
    assert as_score(Score(0.5, "why", "own", "9"), "v", "1") == Score(0.5, "why", "own", "9")
    assert as_score(None, "v", "1") is None
    for value in ("0.5", [1], 1.5, float("nan")):
        with pytest.raises((TypeError, ValueError)):
            as_score(value, "v", "1")


async def test_verifiers_may_be_async():
    async def slow(trajectory):
        await asyncio.sleep(0)
        return 0.5

    score = await ask(slow, STATE)
    assert (score.value, score.verifier) == (0.5, "slow")


@pytest.mark.parametrize("answer", [["an action"], None, "an action"])
async def test_a_policy_that_answers_something_else_is_told_what_is_wanted(answer):
    class Odd:
        async def propose(self, state, n):
            return answer

    with pytest.raises(PolicyError, match="wanted a sequence of Proposal"):
        await JournaledPolicy(Odd(), MemoryJournal()).propose(STATE, 1)


async def test_a_policy_may_answer_at_once():
    class Prompt:
        def propose(self, state, n):
            return [Proposal(Message.assistant("now"))] * n

    assert len(await JournaledPolicy(Prompt(), MemoryJournal()).propose(STATE, 3)) == 3
