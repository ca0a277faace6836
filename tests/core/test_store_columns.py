"""Rows that move as columns: their digests are those of the rows one by one, to the byte, whatever they hold."""

import gc
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum, IntEnum

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from counterplay.core.canonical import canonical, chain_key, content_key, dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Message, Source, Step, Trace, Trajectory, Usage
from counterplay.core.store import Store, encoding
from counterplay.core.store.encoding import Draft, TraceDraft, call_row, header_row, score_row, step_row, sub_row, summary_row
from counterplay.core.store.exact import listed, named
from counterplay.core.store.tables import insert, merged, records, single
from tests.core import generated

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
LATER_TRACE = {"outputs": "full", "open_spans": 0}
LATER_CALL = {
    **LATER_TRACE, "provider": None, "streamed": None, "first_token_s": None, "tools_known": True, "system_prompt": True,
    "dropped_attributes": 0, "truncated": False, "redacted": False, "notes": [], "token_ids": None,
}  # fmt: skip


class Level(IntEnum):
    HIGH = 3


class Word(str, Enum):  # noqa: UP042  a text for json, whatever its type
    YES = "yes"


class Kind(Enum):
    ONE = 1


floats = st.floats() | st.sampled_from([1e-5, 1e-4, 1.5e-7, 1e15, 1e16, 1e22, 5e-324, -0.0, 0.1, 1e300])
texts = generated.texts | st.text(st.characters(max_codepoint=0x9F), max_size=4) | st.sampled_from(["\x7f\u2028\ufeff", "\x00\x1f\b\f"])
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | floats | texts | st.sampled_from([Level.HIGH, Word.YES])
values = scalars | st.lists(scalars, max_size=3)
kinds_of_column = [
    st.none() | st.booleans(),
    st.integers(),
    st.none() | floats,
    st.none() | texts,
    st.lists(st.integers()),
    st.lists(texts),
    values,
]


@st.composite
def columns(draw, names=3):
    rows = draw(st.integers(0, 4))
    return [draw(st.lists(draw(st.sampled_from(kinds_of_column)), min_size=rows, max_size=rows)) for _ in range(names)]


@settings(max_examples=400, deadline=None)
@given(columns())
@example([[1e-5, 2e16], [True, 1], ["é", "\udc80"]])
def test_lists_are_written_as_canonical_writes_them(held):
    assert listed(held) == canonical([list(row) for row in zip(*held, strict=True)])


@settings(max_examples=400, deadline=None)
@given(columns(), st.sampled_from([None, 0, "", [], True]))
def test_dicts_are_written_as_canonical_writes_them(held, default):
    named_columns, later = dict(zip("cab", held, strict=True)), {"a": default, "b": default}
    rows = [dict(zip("cab", row, strict=True)) for row in zip(*held, strict=True)]
    told = [{name: value for name, value in row.items() if name not in later or value != default} for row in rows]
    assert named(named_columns, later) == canonical(told)


@pytest.mark.parametrize("value", [Kind.ONE, uuid.UUID(int=1), datetime(2026, 1, 1, tzinfo=UTC), Call(0), b"x", {1}, object(), 1j])
def test_what_is_not_json_is_refused_as_canonical_refuses_it(value):
    for column in ([value], [[value]]):
        with pytest.raises(TypeError):
            canonical(column)
        with pytest.raises(TypeError):
            listed([column])
        with pytest.raises(TypeError):
            named({"a": column}, {})
    with pytest.raises(UserError, match="not JSON"):
        TraceDraft.of(Trace("t", Trajectory(), Source("test"), calls=(Call(0, params={"a": [value]}),)))


@quick
@given(generated.traces())
def test_a_digest_is_that_of_the_rows_one_by_one(trace):
    contexts = [trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)]
    parts = []
    for context in contexts:
        steps = [[len(step.observations), *step_row(step).values()] for step in context.steps]
        effects = [[tool.effect.kind, tool.effect.resource] for tool in context.tools]
        parts.append(content_key(context.key, canonical(effects), str(len(context.prompt)), canonical(steps)))
    rows = [(header_row(trace), LATER_TRACE), *((call_row(call), LATER_CALL) for call in trace.calls)]
    header, *calls = [{name: value for name, value in row.items() if name not in later or value != later[name]} for row, later in rows]
    subs = [list(sub_row(sub).values()) for sub in trace.sub_trajectories]
    scores = [list(score_row(score).values()) for score in trace.scores]
    draft = TraceDraft.of(trace)
    assert draft.digest == content_key(*map(canonical, (header, subs, calls, scores or {})), *parts)
    assert draft.digest == encoding.trace_digest(trace, parts)
    assert [each.digest for each in draft.trajectories] == parts


