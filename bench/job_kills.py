"""A job killed (SIGKILL) at random moments and started again each time, beside one that nobody disturbed.

The model is a scripted one on loopback that keeps account of what it was asked and answered. Checked: the datasets are the same bytes; no
request comes again whose answer was in the journal when its process began; no unit is charged more than its share, nor all together more
than the budget. `python bench/job_kills.py [--kills 50] [--tasks 12] [--processes 0] [--seed 0] [--json]`
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.jobs import killing
from tests.jobs.batch import digests
from tests.jobs.killing import Server


def undisturbed(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    with Server(given.delay_s) as server:
        make(folder, server, given)
        began_s = time.monotonic()
        code, _, err = killing.finish(folder, timeout_s=600)
        assert code == 0, err
        return {"datasets": digests(folder / "out"), "asked": server.asked, "seconds": time.monotonic() - began_s}


def make(folder: Path, server: Server, given: argparse.Namespace) -> None:
    file = killing.make(folder, server, tasks=given.tasks, calls=given.calls)
    file.write_text(file.read_text().replace("[engine]", f"[engine]\nprocesses = {given.processes}"))


def killed(folder: Path, whole: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Kill it so often, at moments of which most are while it asks, some before and some while it writes."""
    rng, store, kills, early = random.Random(given.seed), folder / "s.duckdb", 0, 0
    with Server(given.delay_s, whole["asked"]) as server:
        make(folder, server, given)
        while kills < given.kills:
            left = (whole["asked"] - server.asked).total() // (given.kills - kills)
            at_once = rng.random() < 0.2 or left < 2
            after = None if at_once else rng.randrange(1, 1 + left)
            if not killing.kill_after(folder, rng.uniform(0.3, 4.0) if at_once else 60.0, server, requests=after):
                break
            kills += 1
            early += at_once
            server.begins(store)
        code, out, err = killing.finish(folder, "--json", timeout_s=600)
        assert code == 0, err
        charged, shares, states = killing.used(store)
        return {
            "kills": kills,
            "of them by the clock": early,
            "datasets": digests(folder / "out"),
            "asked": server.asked,
            "again": server.again,
            "lost": server.lost,
            "charged": charged,
            "shares": shares,
            "budget": killing.total(folder),
            "states": dict(states),
            "report": json.loads(out),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = undisturbed(Path(folder) / "whole", given)
        cut = killed(Path(folder) / "cut", whole, given)
    once, times = sum(whole["asked"].values()), sum(cut["asked"].values())
    result = {
        "kills": cut["kills"],
        "by the clock": cut["of them by the clock"],
        "units": sum(cut["states"].values()),
        "states": cut["states"],
        "datasets the same bytes": cut["datasets"] == whole["datasets"] and bool(whole["datasets"]),
        "files": len(whole["datasets"]),
        "asked, undisturbed": once,
        "asked, killed": times,
        "asked again though journalled": sum(cut["again"].values()),
        "asked again, not journalled when killed": times - once - sum(cut["again"].values()),
        "of them answered when killed": cut["lost"],
        "charged": cut["charged"]["model_calls"],
        "shares": cut["shares"]["model_calls"],
        "budget": cut["budget"]["model_calls"],
    }
    good = result["datasets the same bytes"] and not cut["again"] and result["charged"] <= result["shares"] <= result["budget"]
    if given.json:
        print(json.dumps({**result, "good": good}))
    else:
        for name, value in result.items():
            print(f"{name:38} {value}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
