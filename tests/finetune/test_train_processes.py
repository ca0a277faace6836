"""Two processes on CPU, as a launcher starts them: the rows of each step are shared out, and the weights are those of one process."""

import json
import os
import subprocess
import sys

import pytest

from counterplay.finetune.batches import LengthBatches
from counterplay.finetune.train import train_dpo
from counterplay.finetune.training import processes
from counterplay.finetune.write import write_dataset
from tests.finetune.test_train_pairs import rows
from tests.finetune.trainings import ALL, same_weights


def launch(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "counterplay", "train"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("rows", "batch", "micro"), [(8, 4, None), (9, 4, None), (9, 4, 1), (11, 8, 2), (3, 8, None)])
def test_rows_that_several_processes_repeat_are_counted(monkeypatch, rows, batch, micro):
    """As many as accelerate's own shares of an epoch hold beyond its rows."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    monkeypatch.setenv("WORLD_SIZE", "2")
    each, _ = processes.rows_each(batch, micro)
    order = LengthBatches([1] * rows, batch, 0)
    taken = [row for process in range(2) for part in BatchSamplerShard(BatchSampler(order, each, False), 2, process) for row in part]
    assert set(taken) == set(range(rows))
    assert processes.repeated(rows, batch, micro) == len(taken) - rows
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes.repeated(rows, batch, micro) == 0


def test_two_processes_train_as_one_and_one_of_them_reports(model_dir, kit, tmp_path):
    write_dataset(rows(kit, 8), tmp_path / "data", split=ALL)
    straight = train_dpo(model_dir, tmp_path / "data", tmp_path / "one", steps=3, batch_size=4, learning_rate=1e-2)
    options = ("--steps", 3, "--batch-size", 4, "--learning-rate", 1e-2, "--checkpoint-steps", 2, "--json")
    printed = launch("dpo", "--model", model_dir, "--data", tmp_path / "data", "--out", tmp_path / "two", *options)
    (line,) = printed.splitlines()
    assert (json.loads(line)["steps"], json.loads(line)["repeated"], straight.repeated) == (3, 0, 0)
    assert same_weights(tmp_path / "one", tmp_path / "two", atol=1e-5)
    metrics = [json.loads(text) for text in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [metric["step"] for metric in metrics] == [1, 2, 3]
    assert abs(metrics[-1]["loss"] - straight.loss) < 1e-4
    assert not (tmp_path / "two" / "checkpoints" / "rows").exists()
