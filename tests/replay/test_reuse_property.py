"""No answer graded `exact` or `reused` ever differs from what executing the branch gives."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

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
