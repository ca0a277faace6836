"""What `counterplay ingest` says of what it could not read: how much, in which files, and by its exit status."""

import json

import pytest
from typer.testing import CliRunner

from counterplay.cli import app


@pytest.fixture
def folder(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"do {i}"}, {"role": "assistant", "content": "x" * 40}]} for i in range(3)]
    for name in ("a", "b", "c"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "cut.json").write_text(json.dumps(rows)[:-30])
    (tmp_path / "logs" / "whole.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return tmp_path


def ingested(folder, *options):
    return CliRunner().invoke(app, ["ingest", str(folder / "logs"), "--store", str(folder / "s.duckdb"), *options])


def test_each_file_that_is_cut_off_is_one_input_and_is_named(folder):
    found = ingested(folder)
    assert found.exit_code == 0
    assert "3 inputs could not be read: " in found.stderr
    assert all(f"{name}/cut.json (not JSON: " in found.stderr for name in ("a", "b", "c"))
    assert "counterplay stats --store " in found.stderr


def test_a_machine_is_told_the_same(folder):
    told = json.loads(ingested(folder, "--json").stdout)
    assert (told["traces_added"], told["rejected_added"]) == (2, 3)
    assert [each["uri"].rsplit("/", 2)[-2] for each in told["unreadable"]] == ["a", "b", "c"]


def test_the_status_says_where_nothing_could_be_read(folder):
    (folder / "logs" / "whole.jsonl").unlink()
    for name in ("a", "b", "c"):
        (folder / "logs" / name / "cut.json").write_text('[{"messages": [')
    assert ingested(folder).exit_code == 1
