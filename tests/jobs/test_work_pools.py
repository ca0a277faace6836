"""Models and verifiers that are asked elsewhere: the same trees, the same words about failures, and questions that come in batches."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from counterplay import Store
from counterplay.core.errors import PolicyError
from counterplay.core.journal import VerifierError, ask
from counterplay.jobs.crews import InProcess
from counterplay.jobs.pools import HostedPolicy, HostedVerifier, PolicyHost, VerifierHost
from counterplay.parts import Asked
from counterplay.plan import Plan
from tests.front.moves import Mover, World, logged, sound
from tests.jobs.game import MCTS, runs, trees, worked, works


class Weighing:
    """As `sound`, in batches that are noted; fails on what `fails` says."""

    name, version, relative = "weighing", "7", False

    def __init__(self, fails=lambda trajectory: False):
        self.fails, self.batches = fails, []

    def __call__(self, trajectory):
        if self.fails(trajectory):
            raise KeyError(f"no account at {len(trajectory)}")
        return sound(trajectory)

    def batch(self, trajectories):
        self.batches.append(len(trajectories))
        return [self(trajectory) for trajectory in trajectories]


PARTS = SimpleNamespace(policy=None, World=World, weighing=None)


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "front_parts", PARTS)
    PARTS.policy, PARTS.weighing = Mover(), Weighing()
    return Asked("front_parts:policy", "front_parts:World", ("front_parts:weighing",))


async def made(asked, plan, *, hosted):
    parts = {}
    if hosted:
        policies, verifiers = [PolicyHost(asked), PolicyHost(asked)], [VerifierHost(asked), VerifierHost(asked)]
        parts["policy"] = HostedPolicy([host.answer for host in policies], policies[0].told())
        parts["verifier"] = HostedVerifier([host.answer for host in verifiers], verifiers[0].told())
    with Store.open(":memory:") as store:
        store.ingest(runs())
        return await worked(InProcess(store, asked, plan, **parts), works(store, asked, plan))


@pytest.mark.parametrize(
    "plan", [MCTS, Plan("repair", {"n": 2, "rounds": 2}), Plan("beam", {"width": 2}, fork="1")], ids=lambda plan: plan.algorithm
)
async def test_parts_elsewhere_come_to_the_same_trees(asked, plan):
    assert trees(await made(asked, plan, hosted=True)) == trees(await made(asked, plan, hosted=False))


async def test_what_fails_elsewhere_is_told_in_the_same_words(asked):
    PARTS.weighing = Weighing(lambda trajectory: len(trajectory) == 4)
    here, there = [await made(asked, MCTS, hosted=hosted) for hosted in (False, True)]
    assert {one.error_class for one in there.values()} == {"verifier"}
    assert [(one.reason, one.failures) for one in there.values()] == [(one.reason, one.failures) for one in here.values()]
    assert "KeyError: 'no account at 4'" in next(iter(there.values())).reason
    assert trees(there) == trees(here)


async def test_what_a_policy_raises_elsewhere_is_raised_here(asked):
    class Out(Mover):
        async def propose(self, state, n):
            raise PolicyError("the model is out") if n == 1 else ZeroDivisionError("no luck")

    PARTS.policy = Out()
    host = PolicyHost(asked)
    policy = HostedPolicy([host.answer], host.told())
    with pytest.raises(PolicyError, match="the model is out"):
        await policy.propose(logged("t").trajectory.prefix(1), 1)
    with pytest.raises(Exception, match="no luck") as caught:
        await policy.propose(logged("t").trajectory.prefix(1), 2)
    assert type(caught.value).__name__ == "ZeroDivisionError"


async def test_questions_that_come_together_are_answered_together_but_where_they_are_compared(asked):
    for relative, batches in ((False, [6]), (True, [2, 2, 2])):
        PARTS.weighing = Weighing()
        PARTS.weighing.relative = relative
        host = VerifierHost(asked)
        verifier = HostedVerifier([host.answer], host.told())
        states = [[logged(task).trajectory.prefix(1), logged(task).trajectory] for task in ("t0", "t1", "t2")]
        answers = await asyncio.gather(*(verifier.batch(pair) for pair in states))
        assert [[score.value for score in pair] for pair in answers] == [[1.0, 0.0]] * 3
        assert PARTS.weighing.batches == batches
        assert verifier.relative is relative
    assert (await ask(verifier, states[0][0])).verifier == "weighing"
    PARTS.weighing.fails = lambda trajectory: True
    with pytest.raises(VerifierError, match="KeyError"):
        await ask(verifier, states[0][0])


async def test_each_trace_keeps_to_one_place_of_several(asked):
    asked_of = []
    hosts = [PolicyHost(asked) for _ in range(3)]

    def noting(at):
        async def answer(state, n, first):
            asked_of.append((state.prompt[0].content_text, at))
            return await hosts[at].answer(state, n, first)

        return answer

    policy = HostedPolicy([noting(at) for at in range(3)], hosts[0].told())
    with Store.open(":memory:") as store:
        store.ingest([replace(logged(f"t{number}"), id=f"n{number}") for number in range(12)])
        await worked(InProcess(store, asked, MCTS, policy=policy), works(store, asked, MCTS))
    places = dict(asked_of)
    assert len(set(asked_of)) == len(places) == 12
    assert len(set(places.values())) > 1
