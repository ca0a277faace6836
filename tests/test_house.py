"""The house itself: what is packaged, what may import what, and what importing costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("core", "connectors", "replay", "search", "verifiers", "finetune", "examples")


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_folder_with_modules_is_packaged():
    own = (folder for folder in (ROOT / "counterplay").iterdir() if not folder.is_symlink() and (folder / "__init__.py").exists())
    found = {"counterplay", *(f"counterplay.{folder.name}" for folder in own if folder.name not in ROOMS)}
    for room in ROOMS:
        found |= {".".join(("counterplay", *init.parent.relative_to(ROOT).parts)) for init in (ROOT / room).rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found
    assert {name for name in found if name != "counterplay"} <= set(PROJECT["tool"]["setuptools"]["package-dir"])


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_reached_under_one_name(room):
    link = ROOT / "counterplay" / room
    assert link.is_symlink() or link.is_dir()
    assert link.resolve() == (ROOT / room).resolve()


def test_layering_contracts_hold():
    result = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")
    assert result.returncode == 0, result.stdout


def test_import_is_light():
    heavy = ("torch", "transformers", "trl", "datasets", "openai", "duckdb", "langgraph", "pyarrow", "typer", "rich", "numpy")
    code = f"import sys, counterplay; print([name for name in {heavy} if name in sys.modules])"
    result = run(sys.executable, "-c", code)
    assert result.stdout.strip() == "[]", result.stderr


def test_nothing_is_installed_at_top_level():
    names = set(PROJECT["tool"]["setuptools"]["packages"])
    assert all(name == "counterplay" or name.startswith("counterplay.") for name in names)


def test_no_file_is_too_large():
    tracked = run("git", "ls-files", "-z").stdout.split("\0")
    sizes = {name: (ROOT / name).stat().st_size for name in tracked if name and (ROOT / name).is_file()}
    assert [name for name, size in sizes.items() if size > 6_000_000] == []
