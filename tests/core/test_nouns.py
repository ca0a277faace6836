"""The nouns: exactness of messages, keys of trajectories, what is equal and what is worst."""

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.canonical import chain_key, content_key, dumps, loads
from counterplay.core.nouns import Grade, Message, Outcome, Score, Step, ToolCall, ToolSpec, Trajectory, Usage, parse_json_object, steps_of
from tests.core.generated import messages, objects, steps, trajectories, usages


@given(objects, st.sampled_from(["system", "user", "assistant", "tool"]))
def test_a_message_keeps_every_field_and_their_order(fields, role):
    fields = {**fields, "role": role}
    message = Message.from_openai(fields)
    assert message.to_openai() == fields
    assert list(message.to_openai()) == list(fields)
    assert message == Message(message.wire)
    assert hash(message) == hash(Message(message.wire))
    message.wire.encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"content": "order", "role": "user"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "text", "text": "a"}]},
        {"role": "user", "content": "lone \ud800 surrogate"},
        {"role": "tool", "content": "big", "n": 12345678901234567890123, "x": 1.0, "tiny": 1e-300},
        {"role": "assistant", "content": "", "refusal": None, "vendor": {"b": 1, "a": [None]}},
    ],
)
def test_exactness_of_odd_messages(fields):
    assert dumps(Message.from_openai(fields).to_openai()) == dumps(fields)


def test_null_is_not_absent_and_order_is_content():
    variants = [{"role": "user"}, {"role": "user", "content": None}, {"content": None, "role": "user"}, {"role": "user", "content": ""}]
    assert len({Message.from_openai(fields) for fields in variants}) == 4
    assert [Message.from_openai(fields).content_text for fields in variants] == [""] * 4


def test_a_message_needs_a_role():
    for fields in ({}, {"content": "x"}, {"role": None}, {"role": 3}):
        with pytest.raises(ValueError, match="without a role"):
            Message.from_openai(fields)


def test_views_of_a_message():
    call = ToolCall("c1", "book", '{"b":1,"a":2}')
    message = Message.assistant("text", [call], reasoning="why")
    assert (message.role, message.content, message.reasoning, message.tool_calls) == ("assistant", "text", "why", (call,))
    assert Message.from_openai({"role": "assistant", "reasoning": "other name"}).reasoning == "other name"
    answer = Message.tool("done", "c1", "book")
    assert (answer.tool_call_id, answer.name) == ("c1", "book")
    assert (
        Message.from_openai({"role": "user", "content": [{"text": "a"}, {"image": 1}, {"text": "b"}, {"text": None}]}).content_text == "ab"
    )


def test_signature_ignores_ids_order_and_white_space():
    one = Message.assistant(None, [ToolCall("1", "f", '{"a": 1, "b": 2}')])
    two = Message.assistant("said", [ToolCall("2", "f", '{"b":2,"a":1}')])
    assert one.signature == two.signature == 'f({"a":1,"b":2})'
    assert one != two
    assert Message.assistant("a  b\n").signature == Message.assistant("a b").signature == "say(a b)"
    assert Message.assistant(None, [ToolCall("1", "f", "not json")]).signature == "f(not json)"
    as_object = Message.from_openai({"role": "assistant", "tool_calls": [{"id": 7, "name": "f", "arguments": {"b": 2, "a": 1}}]})
    assert as_object.signature == one.signature
    assert as_object.tool_calls[0].id == "7"


def test_arguments_that_are_no_object_are_none():
    assert [ToolCall("", "f", text).args for text in ("", "{}", "[1]", "nonsense", "3")] == [{}, {}, None, None, None]


def test_a_tool_keeps_its_wire():
    fields = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}, "strict": None}
    tool = ToolSpec.from_openai(fields)
    assert (tool.to_openai(), tool.name, tool.parameters) == (fields, "f", {"type": "object"})
    assert ToolSpec.from_openai({"name": "flat"}).name == "flat"
    assert ToolSpec.from_openai({}).parameters == {}


@given(trajectories)
def test_the_key_is_chained_over_every_message(trajectory):
    root = content_key("tools", *(tool.wire for tool in trajectory.tools))
    assert trajectory.root_key == root
    assert trajectory.key == chain_key(root, *(message.wire for message in trajectory.messages))


