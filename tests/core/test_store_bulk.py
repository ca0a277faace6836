"""Many trees at a time: what is written and read together is what it would be one by one."""

import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, Source, Step, Trace, Trajectory
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.core.store import Store, searches, tables
from counterplay.search.stitch import stitch
from tests.core import generated

quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def run(task, number, *, good):
    said = [f"look up {task}", f"try {number}", f"so {number}"]
    steps = [Step(Message.assistant(text), (Message.user("go on"),), grades=(Grade.EXACT,)) for text in said]
    end = Step(Message.assistant("done"), terminated=True, reward=float(good))
    prompt = (Message.system("Be quick."), Message.user(f"task {task}"))
    return Trace(f"{task}/{number}", Trajectory((), prompt, (*steps, end)), Source("test"), task=task)


def stitched(task, count=3):
    traces = [run(task, number, good=number == 1) for number in range(count)]
    trees = stitch([trace.trajectory for trace in traces])
    return traces, [tree.to_record(f"{trace.id}@stitch", trace=trace.id, task=task) for trace, tree in zip(traces, trees, strict=True)]


@quick
@given(st.lists(st.integers(0, 3).flatmap(lambda name: generated.searches(f"s{name}")), max_size=5), st.booleans())
def test_written_together_they_are_as_written_one_by_one(found, small):
    with Store.open(":memory:") as one, Store.open(":memory:") as many, pytest.MonkeyPatch.context() as changed:
        if small:
            changed.setattr(searches, "_BATCH_NODES", 2)
        count = sum(one.put_search(record) for record in found)
        assert many.put_searches(iter(found)) == count
        assert many.content_digest() == one.content_digest()
        assert many.verify() == []
        wanted = [*dict.fromkeys(record.id for record in found)][::-1]
        last = {record.id: record for record in found}
        assert list(many.load_searches(wanted, batch=2)) == [last[name] for name in wanted]
        assert many.put_searches(last.values()) == 0


def test_nodes_and_counterfactuals_are_those_of_single_searches():
    roots = Trajectory((), (Message.user("hi"),), (Step(Message.assistant("a"), (Message.user("b"),)),))
    end = Step(Message.assistant("c"), terminated=True, reward=1.0)
    middle = Step(Message.assistant("m"), (Message.user("n"),), grades=(Grade.SIMULATED,))
    nodes = (NodeRecord(0, None, None), NodeRecord(1, 0, middle), NodeRecord(2, 1, end), NodeRecord(3, 0, end))
    found = [SearchRecord(f"s{i}", "mcts", replace(roots, prompt=(Message.user(str(i % 2)),)), nodes, f"t{i}") for i in range(4)]
    with Store.open(":memory:") as one, Store.open(":memory:") as many:
        for record in found:
            one.put_search(record)
        many.put_searches(found)
        assert many.trajectories() == one.trajectories()
        assert [many.trajectory(row.id) for row in many.trajectories()] == [one.trajectory(row.id) for row in one.trajectories()]
        assert many.stats().nodes == one.stats().nodes == 2 * 7
        grown = [replace(record, nodes=record.nodes[:3]) for record in found[1:3]]
        assert many.put_searches([found[0], *grown]) == 2
        assert [row.nodes for row in sorted(many.searches(), key=lambda row: row.id)] == [4, 3, 3, 4]
        assert len(many.trajectories(kind="counterfactual", search="s1")) == 1
        assert many.verify() == []


def test_all_of_them_or_none():
    traces, records = stitched("a")
    with Store.open(":memory:") as store:
        store.ingest(traces)
        with pytest.raises(Exception, match="INT32"):
            store.put_searches([*records, replace(records[0], id="broken", fork_step=2**40)])
        assert store.searches() == []
        assert store.put_searches(records) == 3
        assert store.verify() == []


def test_stitched_trees_share_all_that_was_logged():
    with Store.open(":memory:") as store:
        for task in "ab":
            traces, records = stitched(task)
            store.ingest(traces)
            before = store.stats().nodes
            store.put_searches(records)
            others = {step.action.wire for trace in traces for step in trace.trajectory.steps[1:2]}
            assert store.stats().nodes - before == 0, others
        assert store.verify() == []


def test_searches_of_many_traces_and_all_in_order():
    records = [record for task in "cab" for record in stitched(task)[1]]
    bare = SearchRecord("z", "beam", Trajectory(), (NodeRecord(0, None, None),), stopped="budget")
    with Store.open(":memory:") as store:
        store.put_searches([*records[::-1], bare, replace(bare, id="y", stopped="")])
        assert [row.id for row in store.searches(traces=["a/1", "c/0", "none"])] == ["a/1@stitch", "c/0@stitch"]
        assert store.searches(traces=[]) == []
        in_order = ["y", "z", *sorted(record.id for record in records)]
        for page in (1, 2, 3, 4096):
            assert [row.id for row in store.every_search(page=page)] == in_order
        assert [row.id for row in store.every_search(stopped=True, page=2)] == in_order[1:]
        assert [row.id for row in store.every_search(algorithms=["beam"], page=2)] == ["y", "z"]
        assert {row.id: row for row in store.every_search()} == {row.id: row for row in store.searches()}


def test_a_search_that_is_not_held_is_named_with_those_before_it_given():
    with Store.open(":memory:") as store:
        store.put_searches(stitched("a")[1])
        reader = store.load_searches(iter(["a/0@stitch", "a/9@stitch"]), batch=1)
        assert next(reader).id == "a/0@stitch"
        with pytest.raises(UserError, match="no search 'a/9@stitch'"):
            next(reader)


@settings(quick, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=8), st.integers(0, 9), st.integers(0, 3))
def test_spans_reach_every_range_and_are_few(begun, gap, most):
    ranges = [(low, low + length) for low, length in begun]
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(tables, "_GAP", gap)
        changed.setattr(tables, "_RANGES", most)
        told = tables.spans("i", ranges)
    stretches = [range(int(low), int(high) + 1) for low, high in re.findall(r"i BETWEEN (\d+) AND (\d+)", told)]
    found = {i for stretch in stretches for i in stretch}
    wanted = {i for low, high in ranges for i in range(low, high + 1)}
    assert wanted <= found
    assert len(stretches) <= most + 1
    wide = [i for i in range(1, 300) if {i - 1, i} <= found - wanted]
    assert not wide or gap > 1 or len(stretches) == most + 1, "what is between is left out while there are ranges to spare"


def test_traces_far_apart_are_read_as_those_close_together(monkeypatch):
    monkeypatch.setattr("counterplay.core.store.tables._GAP", 2)
    monkeypatch.setattr("counterplay.core.store.tables._RANGES", 3)
    traces = [run("a", number, good=False) for number in range(40)]
    with Store.open(":memory:") as store:
        store.ingest(traces)
        chosen = [traces[i] for i in (39, 0, 1, 7, 20, 21, 33)]
        assert list(store.load([trace.id for trace in chosen])) == chosen
        assert list(store.load(iter(trace.id for trace in chosen), batch=2)) == chosen
