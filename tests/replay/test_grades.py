"""Every observation has a grade, a trajectory has its worst, the store keeps them, `stats` shows them, and exports hold to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from counterplay.core.errors import UserError
from counterplay.core.journal import JournaledEnvironment, MemoryJournal
from counterplay.core.nouns import Grade, Message, Outcome, Score, Source, Step, Trace, Trajectory
from counterplay.core.store import Store
from counterplay.exporting import export_dpo, export_sft
from counterplay.finetune.pairs import dpo_rows
from counterplay.finetune.rows import SourcedTree
from counterplay.finetune.trajectories import logged_rows, sft_rows
from counterplay.replay.live import LiveEnvironment, initial
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.search.tree import SearchTree
from counterplay.views import held
from tests.replay.shelf import Shelf, SnapshotShelf, act, walk
from tests.replay.shelf_logs import GET_A, TOTAL, grades, logged, put


async def test_every_observation_of_a_branch_has_a_grade_and_the_trajectory_its_worst():
    log = await logged(GET_A, put("a"), TOTAL)
    environment = RecordedEnvironment([log], allow_stale=True, fallback=LiveEnvironment(SnapshotShelf))
    state = await walk(environment, log.prefix(0), put("b"), GET_A, act(("put", {"name": "a", "n": 7}), ("get", {"name": "b"})), TOTAL)
    assert all(len(step.grades) == len(step.observations) for step in state.steps)
    assert grades(state) == ["executed", "reused", "executed", "executed", "stale"]
    assert (state.prefix(3).grade, state.grade, state.steps[1].grade) == (Grade.EXECUTED, Grade.STALE, Grade.REUSED)


class Plain:
    """Somebody's environment that says nothing of grades."""

    async def step(self, state: Trajectory, action: Message) -> Step:
        return Step(action, (Message.tool("x", "c0"), Message.tool("y", "c1")), grades=(Grade.SIMULATED,) if len(state) else ())


async def test_what_an_environment_leaves_ungraded_was_executed_and_never_passes_for_exact():
    state, journal = initial(Shelf), MemoryJournal()
    for _ in ("asked", "answered by the journal"):
        environment = JournaledEnvironment(Plain(), journal)
        first = await environment.step(state, act("total", "total"))
        assert first.grades == (Grade.EXECUTED, Grade.EXECUTED)
        assert (await environment.step(state.extend(first), TOTAL)).grades == (Grade.SIMULATED, Grade.EXECUTED)


def searched(log: Trajectory, grade: Grade) -> SearchTree:
    """A fork after the first step: one branch of this grade ends well, one of the best grade ends badly."""
    tree = SearchTree.start(log.prefix(1), "fork_best_of_n")
    good = tree.add(tree.root, Step(put("a", 4), (Message.tool("a is 5", "c0"),), grades=(grade,)))
    bad = tree.add(tree.root, Step(put("a", 9), (Message.tool("a is 10", "c0"),), grades=(Grade.EXACT,)))
    for node, value in ((good, 1.0), (bad, 0.0)):
        leaf = tree.add(node, Step(Message.assistant("Done."), terminated=True))
        leaf.score = Score(value, "", "test", "1")
        for _ in range(8):
            leaf.backup(value)
    tree.stop("played")
    return tree


@pytest.mark.parametrize("grade", list(Grade))
async def test_the_store_keeps_grades_and_stats_show_them(grade):
    log = await logged(GET_A, TOTAL)
    with Store.open(":memory:") as store:
        store.ingest([Trace("t", log, Source("test"), task="a")])
        record = searched(log, grade).to_record("s", trace="t", task="a", fork_step=1)
        store.put_search(record)
        assert store.search("s") == record
        stats = store.stats()
        counts = {"exact": 2, grade.name.lower(): 1} if grade is not Grade.EXACT else {"exact": 3}
        assert stats.grades == counts
        rows = store.trajectories(kind="counterfactual")
        assert sorted(row.grade for row in rows) == sorted([grade, Grade.EXACT])
        assert store.verify() == []
        if grade is not Grade.EXACT:
            figures = held(stats, None)[0]
            cells = [str(cell) for column in figures.columns for cell in column.cells]
            assert f"2 exact, 1 {grade.name.lower()}" in cells


@pytest.mark.parametrize("min_grade", list(Grade))
@pytest.mark.parametrize("grade", list(Grade))
async def test_exports_take_what_is_good_enough_and_never_what_is_stale(grade, min_grade):
    log = await logged(GET_A, TOTAL)
    source = SourcedTree(searched(log, grade), search="s", task="a")
    passes = grade >= min_grade and grade is not Grade.STALE
    assert bool(dpo_rows([source], min_grade=min_grade).rows) is passes
    assert bool(sft_rows([source], min_grade=min_grade).rows) is passes
    ended = replace(log, steps=(replace(log.steps[0], grades=(grade,)), log.steps[1], Step(Message.assistant("Done."), terminated=True)))
    trace = Trace("t", ended, Source("test"), task="a", outcome=Outcome(1.0, success=True))
    found = logged_rows([trace], min_grade=min_grade)
    assert bool(found.rows) is passes
    assert [drop.reason for drop in found.drops] == (
        [] if passes else ["stale" if grade is Grade.STALE else f"graded below {min_grade.name.lower()}"]
    )


async def test_a_store_with_one_stale_branch_exports_nothing_of_it_at_any_setting(tmp_path):
    log = await logged(GET_A, TOTAL)
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([Trace("t", log, Source("test"), task="a")])
        store.put_search(searched(log, Grade.STALE).to_record("s", trace="t", task="a", fork_step=1))
        with pytest.raises(UserError, match="stale"):
            export_dpo(store, tmp_path / "dpo", min_grade="simulated")
        with pytest.raises(UserError, match="stale"):
            export_sft(store, tmp_path / "sft", source="searched", min_grade="simulated")
        for export in (export_dpo, export_sft):
            with pytest.raises(UserError, match="never exported"):
                export(store, tmp_path / "out", min_grade="stale")
    assert list(tmp_path.glob("*/*")) == []
