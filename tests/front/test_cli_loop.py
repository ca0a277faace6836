"""The loop on the command line: ingest, look, re-enact, localise, search, export; killed in the middle and run again."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

SEARCH = (
    "search",
    "--search",
    "repair",
    "--policy",
    "parts:policy",
    "--environment",
    "parts:world",
    "--verifier",
    "outcome",
    "--verifier",
    "ledger",
    "--store",
)


def test_ingest_counts_and_repeats_nothing(cli, logs):
    first = cli("ingest", logs, "--store", "s.duckdb", "--json").json
    assert (first["traces_added"], first["rejected_added"], first["tasks"]) == (40, 0, 40)
    assert first["succeeded"] + first["failed"] == 40
    again = cli("ingest", logs, "--store", "s.duckdb", "--json").json
    assert (again["traces_added"], again["traces_known"], again["nodes_added"]) == (0, 40, 0)
    stats = cli("stats", "--store", "s.duckdb", "--verify", "--json").json
    assert stats["verified"] is True
    assert stats["outcomes"]["success"] == first["succeeded"] if "success" in stats["outcomes"] else True


def test_replay_reproduces_every_observation_and_outcome(cli, store):
    ran = cli("replay", "--environment", "parts:world", "--check", "--store", store, "--json")
    assert ran.code == 0
    report = ran.json
    assert report["faithful"]
    assert report["reproduced"] == report["observations"] > 400
    assert report["outcomes_reproduced"] == report["outcomes"] == 40
    assert cli("replay", "--check", "--store", store, "--json").json["faithful"]


def test_a_tampered_observation_is_named(cli, logs):
    lines = logs.read_text().splitlines()
    told = json.loads(lines[3])["messages"]
    place = next(i for i, message in enumerate(told) if '"entry": "e' in str(message.get("content")))
    step = sum(message["role"] == "assistant" for message in told[:place]) - 1
    lines[3] = lines[3].replace('\\"entry\\": \\"e', '\\"entry\\": \\"x', 1)
    logs.write_text("\n".join(lines) + "\n")
    assert cli("ingest", logs, "--store", "s.duckdb").code == 0
    ran = cli("replay", "--environment", "parts:world", "--check", "--store", "s.duckdb", "--json")
    assert ran.code == 1
    (divergence,) = ran.json["divergences"]
    assert (divergence["kind"], divergence["tool"], divergence["step"]) == ("result_drift", "post_entry", step)
    assert ran.json["kinds"] == {"result_drift": 1}
    assert ran.json["reproduced"] == ran.json["observations"] - 1


def test_localise_names_the_step_the_ledger_rules_object_to(cli, store):
    report = cli("localise", "--verifier", "ledger", "--store", store, "--json").json
    assert report["found"] == report["traces"] > 5
    tools = Counter(pivot["action"].split("(")[0] for pivot in report["pivots"])
    assert set(tools) <= {"post_entry", "tax_rate"}


def test_search_improves_and_exports(cli, store):
    report = cli(*SEARCH, store, "--option", "n=6", "--limit", 8, "--json").json
    assert len(report["searches"]) == 8
    assert report["improved"] >= 2
    assert report["used"]["model_calls"] >= report["live_calls"] > 0
    again = cli(*SEARCH, store, "--option", "n=6", "--limit", 8, "--json").json
    assert (again["resumed"], again["live_calls"], again["digest"]) == (8, 0, report["digest"])
    sft = cli("export", "sft", "--source", "both", "--out", "sft", "--store", store, "--json").json
    assert sft["rows"]["train"] >= report["improved"]
    assert cli("stats", "--verify", "--store", store, "--json").json["verified"]


@pytest.mark.parametrize("kill_after", [0.6, 1.4])
def test_killed_in_the_middle_and_run_again(cli, folder, logs, kill_after):
    for name in ("whole", "cut"):
        assert cli("ingest", logs, "--store", f"{name}.duckdb").code == 0
    options = ("--option", "n=4", "--limit", "6", "--json")
    whole = cli(*SEARCH, "whole.duckdb", *options, env={"CALLS": "whole.calls"}).json
    slow = {"CALLS": "cut.calls", "DELAY_S": "0.01"}
    import os

    process = subprocess.Popen(
        [sys.executable, "-m", "counterplay.cli", *SEARCH, "cut.duckdb", *options],
        cwd=folder,
        env={**os.environ, **slow},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    calls = folder / "cut.calls"
    while not (calls.exists() and calls.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(kill_after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut = cli(*SEARCH, "cut.duckdb", *options, env={"CALLS": "cut.calls"}).json
    assert cut["digest"] == whole["digest"]
    assert cut["searches"] == whole["searches"]
    made = Counter((folder / "cut.calls").read_text().splitlines())
    needed = Counter((folder / "whole.calls").read_text().splitlines())
    repeated = made - needed
    assert sum(repeated.values()) <= 1, "only a call that was in flight, unanswered, may be asked again"
    assert cli("stats", "--verify", "--store", "cut.duckdb", "--json").json["verified"]


def test_a_budget_is_a_ceiling(cli, store):
    report = cli(*SEARCH, store, "--budget", "model_calls=60", "--limit", 6, "--json").json
    assert report["used"]["model_calls"] <= 60
    fewer = cli(*SEARCH, store, "--budget", "model_calls=60", "--trace-budget", "model_calls=30", "--seed", 1, "--json").json
    assert len(fewer["searches"]) == 2
    assert len(fewer["skipped"]) > 0
    assert fewer["used"]["model_calls"] <= 60
