"""Let the example's model work through its training tasks and record all it does: how `logs.jsonl.gz` was made.

Run it as `python -m counterplay.examples.ledger.record_logs --out logs.jsonl.gz`.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from counterplay.examples.ledger import Ledger, tasks
from counterplay.replay.recorder import Recorder, Recording, record
from counterplay.replay.transformers_policy import TransformersPolicy

HERE = Path(__file__).parent
MAX_STEPS = 40


def record_logs(
    out: Path, *, model: Path = HERE / "model", split: str = "train", n: int = 400, temperature: float = 0.4, seed: int = 0
) -> Recording:
    """Record one attempt at each of the first `n` tasks of a split, sampled at `temperature`. Tasks already in `out` are kept."""
    policy = TransformersPolicy(model, temperature=temperature, max_new_tokens=64, seed=seed)
    params = {"temperature": temperature, "seed": seed, "max_tokens": 64}
    try:
        with Recorder(out, agent="ledger") as recorder:
            return asyncio.run(record(tasks(split, n), Ledger, policy, recorder, max_steps=MAX_STEPS, concurrency=64, params=params))
    finally:
        policy.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "logs.jsonl.gz")
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.4)
    options = parser.parse_args()
    done = record_logs(options.out, model=options.model, n=options.tasks, temperature=options.temperature)
    print(f"{done.written} written, {done.skipped} there already, {len(done.failed)} failed, in {options.out}")


if __name__ == "__main__":
    main()
