"""A hundred real airline runs, from the log file to TRL's trainers, without one model call."""

import json
from pathlib import Path

import pytest

from tests.replay.tiny_model import make_folder

LOGS = Path(__file__).parents[3] / "shared" / "data" / "tau-bench-airline-gpt4o"
pytestmark = pytest.mark.skipif(not LOGS.is_dir(), reason="the real logs are not here: ../shared/data/tau-bench-airline-gpt4o")


def test_a_hundred_real_runs_become_datasets_that_trl_steps_on(cli, folder):
    report = cli("ingest", LOGS, "--store", "s.duckdb", "--json").json
    assert (report["traces_added"], report["tasks"], report["succeeded"], report["failed"]) == (100, 25, 49, 51)
    assert report["rejected_added"] == 0
    again = cli("ingest", LOGS, "--again", "--store", "s.duckdb", "--json").json
    assert (again["traces_added"], again["traces_known"], again["nodes_added"]) == (0, 100, 0)
    stats = cli("stats", "--verify", "--store", "s.duckdb", "--json").json
    assert (stats["verified"], stats["problems"], stats["reused_call_ids"]) == (True, [], 25)

    stitched = cli("search", "--search", "stitch", "--store", "s.duckdb", "--json").json
    assert len(stitched["searches"]) == 100
    assert (stitched["live_calls"], stitched["used"]) == (0, {})
    pairs = cli("export", "dpo", "--store", "s.duckdb", "--out", "dpo", "--json").json
    rows = cli("export", "sft", "--store", "s.duckdb", "--out", "sft", "--json").json
    assert pairs["rows"]["train"] >= 10
    assert 0 < pairs["label_noise"] < 0.1
    assert rows["rows"]["train"] == 49

    from datasets import load_dataset

    loaded = load_dataset(str(folder / "dpo"), split="train")
    assert len(loaded) == pairs["rows"]["train"]
    assert {"prompt", "chosen", "rejected"} <= set(loaded.column_names)
    assert len(load_dataset(str(folder / "sft"), split="train")) == 49

    make_folder(folder / "tiny")
    for kind in ("sft", "dpo"):
        trained = cli(
            "train",
            kind,
            "--model",
            "tiny",
            "--data",
            kind,
            "--out",
            f"{kind}-model",
            "--steps",
            2,
            "--batch-size",
            1,
            "--max-length",
            60000,
            "--json",
        )
        assert trained.code == 0, trained.err
        assert trained.json["steps"] == 2
        assert (folder / f"{kind}-model" / "model.safetensors").is_file()


def test_every_real_message_comes_back_exactly(cli, folder):
    from counterplay import Store

    assert cli("ingest", LOGS, "--store", "s.duckdb").code == 0
    logged = json.loads(next(LOGS.glob("*.json")).read_text())
    wanted = sorted(json.dumps(run["traj"]) for run in logged)
    with Store.open(folder / "s.duckdb", read_only=True) as store:
        got = sorted(json.dumps([m.to_openai() for m in trace.trajectory.messages]) for trace in store.load())
    assert got == wanted
