"""What every pack keeps: bounded, the same each time and from any prefix on, never rising along a trajectory, deaf to padding."""

import copy
import pickle
from dataclasses import fields, replace
from datetime import date
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, Step, Trajectory
from counterplay.verifiers.packs.base import ByPrefix, Fold, Index, uses_of
from counterplay.verifiers.packs.ledger_books import Approval, DoubleEntry, Period, Tax
from counterplay.verifiers.packs.length import Repetition
from counterplay.verifiers.packs.policy import PolicyRules, Rule
from counterplay.verifiers.packs.state import LastAnswer, StateMatch
from counterplay.verifiers.packs.text import Citations, Grounded, Similarity
from counterplay.verifiers.packs.tools import ToolUse
from tests.verifiers.pack_shapes import call, ended, say, tool, trajectory, values

TOOLS = (
    tool("look", Effect("read", "order:{order}"), order={"type": "integer"}),
    tool("cancel", Effect("write", "order:{order}"), order={"type": "integer"}),
)
RULES = (
    Rule(on=("cancel",), requires=("look",), same=("order",), fresh=True, confirmed=True, once=True, at_most=1),
    Rule(on=("look",), then=("cancel",), within=3),
    Rule(on=("cancel",), then=("look",), same=("order",)),
    Rule(on=("cancel",), seen=("order",), weight=0.5),
    Rule(on=("post",), never=True, when={"amount": {"above": 10}}),
)
BOOKS = DoubleEntry(
    post=("post",),
    periods=(Period(date(2024, 1, 1), date(2024, 12, 31)),),
    tax=Tax((("*", ("19", "7")),), ("tax",)),
    approvals=(Approval("approve", "100"),),
    must_close=True,
)
PROCESS = [ToolUse(most=(("look", 2),)), PolicyRules(rules=RULES), BOOKS, Grounded(arguments=True), Citations(), Repetition(n=2, allowed=9)]
OUTCOME = [Similarity("order 7 is cancelled"), StateMatch({"open": 1}, LastAnswer("look"))]
PADDING = say("One moment.")

order = st.integers(1, 3)
posts = st.fixed_dictionaries(
    {
        "debit": st.sampled_from(["10", "20"]),
        "credit": st.sampled_from(["10", "90"]),
        "amount": st.sampled_from([5, "100.10", -1, "x"]),
        "document_id": st.sampled_from(["d1", "d2"]),
    },
    optional={"date": st.sampled_from(["2024-02-01", "2025-02-01", "soon"]), "rate": st.sampled_from([19, 8]), "net": st.just(100)},
)
ANSWERS = ["ok", '{"open": 1}', "Error: no such order", '{"entry": "e1"}', '{"id": "s1", "text": "order 7 is open"}', "\ud83d", ""]
answers = st.sampled_from(ANSWERS)
texts = st.sampled_from(
    [
        "Order 7 costs $1,200.",
        "It is [s1].",
        'She said "all is well here".',
        "yes",
        "Shall I? [s9]",
        "a b a b a b a b",
        "\u00dc\u00f1\u00ee \ud800",
        "",
    ]
)
steps = st.one_of(
    st.builds(lambda o, a: call("look", {"order": o}, a), order, answers),
    st.builds(lambda o, a: call("cancel", {"order": o}, a), order, answers),
    st.builds(lambda p, a: call("post", p, a), posts, answers),
    st.builds(lambda a: call("reverse_entry", {"entry_id": "e1"}, a), answers),
    st.builds(lambda a: call("close_period", {}, a), answers),
    st.builds(lambda a: call("approve", {"document_id": "d1"}, a), answers),
    st.builds(lambda a: call("look", "{", a), answers),
    st.builds(lambda a: call("seek", "[]", a), st.none()),
    st.builds(say, texts, st.one_of(st.none(), texts)),
)
lines = st.lists(steps, min_size=1, max_size=14)
bounded = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rebuilt(state):
    """The same content in objects of its own."""
    return Trajectory(state.tools, state.prompt, tuple(Step(Message(s.action.wire), tuple(s.observations)) for s in state.steps))


@pytest.mark.parametrize("pack", PROCESS, ids=lambda pack: pack.name)
@given(steps=lines)
@bounded
def test_values_never_rise_and_are_the_same_however_they_are_come_by(pack, steps):
    state = trajectory(*steps, tools=TOOLS)
    seen = [*values(pack, state), pack(ended(state)).value]
    assert all(0.0 <= value <= 1.0 for value in seen)
    assert all(later <= earlier for earlier, later in pairwise(seen)), seen
    fresh = replace(pack)
    assert [fresh(rebuilt(state).prefix(length)) for length in range(len(state), 0, -1)] == [
        pack(state.prefix(length)) for length in range(len(state), 0, -1)
    ]


