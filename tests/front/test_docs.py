"""Docs are tests: every fenced Python block runs, every command exists, every bench the README names is there."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from counterplay.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    for block in fenced(page, "python"):
        exec(compile(block, page.name, "exec"), {"__name__": "docs"})


def test_the_readme_s_verifier_and_world_do_what_they_say():
    from counterplay.core.nouns import Message, ToolCall
    from counterplay.replay.live import execute, initial

    scope = {"__name__": "docs"}
    for block in fenced(ROOT / "README.md", "python"):
        exec(compile(block, "README", "exec"), scope)
    state, world = initial(lambda: scope["Shop"]("refund order 17")), scope["Shop"]("refund order 17")
    refund = Message.assistant(None, [ToolCall("1", "refund", '{"order_id":"17"}')])
    hasty = state.extend(execute(world, refund))
    assert hasty.steps[0].observations[0].content_text == "done"
    assert scope["careful"](hasty).value == 0.0
    look = Message.assistant(None, [ToolCall("0", "look_up", '{"order_id":"17"}')])
    world = scope["Shop"]("refund order 17")
    careful = state.extend(execute(world, look)).extend(execute(world, refund))
    assert scope["careful"](careful) == 1.0
    assert careful.steps[-1].reward == 1.0


def test_every_command_in_the_docs_exists_with_its_options():
    root = get_command(app)
    seen = 0
    for page in PAGES:
        for block in fenced(page, "console"):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] != ["counterplay"]:
                    continue
                command, rest = root, words[1:]
                while hasattr(command, "commands"):
                    command, rest = command.commands[rest[0]], rest[1:]
                known = {name for parameter in command.params for name in parameter.opts}
                assert {word for word in rest if word.startswith("--")} <= known, line
                seen += 1
    assert seen >= 8


def test_files_the_docs_link_to_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for script in re.findall(r"`(\w+\.py)`", (ROOT / "README.md").read_text()):
        assert (ROOT / "bench" / script).is_file(), script
