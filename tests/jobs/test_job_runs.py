"""A job from its file to its datasets and its report; run again it repeats nothing, and takes up what is new."""

import json
import os
import signal
import sys
import time

import pytest

from counterplay import Store
from counterplay.core.errors import CounterplayError, UserError
from counterplay.jobs import dry, running, sections
from counterplay.jobs.planning import planned
from tests.jobs.batch import digests, loaded, make, report_of, write_logs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moves", raising=False)
    yield tmp_path
    for name in ("moves", "broken"):
        sys.modules.pop(name, None)


def run(job, **given):
    said = []
    return running.run(job, say=said.append, **given), said


def test_logs_become_datasets_and_a_report(folder):
    job = loaded(make(folder, tasks=3))
    report, said = run(job)
    assert said == []
    assert (report.exit_code, report.ended) == (0, "")
    assert report.states == {"done": 15}
    assert report.read["traces_added"] == 18
    assert 0 < report.used["model_calls"] <= report.budget["model_calls"] == 400
    assert report.live_calls == report.used["model_calls"]
    assert report.improved["count"] == report.solved["count"] >= 3
    low, high = report.improved["interval"]
    assert low < report.improved["count"] / 15 < high
    assert {made["kind"]: made["rows"]["train"] > 0 for made in report.datasets} == {"sft": True, "dpo": True}
    assert report_of(folder)["states"] == {"done": 15}
    assert "15 units" in (folder / "out" / "report.md").read_text()
    assert not list(folder.glob("*.status.json"))
    with Store.open(job.job.store, read_only=True) as store:
        assert store.verify() == []
        shares = [unit.share["model_calls"] for unit in store.units(report.job)]
        assert sum(shares) <= 400
        used = [unit.result["used"]["model_calls"] for unit in store.units(report.job)]
        assert all(part <= share for part, share in zip(used, shares, strict=True))


def test_run_again_it_asks_nothing_and_makes_the_same(folder):
    job = loaded(make(folder, tasks=2))
    run(job)
    first = digests("out")
    report, said = run(job)
    assert (report.live_calls, report.settled_before, report.states) == (0, 10, {"done": 10})
    assert "nothing new" in said[0]
    assert digests("out") == first
    assert first


def test_new_logs_are_another_job_of_the_same_name_with_a_budget_of_its_own(folder):
    job = loaded(make(folder, tasks=2))
    first, _ = run(job)
    write_logs(folder, 3)
    second, said = run(job)
    assert second.job == f"{first.job}.2"
    assert second.states == {"done": 5}
    assert said == []
    with Store.open(job.job.store, read_only=True) as store:
        assert [row.state for row in store.jobs()] == ["done", "done"]
        shares = [unit.share["model_calls"] for unit in store.units(second.job)]
    assert 350 < sum(shares) <= 400


def test_a_changed_file_is_another_job_and_says_so(folder):
    file = make(folder, tasks=2)
    first, _ = run(loaded(file))
    wider = loaded(file, search={"options": {"n": 4}})
    second, said = run(wider)
    assert first.job in said[0]
    assert "what decides its results has changed" in said[0]
    assert second.job != first.job
    assert second.live_calls < second.used["model_calls"], "the verifier's and the world's answers, and equal draws, are kept"


def test_datasets_hold_what_the_job_selected_of_all_its_nights_and_nothing_else(folder):
    """Beside it: a run of another task that succeeded, and what another job found for the same traces."""
    file = make(folder, tasks=2)
    both = loaded(file, select={"tasks": ("t0", "t2"), "which": "all"})
    both = both.model_copy(update={"export": (*both.export[1:], sections.Export.model_validate({"kind": "sft", "rows": "per-call"}))})
    first, _ = run(both)

    def tasks(kind):
        return {json.loads(line)["task"] for line in (folder / "out" / kind / "jsonl" / "train.jsonl").read_text().splitlines()}

    alone = digests("out")
    assert tasks("sft") == tasks("dpo") == {"t0"}
    run(loaded(file, search={"options": {"n": 6}}, output={"folder": folder / "other"}))
    run(both)
    assert digests("out") == alone
    write_logs(folder, 3)
    again, _ = run(both)
    assert again.job == f"{first.job}.2"
    assert tasks("sft") == tasks("dpo") == {"t0", "t2"}


