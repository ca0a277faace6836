"""One budget over many failed traces: what dividing it by expected gain brings, against equal parts.

    python bench/budget_split.py [--tasks 200] [--repeats 10] [--json]

Tasks have success rates of their own, drawn from a Beta distribution, and each has a number of logged runs of 5 to 50 calls; one failed
run of every task that has one is searched. A line of play costs what the logged run took and succeeds at the task's rate. `found` is the
expected share of the searched traces for which some line succeeds; `gain` counts each by how often the agent fails its task. The budget is
in lines of mean length a trace. All through the library's own `divide`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from counterplay.core.nouns import Message, Outcome, Source, Step, Trace, Trajectory
from counterplay.core.store import Store
from counterplay.dividing import divide
from counterplay.plan import Plan

TASKS = {"any": (1.0, 1.0), "most are hard": (0.3, 0.9), "hard or easy": (0.3, 0.3)}
LOGGED, LINES = (1, 4, 16), (0.25, 1, 4)
SAID, SOURCE, LONGEST = Step(Message.assistant("...")), Source("bench"), 50
RUNS = [Trajectory((), (), (SAID,) * length) for length in range(LONGEST + 1)]


def world(generator: random.Random, shape: tuple[float, float], tasks: int, logged: int) -> tuple[list[Trace], dict[str, float]]:
    """Logged runs of so many tasks, and the success rate of each task."""
    rates = {f"task {i}": generator.betavariate(*shape) for i in range(tasks)}
    traces = []
    for task, rate in rates.items():
        length = generator.randint(5, LONGEST)
        for i in range(logged):
            won = generator.random() < rate
            traces.append(Trace(f"{task}/{i}", RUNS[length], SOURCE, task=task, outcome=Outcome(float(won), won)))
    return traces, rates


def compare(seed: str, shape: tuple[float, float], tasks: int, logged: int) -> dict[tuple[float, str], tuple[float, float]]:
    """(found, gain) by budget and split."""
    traces, rates = world(random.Random(seed), shape, tasks, logged)
    failed = list({trace.task: trace for trace in reversed(traces) if not trace.outcome.success}.values())
    calls = sum(len(trace.trajectory) for trace in failed)
    measured = {}
    with Store.open(":memory:") as store:
        store.ingest(Trace(t.id, RUNS[1], SOURCE, task=t.task, outcome=t.outcome) for t in traces)
        for lines in LINES:
            for split in ("even", "gain"):
                budgets = divide(store, failed, Plan(budget=f"model_calls={int(lines * calls)}", split=split)).budgets
                found = gain = 0.0
                for trace in failed:
                    made = budgets.get(trace.id)
                    played = int((made().limits.model_calls or 0) // len(trace.trajectory)) if made is not None else 0
                    rate = rates[trace.task or ""]
                    found += 1 - (1 - rate) ** played
                    gain += (1 - rate) * (1 - (1 - rate) ** played)
                measured[lines, split] = (found / len(failed), gain / len(failed))
    return measured


def rows(tasks: int, repeats: int) -> list[dict[str, Any]]:
    told = []
    for name, shape in TASKS.items():
        for logged in LOGGED:
            each = [compare(f"{name} {logged} {seed}", shape, tasks, logged) for seed in range(repeats)]
            for lines in LINES:
                row: dict[str, Any] = {"tasks": name, "logged": logged, "lines": lines}
                for split in ("even", "gain"):
                    found, gain = zip(*(one[lines, split] for one in each), strict=True)
                    row[split] = {"found": statistics.fmean(found), "gain": statistics.fmean(gain)}
                wins = sum(one[lines, "gain"][1] >= one[lines, "even"][1] for one in each)
                told.append({**row, "better": wins / repeats})
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    told = rows(given.tasks, given.repeats)
    if given.json:
        print(json.dumps({"rows": told}))
        return
    print(f"{given.tasks} tasks, {given.repeats} repeats: share of searched traces with a success, weighted gain, even against gain")
    print(f"{'tasks':>14}{'logged':>8}{'lines':>7}{'found even':>12}{'gain':>7}{'gain even':>12}{'gain':>7}{'better in':>11}")
    for row in told:
        even, gain = row["even"], row["gain"]
        shown = f"{even['found']:12.3f}{gain['found']:7.3f}{even['gain']:12.3f}{gain['gain']:7.3f}{row['better']:11.0%}"
        print(f"{row['tasks']:>14}{row['logged']:>8}{row['lines']:>7g}{shown}")


if __name__ == "__main__":
    main()
