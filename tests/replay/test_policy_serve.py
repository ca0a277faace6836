"""`transformers serve`, a real OpenAI-compatible server, as the policy: it ignores `n` and samples only when told how."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from counterplay.core.nouns import Usage
from counterplay.replay.openai_policy import OpenAIPolicy, sampling_for_transformers_serve
from counterplay.replay.transformers_policy import TransformersPolicy

LEDGER = Path(__file__).parents[2] / "examples" / "ledger" / "model"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The base URL of a server of the example's model."""
    pytest.importorskip("uvicorn", reason="needs the extra counterplay[serve]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+")
    program = [
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        str(LEDGER),
        "--device",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(program, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 90
        while not _answers(port):
            log.seek(0)
            assert process.poll() is None, log.read()[-2000:]
            assert time.monotonic() < deadline, log.read()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait(); log.seek(0); print(log.read()[-3500:])
        log.close()



def _answers(port):
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


def start():
    from counterplay.core.nouns import Trajectory
    from counterplay.examples.ledger import Ledger, tasks

    world = Ledger(next(iter(tasks("train", 1))))
    return Trajectory(tuple(world.tools), tuple(world.prompt))


async def test_greedy_answers_equal_the_local_policy_s(server):
    served = OpenAIPolicy(str(LEDGER), base_url=server, temperature=0, max_tokens=64)
    local = TransformersPolicy(LEDGER, temperature=0, max_new_tokens=64)
    state = start()
    for _ in range(3):
        (theirs,), (ours,) = await served.propose(state, 1), await local.propose(state, 1)
        assert theirs.action.signature == ours.action.signature
        assert theirs.action.tool_calls
        assert theirs.usage.tokens == ours.usage.tokens
        state = _played(state, ours.action)
    await served.aclose()
    local.close()


def _played(state, action):
    from counterplay.core.nouns import Message, Step

    return state.extend(Step(action, tuple(Message.tool('{"ok": true}', call.id) for call in action.tool_calls)))


async def test_samples_differ_once_the_server_is_told_to_sample(server):
    hot = OpenAIPolicy(
        str(LEDGER), base_url=server, temperature=None, max_tokens=24, extra_body=sampling_for_transformers_serve(2.0, max_new_tokens=24)
    )
    proposals = await hot.propose(start(), 6)
    assert len(proposals) == 6
    assert len({p.action.signature for p in proposals}) > 1
    assert hot.tally.short == 1
    assert hot.tally.calls == 6
    assert sum((p.usage for p in proposals), Usage()).tokens == hot.tally.input_tokens + hot.tally.output_tokens
    await hot.aclose()
