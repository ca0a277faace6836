"""The ledger pack against the example world: clean on right books, and the violation named where a pitfall was mishandled."""

import json
from random import Random

import pytest

from counterplay.core.nouns import Message, Step, ToolCall, Trajectory, steps_of
from counterplay.examples.ledger.demonstrations import PERFECT, SKILL, demonstrate
from counterplay.verifiers.packs.ledger import Conventions, LedgerRules

RULES = LedgerRules()
TASKS = [f"train-{i:04d}" for i in range(1, 151)]


def wire(message):
    """The demonstration's message with tool arguments as JSON text, as OpenAI has them."""
    for call in message.get("tool_calls", ()):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return Message.from_openai(message)


def shown(task, skill, seed=0):
    demonstration = demonstrate(task, Random(f"{seed}/{task}"), skill)
    prompt, steps = steps_of([wire(m) for m in demonstration.messages])
    return demonstration, Trajectory((), prompt, steps)


def test_right_books_are_clean_at_every_step():
    for task in TASKS:
        demonstration, trajectory = shown(task, PERFECT)
        assert demonstration.reward == 1.0
        assert RULES.violations(trajectory) == []
        assert {RULES(trajectory.prefix(i)).value for i in range(1, len(trajectory))} == {1.0}


def test_the_pack_and_the_ground_truth_agree():
    agree = [(shown(task, SKILL)[0].reward == 1.0) == (RULES.violations(shown(task, SKILL)[1]) == []) for task in TASKS]
    assert all(agree)


@pytest.mark.parametrize(
    ("pitfall", "reason"),
    [
        ("currency", "without converting"),
        ("reverse_charge", "wanted reverse_charge"),
        ("credit_note", "for a credit_note"),
        ("prepaid", "without splitting"),
        ("copy", "it is a copy of"),
    ],
)
def test_each_mistake_is_named(pitfall, reason):
    found = []
    for task in TASKS:
        demonstration, trajectory = shown(task, {**PERFECT, pitfall: 0.0})
        if demonstration.mishandled:
            assert RULES(trajectory).value < 1
            found += [violation.reason for violation in RULES.violations(trajectory)]
    assert found
    assert all(reason in text for text in found)


def test_a_violation_drops_the_value_where_it_happens_and_stays():
    trajectory = next(t for d, t in (shown(task, {**PERFECT, "credit_note": 0.0}) for task in TASKS) if d.mishandled)
    step = RULES.violations(trajectory)[0].step
    assert RULES(trajectory.prefix(step)).value == 1.0
    assert RULES(trajectory.prefix(step + 1)).value == 0.5
    assert trajectory.steps[step].action.tool_calls[0].name == "post_entry"


def test_refused_calls_and_open_periods_are_violations():
    _, trajectory = shown(TASKS[0], PERFECT)
    refused = Step(
        Message.assistant(None, [ToolCall("x", "lookup_vendor", '{"vendor_id":"v1"}')]), (Message.tool("error: unknown vendor v1", "x"),)
    )
    lost = trajectory.prefix(3).extend(refused)
    assert RULES(lost).value == 0.5
    assert RULES.violations(lost)[0].reason == "lookup_vendor was refused: error: unknown vendor v1"
    given_up = trajectory.prefix(len(trajectory) - 1).extend(Step(Message.assistant("done"), terminated=True, reward=0.0))
    assert "it ended without closing the period" in [violation.reason for violation in RULES.violations(given_up)]
    assert RULES.violations(trajectory.prefix(len(trajectory) - 1)) == [], "an open period is no violation while work goes on"


def test_it_speaks_of_nothing_it_has_not_seen():
    empty = Trajectory((), (Message.user("book"),), ())
    assert RULES(empty) is None
    other = LedgerRules(Conventions(post="create_journal"))
    assert other.fingerprint != RULES.fingerprint
