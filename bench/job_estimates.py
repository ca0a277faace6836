"""What `--dry-run` says a job over the example agent's logs will use, beside what it then uses.

`python bench/job_estimates.py [--units 40] [--json]`
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from counterplay.jobs import dry, running
from counterplay.jobs.spec import Job

EXAMPLE = Path(__file__).parents[1] / "examples" / "ledger"
SEARCHES: dict[str, dict[str, Any]] = {
    "repair": {"algorithm": "repair", "options": {"n": 6}},
    "repair, two rollouts": {"algorithm": "repair", "options": {"n": 8, "rollouts_per_alternative": 2}},
    "fork_best_of_n": {"algorithm": "fork_best_of_n", "options": {"n": 4}},
    "fork_best_of_n, tool_error": {"algorithm": "fork_best_of_n", "options": {"n": 4}, "fork": "tool_error"},
    "best_of_n from the start": {"algorithm": "best_of_n", "options": {"n": 4}, "fork": "start"},
}
KINDS = ("model_calls", "tokens", "tool_calls")


def job(folder: Path, search: dict[str, Any], units: int) -> Job:
    return Job.read(
        {
            "job": {"name": "estimate", "store": str(folder / "s.duckdb")},
            "source": [{"path": str(EXAMPLE / "logs.jsonl.gz")}],
            "select": {"which": "failed", "limit": units},
            "policy": {"spec": f"transformers:{EXAMPLE / 'model'}", "max_tokens": 64},
            "environment": {"spec": "counterplay.examples.ledger:Ledger"},
            "verifiers": ["outcome", "ledger"],
            "search": {**search, "max_steps": 40},
            "engine": {"at_once": 40},
            "output": {"folder": str(folder / "out")},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for name, search in SEARCHES.items():
        with tempfile.TemporaryDirectory() as folder:
            asked = job(Path(folder), search, given.units)
            said = dry.estimated(asked)
            used = running.run(asked).used
        for kind in KINDS:
            foreseen = said.of(kind)
            if foreseen is not None:
                rows.append((name, kind, round(foreseen.amount), round(used.get(kind, 0)), round(foreseen.amount / used[kind], 2)))
    if given.json:
        print(json.dumps([dict(zip(("search", "kind", "estimated", "used", "ratio"), row, strict=True)) for row in rows]))
        return
    print(f"{'search':28} {'kind':12} {'estimated':>10} {'used':>8} {'ratio':>6}")
    for row in rows:
        print(f"{row[0]:28} {row[1]:12} {row[2]:>10} {row[3]:>8} {row[4]:>6}")


if __name__ == "__main__":
    main()
