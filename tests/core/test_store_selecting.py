"""What a job is about: filtered in SQL, streamed in an order of its own, and a sample that stays when the store grows."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Message, Outcome, Source, Step, Trace, Trajectory, Usage
from counterplay.core.store import Selection, Store, selecting


def trace(name, *, task="sum", agent="shop", reward=None, steps=1, cost=None, tags=(), form="otlp", at=None, ended=None):
    said = tuple(Step(Message.assistant(f"{name} {i}")) for i in range(steps))
    calls = tuple(Call(i, usage=Usage(10, 2, cost_usd=cost)) for i in range(steps))
    return Trace(
        name, Trajectory((), (Message.user("hi"),), said), Source(form), task=task, agent=agent, outcome=Outcome(reward), calls=calls,
        tags=tags, started_at_us=at, ended_at_us=ended,
    )  # fmt: skip


TRACES = [
    trace("d", reward=1.0, cost=0.5, at=100, tags=("prod",)),
    trace("b", reward=0.0, steps=3, at=200, ended=250, tags=("prod", "json:eu")),
    trace("c", task="tax", agent="books", reward=0.5, cost=0.1, ended=300),
    trace("a", task=None, agent=None, form="chatlog", tags=("eu",)),
    trace("e\udc80", task="", reward=0.0, steps=2, cost=2.0),
]


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        opened.ingest(TRACES)
        yield opened


def names(rows):
    return [row.id for row in rows]


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (None, ["a", "b", "c", "d", "e\udc80"]),
        (Selection(outcome=("failed",)), ["b", "c", "e\udc80"]),
        (Selection(outcome=("success", "unknown")), ["a", "d"]),
        (Selection(agents=("books", "shop"), outcome=("failed",)), ["b", "c", "e\udc80"]),
        (Selection(tasks=("tax", "")), ["c", "e\udc80"]),
        (Selection(formats=("chatlog",)), ["a"]),
        (Selection(tags=("prod",)), ["b", "d"]),
        (Selection(tags=("prod", "json:eu")), ["b"]),
        (Selection(cost_above_usd=0.1), ["d", "e\udc80"]),
        (Selection(steps_above=1), ["b", "e\udc80"]),
        (Selection(since_us=200), ["b", "c"]),
        (Selection(since_us=100, until_us=300), ["b", "d"]),
        (Selection(limit=2), ["a", "b"]),
        (Selection(limit=0), []),
        (Selection(outcome=("failed",), limit=2), ["b", "c"]),
        (Selection(sample=1.0), ["a", "b", "c", "d", "e\udc80"]),
    ],
)
def test_traces_are_selected_in_order_of_id(store, selection, wanted):
    assert names(store.select_ids(selection)) == wanted
    grouped = [name for _, group in store.tasks_of(selection) for name in group]
    assert sorted(grouped) == sorted(wanted)


def test_a_row_says_what_a_plan_needs(store):
    (row,) = store.select_ids(Selection(tasks=("tax",)))
    assert (row.task, row.agent, row.steps, row.calls, row.reward, row.success, row.succeeded) == ("tax", "books", 1, 1, 0.5, None, False)
    assert (row.input_tokens, row.output_tokens, row.cost_usd) == (10, 2, 0.1)
    assert next(store.select_ids()).succeeded is None


def test_runs_of_a_task_come_together_and_those_without_one_alone(store):
    store.ingest([trace("f", task=None)])
    assert list(store.tasks_of()) == [("", ["e\udc80"]), ("sum", ["b", "d"]), ("tax", ["c"]), (None, ["a"]), (None, ["f"])]
    assert list(store.tasks_of(Selection(limit=2))) == [("sum", ["b"]), (None, ["a"])]


@pytest.mark.parametrize("page", [1, 2, 3])
def test_pages_make_no_difference(store, monkeypatch, page):
    rows, groups = list(store.select_ids()), list(store.tasks_of())
    monkeypatch.setattr(selecting, "_PAGE", page)
    assert list(store.select_ids()) == rows
    assert list(store.tasks_of()) == groups
    assert names(store.select_ids(Selection(limit=4))) == names(rows)[:4]


def test_only_the_current_revision_counts(store):
    store.ingest([trace("c", task="tax", agent="books", reward=1.0, cost=0.1, ended=400, steps=2)])
    assert names(store.select_ids(Selection(tasks=("tax",)))) == ["c"]
    assert names(store.select_ids(Selection(outcome=("failed",)))) == ["b", "e\udc80"]


def test_what_came_in_meanwhile_disturbs_nothing(store, monkeypatch):
    monkeypatch.setattr(selecting, "_PAGE", 2)
    reader = store.select_ids()
    first = [next(reader).id, next(reader).id]
    store.ingest([trace("aa"), trace("cc")])
    assert first + names(reader) == ["a", "b", "c", "cc", "d", "e\udc80"]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 0.9))
def test_a_sample_is_about_its_share_and_stays_as_the_store_grows(seed, share):
    chosen = Selection(sample=share, seed=seed)
    with Store.open(":memory:") as store:
        store.ingest(trace(f"t{i}") for i in range(0, 400, 2))
        before = names(store.select_ids(chosen))
        assert abs(len(before) / 200 - share) < 0.2
        store.ingest(trace(f"t{i}") for i in range(1, 400, 2))
        after = names(store.select_ids(chosen))
        assert [name for name in after if int(name[1:]) % 2 == 0] == before
        assert set(before) <= set(names(store.select_ids(Selection(sample=min(1.0, share + 0.05), seed=seed)))), "a larger one holds it"
        assert names(store.select_ids(Selection(sample=share, seed=seed + 1))) != after


def test_the_sample_is_the_same_on_every_machine():
    with Store.open(":memory:") as store:
        store.ingest(trace(f"t{i}") for i in range(60))
        hashed = {f"t{i}": int(hashlib.md5(f"7:t{i}".encode()).hexdigest()[:16], 16) for i in range(60)}
        assert names(store.select_ids(Selection(sample=0.2, seed=7))) == sorted(
            name for name, drawn in hashed.items() if drawn < 0.2 * 2**64
        )


@pytest.mark.parametrize(
    "odd", [Selection(outcome=("good",)), Selection(sample=0.0), Selection(sample=1.5), Selection(sample=float("nan"))]
)
def test_a_selection_that_can_not_be_is_refused(store, odd):
    with pytest.raises(UserError, match="wanted"):
        next(store.select_ids(odd))
    with pytest.raises(UserError, match="wanted"):
        next(store.tasks_of(odd))
