"""Agents that would not end are left behind: see `left_behind.py`, which needs a process of its own."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_agents_that_would_not_end_are_left_behind():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "left_behind.py")]
    ended = subprocess.run(command, cwd=HERE.parents[2], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "4 passed" in ended.stdout
