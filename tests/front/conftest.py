"""The command line as a person has it: a process of its own, and a folder with an agent's logs and parts in it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from counterplay.core.nouns import Message, steps_of
from counterplay.examples.ledger.demonstrations import demonstrate
from counterplay.examples.ledger.world import Ledger
from counterplay.replay.recorder import Recorder

PARTS = '''
"""A policy of a few words: it asks a flawed bookkeeper's demonstration what comes next, and notes every call it really gets."""
import os, time
from random import Random

from counterplay.core.nouns import Message, Proposal, ToolCall, Usage
from counterplay.core.protocols import first_draw
from counterplay.examples.ledger.demonstrations import SKILL, demonstrate
from counterplay.examples.ledger.tasks import make_task
import json


TASKS = {make_task(f"train-{i:04d}").number: f"train-{i:04d}" for i in range(1, 41)}


class Bookkeeper:
    fingerprint = "bookkeeper-1"

    async def propose(self, state, n):
        with open(os.environ.get("CALLS", os.devnull), "a") as calls:
            calls.write(f"{state.key} {first_draw.get()} {n}\\n")
        time.sleep(float(os.environ.get("DELAY_S", "0")))
        done = sum(message.role == "assistant" for message in state.messages)
        return [self.one(state, done, first_draw.get() + i) for i in range(n)]

    def one(self, state, done, draw):
        rng = Random(f"{state.key}/{draw}")
        names = [c.signature for m in state.messages for c in m.tool_calls]
        task = TASKS[state.prompt[-1].content_text.split()[2]]
        for attempt in range(200):
            messages = demonstrate(task, Random(f"{state.key}/{draw}/{attempt}"), SKILL).messages
            actions = [m for m in messages if m["role"] == "assistant"]
            made = [f"{a['tool_calls'][0]['function']['name']}" for a in actions[:done]]
            if made == [s.split("(")[0] for s in names] and done < len(actions):
                call = actions[done]["tool_calls"][0]["function"]
                text = json.dumps(call["arguments"], separators=(",", ":"))
                action = Message.assistant(None, [ToolCall(f"call_{done}", call["name"], text)])
                return Proposal(action, usage=Usage(100, 10))
        close = Message.assistant(None, [ToolCall(f"call_{done}", "close_period", "{}")])
        return Proposal(close, usage=Usage(100, 10))


policy = Bookkeeper()


def raising(trajectory):
    raise KeyError("no such account")


def world(task):
    from counterplay.examples.ledger.world import Ledger
    return Ledger(task)
'''


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path


@pytest.fixture
def cli(folder):
    def run(*arguments, env=None, timeout=120):
        command = [sys.executable, "-m", "counterplay.cli", *map(str, arguments)]
        import os

        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **(env or {})}
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def logged(task, seed=0):
    """A flawed bookkeeper's run as a recorded trajectory with its reward."""
    demonstration = demonstrate(task, Random(f"{task}/{seed}"))
    messages = []
    for fields in demonstration.messages:
        for call in fields.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], separators=(",", ":"))
        messages.append(Message.from_openai(fields))
    prompt, steps = steps_of(messages)
    from dataclasses import replace

    from counterplay.core.nouns import Trajectory

    last = replace(steps[-1], terminated=True, reward=demonstration.reward)
    return Trajectory(tuple(Ledger.tools), prompt, (*steps[:-1], last))


@pytest.fixture
def logs(folder):
    """Forty recorded runs of the example agent's trade, most of them flawed."""
    path = folder / "logs.jsonl"
    with Recorder(path, agent="bookkeeper") as recorder:
        for i in range(1, 41):
            task = f"train-{i:04d}"
            recorder.write(logged(task), task=task)
    return path


@pytest.fixture
def store(cli, logs, folder):
    assert cli("ingest", logs, "--store", "s.duckdb").code == 0
    return Path("s.duckdb")
