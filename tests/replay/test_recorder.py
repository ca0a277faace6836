"""The recorder: whole lines, torn tails, resume, real provenance."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Message, Proposal, State, Trajectory
from counterplay.replay.live import LiveEnvironment, initial
from counterplay.replay.recorder import Recorder, play, record
from tests.replay.shelf import Fixed, Shelf, SnapshotShelf, act, walk

WIN = (act(("put", {"name": "a", "n": 4})), act("total"), act("finish"))
SUFFIXES = (".jsonl", ".jsonl.gz")


def lines(path: Path) -> list[dict]:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


async def recording(path: Path, tasks: list[str], **options) -> object:
    with Recorder(path, agent="shelf", session="s1") as recorder:
        return await record(tasks, SnapshotShelf, Fixed(*WIN), recorder, **options)


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_lines_hold_the_whole_trajectory(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    done = await recording(path, ["t1", "t2"])
    assert (done.written, done.skipped) == (2, 0)
    (first, second) = sorted(lines(path), key=lambda line: line["task"])
    assert [m["role"] for m in first["messages"]] == ["system", "user"] + ["assistant", "tool"] * 3
    assert first["prompt_messages"] == 2
    assert first["outcome"] == {"reward": 1.0, "success": True, "source": "environment", "details": {}}
    assert (first["terminated"], first["truncated"]) == (True, False)
    assert (first["agent"], first["session"], first["task"]) == ("shelf", "s1", "t1")
    assert first["metadata"]["effects"]["put"] == "write(item:{name})"
    assert [tool["function"]["name"] for tool in first["tools"]][:2] == ["get", "total"]
    assert [call["usage"] for call in first["calls"]] == [{"prompt_tokens": 10 + i, "completion_tokens": 3} for i in range(3)]
    assert all(call["model"] == "fixed" and call["finish_reason"] == "tool_calls" for call in first["calls"])
    assert all(call["latency_s"] >= 0 and call["started_at_us"] > 1_700_000_000_000_000 for call in first["calls"])
    assert first["id"] != second["id"]


async def test_messages_are_the_stored_bytes(tmp_path):
    wire = '{"content":"ü 1.0e5","role":"user","extra":1.50}'
    pretty = Message('{\n "role": "user",\n "content": "x"\n}')
    with Recorder(tmp_path / "r.jsonl") as recorder:
        recorder.write(Trajectory(prompt=(Message(wire), pretty)))
    text = (tmp_path / "r.jsonl").read_text(encoding="utf-8")
    assert wire in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_every_tear_is_mended_and_only_what_was_torn_is_played_again(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    await recording(path, ["t1", "t2"], concurrency=1)
    whole = path.read_bytes()
    with Recorder(path, agent="shelf", session="s1") as recorder:
        assert recorder.recorded == {("t1", 0), ("t2", 0)}
    first = next(end for end in range(1, len(whole)) if _complete(whole[:end], suffix))
    for cut in {first + 1, first + 5, first + 30, (first + len(whole)) // 2, len(whole) - 9, len(whole) - 2, len(whole) - 1}:
        path.write_bytes(whole[:cut])
        again = await recording(path, ["t1", "t2", "t3"], concurrency=1)
        assert again.written in {1, 2}
        assert [line["task"] for line in lines(path)] == ["t1", "t2", "t3"], cut


def _complete(data: bytes, suffix: str) -> bool:
    if suffix == ".jsonl":
        return data.endswith(b"\n")
    try:
        return gzip.decompress(data).endswith(b"\n")
    except (EOFError, OSError):
        return False


@pytest.mark.parametrize(
    "content", [b"hello", b'{"a": 1}\n', b"\x1f\x8b\x08nonsense", b'{"id": 3}', b"[1, 2]\n", gzip.compress(b"text"), b"\xff\xfe\x00"]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, content, suffix):
    path = tmp_path / f"r{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a recording"), Recorder(path):
        pass
    assert path.read_bytes() == content


async def test_resume_plays_only_what_is_missing(tmp_path):
    path = tmp_path / "r.jsonl"
    await recording(path, ["t1", "t2"])
    Shelf.executed.clear()
    again = await recording(path, ["t1", "t2", "t3"], attempts=2)
    assert (again.written, again.skipped) == (4, 2)
    assert Shelf.executed["put"] == 4
    assert len(lines(path)) == 6
    assert len({line["id"] for line in lines(path)}) == 6


async def test_attempts_draw_apart_and_the_recording_is_the_same_at_any_concurrency(tmp_path):
    policy = Fixed(*WIN)
    for concurrency in (1, 8):
        with Recorder(tmp_path / f"{concurrency}.jsonl") as recorder:
            await record(["t1", "t2"], SnapshotShelf, policy, recorder, attempts=3, concurrency=concurrency)
    assert sorted(policy.draws) == [0] * 12 + [1] * 12 + [2] * 12
    one, many = (sorted(line["id"] for line in lines(tmp_path / f"{c}.jsonl")) for c in (1, 8))
    assert one == many


async def test_tasks_are_played_at_once_so_that_a_model_can_batch(tmp_path):
    class Waiting(Fixed):
        here, most = 0, 0

        async def propose(self, state: State, n: int) -> list[Proposal]:
            self.here += 1
            self.most = max(self.most, self.here)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.here -= 1
            return await super().propose(state, n)

    policy = Waiting(*WIN)
    with Recorder(tmp_path / "r.jsonl") as recorder:
        await record([f"t{i}" for i in range(10)], SnapshotShelf, policy, recorder, concurrency=4)
    assert policy.most == 4


async def test_a_policy_that_gives_up_is_named_and_its_task_is_not_in_the_file(tmp_path):
    with Recorder(tmp_path / "r.jsonl") as recorder:
        done = await record(["t1"], Shelf, Fixed(act("total")), recorder)
    assert done.written == 0
    assert "no action" in done.failed["t1"]
    assert lines(tmp_path / "r.jsonl") == []


async def test_the_step_limit_truncates_and_the_reward_is_read_there(tmp_path):
    with Recorder(tmp_path / "r.jsonl") as recorder:
        await record(["t1"], Shelf, Fixed(*[act("total")] * 9), recorder, max_steps=4)
    (line,) = lines(tmp_path / "r.jsonl")
    assert (line["terminated"], line["truncated"], len(line["calls"])) == (False, True, 4)
    assert line["outcome"]["reward"] == 0.0
    assert line["outcome"]["success"] is False


async def test_a_crash_of_the_world_is_recorded_as_such(tmp_path):
    with Recorder(tmp_path / "r.jsonl") as recorder:
        await record(["t1"], Shelf, Fixed(act("crash")), recorder)
    (line,) = lines(tmp_path / "r.jsonl")
    assert line["metadata"]["error"] == "RuntimeError: the shelf fell down"
    assert line["outcome"]["reward"] is None


async def test_play_goes_on_from_any_state_and_counts_only_its_own_calls():
    environment = LiveEnvironment(SnapshotShelf)
    state = await walk(environment, initial(SnapshotShelf), WIN[0])
    played = await play(state, Fixed(*WIN), environment)
    assert [call.step for call in played.calls] == [1, 2]
    assert played.trajectory.steps[-1].reward == 1.0
    with pytest.raises(PolicyError):
        await play(state, Fixed(), environment)


def test_unsampled_steps_are_named(tmp_path):
    from dataclasses import replace

    from counterplay.core.nouns import Step

    with Recorder(tmp_path / "r.jsonl") as recorder:
        recorder.write(Trajectory(steps=(Step(act("total")), replace(Step(act("get")), sampled=False))))
    assert lines(tmp_path / "r.jsonl")[0]["metadata"]["unsampled_steps"] == [1]


def test_writing_to_a_closed_recording_is_an_error(tmp_path):
    with pytest.raises(UserError, match="closed"):
        Recorder(tmp_path / "r.jsonl").write(Trajectory())


CHILD = """
import asyncio, os, signal, sys
from counterplay.replay.recorder import Recorder, record
from tests.replay.shelf import Fixed, SnapshotShelf, act

class Dying(Fixed):
    async def propose(self, state, n):
        if self.asked == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0)
        return await super().propose(state, n)

policy = Dying(act(("put", {"name": "a", "n": 4})), act("total"), act("finish"))
with Recorder(sys.argv[1], agent="shelf", session="s1") as recorder:
    asyncio.run(record([sys.argv[3] + str(i) for i in range(20)], SnapshotShelf, policy, recorder, concurrency=3))
"""


def start(path: Path, die_at: int, prefix: str = "t") -> subprocess.Popen:
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(die_at), prefix], cwd=root)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kill_9_loses_only_what_had_not_finished(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    assert start(path, die_at=31).wait() == -signal.SIGKILL
    before = lines(path)
    assert 5 < len(before) < 20
    assert start(path, die_at=-1).wait() == 0
    after = lines(path)
    assert after[: len(before)] == before
    assert sorted(line["task"] for line in after) == sorted(f"t{i}" for i in range(20))


def test_two_processes_can_write_one_recording(tmp_path):
    path = tmp_path / "r.jsonl"
    children = [start(path, -1, prefix) for prefix in "ab"]
    assert [child.wait() for child in children] == [0, 0]
    assert len({line["task"] for line in lines(path)}) == 40
