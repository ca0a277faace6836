"""A newcomer's verifier of ten lines in a package of its own: written, installed, found by name, used in a search, evaluated."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from counterplay.core.errors import UserError
from counterplay.core.store import Store
from counterplay.verifiers.scaffold import files, write
from tests.verifiers.shop import PARTS, RECORD

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "counterplay-careful"
CLI = "import counterplay.commands.evaluating_verifiers\nfrom counterplay.cli import main\nmain()"


def run(*command, cwd, path="", code=0):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path), str(ROOT)])), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The package as the command writes it, installed into a folder, and beside it an agent's parts and logs."""
    folder = tmp_path_factory.mktemp("workplace")
    told = json.loads(run("-m", "counterplay.cli", "verifiers", "new", "careful", "--json", cwd=folder))
    assert [Path(file).name for file in told["files"]] == list(files("careful"))
    pip = ("-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target", "installed")
    run(*pip, "./counterplay-careful", cwd=folder)
    (folder / "parts.py").write_text(PARTS)
    run("-c", RECORD, cwd=folder)

    def cli(*arguments, code=0):
        return json.loads(run("-c", CLI, *arguments, "--json", cwd=folder, path=folder / "installed", code=code))

    cli("ingest", "logs.jsonl", "--store", "s.duckdb")
    return folder, cli


def test_the_example_is_what_the_command_writes():
    kept = {path.name: path.read_text() for path in EXAMPLE.iterdir() if path.suffix in {".py", ".toml", ".md"}}
    assert kept == files("careful")
    (function,) = [node for node in ast.parse(kept["careful.py"]).body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno - function.decorator_list[0].lineno + 1 <= 10


def test_the_readme_shows_that_very_file():
    assert f"```python\n{(EXAMPLE / 'careful.py').read_text()}```" in (ROOT / "README.md").read_text()


def test_its_own_tests_pass(workplace):
    folder, _ = workplace
    test = folder / "counterplay-careful" / "test_careful.py"
    assert "2 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", test, cwd=folder, path=folder / "installed")


def test_it_is_found_by_name(workplace):
    _, cli = workplace
    (found,) = [v for v in cli("verifiers", "list")["verifiers"] if v["name"] == "careful"]
    assert found == {"name": "careful", "target": "careful:careful", "origin": "counterplay-careful"}


def test_it_tells_good_from_bad_and_is_fit_for_use(workplace):
    _, cli = workplace
    report = cli("verifiers", "check", "careful", "--store", "s.duckdb", "--hostile")
    assert (report["problems"], report["warnings"], report["separation"]) == ([], [], 1.0)
    assert len(report["version"]) == 8


def test_it_is_used_in_a_search(workplace):
    folder, cli = workplace
    parts = ("--policy", "parts:policy", "--environment", "parts:Shop", "--store", "s.duckdb")
    searched = cli("search", "--search", "best_of_n", *parts, "--verifier", "careful", "--select", "failed")
    assert searched["improved"] == searched["traces"] > 0
    assert searched["failures"] == {}
    with Store.open(folder / "s.duckdb", read_only=True) as store:
        scores = {node.score for held in store.searches() for node in store.search(held.id).nodes if node.score is not None}
    assert {(score.verifier, score.value) for score in scores} == {("careful", 0.0), ("careful", 1.0)}
    assert any(score.reason.endswith(", which nobody looked at") for score in scores)


def test_it_is_evaluated(workplace):
    _, cli = workplace
    (evaluation,) = cli("verifiers", "evaluate", "careful", "--store", "s.duckdb")["evaluations"]
    assert evaluation["name"] == "careful"
    assert evaluation["outcomes"]["auroc"]["value"] == 1.0


@pytest.mark.parametrize("name", ["Big", "1st", "", "with space", "class", "json", "outcome", "counterplay", "../x"])
def test_names_that_can_t_be_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="got name"):
        write(name, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten(tmp_path):
    folder = write("two-words", tmp_path / "mine")
    assert 'two_words = "two_words:two_words"' in (folder / "pyproject.toml").read_text()
    compile((folder / "two_words.py").read_text(), "two_words.py", "exec")
    with pytest.raises(UserError, match="not empty"):
        write("two-words", folder)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(UserError, match="not empty"):
        write("other", file)
    assert file.read_text() == "kept"
