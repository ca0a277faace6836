"""Answers a second that the adaptive limit gets from a server, beside every fixed limit; nobody tells it what the server bears.

The real router and limits, in virtual time, so that the figures are the same on any machine. Servers: one that works at 40 requests at
once and turns more away (429); one that works at 16, lets 24 more wait and turns away the rest, with and without `Retry-After`; and one
that gets slower the more it has (batching, twice as slow at 32) until it thrashes (above 48). `python bench/adaptive.py [--json]`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.replay.virtual import Batching, Limited, adaptive, answers, fixed

FIXED = (4, 8, 16, 24, 32, 40, 48, 64, 128)
SERVERS = {
    "429 above 40": lambda: Limited(40, 40, 2.0),
    "16 slots, 429 above 40": lambda: Limited(16, 40, 2.0),
    "16 slots, 429 above 40, `Retry-After: 2`": lambda: Limited(16, 40, 2.0, headers={"Retry-After": "2"}),
    "batching, thrashes above 48": lambda: Batching(1, 1, 2.0),
}


def compare(name: str, seconds: float) -> dict[str, Any]:
    rows = {limit: answers(SERVERS[name], fixed(limit), seconds=seconds) for limit in FIXED}
    best = max(rows, key=lambda limit: rows[limit]["settled"])
    found = answers(SERVERS[name], adaptive, seconds=seconds)
    ratios = {kind: found[kind] / rows[best][kind] for kind in ("settled", "whole")}
    return {"server": name, "fixed": rows, "best_fixed": best, "adaptive": found, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="of virtual time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [compare(name, options.seconds) for name in SERVERS]
    if options.json:
        print(json.dumps(found))
        return
    print("| server | best fixed limit | adaptive: of the best | with the search for it | limit 8 | 16 | 64 | 128 | turned away |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in found:
        best = row["fixed"][row["best_fixed"]]["settled"]
        others = " | ".join(f"{row['fixed'][limit]['settled'] / best:.2f}" for limit in (8, 16, 64, 128))
        ratio, away = row["ratio"], row["adaptive"]["turned_away"]
        print(f"| {row['server']} | {row['best_fixed']} | {ratio['settled']:.2f} | {ratio['whole']:.2f} | {others} | {away:.1%} |")


if __name__ == "__main__":
    main()
