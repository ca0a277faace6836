"""What --dry-run says of the example is what the run then uses, within 20 %; with a probe it knows the time as well."""

import shutil
import sys
from pathlib import Path

import pytest

from counterplay import Store
from counterplay.core.errors import StoreError
from counterplay.core.nouns import Message, Outcome, Source, Step, ToolCall, Trace, Trajectory
from counterplay.jobs import dry, running
from counterplay.jobs.habits import Habits
from counterplay.jobs.rehearsal import stand_in
from counterplay.jobs.sections import Search
from counterplay.search.branching import tool_error
from tests.front.moves import logged
from tests.jobs.batch import loaded, make, write_logs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(tmp_path):
    """The example's own job file, over half of its traces, in a folder of its own beside the agent."""
    (tmp_path / "examples" / "jobs").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "jobs" / "overnight.toml", tmp_path / "examples" / "jobs")
    (tmp_path / "examples" / "ledger").symlink_to(ROOT / "examples" / "ledger")
    return loaded(tmp_path / "examples" / "jobs" / "overnight.toml", select={"limit": 20}, budget={"total": "model_calls=1500"})


def test_the_estimate_of_the_example_is_what_it_uses(example):
    foreseen = dry.estimated(example)
    assert not example.job.store.exists()
    assert foreseen.units == {"pending": 20}
    report = running.run(example)
    for kind in ("model_calls", "tokens", "tool_calls"):
        said = foreseen.of(kind)
        assert said.amount == pytest.approx(report.used[kind], rel=0.2), kind
        assert said.low <= report.used[kind] <= said.high, kind
    assert report.improved["count"] >= 8
    after = dry.estimated(example)
    assert (after.units, after.of("model_calls")) == ({}, None)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    yield loaded(make(tmp_path, tasks=4))
    sys.modules.pop("moves", None)


def test_what_was_worked_on_corrects_what_is_left_and_tells_the_time(small):
    before = dry.estimated(small)
    running.run(small, only=8)
    foreseen = dry.estimated(small)
    assert foreseen.units == {"done": 8, "pending": 12}
    assert "units of this job that were worked on" in foreseen.of("model_calls").basis
    assert foreseen.of("seconds").amount > 0
    report = running.run(small)
    used = report.live_calls
    assert foreseen.of("model_calls").low <= used <= foreseen.of("model_calls").high
    assert before.of("model_calls").amount > foreseen.of("model_calls").amount


def test_a_dry_run_asks_nobody_and_writes_nothing(small, monkeypatch, tmp_path):
    running.run(small, only=2)
    write_logs(tmp_path, 5)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("moves.Mover.propose", lambda *_: pytest.fail("asked"), raising=True)
    monkeypatch.setattr("moves.World.call", lambda *_: pytest.fail("called"), raising=True)
    assert dry.estimated(small).units["pending"] == 18
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


def test_answers_that_are_journalled_are_not_counted_again(small):
    running.run(small)
    wider = small.model_copy(update={"budget": small.budget.model_copy(update={"total": "model_calls=401"})})
    again = dry.estimated(wider)
    assert again.units == {"pending": 20}
    assert again.answered > 100
    assert (
        again.of("model_calls").amount < dry.estimated(loaded(Path("job.toml"), job={"store": Path("n.duckdb")})).of("model_calls").amount
    )


def test_a_budget_that_binds_is_all_that_is_used(small):
    tight = small.model_copy(update={"budget": small.budget.model_copy(update={"total": "", "per_trace": "model_calls=7"})})
    foreseen = dry.estimated(tight)
    report = running.run(tight)
    assert report.used["model_calls"] == pytest.approx(foreseen.of("model_calls").amount, rel=0.2)


def run_of(name, words):
    steps = [Step(Message.assistant(None, [ToolCall("", word, '{"id":"7"}')]), (Message.tool(f"{word} 1", ""),)) for word in words]
    return Trace(name, Trajectory((), (Message.user(name),), tuple(steps)), Source("test"), outcome=Outcome(0.0, success=False))


def test_habits_are_what_follows_what_figures_aside():
    from random import Random

    habits = Habits([run_of(f"r{i}", ["look", "book" if i % 2 else "ask", "close"]) for i in range(20)])
    after_look = [habits.drawn([("look", *habits_words("look"))], Random(i)).names for i in range(200)]
    assert 60 < after_look.count("book") < 140
    assert {habits.drawn([], Random(i)).names for i in range(20)} == {"look"}
    assert habits.drawn([("look", *habits_words("look")), ("book", *habits_words("book"))], None).ends is True


def habits_words(word):
    from counterplay.jobs.habits import answers_of, moves_of

    steps = run_of("x", [word]).trajectory.steps
    return moves_of(steps)[0].words, answers_of(steps)[0]


def test_a_rehearsal_begins_at_calls_that_failed_as_the_search_will(small, tmp_path):
    """The calls of `x` fail, so `tool_error` is found, and what is foreseen is less than from the start."""
    trace = logged("t", "bxbabb")
    assert [fork.step for fork in tool_error(stand_in(trace).trajectory)] == [fork.step for fork in tool_error(trace.trajectory)] == [1]
    (tmp_path / "logs.jsonl").unlink()
    write_logs(tmp_path, 4, played=("aaabxb", "bababx", "bbbbxb"))
    unbound = loaded(tmp_path / "job.toml", budget={"total": ""})
    at_errors, at_start = (
        unbound.model_copy(update={"search": Search.model_validate({"algorithm": "best_of_n", "options": {"n": 4}, "fork": fork})})
        for fork in ("tool_error", "start")
    )
    assert dry.estimated(at_errors).of("tool_calls").amount < 0.7 * dry.estimated(at_start).of("tool_calls").amount


def test_a_store_that_somebody_works_on_is_not_read(small):
    running.run(small, only=1)
    with Store.open(small.job.store), pytest.raises(StoreError, match="open in this process"):
        dry.estimated(small)