def test_units_that_the_budget_is_not_for_are_skipped_with_a_reason(folder):
    job = loaded(make(folder, tasks=2), budget={"total": "model_calls=40"})
    report, _ = run(job)
    assert report.states["skipped"] >= 1
    assert report.used["model_calls"] <= 40
    (why,) = (reason for reason in report.reasons if reason["state"] == "skipped")
    assert "the budget brings more elsewhere" in why["reason"]
    again, said = run(job)
    assert (again.job, again.live_calls) == (report.job, 0)
    assert "nothing new" in said[0]
    write_logs(folder, 3)
    third, _ = run(job)
    assert third.states["skipped"] + third.states["done"] == 5 + report.states["skipped"], "they compete again with what is new"


def test_failed_units_are_counted_and_get_another_start_where_asked(folder):
    file = make(folder, tasks=2)
    broken = loaded(file, environment={"spec": "broken:World"})
    (folder / "broken.py").write_text("from moves import World as Whole\n\ndef World(task):\n    raise KeyError(task)\n")
    report, _ = run(broken)
    assert report.exit_code == 3
    assert report.states == {"failed": 10}
    assert report.reasons[0]["count"] == 10, "they differ in figures alone"
    assert "made no world" in report.reasons[0]["reason"]
    assert all(made["problem"] for made in report.datasets)
    (folder / "broken.py").write_text("from moves import World\n")
    sys.modules.pop("broken", None)
    with Store.open(broken.job.store) as store:
        assert store.reopen_units(report.job) == 10
    mended, _ = run(broken)
    assert (mended.exit_code, mended.states) == (0, {"done": 10})
    assert mended.job == report.job


def test_stitch_units_are_tasks_and_a_task_with_new_runs_is_stitched_again(folder):
    file = make(folder, tasks=3)
    tables = {"policy": {"spec": ""}, "environment": {"spec": "recorded"}, "search": {"algorithm": "stitch", "options": {}}}
    job = loaded(file, **tables, budget={"total": ""}).model_copy(update={"verifiers": (), "export": ()})
    report, _ = run(job)
    assert (report.states, report.searches, report.used) == ({"done": 3}, 18, {})
    write_logs(folder, 1, played=("aaaaaa",), name="more.jsonl")
    more = job.model_copy(update={"source": (job.source[0].model_copy(update={"path": "more.jsonl"}),)})
    with Store.open(job.job.store) as store:
        running.take_in(store, more, lambda _: None)
    again, _ = run(job)
    assert again.states == {"done": 1}
    assert again.searches == 7


def test_what_is_selected(folder):
    job = loaded(make(folder, tasks=3))
    with Store.open(job.job.store) as store:
        running.take_in(store, job, lambda _: None)

        def chosen(**fields):
            return [unit.id for unit in planned(store, loaded(folder / "job.toml", select=fields, budget={"total": ""}))]

        everything = chosen(which="all")
        assert everything == sorted(everything)
        assert len(everything) == 18
        assert len(chosen()) == 15
        assert len(chosen(which="succeeded")) == 3
        assert chosen(limit=4) == chosen()[:4]
        assert len(chosen(tasks=["t1"])) == 5
        assert chosen(agents=["nobody"]) == []
        assert chosen(traces=[everything[3][:12]]) == [everything[3]]
        assert 0 < len(chosen(which="all", sample=0.5)) < 18
        with pytest.raises(UserError, match="unknown-trace"):
            chosen(traces=["unknown-trace"])