@pytest.mark.parametrize("pack", PROCESS, ids=lambda pack: pack.name)
@given(steps=lines, place=st.integers(0, 14))
@bounded
def test_padding_gains_nothing(pack, steps, place):
    plain, padded = trajectory(*steps, tools=TOOLS), trajectory(*steps[:place], PADDING, *steps[place:], tools=TOOLS)
    assert pack(ended(padded)).value <= pack(ended(plain)).value
    assert pack(ended(trajectory(*steps, *[PADDING] * 5, tools=TOOLS))).value <= pack(ended(plain)).value


@pytest.mark.parametrize("pack", [*PROCESS, *OUTCOME], ids=lambda pack: pack.name)
def test_empty_huge_and_odd_trajectories(pack):
    assert pack(trajectory()) is None
    assert pack(Trajectory()) is None
    huge = trajectory(*(call("look", {"order": i % 50}, f"order {i}") for i in range(1500)), tools=TOOLS)
    assert pack(huge) is None or 0 <= pack(huge).value <= 1
    nested, infinite = call("", "nul", '{"a":' * 3000), call("look", '{"order": 1e999}', "[" * 5000)
    odd = trajectory(say("\ud800\u0000 \U0001f600" * 50), infinite, nested, tools=TOOLS)
    assert pack(ended(odd)) is None or 0 <= pack(ended(odd)).value <= 1


@pytest.mark.parametrize("pack", [*PROCESS, *OUTCOME], ids=lambda pack: pack.name)
def test_an_identity_of_settings_that_travels(pack):
    state = ended(trajectory(call("look", {"order": 1}, '{"open": 1}'), say("Order 7"), tools=TOOLS))
    before = pack(state)
    assert pack.name
    assert pack.fingerprint.startswith(f"{pack.name}@{pack.version}#")
    assert before.verifier == pack.name
    twin = pickle.loads(pickle.dumps(pack))
    assert twin == pack == copy.deepcopy(pack)
    assert hash(twin) == hash(pack)
    assert twin.fingerprint == pack.fingerprint
    assert twin(state) == before
    for each in fields(pack):
        if each.type == "float":
            other = replace(pack, **{each.name: 0.125})
            assert other.fingerprint != pack.fingerprint != ""
            assert other != pack
    with pytest.raises(AttributeError):
        pack.name_of_a_setting = 1


def test_a_shared_prefix_is_read_once():
    read = []
    fold = Fold(lambda _: 0, lambda total, step, index: read.append(index) or total + 1, most=50)
    stem = trajectory(*(say(str(i)) for i in range(10)))
    branches = [stem.extend(say(f"branch {i}")) for i in range(8)]
    assert [fold(branch) for branch in branches] == [11] * 8
    assert len(read) == 18
    for i in range(60):
        fold(trajectory(say(f"other {i}")))
    read.clear()
    assert fold(branches[0]) == 11
    assert len(read) == 11, "what was remembered is bounded: it was forgotten and is read anew"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers())))
@bounded
def test_an_index_is_a_map_that_keeps_its_past(items):
    index, plain, past = Index(), {}, []
    for key, value in items:
        past.append((index, dict(plain)))
        index, plain[key] = index.put([(key, value)]), value
    for old, known in [*past, (index, plain)]:
        assert {key: old.get(key) for key in old} == known
        assert all((key in old) == (key in known) for key in range(6))
    assert len(index.parts) <= 1 + len(items).bit_length()


def test_answers_are_paired_in_order_where_ids_repeat():
    action = Message.from_openai(
        {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": n, "arguments": "{}"}} for n in ("a", "b")]}
    )
    uses = uses_of(Step(action, (Message.tool("1", "x"), Message.tool("2", "x"))), 0)
    assert [use.text for use in uses] == ["1", "2"]
    assert uses_of(Step(action, (Message.tool("1", "x"),)), 0)[1].answer is None


def test_values_by_prefix_tell_tasks_with_one_prompt_apart():
    first, second = trajectory(say("hi", "cancel 7"), say("done")), trajectory(say("hi", "cancel 8"), say("done"))
    other = trajectory(say("hi"), prompt="Else")
    known = ByPrefix.of([(first, "seven"), (second, "eight"), (other, "else"), (first, "seven")])
    assert known(first) == known(first.prefix(1)) == known(first.prefix(1).extend(say("other"))) == "seven"
    assert known(second) == "eight"
    assert known(other.prefix(0)) == "else"
    assert known(first.prefix(0)) is None, "it can't be told yet"
    assert known(trajectory(say("hi"), prompt="Unheard")) is None
    same = ByPrefix.of([(first, "x"), (trajectory(say("b")), "x")])
    assert same(trajectory(say("never logged"))) == "x"
