"""What the kinds of SFT rows make of the same runs, and whether calls that were not needed are told from those that were.

Rows: 100 airline runs of `../shared/data` (49 successes), stitched by task where a kind needs trees. Ablations: lines with planted calls
of which it is known whether they were needed; beside the answer of re-execution alone, which misses that a later action was written
with what the call had told. `python bench/sft_rows.py [--quick] [--json]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from counterplay.core.nouns import Message, Outcome, Source, Step, ToolCall, Trace, Trajectory, steps_of
from counterplay.finetune.ablation import ablated, ablations
from counterplay.finetune.balance import balance
from counterplay.finetune.improved import improved_rows
from counterplay.finetune.recovery import recovery_rows
from counterplay.finetune.rows import Harvest, SFTRow, SourcedTree
from counterplay.finetune.trajectories import logged_rows
from counterplay.finetune.variants import distill_rows, per_call_rows, shortest_rows
from counterplay.finetune.weights import advantage_weighted
from counterplay.search.stitch import stitch

LOGS = Path(__file__).parents[1] / "../shared/data/tau-bench-airline-gpt4o/gpt-4o-airline.even_tasks.json"
PLANTED = ("used", "unused", "write", "idle")

# --- rows -------------------------------------------------------------------------------------------------------------------------------


def logged() -> list[Trace]:
    """Every logged run, its reward on its last step as well."""
    traces = []
    for found in json.loads(LOGS.read_text(encoding="utf-8")):
        prompt, steps = steps_of([Message.from_openai(fields) for fields in found["traj"]])
        line = Trajectory((), prompt, (*steps[:-1], replace(steps[-1], terminated=True, reward=float(found["reward"]))))
        name, task = f"{found['task_id']}-{found['trial']}", str(found["task_id"])
        traces.append(Trace(name, line, Source("tau-bench"), task=task, outcome=Outcome(found["reward"])))
    return traces


def kinds() -> list[dict[str, Any]]:
    traces = logged()
    tasks: dict[str | None, list[Trace]] = defaultdict(list)
    for trace in traces:
        tasks[trace.task].append(trace)
    trees = [
        SourcedTree(tree, f"stitch-{trace.id}", task, 0, (trace,))
        for task, mine in tasks.items()
        for tree, trace in zip(stitch([one.trajectory for one in mine]), mine, strict=True)
    ]
    whole = logged_rows(traces)
    made: dict[str, Harvest[SFTRow]] = {
        "whole": whole,
        "per-call": per_call_rows(traces=traces),
        "improved, tau 0.8": improved_rows(trees, tau=0.8),
        "recovery": recovery_rows(traces=traces),
        "shortest": shortest_rows(traces=traces),
        "distill": distill_rows(traces=traces),
        "whole, by advantage": advantage_weighted(whole, [], traces),
    }
    return [
        {
            "kind": name,
            "rows": len(harvest.rows),
            "messages": sum(len(row.messages) for row in harvest.rows),
            "trained": sum(sum(row.trained) for row in harvest.rows),
            "tasks": len({row.lineage.task for row in harvest.rows}),
            "effective_tasks": balance(harvest.rows).task.effective,
        }
        for name, harvest in made.items()
    ]


# --- ablations --------------------------------------------------------------------------------------------------------------------------


class World:
    """`used` and `unused` look something up and tell a code, `write` is wanted, `idle` does nothing; `pay` wants the code of `used`."""

    def __init__(self, codes: dict[str, str], wanted: int) -> None:
        self.codes, self.wanted = codes, wanted

    async def step(self, state: Trajectory, action: Message) -> Step:
        if not action.tool_calls:
            done = [call for step in state.steps for call in step.action.tool_calls]
            writes = sum(call.name == "write" for call in done)
            paid = any(call.name == "pay" and (call.args or {}).get("code") == self.codes["used"] for call in done)
            return Step(action, terminated=True, reward=float(writes == self.wanted and paid))
        (call,) = action.tool_calls
        return Step(action, (Message.tool(json.dumps({"code": self.codes[call.name]} if call.name in self.codes else {}), call.id),))


def planted(count: int) -> dict[str, Any]:
    """How many planted calls are told right: by execution with the check of what is used, and by execution alone."""
    rng, figures = Random(0), {"lines": count, "not_needed": 0, "needed": 0, "found": 0, "wrong": 0, "wrong_by_execution_alone": 0}
    for number in range(count):
        names = ["used", *(rng.choice(PLANTED[1:]) for _ in range(rng.randrange(3, 9)))]
        world = World({name: f"{name[0].upper()}{rng.randrange(10**6)}" for name in ("used", "unused")}, names.count("write"))
        line = Trajectory((), (Message.user(f"Task {number}."),))
        calls = [(name, {}) for name in names] + [("pay", {"code": world.codes["used"]})]
        for at, (name, arguments) in enumerate(calls):
            action = Message.assistant(None, [ToolCall(f"c{at}", name, json.dumps(arguments))])
            line = line.extend(asyncio.run(world.step(line, action)))
        line = line.extend(asyncio.run(world.step(line, Message.assistant("Done."))))
        for one in ablations(SourcedTree(asyncio.run(ablated(line, world, lambda state: state.steps[-1].reward)))):
            needed = one.call.name in ("used", "write", "pay")
            figures["needed" if needed else "not_needed"] += 1
            figures["found"] += not needed and one.needed == ""
            figures["wrong"] += needed and one.needed == ""
            figures["wrong_by_execution_alone"] += needed and one.end.score is not None and one.end.score.value == 1.0
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="20 planted lines instead of 200")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    rows = kinds() if LOGS.is_file() else []
    figures = {"rows": rows, "ablations": planted(20 if options.quick else 200)}
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"{'kind':22}{'rows':>6}{'messages':>10}{'trained':>9}{'tasks':>7}{'effective':>11}")
    for row in rows:
        print(f"{row['kind']:22}{row['rows']:6}{row['messages']:10}{row['trained']:9}{row['tasks']:7}{row['effective_tasks']:11.1f}")
    if not rows:
        print("the logs are not in ../shared/data")
    print()
    for name, value in planted_lines(figures["ablations"]):
        print(f"{name:60}{value}")


def planted_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("calls that were not needed, found", f"{found['found']} of {found['not_needed']}"),
        ("calls that were needed, taken for the others", f"{found['wrong']} of {found['needed']}"),
        ("the same by execution alone", f"{found['wrong_by_execution_alone']} of {found['needed']}"),
    ]


if __name__ == "__main__":
    main()
