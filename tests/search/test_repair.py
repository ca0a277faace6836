"""Repair against a toy with several independent errors, each visible to the verifier one step after it was made."""

import random

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Proposal, State, Step
from counterplay.core.protocols import first_draw
from counterplay.search.best_of_n import best_of_n
from counterplay.search.repair import repair

LENGTH, RIGHT = 8, 0.25
HARD = (1, 3, 6)


def word(state, text):
    return Message.assistant(f"{text} {len(state)}")


class Agent:
    """Right at easy steps; at hard ones right a quarter of the time, drawn from (state, draw)."""

    async def propose(self, state, n):
        return [Proposal(word(state, self.choice(state, first_draw.get() + i))) for i in range(n)]

    def choice(self, state, draw):
        hard = len(state) in HARD
        return "wrong" if hard and random.Random(f"{state.key}/{draw}").random() > RIGHT else "right"


class World:
    async def step(self, state, action):
        done = len(state) + 1 == LENGTH
        mistakes = [s for s in (*state.steps, Step(action)) if s.action.content_text.startswith("wrong")]
        return Step(action, (Message.user("go on"),), terminated=done, reward=float(not mistakes) if done else None)


def late_rules(state):
    """Sees an error only when one more step has been made; halves the value for each."""
    if not state.steps:
        return None
    seen = state.steps if state.finished else state.steps[:-1]
    return 0.5 ** sum(step.action.content_text.startswith("wrong") for step in seen)


async def flawed(wrong=HARD):
    state, world = State((), (Message.user("go"),)), World()
    while not state.finished:
        state = state.extend(await world.step(state, word(state, "wrong" if len(state) in wrong else "right")))
    return state


async def test_it_mends_one_error_after_the_other():
    log = await flawed()
    tree = await repair(log, Agent(), World(), late_rules, Budget(), n=12, lookback=1, rounds=4)
    best = tree.best()
    assert best.score.value == 1.0
    assert best.state.steps[-1].reward == 1.0
    assert tree.stopped == "a line scored 1"
    whole = await best_of_n(log.prefix(0), Agent(), World(), late_rules, Budget.of(model_calls=tree.used.model_calls), n=1000)
    assert (whole.best() is None) or whole.best().score.value < 1.0, "whole lines at the same cost do not get there"


async def test_a_false_alarm_does_not_hold_it_up():
    def alarmed(state):
        value = late_rules(state)
        return value if value is None or state.finished or len(state) == 1 else 0.7 * value

    log = await flawed(wrong=(3,))
    tree = await repair(log, Agent(), World(), alarmed, Budget(), n=12, lookback=1, rounds=4, rollouts_per_alternative=8)
    assert tree.best().state.steps[-1].reward == 1.0
    forked = {node.parent.depth for node in tree.nodes if node.parent and not node.logged and node.parent.logged}
    assert {1, 3} <= forked


async def test_without_lookback_the_fork_comes_too_late():
    log = await flawed()
    tree = await repair(log, Agent(), World(), late_rules, Budget(), n=12, lookback=0, rounds=1)
    forked = {
        node.parent.depth
        for node in tree.nodes
        if node.parent
        and not node.logged
        and node.parent.logged is not False
        and node.depth == node.parent.depth + 1
        and (node.parent.logged or node.parent is tree.root)
    }
    assert HARD[0] not in forked
    with_lookback = await repair(log, Agent(), World(), late_rules, Budget(), n=12, lookback=1, rounds=1)
    assert any(not node.logged and node.depth == HARD[0] + 1 for node in with_lookback.nodes)


async def test_clean_logs_are_left_alone():
    state, world = State((), (Message.user("go"),)), World()
    while not state.finished:
        state = state.extend(await world.step(state, word(state, "right")))
    tree = await repair(state, Agent(), World(), late_rules, Budget())
    assert all(node.logged for node in tree.nodes[1:])
    assert tree.used.model_calls == 0


async def test_lines_count_for_the_action_they_were_played_for():
    tree = await repair(await flawed(), Agent(), World(), late_rules, Budget(), n=12, lookback=1, rounds=1, rollouts_per_alternative=3)
    siblings = [node for node in tree.nodes if node.depth == HARD[0] + 1 and len(node.parent.children) > 1]
    assert len(siblings) == 2
    assert all(node.visits == 3 for node in siblings)
    logged, other = sorted(siblings, key=lambda node: not node.logged)
    assert other.value > logged.value


async def test_the_budget_holds_and_bad_options_are_named():
    tree = await repair(await flawed(), Agent(), World(), late_rules, Budget.of(model_calls=17))
    assert tree.used.model_calls <= 17
    assert "model_calls" in tree.stopped
    with pytest.raises(UserError, match="rounds=0"):
        await repair(await flawed(), Agent(), World(), late_rules, Budget(), rounds=0)
