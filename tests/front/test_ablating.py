"""Calls left out of logged successes, from the command line to pairs."""

import asyncio
import json

from typer.testing import CliRunner

from counterplay.ablating import ablate
from counterplay.cli import app
from counterplay.core.store import Store
from counterplay.finetune.write import read_dataset
from counterplay.parts import Asked
from tests.front.test_grpo_environment import success

WORLD = "counterplay.examples.ledger.world:Ledger"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_calls_that_were_not_needed_become_pairs(tmp_path):
    path, trace = tmp_path / "s.duckdb", success()
    with Store.open(path) as store:
        store.ingest([trace])
    ran = run("ablate", "--store", path, "--environment", WORLD, "--json")
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    calls = [call.name for step in trace.trajectory.steps[:-1] for call in step.action.tool_calls]
    assert (report["searches"], report["calls"], report["skipped"]) == ([f"ablation-{trace.id}"], len(calls), {})
    assert report["tools"]["trial_balance"] == "1 of 1 were not needed"
    assert report["tools"]["post_entry"].startswith("0 of ")
    made = run("export", "dpo", "--store", path, "--rows", "ablation", "--out", tmp_path / "d", "--json")
    assert made.exit_code == 0, made.output
    _, records = read_dataset(tmp_path / "d")
    other = run("export", "sft", "--store", path, "--rows", "shortest", "--source", "searched", "--out", tmp_path / "o")
    assert (other.exit_code, "Search first" in other.stderr) == (2, True), "what nobody sampled is no search"
    pairs = [[record[side][0]["tool_calls"][0]["function"]["name"] for side in ("chosen", "rejected")] for record in records]
    assert ["close_period", "trial_balance"] in pairs
    with Store.open(path) as store:
        assert len(store.searches()) == 1, "the same once more replaces it"
        asyncio.run(ablate(store, [trace], Asked(environment=WORLD)))
        assert len(store.searches()) == 1


def test_reads_alone_can_be_left_out(tmp_path):
    path, trace = tmp_path / "s.duckdb", success()
    with Store.open(path) as store:
        store.ingest([trace])
        report = asyncio.run(ablate(store, [trace], Asked(environment=WORLD), reads_only=True))
    assert "post_entry" not in report.tools
    assert report.tools
