"""A verifier as a package of its own: what `counterplay verifiers new NAME` writes."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from counterplay.core.errors import UserError
from counterplay.verifiers.registry import available

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "counterplay-{dashed}"
version = "0.1.0"
description = "A verifier for counterplay"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["counterplay"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."counterplay.verifiers"]
{name} = "{name}:{name}"

[tool.setuptools]
py-modules = ["{name}"]
"""

_VERIFIER = '''\
"""A refund must be preceded by a look at the order it refunds."""

from counterplay import Score, Trajectory
from counterplay.verifiers.functions import verifier


@verifier
def {name}(trajectory: Trajectory) -> Score | float:
    seen: set[str] = set()
    for number, step in enumerate(trajectory.steps):
        for call in step.action.tool_calls:
            order = str((call.args or {{}}).get("order_id"))
            if call.name == "refund" and order not in seen:
                return Score(0.0, f"step {{number}} refunds order {{order}}, which nobody looked at")
            seen.add(order)
    return 1.0
'''

_TEST = '''\
"""What the verifier says of good and bad trajectories, and that it is fit for use in searches."""

from {name} import {name}

from counterplay import Message, Score, Step, ToolCall, Trajectory
from counterplay.testing import check_verifier


def played(*names: str) -> Trajectory:
    """An agent that calls these tools about order 17, one a step."""
    actions = [Message.assistant(None, [ToolCall("1", name, '{{"order_id": "17"}}')]) for name in names]
    return Trajectory((), (Message.user("Refund order 17."),), tuple(Step(action) for action in actions))


def test_what_it_says() -> None:
    assert {name}(played("look_up", "refund")) == 1.0
    assert {name}(played("refund")) == Score(0.0, "step 0 refunds order 17, which nobody looked at")


def test_it_is_fit_for_use() -> None:
    check_verifier({name}, [played("look_up", "refund"), played("refund")])
'''

_README = """\
# counterplay-{dashed}

A verifier for [counterplay](https://pypi.org/project/counterplay): `{name}.py` looks at a trajectory, or at a prefix of one, and returns a
number in [0, 1], a `Score` with a reason, or None where it has no opinion. Put your own rule in its place.

    pip install -e '.[test]'
    pytest
    counterplay verifiers list
    counterplay verifiers check {name} --store s.duckdb
    counterplay search --store s.duckdb --verifier outcome --verifier {name} ...

Its version is a digest of its code and changes with it; scores of two versions are never mixed.
"""


def files(name: str) -> dict[str, str]:
    """The files of the package by their names. Raises UserError where `name` can't name a package and a verifier of its own."""
    plain = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", plain) or keyword.iskeyword(plain) or plain in {*sys.stdlib_module_names, "counterplay"}:
        raise UserError(
            f"got name {name!r}", "a lower-case word that is no module of Python's own", "For example: counterplay verifiers new refunds"
        )
    taken = next((known for known in available() if known.name == plain), None)
    if taken is not None:
        raise UserError(f"got name {name!r}, which {taken.origin} has ({taken.target})", "a name of its own")
    words = {"name": plain, "dashed": plain.replace("_", "-")}
    return {
        "pyproject.toml": _PYPROJECT.format(**words),
        f"{plain}.py": _VERIFIER.format(**words),
        f"test_{plain}.py": _TEST.format(**words),
        "README.md": _README.format(**words),
    }


def write(name: str, folder: Path | None = None) -> Path:
    """Write the package into `folder` (None: `counterplay-NAME` here), which must be new or empty. Returns the folder."""
    made = files(name)
    folder = folder or Path(f"counterplay-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"got {folder}, which is not empty", "a folder that does not exist yet", "Give another with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in made.items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder
