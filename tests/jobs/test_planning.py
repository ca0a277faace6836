"""A budget is divided from a few words of every trace as it is from the traces; units are made in order, and all of them or none."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay import Store
from counterplay.core.budget import Budget
from counterplay.core.nouns import Call, Usage
from counterplay.core.store import Selection
from counterplay.dividing import counted_share, divide, divide_light
from counterplay.jobs.planning import planned, units_of
from counterplay.jobs.spec import Job
from counterplay.plan import COUNTED, Plan
from tests.front.moves import logged

NUMBERS = itertools.count()
AMOUNTS = {"model_calls": st.integers(0, 200), "tool_calls": st.integers(0, 200), "tokens": st.integers(0, 5000), "usd": st.floats(0, 3)}
budgets = st.fixed_dictionaries({}, optional={**AMOUNTS, "simulations": st.integers(0, 50)}).map(
    lambda given: ",".join(f"{kind}={amount}" for kind, amount in given.items())
)
runs = st.lists(st.tuples(st.integers(0, 5), st.text("ab", min_size=1, max_size=12)), min_size=1, max_size=12, unique_by=lambda run: run)


@pytest.fixture(scope="module")
def shared_store():
    with Store.open(":memory:") as opened:
        yield opened


@settings(max_examples=25, deadline=None)
@given(runs, st.tuples(budgets, budgets), st.sampled_from(["gain", "even"]), st.booleans())
def test_rows_are_divided_among_as_their_traces_are(shared_store, found, limits, split, priced):
    (whole, each), agent = limits, f"e{next(NUMBERS):04}"
    traces = [logged(f"{agent} t{task}", moves, name=f"{agent}/{i:02}", agent=agent) for i, (task, moves) in enumerate(found)]
    if priced:
        traces = [replace(trace, calls=(Call(0, usage=Usage(7, 3, cost_usd=0.1 * len(trace.id))),)) for trace in traces]
    shared_store.ingest(traces)
    plan = Plan(budget=whole, trace_budget=each, split=split)
    rows = list(shared_store.select_ids(Selection(agents=(agent,))))
    counts = {trace.id: sum(len(step.action.tool_calls) for step in trace.trajectory.steps) for trace in traces}
    wanted, got = divide(shared_store, traces, plan), divide_light(rows, shared_store.select_ids(), plan, counts)
    assert [row.id for row in rows] == [trace.id for trace in traces]
    assert got.skipped == wanted.skipped
    assert {name: counted_share(make) for name, make in got.budgets.items()} == {n: counted_share(m) for n, m in wanted.budgets.items()}


@settings(max_examples=15, deadline=None)
@given(runs, budgets)
def test_shares_are_never_above_the_whole(found, whole):
    traces = [logged(f"t{task}", moves, name=f"{i:02}") for i, (task, moves) in enumerate(found)]
    job = Job.read({"job": {"name": "j"}, "policy": {"spec": "m:p"}, "budget": {"total": whole}, "select": {"which": "all"}})
    with Store.open(":memory:") as store:
        store.ingest(traces)
        units = list(planned(store, job))
    limits = Budget.parse(whole).limits
    assert [unit.id for unit in units] == [trace.id for trace in traces]
    for kind in (*COUNTED, "usd"):
        if getattr(limits, kind) is not None:
            assert sum(unit.share.get(kind, 0) for unit in units) <= getattr(limits, kind) + 1e-9
    assert all(bool(unit.reason) == (unit.state == "skipped") for unit in units)


def test_without_a_budget_units_are_made_as_they_are_read():
    job = Job.read({"job": {"name": "j"}, "policy": {"spec": "m:p"}, "budget": {"total": "seconds=9", "per_trace": "model_calls=3"}})
    with Store.open(":memory:") as store:
        store.ingest([logged(f"t{i}", name=f"{i:03}") for i in range(30)])
        units = planned(store, job)
        assert next(units).share == {}
        row = store.put_job("j", "j", "{}")
        store.add_units("j", planned(store, job))
        assert [unit.id for unit in units_of(store, "j")] == [f"{i:03}" for i in range(30)]
        assert list(planned(store, job, [row])) == []
        store.ingest([logged("new", name="015x")])
        assert [unit.id for unit in planned(store, job, [row])] == ["015x"]
