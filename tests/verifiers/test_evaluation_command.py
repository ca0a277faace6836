"""`counterplay verifiers evaluate`: from a store or a file to a table, an exit code and a report."""

import json
import re
import typing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from counterplay import loop
from counterplay.commands import evaluating_verifiers  # noqa: F401  hangs the command on the group
from counterplay.commands.options import VerifierSpecs, app
from counterplay.core.store import Store
from counterplay.verifiers.functions import verifier
from counterplay.verifiers.registry import FORMS, SPELLED, TABLES

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


DEAD = "judge:m?base_url=http://127.0.0.1:9/v1&retries=0"


@verifier(version="1")
def now_and_then(trajectory):
    if sum(len(message.wire) for message in trajectory.messages) % 2:
        msg = "nothing [odd]"
        raise RuntimeError(msg)
    return 0.5


def flat(text):
    return " ".join(text.split())


def test_a_judge_that_is_not_there_is_no_success(tmp_path):
    lines = FILE.read_text().splitlines()[:6]
    (tmp_path / "few.jsonl").write_text("\n".join(lines) + "\n")
    result = run(DEAD, "--data", tmp_path / "few.jsonl", "--probed", 0)
    assert result.exit_code == 1, result.output
    assert re.search(r"\d+ of \d+ questions failed: .*Connection error", flat(result.output))
    assert "no opinion on" not in flat(result.output)
    assert run(DEAD, "--data", tmp_path / "few.jsonl", "--probed", 0, "--json").exit_code == 1


def test_some_errors_are_shown_and_fail_the_check_alone(store):
    words = ("tests.verifiers.test_evaluation_command:now_and_then", "--store", store, "--limit", 40, "--probed", 0)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "questions failed: RuntimeError: nothing [odd]" in flat(result.output)
    assert run(*words, "--check").exit_code == 1


def test_misspelt_tools_of_a_policy_are_named_by_both_commands(store, tmp_path):
    file = tmp_path / "shop.toml"
    file.write_text('[[rule]]\nname = "ask"\non = "refnud"\nconfirmed = true\n')
    for command in (["evaluate", "--probed", "0"], ["check"]):
        result = CliRunner().invoke(app, ["verifiers", *command, f"policy:{file}", "--store", str(store), "--limit", "20"])
        assert result.exit_code == 0, result.output
        assert "these rules never applied" in flat(result.output)
        assert "ask (refnud)" in flat(result.output)
        assert "policy:shop" in flat(result.output)


@pytest.fixture
def endless(tmp_path):
    """Runs with an outcome whose log stops at a tool's answer."""
    tool = {"type": "function", "id": "c", "function": {"name": "look", "arguments": "{}"}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"task {i}"},
                {"role": "assistant", "content": None, "tool_calls": [tool]},
                {"role": "tool", "tool_call_id": "c", "content": "good" if i % 2 else "bad"},
            ],
            "reward": float(i % 2),
        }
        for i in range(6)
    ]
    (tmp_path / "logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(tmp_path / "endless.duckdb") as opened:
        loop.ingest([tmp_path / "logs.jsonl"], opened, processes=0)
    return tmp_path / "endless.duckdb"


@verifier(version="1")
def good_news(trajectory):
    return 0.8 if trajectory.messages[-1].content_text == "good" else 0.3


def test_the_check_takes_the_logged_outcome_for_the_truth(endless):
    def checked(name):
        result = CliRunner().invoke(app, ["verifiers", "check", name, "--store", str(endless), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert checked("tests.verifiers.test_evaluation_command:good_news")["separation"] == pytest.approx(0.5)
    assert any("6 of 6 runs have no end in the log" in warning for warning in checked("outcome")["warnings"])


def test_the_list_and_the_help_name_the_forms():
    result = CliRunner().invoke(app, ["verifiers", "list", "--json"])
    assert json.loads(result.stdout)["forms"] == list(FORMS.values())
    assert set(FORMS) == set(TABLES | SPELLED)
    assert "policy:FILE.toml" in CliRunner().invoke(app, ["verifiers", "list"]).output
    help_text = typing.get_args(VerifierSpecs)[1].help
    assert all(f"{kind}:" in help_text for kind in FORMS)
