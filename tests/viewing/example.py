"""A real store of the example trade, made by the command line: logs taken in, failed runs searched, datasets exported."""

import json
import subprocess
import sys

from counterplay.replay.recorder import Recorder
from tests.front.conftest import PARTS, logged

SEARCH = ("--search", "repair", "--policy", "parts:policy", "--environment", "parts:world", "--verifier", "outcome", "--verifier", "ledger")


def cli(folder, *arguments):
    """What a command prints as JSON, run in `folder`."""
    command = [sys.executable, "-m", "counterplay.cli", *map(str, arguments), "--store", "s.duckdb", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def make_example(folder, tasks=10):
    """Logs, trees, pairs and trajectories under `folder`; the store is s.duckdb."""
    (folder / "parts.py").write_text(PARTS)
    with Recorder(folder / "logs.jsonl", agent="bookkeeper") as recorder:
        for number in range(1, tasks + 1):
            recorder.write(logged(f"train-{number:04d}"), task=f"train-{number:04d}")
    cli(folder, "ingest", "logs.jsonl")
    found = cli(folder, "search", *SEARCH, "--trace-budget", "model_calls=60")
    cli(folder, "export", "dpo", "--out", "dpo", "--tau", 0.6)
    cli(folder, "export", "sft", "--out", "sft")
    return found
