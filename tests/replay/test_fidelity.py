"""Fidelity: exactly what was tampered with is named."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.replay.fidelity import FidelityReport, check
from counterplay.replay.live import LiveEnvironment, initial
from counterplay.replay.recorded import RecordedEnvironment
from tests.replay.shelf import CopyShelf, Shelf, SnapshotShelf, act, walk

ACTIONS = (act(("put", {"name": "a", "n": 4})), act("total", ("get", {"name": "a"})), act(("get", {"name": "zz"})), act("finish"))


async def logged(make=SnapshotShelf, actions=ACTIONS) -> Trajectory:
    return await walk(LiveEnvironment(make, allow_external={"mail"}), initial(make), *actions)


def tamper(log: Trajectory, step: int, observation: int) -> Trajectory:
    old = log.steps[step]
    seen = list(old.observations)
    seen[observation] = Message.from_openai({**seen[observation].fields, "content": "tampered"})
    return replace(log, steps=(*log.steps[:step], replace(old, observations=tuple(seen)), *log.steps[step + 1 :]))


@pytest.mark.parametrize("make", [Shelf, CopyShelf, SnapshotShelf])
@pytest.mark.parametrize("as_environment", [False, True])
async def test_a_true_log_comes_back_in_full(make, as_environment):
    fidelity = await check(await logged(), LiveEnvironment(make) if as_environment else make)
    assert fidelity.share == 1.0
    assert fidelity.first is None
    assert fidelity.outcome_reproduced is True
    assert fidelity.per_tool == {"put": 1.0, "total": 1.0, "get": 1.0, "finish": 1.0}


@pytest.mark.parametrize(("step", "observation", "tool"), [(0, 0, "put"), (1, 0, "total"), (1, 1, "get"), (2, 0, "get"), (3, 0, "finish")])
@pytest.mark.parametrize("as_environment", [False, True])
async def test_tampering_names_exactly_that_step(step, observation, tool, as_environment):
    bad = tamper(await logged(), step, observation)
    fidelity = await check(bad, LiveEnvironment(SnapshotShelf) if as_environment else SnapshotShelf)
    assert [(where, d.kind, d.tool, d.observation, d.wanted) for where, d in fidelity.divergences] == [
        (step, "result_drift", tool, observation, "tampered")
    ]
    assert [(c.step, c.tool) for c in fidelity.observations if not c.reproduced and c.executed] == [(step, tool)]
    if not as_environment:
        assert fidelity.share == 4 / 5


async def test_two_tampered_steps_are_both_named():
    bad = tamper(tamper(await logged(), 0, 0), 2, 0)
    assert [where for where, _ in (await check(bad, Shelf)).divergences] == [0, 2]


@pytest.mark.parametrize("make", [Shelf, SnapshotShelf])
async def test_parallel_results_may_be_logged_in_the_order_in_which_they_came(make):
    together = act(("put", {"name": "a", "n": 4}), ("mail", {"to": "x"}), "total")
    log = await logged(make, (together, act(("get", {"name": "a"}))))
    swapped = replace(log.steps[0], observations=log.steps[0].observations[::-1])
    log = replace(log, steps=(swapped, *log.steps[1:]))
    fidelity = await check(log, make)
    assert fidelity.divergences == ()
    assert [(seen.tool, seen.executed) for seen in fidelity.observations] == [
        ("put", True), ("mail", False), ("total", True), ("get", True)
    ]  # fmt: skip
    wrong = await check(tamper(log, 0, 0), make)
    assert [(where, d.tool) for where, d in wrong.divergences] == [(0, "total")]
    branch = await LiveEnvironment(make).step(log.prefix(1), act(("get", {"name": "a"})))
    assert branch.error is None


@pytest.mark.parametrize("as_environment", [False, True])
async def test_a_world_made_for_something_else_is_named_although_its_tools_answer_the_same(as_environment):
    def other():
        return Shelf("another")

    fidelity = await check(await logged(), LiveEnvironment(other) if as_environment else other)
    assert [(where, d.kind) for where, d in fidelity.divergences] == [(-1, "prompt_drift")]
    assert fidelity.share == (None if as_environment else 1.0)


async def test_another_outcome_is_seen():
    log = await logged()
    lied = replace(log, steps=(*log.steps[:-1], replace(log.steps[-1], reward=0.25)))
    assert (await check(lied, Shelf)).outcome_reproduced is False
    unknown = replace(log, steps=(*log.steps[:-1], replace(log.steps[-1], reward=None)))
    assert (await check(unknown, Shelf)).outcome_reproduced is None


async def test_the_outcome_of_a_truncated_log_is_read_at_its_end():
    log = await walk(LiveEnvironment(SnapshotShelf, max_steps=2), initial(Shelf), *ACTIONS[:2])
    assert (await check(log, SnapshotShelf)).outcome_reproduced is True


async def test_externals_and_users_are_not_asked_for():
    log = await logged(actions=(act("mail", "total"), act("finish")))
    Shelf.executed.clear()
    fidelity = await check(log, Shelf)
    assert Shelf.executed["mail"] == 0
    assert [(c.tool, c.executed) for c in fidelity.observations] == [("mail", False), ("total", True), ("finish", True)]
    assert (await check(log, Shelf, allow_external={"mail"})).per_tool["mail"] == 1.0
    assert Shelf.executed["mail"] == 1
    talked = replace(log, steps=(Step(Message.assistant("hi"), (Message.user("yo"),)), *log.steps))
    assert (await check(talked, Shelf)).per_tool[""] is None


async def test_a_crash_and_an_early_end_have_their_names():
    log = await logged(actions=(act("total"), act("total")))
    crashed = replace(log, steps=(replace(log.steps[0], action=act("crash")), log.steps[1]))
    over = replace(log, steps=(replace(log.steps[0], action=act("finish"), observations=(Message.tool("bye", "c0"),)), log.steps[1]))
    kinds = [(await check(t, Shelf)).first[1].kind for t in (crashed, over)]
    assert kinds == ["world_error", "ended_early"]


async def test_held_out_recordings_can_be_measured_too():
    """A log against the recording of another attempt: what it declines is left out, what it answers is compared."""
    one, other = await logged(), await logged(actions=(ACTIONS[0], act(("get", {"name": "a"})), act("finish")))
    fidelity = await check(one, RecordedEnvironment([other]))
    assert fidelity.share == 1.0
    assert [c.executed for c in fidelity.observations] == [True, False, False, False, True]


async def test_many_checks_make_one_report():
    log = await logged()
    report = FidelityReport([await check(t, SnapshotShelf) for t in (log, tamper(log, 1, 0), tamper(log, 1, 1), log)])
    assert report.share == 18 / 20
    assert report.per_tool["total"] == 3 / 4
    assert report.first_divergences == {"result_drift": 2}
    assert report.outcomes == 1.0
    assert FidelityReport().share is None


async def test_fuzzed_tampering_is_always_found():
    log, chance = await logged(), random.Random(7)
    for _ in range(30):
        step = chance.randrange(len(log))
        place = chance.randrange(len(log.steps[step].observations))
        assert [where for where, _ in (await check(tamper(log, step, place), Shelf)).divergences] == [step]
