"""No answer graded `exact` or `reused` ever differs from what executing the branch gives."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import reuse
from bench.programs.worlds import WORLDS, Bank, Keys, Tickets, spec
from counterplay.core.nouns import Grade, Message, Trajectory
from counterplay.replay.live import LiveEnvironment, execute, initial
from counterplay.replay.recorded import RecordedEnvironment
from tests.replay.shelf import Shelf, act

NAMES = ["a", "b", "c"]
CALLS = st.one_of(
    st.sampled_from(NAMES).map(lambda name: ("get", {"name": name})),
    st.tuples(st.sampled_from(NAMES), st.integers(1, 2)).map(lambda p: ("put", {"name": p[0], "n": p[1]})),
    st.sampled_from([("total", {}), ("double", {}), ("level", {}), ("add", {"x": 1, "y": 2}), ("mail", {})]),
)
ACTIONS = st.lists(CALLS, min_size=1, max_size=3).map(lambda calls: act(*calls))
PROGRAMS = st.lists(ACTIONS, min_size=1, max_size=8)


def executed(actions: list[Message]) -> Trajectory:
    world, state = Shelf(), initial(Shelf)
    for action in actions:
        state = state.extend(execute(world, action))
    return state


async def branch(environment: RecordedEnvironment, actions: list[Message]) -> Trajectory:
    """As many of the actions as the recording answers; the others are passed over."""
    state = initial(Shelf)
    for action in actions:
        step = await environment.step(state, action)
        if not step.finished:
            state = state.extend(step)
    return state


def wrong(state: Trajectory) -> list[tuple[str, str]]:
    truth = executed([step.action for step in state.steps])
    return [
        (got.content_text, real.content_text)
        for step, true in zip(state.steps, truth.steps, strict=True)
        for got, real, grade in zip(step.observations, true.observations, step.grades, strict=True)
        if grade >= Grade.REUSED and got.content_text != real.content_text
    ]


@settings(max_examples=120, deadline=None)
@given(logs=st.lists(PROGRAMS, min_size=1, max_size=3), data=st.data())
def test_what_is_reused_is_true(logs, data):
    """Branches are made of the logged actions in any order, with repeats, so that most calls have a recorded answer to tempt with."""
    recorded = [executed(log) for log in logs]
    environments = [RecordedEnvironment(recorded), RecordedEnvironment(recorded, fallback=LiveEnvironment(Shelf))]
    pool = [action for log in logs for action in log]
    actions = data.draw(st.lists(st.one_of(st.sampled_from(pool), ACTIONS), max_size=10))
    for environment in environments:
        assert wrong(asyncio.run(branch(environment, actions))) == []


def test_much_is_reused_where_looking_at_tool_and_arguments_alone_is_often_wrong():
    chance, tally = random.Random(0), Counter()
    for _ in range(150):
        log = executed([_random_action(chance) for _ in range(12)])
        environment = RecordedEnvironment([log])
        actions = [step.action for step in log.steps]
        fork = chance.randrange(10)
        actions = [*actions[:fork], _random_action(chance), *actions[fork:]]
        truth = executed(actions)
        state = asyncio.run(branch(environment, actions))
        assert wrong(state) == []
        after = [grade for step in state.steps[fork:] for grade in step.grades]
        tally["reused"] += len(after)
        tally["asked"] += len(actions) - fork
        naive = {step.action.signature: step.observations[0].content_text for step in log.steps}
        known = [step for step in truth.steps[fork:] if step.action.signature in naive]
        tally["naive"] += len(known)
        tally["naive wrong"] += sum(naive[step.action.signature] != step.observations[0].content_text for step in known)
    reuse, error = tally["reused"] / tally["asked"], tally["naive wrong"] / tally["naive"]
    assert reuse > 0.4, tally
    assert error > 0.1, tally


def _random_action(chance: random.Random) -> Message:
    name = chance.choice("abcdef")
    read, write = ("get", {"name": name}), ("put", {"name": name, "n": 1})
    return act(chance.choices([read, write, ("total", {}), ("double", {})], [6, 3, 1, 0.3])[0])


@pytest.mark.parametrize("world", WORLDS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_what_is_reused_is_true_in_worlds_of_every_shape_and_is_what_the_oracle_allows(world, seed):
    """Never a wrong answer, never one that declared effects do not prove, and none that they prove left out."""
    tally = played(world, random.Random(seed))
    assert tally["wrong"] == 0
    assert tally["beyond"] == 0
    assert tally["reused"] == tally["oracle"]


def played(world, chance: random.Random) -> Counter[str]:
    logs = [reuse.executed(world, [reuse.action(world, chance) for _ in range(reuse.LENGTH)]) for _ in range(chance.randint(1, 3))]
    fork, tally = chance.randrange(reuse.LENGTH), Counter()
    reuse.grade(world, logs, fork, reuse.continued(world, logs[0], fork, logs[1:], chance), tally)
    return tally


def test_nine_tenths_of_what_an_oracle_allows_are_reused_and_a_look_up_by_name_and_arguments_is_often_wrong():
    for row in reuse.measure(programs=40, seed=1):
        assert row["of_oracle"] >= 0.9, row
        assert row["wrong"] == 0, row
        assert row["oracle"] > 0.5, "the worlds leave something to reuse"
        assert row["known"] - row["oracle"] > 0.05, "and something that must not be"
        assert row["lookup_wrong"] > 0.1, row


class SaysTooLittle(Bank):
    """A transfer that hides what it does to the other account."""

    tools = tuple(spec("transfer", "write(account:{source})") if tool.name == "transfer" else tool for tool in Bank.tools)


class SaysItIsARead(Keys):
    tools = tuple(spec("append", "read(key:{key})") if tool.name == "append" else tool for tool in Keys.tools)


class HidesTheList(Tickets):
    """Opening numbers tickets in turn; a declaration of one ticket's title would make openings commute."""

    tools = tuple(spec("open", "write(ticket:{title})") if tool.name == "open" else tool for tool in Tickets.tools)


@pytest.mark.parametrize("world", [SaysTooLittle, SaysItIsARead, HidesTheList])
def test_a_false_declaration_is_found_out_by_executing(world):
    """The property can fail: a world that lies about its effects is caught by the same comparison."""
    tallies = [played(world, random.Random(seed)) for seed in range(60)]
    assert sum(tally["wrong"] for tally in tallies) > 0
