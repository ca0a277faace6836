"""`counterplay verifiers evaluate`: from a store or a file to a table, an exit code and a report."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from counterplay import loop
from counterplay.commands import evaluating_verifiers  # noqa: F401  hangs the command on the group
from counterplay.commands.options import app
from counterplay.core.store import Store

FILE = Path(__file__).parent / "hand_labelled.jsonl"
LOGS = Path(__file__).parents[2] / "examples" / "ledger" / "logs.jsonl.gz"
REAL = Path(__file__).parents[3] / "shared" / "data" / "openr-math-aps"
WRITTEN = "tests.verifiers.evaluation_helpers:written"
BY_LENGTH = "tests.verifiers.test_evaluation_probes:length"


def run(*words):
    return CliRunner().invoke(app, ["verifiers", "evaluate", *map(str, words)])


def as_json(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["evaluations"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "store.duckdb"
    with Store.open(path) as opened:
        loop.ingest([LOGS], opened, processes=0)
    return path


def test_a_file_of_labelled_data_needs_no_store():
    (found,) = as_json(WRITTEN, "--data", FILE)
    assert found["first_errors"]["f1"]["value"] == pytest.approx(12 / 17)
    assert found["outcomes"]["auroc"]["value"] == pytest.approx(0.84)
    shown = run(WRITTEN, "--data", FILE)
    assert "0.706" in shown.output


def test_a_store_says_the_same_as_the_file(tmp_path):
    path = tmp_path / "store.duckdb"
    with Store.open(path) as opened:
        loop.ingest([FILE], opened, processes=0)
    (stored,), (read,) = as_json(WRITTEN, "--store", path), as_json(WRITTEN, "--data", FILE)
    for part in ("outcomes", "steps", "task_siblings"):
        assert stored[part] == read[part]
    assert stored["first_errors"]["f1"]["value"] == pytest.approx(12 / 17)


def test_several_verifiers_are_compared_in_a_report(store, tmp_path):
    folder = tmp_path / "new" / "report"
    result = run("ledger", "tool_calls", "--store", store, "--limit", 60, "--probed", 10, "--report", folder)
    assert result.exit_code == 0, result.output
    html, text = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    assert "<h2>ledger 1</h2>" in html
    assert html.count("<svg") == html.count("</svg>") >= 6
    assert "## tool_calls" in text
    report = json.loads((folder / "report.json").read_text())
    assert [found["name"] for found in report["evaluations"]] == ["ledger", "tool_calls"]
    assert report["evaluations"][0]["outcomes"]["auroc"]["value"] == 1.0


def test_check_is_for_who_must_not_be_gamed(store):
    words = ("--store", store, "--limit", 40, "--probed", 20)
    assert run(BY_LENGTH, *words).exit_code == 0
    assert run(BY_LENGTH, *words, "--check").exit_code == 1
    assert run("ledger", *words, "--check").exit_code == 0


def test_an_outcome_is_never_read_off_the_trajectory(store):
    (found,) = as_json("outcome", "--store", store, "--limit", 20)
    assert found["answers"]["abstained"]["value"] == 1.0
    assert found["outcomes"] is None


def test_what_is_wrong_is_said(store, tmp_path):
    assert run("ledger", "--store", tmp_path / "none.duckdb").exit_code == 2
    assert run("ledger", "--store", store, "--data", FILE).exit_code == 2
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}) + "\n")
    refused = run("ledger", "--data", nothing)
    assert refused.exit_code == 2
    assert "without any truth" in refused.output
    assert run("ledgr", "--data", FILE).exit_code == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real logs are not here")
@pytest.mark.parametrize("name", ["samples_prm800k.jsonl", "samples_math-shepherd.jsonl", "samples_math-aps-tree.jsonl"])
def test_published_files_are_read_as_they_are(name):
    (found,) = as_json("tests.verifiers.test_evaluation_probes:brief", "--data", REAL / name, "--probed", 5)
    assert found["labelled_steps"] > 10
    assert found["steps"]["auroc"] is not None
    assert found["step_siblings"] is not None or "shepherd" in name
