"""How often the nearest recorded call says what the real system said, on real logs, with the tool's usual result beside it.

    python bench/simulate.py [--json]

Whole tasks are held out first, then single runs with the other attempts at their task in the log. `exact`, `fields` (F1 of JSON
leaves) and `usual` (exact, of the tool's most frequent result) are shares of the calls that were answered. The logs lie in
../shared/data beside the repository; where they are absent, there is nothing to measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from counterplay import simulating
from counterplay.connectors.tau2 import CONNECTOR as TAU2
from counterplay.connectors.tau_bench import CONNECTOR as TAU_BENCH
from counterplay.core.effects import Effect
from counterplay.core.nouns import Trace
from counterplay.examples.tau_bench_world import EFFECTS as AIRLINE

DATA = Path(__file__).parents[1] / "../shared/data"
LOOKS = ("get_", "check_", "run_", "can_")  # how tau2's telecom tools that only look are called


async def measure() -> list[dict[str, Any]]:
    airline, telecom = await logs()
    looks = {call.name for trace in telecom for step in trace.trajectory.steps for call in step.action.tool_calls}
    effects = {name: Effect("read" if name.startswith(LOOKS) else "write") for name in looks}
    rows = []
    for name, traces, declared, within_task in (
        ("tau-bench airline, tasks held out", airline, AIRLINE, False),
        ("tau-bench airline, runs held out", airline, AIRLINE, True),
        ("tau2 telecom, tasks held out", telecom, effects, False),
    ):
        for likeness in (1.0, 0.9):
            report = await simulating.check(traces, effects=declared, min_likeness=likeness, within_task=within_task)
            rows += [row(name, likeness, tool) for tool in (*report.tools, report.total)]
    return rows


async def logs() -> tuple[list[Trace], list[Trace]]:
    airline = TAU_BENCH.read(DATA / "tau-bench-airline-gpt4o/gpt-4o-airline.even_tasks.json")
    telecom = TAU2.read(DATA / "tau2-gpt-4.1-base/gpt-4.1_telecom_no-user_gpt-4.1_1trials.json")
    return [each async for each in airline if isinstance(each, Trace)], [each async for each in telecom if isinstance(each, Trace)]


def row(name: str, likeness: float, tool: simulating.ToolTruth) -> dict[str, Any]:
    shares = {"answered": tool.answered, "exact": tool.exact, "fields": tool.fields, "usual": tool.baseline}
    found = {key: {"value": share.value, "interval": share.interval} for key, share in shares.items()}
    return {"logs": name, "min_likeness": likeness, "tool": tool.tool or "all", "asked": tool.asked, **found}


def percent(share: dict[str, Any]) -> str:
    if share["value"] is None:
        return "-"
    spread = "" if share["interval"] is None else f" ({share['interval'][0]:.0%}-{share['interval'][1]:.0%})"
    return f"{share['value']:.0%}{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print rows for machines")
    as_json = parser.parse_args().json
    if not DATA.exists():
        print("[]" if as_json else "the real logs are not beside this repository: nothing to measure")
    elif as_json:
        print(json.dumps(asyncio.run(measure())))
    else:
        last = None
        for each in asyncio.run(measure()):
            if (each["logs"], each["min_likeness"]) != last:
                last = (each["logs"], each["min_likeness"])
                print(f"\n{each['logs']}, likeness of at least {each['min_likeness']}")
                print(f"{'tool':32} {'asked':>5}  {'answered':16} {'exact':16} {'fields':16} usual")
            shares = [percent(each[key]) for key in ("answered", "exact", "fields", "usual")]
            print(f"{each['tool']:32} {each['asked']:5}  {shares[0]:16} {shares[1]:16} {shares[2]:16} {shares[3]}")