@given(trajectories.filter(lambda t: not t.finished), steps)
def test_extending_keeps_the_key_incrementally_and_exactly(trajectory, step):
    fresh = Trajectory(trajectory.tools, trajectory.prompt, (*trajectory.steps, step))
    lazily = trajectory.extend(step)
    trajectory.key  # noqa: B018  computed first, extended from
    eagerly = trajectory.extend(step)
    assert eagerly.__dict__["key"] == lazily.key == fresh.key
    assert eagerly == lazily == fresh
    assert eagerly.prefix(len(trajectory)) == trajectory


@given(trajectories)
def test_flags_rewards_and_grades_do_not_enter_the_key(trajectory):
    plain = tuple(Step(step.action, step.observations) for step in trajectory.steps)
    assert replace(trajectory, steps=plain).key == trajectory.key


def test_where_steps_end_does_not_enter_the_key_but_enters_equality():
    a, b = Message.assistant("a"), Message.assistant("b")
    assert Trajectory(steps=(Step(a), Step(b))).key == Trajectory(prompt=(a,), steps=(Step(b),)).key
    assert Trajectory(steps=(Step(a), Step(b))) != Trajectory(prompt=(a,), steps=(Step(b),))


def test_an_ended_trajectory_is_not_extended():
    for ending in ({"terminated": True}, {"truncated": True}, {"error": "lost"}):
        with pytest.raises(ValueError, match="after the end"):
            Trajectory(steps=(Step(Message.assistant("x"), **ending),)).extend(Step(Message.assistant("y")))


def test_prefixes_stay_inside():
    trajectory = Trajectory(prompt=(Message.user("x"),), steps=(Step(Message.assistant("a")), Step(Message.assistant("b"))))
    assert trajectory.prefix(2) is trajectory
    assert trajectory.prefix(0).messages == trajectory.prompt
    for length in (-1, 3):
        with pytest.raises(IndexError, match=r"wanted 0\.\.2"):
            trajectory.prefix(length)


def test_a_grade_is_its_worst():
    good, bad = (
        Step(Message.assistant("a"), grades=(Grade.EXACT, Grade.REUSED)),
        Step(Message.assistant("b"), grades=(Grade.STALE, Grade.EXACT)),
    )
    assert (good.grade, bad.grade, Trajectory(steps=(good, bad)).grade) == (Grade.REUSED, Grade.STALE, Grade.STALE)
    assert Trajectory().grade is Grade.EXACT
    assert Grade.parse("executed") is Grade.EXECUTED
    with pytest.raises(ValueError, match="exact, reused, executed, simulated, stale"):
        Grade.parse("good")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_score_is_in_the_unit_interval(value):
    with pytest.raises(ValueError, match=r"wanted a number in \[0, 1\]"):
        Score(value)


def test_nouns_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Outcome().reward = 1.0
    with pytest.raises(FrozenInstanceError):
        Message.user("x").wire = "y"


@given(usages, usages)
def test_usage_adds_and_an_unknown_cost_is_not_free(left, right):
    both = left + right
    assert both.tokens == left.tokens + right.tokens
    assert (both.cost_usd is None) == (left.cost_usd is None and right.cost_usd is None)
    assert (left + Usage()).cost_usd == left.cost_usd


@given(st.lists(messages, max_size=8))
def test_splitting_into_steps_loses_nothing(flat):
    prompt, played = steps_of(flat)
    assert list(Trajectory((), prompt, played).messages) == flat
    assert all(step.action.role == "assistant" for step in played)
    assert all(message.role != "assistant" for step in played for message in step.observations)
    assert all(len(step.grades) == len(step.observations) for step in played)


def test_an_assistant_greeting_belongs_to_the_prompt():
    roles = ["system", "assistant", "user", "assistant", "tool", "assistant", "user"]
    prompt, played = steps_of([Message.from_openai({"role": role, "n": i}) for i, role in enumerate(roles)])
    assert ([m.role for m in prompt], [len(step.messages) for step in played]) == (roles[:3], [2, 2])


def test_parsing_json_objects():
    assert parse_json_object('{"a": 1}') == {"a": 1}
    assert [parse_json_object(text) for text in ("[1]", "x", "", "[" * 100_000)] == [None] * 4
    assert loads('"\\ud800"') == "\ud800"
