"""The state pack: differences by hand, hashes, and where a state comes from."""

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Outcome, Source, Trace
from counterplay.verifiers.packs.base import ByPrefix
from counterplay.verifiers.packs.state import AtEnd, LastAnswer, StateMatch, diff, hash_of
from tests.verifiers.pack_shapes import call, ended, say, trajectory

WANTED = {"orders": {"17": {"status": "cancelled", "at": "10:00"}, "18": {"status": "open"}}, "balance": 50}


def shown(state, **options):
    return StateMatch(WANTED, lambda _: state, **options)(ended(trajectory(say("done"))))


def test_differences_are_named_by_path():
    got = {"orders": {"17": {"status": "open", "at": "10:00"}, "19": {"status": "new"}}, "balance": 50.0}
    assert [str(each) for each in diff(got, WANTED)] == [
        'orders.17.status: got "open", wanted "cancelled"',
        'orders.18: got (missing), wanted {"status":"open"}',
        'orders.19: got {"status":"new"}, wanted (missing)',
    ]
    score = shown(got)
    assert score.value == 0.0
    assert score.reason.startswith('orders.17.status: got "open"')
    assert shown(WANTED).value == 1.0


@pytest.mark.parametrize(
    ("got", "wanted", "options", "same"),
    [
        (1, 1.0, {}, True),
        (True, 1, {}, False),
        (None, {}, {}, False),
        ("1", 1, {}, False),
        (0.1 + 0.2, 0.3, {}, True),
        (100, 101, {"tolerance": 0.01}, True),
        ([1, 2], [2, 1], {}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, {"unordered": ["a"]}, True),
        (
            {"a": [{"t": 1, "x": 1}, {"t": 2, "x": 2}]},
            {"a": [{"t": 9, "x": 2}, {"t": 8, "x": 1}]},
            {"unordered": ["a"], "ignore": ["a.*.t"]},
            True,
        ),
        ({"a": {"t": 1}, "t": 1}, {"a": {"t": 2}, "t": 1}, {"ignore": ["*.t"]}, True),
        ({"t": 1}, {"t": 2}, {"ignore": ["*.t"]}, False),
        ((1, 2), [1, 2], {}, True),
        ({1: "x"}, {"1": "x"}, {}, True),
        ([1], [1, 2], {}, False),
    ],
)
def test_what_is_the_same(got, wanted, options, same):
    assert (diff(got, wanted, **options) == []) is same


def test_hashes_stand_for_states():
    loose = {"ignore": ("orders.*.at",)}
    assert hash_of({"a": 1, "b": [1.0, {"c": None}]}) == hash_of({"b": [1, {"c": None}], "a": 1.0}) != hash_of({"a": 1})
    later = {**WANTED, "orders": {**WANTED["orders"], "17": {"status": "cancelled", "at": "11:00"}}}
    expected = hash_of(WANTED, **loose)
    state = ended(trajectory(say("done")))
    assert StateMatch(expected, lambda _: later, **loose)(state).value == 1.0
    assert StateMatch(expected, lambda _: {}, **loose)(state).reason == "the state's hash is not the expected one"
    with pytest.raises(UserError, match=r"got a object at a\.b of a state"):
        hash_of({"a": {"b": object()}})


def test_changes_are_shared_out_among_those_wanted_and_made():
    before = {"orders": {"17": {"status": "open", "at": "10:00"}, "18": {"status": "open"}}, "balance": 0}

    def value(got):
        return shown(got, value="changes", before=before).value

    half = {**before, "balance": 50}
    extra = {**WANTED, "gift": 1}
    assert value(WANTED) == 1.0
    assert value(half) == 0.5, "one of two wanted changes"
    assert value(before) == 0.0, "doing nothing is worth nothing, however large the state"
    assert value(extra) == pytest.approx(2 / 3), "two right, one that nobody asked for"
    assert shown({"balance": 50}, value="changes").value == pytest.approx(1 / 4), "without a state before, everything counts"


def test_where_a_state_comes_from():
    look = call("look", {}, {"data": {"balance": 50}})
    state = ended(trajectory(call("look", {}, {"data": {"balance": 1}}), look, call("look", {}, "Error: down"), say("done")))
    assert LastAnswer("lo*", "data")(state) == {"balance": 50}
    assert LastAnswer("look", "data.balance.x")(state) is None
    assert LastAnswer("peek")(state) is None
    pack = StateMatch({"balance": 50}, LastAnswer("look", "data"))
    assert pack(state).value == 1.0
    assert pack(state.prefix(3)) is None, "no opinion before the end: what is wrong may still be put right"
    assert pack(ended(trajectory(say("done")))) is None, "nor where no state is known"
    logged = StateMatch({"balance": 50}, AtEnd.of([(state, {"balance": 50})]))
    assert logged(state).value == 1.0
    assert logged(ended(trajectory(*state.steps, say("more")))) is None, "another end has another state"


def test_expected_states_of_logged_tasks():
    traces = [
        Trace(
            name,
            trajectory(say("ok"), prompt=name),
            Source("test"),
            metadata={"task": {"state": {"n": n}}},
            outcome=Outcome(details={"final": n}),
        )
        for n, name in enumerate("abc")
    ]
    expected = ByPrefix.from_traces(traces, "task.state")
    pack = StateMatch(expected, lambda trajectory: {"n": len(trajectory)})
    assert [pack(ended(trace.trajectory)).value for trace in traces] == [0.0, 1.0, 0.0]
    assert ByPrefix.from_traces(traces, "final")(traces[2].trajectory) == 2
    with pytest.raises(UserError, match=r"got 3 traces, none of them with 'finale'.*one of: final, task"):
        ByPrefix.from_traces(traces, "finale")