@quick
@given(generated.trajectories)
def test_a_draft_is_its_trajectory(trajectory):
    draft = Draft.of(trajectory)
    assert (draft.tip, draft.grade) == (trajectory.key, trajectory.grade)
    assert draft.wires == [message.wire for message in trajectory.messages]
    assert draft.keys == [chain_key(trajectory.root_key, *draft.wires[: n + 1]) for n in range(len(draft.wires))]


UNPRICED = Trace("t", Trajectory(steps=(Step(Message.user("x")),)), Source("test"), calls=(Call(0),))


@quick
@given(generated.traces())
@example(UNPRICED)
@example(replace(UNPRICED, calls=tuple(Call(0, usage=Usage(cost_usd=cost)) for cost in (0.1, None, 0.7, 1e16, -1e16, 0.2))))
def test_a_summary_adds_as_usage_adds(trace):
    row, usage = summary_row(trace), sum((call.usage for call in trace.calls), Usage())
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (usage.input_tokens, usage.output_tokens, usage.cost_usd)
    assert row["grade"] == trace.trajectory.grade


ALIKE = [{"a": 1}, {"a": True}, {"a": 1.0}, {"a": 0.0}, {"a": -0.0}, {"a": False}, {"a": [1]}, {"a": (1, 2)}, {1: 2}, {"1": 2}]


def test_params_that_only_look_alike_are_not_taken_for_each_other():
    for params in [*ALIKE, *ALIKE, {"b": 1, "a": 2}, {"a": 2, "b": 1}, {"a": Level.HIGH}, {"a": Word.YES}, {"a": "\udc80"}]:
        assert call_row(Call(0, params=params))["params"] == dumps(params)


@quick
@given(st.lists(generated.objects, max_size=4))
def test_params_are_written_as_ever(several):
    for params in several * 2:
        assert call_row(Call(0, params=params))["params"] == dumps(params)


def test_texts_of_params_are_held_in_bounds():
    for index in range(3 * encoding._TEXTS_HELD):
        call_row(Call(0, params={"n": index}))
    assert len(encoding._TEXTS) <= encoding._TEXTS_HELD
    call_row(Call(0, params={"long": "x" * encoding._TEXT_BYTES}))
    assert all(len(key) <= encoding._TEXT_BYTES for key in encoding._TEXTS)


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as opened:
        yield opened


@quick
@given(st.lists(st.tuples(st.none() | generated.texts, st.lists(generated.texts, max_size=2), st.integers(0, 9)), min_size=1, max_size=4))
def test_columns_and_rows_are_stored_alike(connection, held):
    rows = [{"id": text, "notes": notes, "n": n} for text, notes, n in held]
    for table, sent in (("by_row", rows), ("by_column", merged([single(row) for row in rows]))):
        connection.execute(f"CREATE OR REPLACE TABLE {table} (n INTEGER, id VARCHAR, notes VARCHAR[], more VARCHAR)")
        insert(connection, table, sent)
        insert(connection, table, {name: [] for name in rows[0]})
        assert records(connection, f"SELECT * FROM {table}") == [{**row, "more": None} for row in rows]
    assert merged([]) == {}


def test_the_garbage_collector_is_left_as_it_was():
    good = Trace("t", Trajectory(), Source("test"))
    bad = replace(good, id="bad", metadata={"when": object()})
    try:
        for turn in (gc.enable, gc.disable):
            turn()
            before = gc.isenabled()
            with Store.open(":memory:") as store:
                store.ingest([good])
                assert gc.isenabled() == before
                with pytest.raises(UserError):
                    store.ingest([good, bad])
                assert gc.isenabled() == before
    finally:
        gc.enable()
