"""What it costs to run a program in the sandbox, beside running it bare: the same program at every level that works on this machine.

Times are medians of wall time inside one process; the ratio is to a bare subprocess of this very run.
`python bench/sandbox.py [--quick] [--json]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from counterplay.verifiers.sandbox import available, run_sync

PROGRAM = [sys.executable, "-c", "print(sum(range(1000)))"]


def median_ms(once: Callable[[], object], times: int) -> float:
    once()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        once()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times = 5 if options.quick else 40
    rows = [("bare subprocess", median_ms(lambda: subprocess.run(PROGRAM, capture_output=True, check=True), times))]
    rows += [("sandbox, unisolated", median_ms(lambda: run_sync(PROGRAM, isolation="unisolated"), times))]
    rows += [(f"sandbox, {level}", median_ms(lambda level=level: run_sync(PROGRAM, isolation=level), times)) for level in available()]
    bare = rows[0][1]
    if options.json:
        print(json.dumps([{"way": way, "ms": round(ms, 1), "ratio": round(ms / bare, 2)} for way, ms in rows]))
        return
    print(f"{'way':24} {'ms':>8} {'ratio':>7}")
    for way, ms in rows:
        print(f"{way:24} {ms:8.1f} {ms / bare:7.2f}")


if __name__ == "__main__":
    main()
