"""Every export from a store, by function and by command: one kind each, the shared options once, and a card that says it all."""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from counterplay import export_units, exporting
from counterplay.cli import app
from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Completeness
from counterplay.core.store import NewUnit, Settled, Store
from counterplay.export_units import Units
from counterplay.finetune.write import read_dataset
from tests.finetune.conftest import Kit
from tests.finetune.forks import fork

KINDS = ("sft", "dpo", "reward", "kto", "grpo", "prm")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store with six tasks: each logged once, and searched with good, bad and long branches."""
    place = tmp_path_factory.mktemp("exports") / "s.duckdb"
    with Store.open(place) as store:
        for i in range(6):
            put(store, i)
    return place


def put(store, i, *, task="", run="", good=5, bad=5):
    """A logged trace and its search."""
    kit, task = Kit(), task or f"task-{i}"
    calls = tuple(Call(step, model="gpt-tiny", completeness=Completeness()) for step in range(3))
    trace = replace(kit.trace(task, session=f"s{i}"), id=f"trace-{i}{run}", agent="refunder", calls=calls)
    store.ingest([trace])
    source = fork(kit, good=good, bad=bad, longer=1, task=task)
    source.tree.stop("all lines are played")
    store.put_search(source.tree.to_record(f"search-{i}{run}", trace=trace.id, task=task, fork_step=1))


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_command_that_writes_it(path, tmp_path, kind):
    more = ("--rows", "trajectory") if kind in ("dpo", "reward", "kto") else ()
    ran = run("export", kind, "--out", tmp_path / "d", "--store", path, "--json", "--licence", "cc-by-4.0", "--near-duplicates", 0, *more)
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert (report["kind"], report["licence"]) == (kind, "cc-by-4.0")
    assert report["rows"]["train"] > 0
    assert report["sources"] == {"connectors": {"test": 6}, "agents": {"refunder": 6}, "models": {"gpt-tiny": 6}}
    assert read_dataset(tmp_path / "d")[0] == kind
    card = (tmp_path / "d" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "- models: gpt-tiny (6 traces)" in card
    assert "- `min_grade`: executed" in card


@pytest.mark.parametrize("rows", ["whole", "per-call", "improved", "recovery", "shortest", "distill"])
def test_successes_are_cut_in_several_ways(path, tmp_path, rows):
    options = {"near_duplicates": 0.0, "min_grade": "executed"}
    with Store.open(path, read_only=True) as store:
        if rows == "recovery":
            with pytest.raises(UserError, match="no row is left"):
                exporting.export_sft(store, tmp_path / "d", rows=rows, tau=0.6, **options)
            return
        if rows == "improved":
            with pytest.raises(UserError, match="surely better"):
                exporting.export_sft(store, tmp_path / "d", rows=rows, tau=0.99, source="searched", **options)
        report = exporting.export_sft(store, tmp_path / "d", rows=rows, tau=0.6, **options)
    assert (report.kind, report.settings["rows"]) == ("sft", rows)


@pytest.mark.parametrize(("rows", "margin"), [("trajectory", 1.0), ("nearest", 1.0), ("shorter", 8.0), ("step", None)])
def test_pairs_are_made_of_several_things(path, tmp_path, rows, margin):
    with Store.open(path, read_only=True) as store:
        report = exporting.export_dpo(store, tmp_path / "d", rows=rows, tau=0.7, near_duplicates=0.0)
    assert report.settings["rows"] == rows
    _, records = read_dataset(tmp_path / "d")
    assert margin is None or {record["margin"] for record in records} == {margin}


def test_no_pair_says_why(path, tmp_path):
    with Store.open(path, read_only=True) as store:
        with pytest.raises(UserError, match="no two siblings differ"):
            exporting.export_dpo(store, tmp_path / "d", tau=0.999)
        with pytest.raises(UserError, match="of the kind ablation"):
            exporting.export_dpo(store, tmp_path / "d", rows="ablation", min_score=1.0, algorithms=["fork_best_of_n"], tau=0.51)


def test_bad_words_are_refused_with_those_that_would_do(path, tmp_path):
    with Store.open(path, read_only=True) as store:
        for export, words, wanted in (
            (exporting.export_sft, {"rows": "all"}, "whole, per-call"),
            (exporting.export_sft, {"source": "web"}, "logged, searched, both"),
            (exporting.export_dpo, {"rows": "whole"}, "step, trajectory"),
            (exporting.export_reward, {"rows": "shorter"}, "step, trajectory, nearest"),
            (exporting.export_dpo, {"tau": 0.5}, "above 0.5"),
            (exporting.export_dpo, {"rows": "step", "source": "logged"}, "search --search stitch"),
            (exporting.export_kto, {"rows": "trajectory", "source": "web"}, "logged, searched, both"),
            (exporting.export_grpo, {"low": 0.9, "high": 0.1}, "the lower one first"),
            (exporting.export_prm, {"labels": "guess"}, "mc-soft"),
            (exporting.export_sft, {"split_by": ["moon"]}, "task, session, user"),
            (exporting.export_sft, {"formats": ["csv"]}, "parquet, jsonl"),
            (exporting.export_sft, {"held_out": 1.0}, "a share from 0"),
            (exporting.export_sft, {"min_grade": "stale"}, "never exported"),
            (exporting.export_sft, {"near_duplicates": 2.0}, "similarity"),
        ):
            with pytest.raises(UserError) as caught:
                export(store, tmp_path / "d", **words)
            assert wanted in str(caught.value), words
    assert not (tmp_path / "d").exists()


def test_commands_have_the_options_of_their_functions(path, tmp_path):
    commands = get_command(app).commands["export"].commands
    shared = set(exporting.Shared.__annotations__) - {"algorithms"} | {"algorithm", "out", "store", "as_json"}
    for kind in KINDS:
        own = set(inspect.signature(getattr(exporting, f"export_{kind}")).parameters) - {"store", "out", "shared"}
        assert {parameter.name for parameter in commands[kind].params} == own | shared, kind


def test_several_formats_splits_and_gates_at_once(path, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"task": "task-0"}) + "\n")
    ran = run(
        *("export", "sft", "--out", tmp_path / "d", "--store", path, "--json", "--source", "logged", "--near-duplicates", 0),
        *("--format", "parquet,openai, sharegpt", "--held-out", 0.5, "--split-by", "task,user", "--held-out-file", held),
    )
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert report["gates"]["contamination"] == 1
    assert sum(report["rows"].values()) == 5
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["README.md", "counterplay.json", "data", "openai", "sharegpt"]
    assert report["by"] == ["task", "user"]
    assert "- `held_out_file`: held.jsonl" in (tmp_path / "d" / "README.md").read_text()


def test_weights_and_caps_reach_the_rows(path, tmp_path):
    with Store.open(path, read_only=True) as store:
        report = exporting.export_sft(store, tmp_path / "d", weights="oreal", near_duplicates=0.0, per_task=1)
        with pytest.raises(UserError, match="none, advantage, oreal"):
            exporting.export_sft(store, tmp_path / "d", weights="heavy")
    assert (report.settings["weights"], report.rows["train"]) == ("oreal", 6)
    assert report.dropped["over the cap of 1 rows of a task"] == 6
    assert all(record["step_weights"] for record in read_dataset(tmp_path / "d")[1] if not record["logged"])
    assert "| tool | 3 |" in (tmp_path / "d" / "README.md").read_text()


def test_logged_runs_of_one_task_make_pairs_without_a_search(tmp_path):
    kit = Kit()
    with Store.open(tmp_path / "s.duckdb") as store:
        store.ingest([kit.trace("a"), kit.trace("a", reward=0.0, amount=50), kit.trace("b")])
        report = exporting.export_dpo(store, tmp_path / "dpo", rows="trajectory", source="logged")
        assert (report.rows, report.algorithms, report.logged) == ({"train": 1}, {"logged": 1}, 1)
        (pair,) = read_dataset(tmp_path / "dpo")[1]
        assert (pair["fork_step"], len(pair["prompt"]), pair["margin"]) == (0, 2, 1.0)
        assert exporting.export_kto(store, tmp_path / "kto", rows="trajectory").labels == {True: 2, False: 1}


EXPORTS = {
    "sft": {},
    "sft-oreal": {"weights": "oreal", "rows": "per-call"},
    "sft-shortest": {"rows": "shortest", "source": "logged"},
    "dpo": {"tau": 0.7},
    "dpo-trajectory": {"rows": "trajectory"},
    "reward": {"rows": "nearest"},
    "kto-trajectory": {"rows": "trajectory"},
    "prm": {},
    "grpo": {},
}


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """Two stores that hold the same, taken in in another order: twelve runs of six tasks, which contradict each other in places."""
    folder = tmp_path_factory.mktemp("turned")
    places = [(i, f"-{run}", 5 + run, 5 if i % 2 else 1) for i in range(6) for run in range(2)]
    for name, order in (("one", places), ("other", [places[(7 * i) % 12] for i in range(12)][::-1])):
        with Store.open(folder / f"{name}.duckdb") as store:
            for i, run, good, bad in order:
                put(store, i, run=run, good=good, bad=bad)
    return folder


@pytest.mark.parametrize("name", EXPORTS)
def test_what_a_dataset_holds_follows_from_content_and_not_from_when_it_came(turned, tmp_path, name):
    export = getattr(exporting, f"export_{name.partition('-')[0]}")
    for which in ("one", "other"):
        with Store.open(turned / f"{which}.duckdb", read_only=True) as store:
            export(store, tmp_path / which / "d", held_out=0.4, seed=1, **EXPORTS[name])
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "other")
    assert b"trace-0" in one["d/jsonl/train.jsonl"] + one.get("d/jsonl/test.jsonl", b"")


def test_units_come_one_by_one_and_in_order(turned):
    with Store.open(turned / "other.duckdb", read_only=True) as store:
        units = list(Units(store).read())
        assert [[trace.id for trace in unit.traces] for unit in units] == [[f"trace-{i}-0", f"trace-{i}-1"] for i in range(6)]
        assert [[tree.search for tree in unit.trees] for unit in units] == [[f"search-{i}-0", f"search-{i}-1"] for i in range(6)]
        assert [unit.trees for unit in Units(store).read(trees=False)] == [[]] * 6
        assert list(Units(store, agent="nobody").read()) == []
        assert list(Units(store, algorithms=["nothing"]).read(logs=False)) == []


def named(unit):
    return [trace.id for trace in unit.traces], [tree.search for tree in unit.trees]


def test_units_are_the_same_however_many_are_read_together(turned, monkeypatch):
    with Store.open(turned / "one.duckdb", read_only=True) as store:
        whole = list(Units(store).read())
        monkeypatch.setattr(export_units, "_WINDOW", 3)
        units = Units(store)
        assert list(map(named, units.read())) == list(map(named, whole))
        sources = list(units.sources())
        assert [origin.id for origin in sources] == [trace.id for unit in whole for trace in unit.traces]
        assert {(origin.agent, origin.models) for origin in sources} == {("refunder", ("gpt-tiny",))}
        assert len({id(origin) for origin in units.origins.values()}) == 1, "what is alike is kept once"


def test_units_of_jobs_are_what_their_units_are_about_and_came_to(turned, tmp_path):
    place = Path(shutil.copy(turned / "one.duckdb", tmp_path))
    with Store.open(place) as store:
        for job, trace, came_to in (("first", 2, "search-2-0"), ("second", 4, ""), ("other", 5, "search-5-0")):
            store.put_job(job, f"the {job}", "{}")
            store.add_units(job, [NewUnit("u", (f"trace-{trace}-0", f"trace-{trace}-1"))])
            store.claim(job, "me", 1)
            store.settle(job, [Settled("u", result={"searches": [came_to]} if came_to else {})], "me")
        store.put_search(replace(store.search("search-4-1"), id="left-out", algorithm="ablation"))
        units = Units(store, jobs=("first", "second"))
        assert list(map(named, units.read())) == [(["trace-2-0", "trace-2-1"], ["search-2-0"]), (["trace-4-0", "trace-4-1"], [])]
        assert [len(unit.trees) for unit in Units(store, algorithms=["ablation"], jobs=("second",)).read()] == [1]
        assert not Units(store, jobs=("second",)).searched
        with pytest.raises(UserError, match="the job's units came to"):
            exporting.export_dpo(store, tmp_path / "d", jobs=["second"])
        report = exporting.export_sft(store, tmp_path / "d", near_duplicates=0.0, jobs=["first", "second"])
        assert report.settings["jobs"] == ["the first", "the second"]
        assert {trace[:7] for row in read_dataset(tmp_path / "d")[1] for trace in row["traces"]} == {"trace-2", "trace-4"}


def test_rules_over_all_rows_hold_across_tasks(tmp_path):
    """Two tasks in the same words have the same states, though each is read by itself."""
    kit = Kit()
    with Store.open(tmp_path / "s.duckdb") as store:
        for i, (good, bad) in enumerate([(6, 6), (6, 6)]):
            trace = replace(kit.trace("asked"), id=f"trace-{i}", task=f"named-{i}")
            store.ingest([trace])
            source = fork(kit, good=good, bad=bad, task="asked")
            source.tree.stop("done")
            store.put_search(source.tree.to_record(f"search-{i}", trace=trace.id, task=trace.task, fork_step=1))
        report = exporting.export_dpo(store, tmp_path / "dpo", near_duplicates=0.0, tau=0.7)
        assert (sum(report.rows.values()), report.dropped) == (2, {"a duplicate": 36, "over the cap of 2 pairs a state": 34})
        report = exporting.export_kto(store, tmp_path / "kto", rows="trajectory", source="searched", near_duplicates=0.0)
        assert (sum(report.rows.values()), report.dropped) == (12, {"a duplicate": 12})


def test_a_dataset_that_is_replaced_is_told_of(path, tmp_path):
    words = ("export", "sft", "--out", tmp_path / "d", "--store", path)
    assert "is replaced" not in run(*words).stderr
    again = run(*words)
    assert again.exit_code == 0
    assert "is replaced" in again.stderr
