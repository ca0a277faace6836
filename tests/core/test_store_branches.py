"""Which messages a store holds is told by their branches: what is new, what is held and what goes on from it, whatever came in between."""

from contextlib import suppress
from dataclasses import replace

import pytest

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Source, Step, ToolSpec, Trace, Trajectory
from counterplay.core.store import Store, base, branches, compact
from counterplay.search.stitch import stitch

TOOLS = (ToolSpec('{"name":"look"}'), ToolSpec('{"name":"buy"}'))


def run(name, words, *, tools=(), system="Be quick."):
    """One word a step; runs with equal first words share their messages."""
    steps = tuple(Step(Message.assistant(word), (Message.user("on"),)) for word in words)
    return Trace(name, Trajectory(tools, (Message.system(system), Message.user("go")), steps), Source("test"), task="t")


def messages(runs):
    """How many different messages the runs have, each told by what it follows."""
    found = set()
    for trace in runs:
        shown = [str([tool.wire for tool in trace.trajectory.tools])]
        for message in trace.trajectory.messages:
            shown.append(message.wire)
            found.add(tuple(shown))
    return len(found)


RUNS = [
    run("a", ["one", "two", "three"]),
    run("b", ["one", "two", "four", "five"]),
    run("c", ["one"]),
    run("d", ["one", "two", "three", "six", "seven"], tools=TOOLS[:1]),
    run("e", ["eight", "nine"], system="Be slow."),
    run("f", ["one", "two", "four", "five", "ten"]),
    run("g", ["one", "two", "three"], tools=TOOLS),
    run("h", ["one", "two", "three", "eleven"]),
]


@pytest.mark.parametrize("batch", [1, 3, 256])
@pytest.mark.parametrize("again", [False, True])
def test_each_message_is_stored_once_in_any_order_over_openings(tmp_path, batch, again):
    for order in (RUNS, RUNS[::-1], [*RUNS[3:], *RUNS[:3]]):
        path = tmp_path / f"{batch}{order[0].id}.duckdb"
        added = 0
        for start in range(0, len(order), 3 if again else len(order)):
            with Store.open(path) as store:
                added += store.ingest(order[start : start + 3 if again else None], batch=batch).nodes_added
        with Store.open(path) as store:
            assert added == store.stats().nodes == messages(RUNS)
            assert store.verify() == []
            assert {trace.id: trace for trace in store.load()} == {trace.id: trace for trace in RUNS}


def test_trees_find_the_messages_of_logs_and_logs_those_of_trees(tmp_path):
    trees = stitch([trace.trajectory for trace in RUNS[:3]])
    records = [tree.to_record(f"s{at}", trace=RUNS[at].id, task="t") for at, tree in enumerate(trees)]
    with Store.open(tmp_path / "one.duckdb") as one, Store.open(tmp_path / "two.duckdb") as two:
        one.ingest(RUNS)
        one.put_searches(records)
        two.put_searches(records)
        two.ingest(RUNS)
        assert one.stats().nodes == two.stats().nodes
        assert one.verify() == two.verify() == []
        assert one.content_digest() == two.content_digest()


def test_a_batch_that_is_taken_back_leaves_no_branches_behind():
    with Store.open(":memory:") as store:
        store.ingest(RUNS[:1])
        with suppress(InterruptedError), store.transaction():
            store.ingest(RUNS[1:])
            raise InterruptedError
        assert store.ingest(RUNS).nodes_added == messages(RUNS) - messages(RUNS[:1])
        assert store.verify() == []


def test_after_compaction_what_lies_behind_a_gap_is_found(tmp_path):
    path = str(tmp_path / "s.duckdb")
    old = replace(run("old", ["one", "two"]), ended_at_us=1)
    kept = [replace(run("a", ["one"]), ended_at_us=10), replace(run("b", ["one", "three", "four"]), ended_at_us=10)]
    with Store.open(path) as store:
        store.ingest([kept[0], old, kept[1]])
    assert compact(path, before_us=5).traces_dropped == 1
    with Store.open(path) as store:
        assert store.stats().nodes == messages(kept)
        assert store.ingest([replace(kept[1], id="c")]).nodes_added == 0
        assert store.ingest([old]).nodes_added == messages([*kept, old]) - messages(kept)
        assert store.verify() == []


@pytest.mark.parametrize("first", [0, 1])
def test_what_hangs_from_a_tool_set_that_nobody_else_uses_stays_whole(tmp_path, first):
    """Tool sets that differ in effects alone share their messages, which hang from one of them."""
    path = str(tmp_path / "s.duckdb")
    old = replace(run("old", ["one"], tools=TOOLS), ended_at_us=1)
    new = replace(run("new", ["one"], tools=tuple(replace(tool, effect=Effect("read", "x")) for tool in TOOLS)), ended_at_us=10)
    with Store.open(path) as store:
        store.ingest([old, new][:: -1 if first else 1])
    assert compact(path, before_us=5).traces_dropped == 1
    with Store.open(path) as store:
        assert store.verify() == []
        assert list(store.load()) == [new]
        assert store.ingest([old]).nodes_added == 0
        assert store.verify() == []


def test_only_branches_are_kept_apart():
    with Store.open(":memory:") as store:
        store.ingest(RUNS)
        whole = set(store._connection.execute("SELECT id FROM branch").fetchall())
        store._connection.execute("DROP TABLE branch")
        assert branches.held(store._connection, {"0" * 32: ""}) == {}
        found = set(store._connection.execute("SELECT id FROM branch").fetchall())
        assert found == whole
        assert 0 < len(found) <= len(RUNS) + 2


def test_what_lies_apart_is_found_like_what_lies_close(monkeypatch):
    monkeypatch.setattr(base, "_NEAR", 1)
    runs = [run(f"{number:02}", [f"word {number}"]) for number in range(20)]
    newer = replace(runs[3], metadata={"looked": "again"})
    with Store.open(":memory:") as store:
        store.ingest([*runs, newer])
        for step in (1, 3, 7, 13):
            wanted = [(newer if number == 3 else runs[number]) for at in range(20) for number in [at * step % 20]]
            assert list(store.load((trace.id for trace in wanted), batch=3)) == wanted
        with pytest.raises(UserError, match="no trace 'none'"):
            list(store.load(iter(["00", "none"])))