def test_nothing_to_do_is_said(folder):
    with pytest.raises(UserError, match=r"no trace that \[select\] leaves"):
        run(loaded(make(folder, tasks=1), select={"agents": ["nobody"]}))


def test_processes_come_to_the_same(folder):
    file = make(folder, tasks=1)
    run(loaded(file))
    alone = digests("out")
    parallel = loaded(file, job={"store": folder / "p.duckdb"}, output={"folder": folder / "p"}, engine={"processes": 2})
    report, _ = run(parallel)
    assert report.exit_code == 0
    assert digests("p") == alone


def test_the_report_is_json_without_a_surprise(folder):
    run(loaded(make(folder, tasks=1)))
    text = (folder / "out" / "report.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    assert str(folder) not in (folder / "out" / "report.md").read_text()


def test_a_job_that_was_cut_short_while_it_made_datasets_is_still_under_way(folder, monkeypatch):
    job = loaded(make(folder, tasks=2))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(running, "make_datasets", killed)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    write_logs(folder, 3)
    report, _ = run(job)
    assert (report.job, report.live_calls, report.states) == (job.family, 0, {"done": 10})
    assert digests("out")
    assert run(job)[0].job == f"{job.family}.2"


@pytest.mark.parametrize(
    ("was", "slip"),
    [
        ('"moves:World"', '"moves:Wrld"'),
        ('"moves:sound"', '"moves:sond"'),
        ('"outcome"', '"outcme"'),
        ('"moves:policy"', '"moves:polcy"'),
        ('"moves:policy"', '"transformers:modl"'),
        ('"moves:policy"', '"batch:folder:model"'),
        ('"moves:policy"', '"batch:folder:model"\nbase_urls = ["http://a/v1", "http://b/v1"]'),
        ('"logs.jsonl"', '"logs.jsnl"'),
    ],
)
def test_a_slip_of_the_pen_makes_no_job(folder, was, slip):
    file = make(folder, tasks=2)
    file.write_text(file.read_text().replace(was, slip))
    for attempt in (run, dry.estimated):
        with pytest.raises(UserError):
            attempt(loaded(file))
    assert not (folder / "s.duckdb").exists()


@pytest.mark.parametrize("source", ["none.jsonl", "empty", "empty.jsonl", "words", "bad.jsonl"])
def test_a_job_without_logs_leaves_nothing_behind(folder, source):
    file = make(folder, tasks=1)
    for name in ("empty", "words"):
        (folder / name).mkdir()
    (folder / "words" / "notes.txt").write_text("hello")
    (folder / "empty.jsonl").touch()
    (folder / "bad.jsonl").write_text('{"x": 1}\n')
    before = there(folder)
    file.write_text(file.read_text().replace('"logs.jsonl"', f'"{source}"').replace('"s.duckdb"', '"deep/down/s.duckdb"'))
    with pytest.raises(CounterplayError):
        run(loaded(file))
    assert there(folder) == before


def there(folder):
    """What is in a folder but for what Python keeps of modules."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def test_a_store_that_was_there_stays_whatever_the_sources_are(folder):
    file = make(folder, tasks=1)
    Store.open(folder / "s.duckdb").close()
    (folder / "logs.jsonl").write_text("")
    with pytest.raises(CounterplayError):
        run(loaded(file))
    assert (folder / "s.duckdb").exists()


def test_a_source_that_has_gone_stops_no_job_that_is_under_way(folder):
    job = loaded(make(folder, tasks=1))
    run(job, only=2)
    (folder / "logs.jsonl").unlink()
    assert run(job)[0].states == {"done": 5}


def test_an_interrupt_while_logs_are_read_is_one_whatever_the_store_makes_of_it(folder, monkeypatch):
    def interrupted(*_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None

    monkeypatch.setattr(running, "take_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(loaded(make(folder, tasks=1)))
    assert not (folder / "s.duckdb").exists()
