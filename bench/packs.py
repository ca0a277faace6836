"""What the packs tell on real runs, and what asking one about every node of a tree costs.

Separation: each pack's AUROC on the 100 airline runs of `../shared/data` (51 failures), with a bootstrap interval, beside the AUROC of
plain shortness, which any rule that counts mistakes partly measures. Cost: a 60-step prefix with 8 branches of 10 steps, asked about at
every node, by one pack that keeps what it knows of shared prefixes and by a fresh one for every question; the ratio is of CPU time
within one process. `python bench/packs.py [--quick] [--json]`
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from counterplay.core.nouns import Message, Step, ToolCall, Trajectory, steps_of
from counterplay.verifiers.packs.ledger_books import DoubleEntry
from counterplay.verifiers.packs.length import Repetition, length_of
from counterplay.verifiers.packs.policy import PolicyRules
from counterplay.verifiers.packs.text import Grounded
from counterplay.verifiers.packs.tool_calls import ToolCallRules
from counterplay.verifiers.packs.tools import ToolUse

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "../shared/data/tau-bench-airline-gpt4o/gpt-4o-airline.even_tasks.json"
POLICY = PolicyRules.from_toml(ROOT / "examples/packs/airline.toml")
Scored = list[tuple[float, bool]]

# --- separation -------------------------------------------------------------------------------------------------------------------------


def runs() -> list[tuple[Trajectory, bool]]:
    """Every logged run as a finished trajectory, and whether the benchmark's environment paid for it."""
    found = []
    for logged in json.loads(LOGS.read_text(encoding="utf-8")):
        prompt, steps = steps_of([Message.from_openai(fields) for fields in logged["traj"]])
        found.append((Trajectory((), prompt, (*steps[:-1], replace(steps[-1], terminated=True))), logged["reward"] == 1.0))
    return found


def auroc(scored: Scored) -> float:
    good, bad = [value for value, right in scored if right], [value for value, right in scored if not right]
    return sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))


def interval(scored: Scored, draws: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of the AUROC over runs."""
    rng, found = random.Random(0), []
    while len(found) < draws:
        sample = rng.choices(scored, k=len(scored))
        if 0 < sum(right for _, right in sample) < len(sample):
            found.append(auroc(sample))
    found.sort()
    return found[int(0.025 * draws)], found[int(0.975 * draws)]


def separation(draws: int) -> list[dict[str, Any]]:
    logged, grounded, tools = runs(), Grounded(), ToolUse()
    measures: dict[str, Callable[[Trajectory], float]] = {
        **{pack.name: lambda state, pack=pack: pack(state).value for pack in (ToolCallRules(), tools, POLICY, grounded, Repetition())},
        "tools * policy * grounded": lambda state: tools(state).value * POLICY(state).value * grounded(state).value,  # type: ignore[union-attr]
        "shortness (words)": lambda state: -float(length_of(state)),
        "shortness (steps)": lambda state: -float(len(state)),
    }
    rows = []
    for name, measure in measures.items():
        scored = [(measure(state), right) for state, right in logged]
        low, high = interval(scored, draws)
        flagged = [right for value, right in scored if value < 1.0] if "shortness" not in name else []
        row = {"measure": name, "auroc": auroc(scored), "low": low, "high": high, "flagged": len(flagged), "failed": flagged.count(False)}
        rows.append(row)
    return rows


# --- cost -------------------------------------------------------------------------------------------------------------------------------


def tree(stem: int, branches: int, depth: int) -> list[Trajectory]:
    """The states of a tree in the order in which a search meets them."""
    state = Trajectory((), (Message.user("Please look after my orders."),))
    state.prefix_keys  # noqa: B018  as in a search, keys are known and extended
    states = []
    for index in range(stem):
        state = state.extend(step(index))
        states.append(state)
    for branch in range(branches):
        leaf = state
        for index in range(depth):
            leaf = leaf.extend(step(1000 * (branch + 1) + index))
            states.append(leaf)
    return states


def step(number: int) -> Step:
    """One look-up with an answer of about 1.5 KB, now and then with words."""
    call = ToolCall(str(number), "get_reservation_details", json.dumps({"reservation_id": f"R{number}"}))
    flights = [{"flight_number": f"HAT{number}{i}", "price": 100 + i, "date": "2024-05-24", "status": "available"} for i in range(16)]
    said = f"Reservation R{number} has flight HAT{number}3 at $103, as you asked; I will look at the next one." if number % 4 == 0 else None
    return Step(Message.assistant(said, [call]), (Message.tool(json.dumps({"flights": flights}), str(number)),))


def cost(quick: bool) -> list[dict[str, Any]]:
    states = tree(20, 3, 4) if quick else tree(60, 8, 10)
    rows = []
    for pack in (ToolUse(), POLICY, DoubleEntry(), Grounded(), Repetition()):
        kept, fresh = replace(pack), timed([replace(pack) for _ in states], states)
        shared = timed([kept] * len(states), states)
        row = {"pack": pack.name, "questions": len(states), "us_a_question": 1e6 * shared / len(states), "times_faster": fresh / shared}
        rows.append(row)
    return rows


def timed(packs: Sequence[Callable[[Trajectory], Any]], states: Sequence[Trajectory]) -> float:
    started = time.process_time()
    for pack, state in zip(packs, states, strict=True):
        pack(state)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small tree and few bootstrap draws")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    found = {"separation": separation(200 if options.quick else 2000) if LOGS.is_file() else None, "cost": cost(options.quick)}
    if options.json:
        print(json.dumps(found))
        return
    if found["separation"] is None:
        print("separation: the real logs are not here (../shared/data)")
    for row in found["separation"] or ():
        told = f"{row['failed']} of {row['flagged']} flagged runs failed" if row["flagged"] else ""
        print(f"{row['measure']:28} AUROC {row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]  {told}")
    print()
    for row in found["cost"] or ():
        print(f"{row['pack']:28} {row['us_a_question']:8.0f} us a question, {row['times_faster']:5.1f} times faster than from the start")


if __name__ == "__main__":
    main()
