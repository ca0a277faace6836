"""Off-policy estimates against the truth, in a small Markov decision process where the truth can be computed.

    python bench/off_policy.py [--experiments 500] [--json]

Six decisions between two actions; the second one makes progress more often, tasks differ in how hard they are, and the reward is 1 where
three steps of progress were made. Logs are made by one policy, `shift` says how much more readily the new one takes the second action.
`model` is what the doubly robust estimates are given for Q^ and V^: none, that of a task of middling difficulty, or the exact one.
Printed: the mean effective sample size, and for every estimate its bias, its standard deviation, and how often its 95 % interval holds
the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from counterplay.finetune.off_policy import Decision, LoggedRun, estimate

STEPS, GOAL = 6, 3
HARDNESS = tuple((i + 0.5) / 16 for i in range(16))


def readiness(shift: float, progress: int) -> float:
    """The probability of the second action."""
    return 1 / (1 + math.exp(-(shift + 0.3 * progress)))


def success(action: int, hard: float) -> float:
    """The probability that an action makes progress."""
    return (0.3, 0.75)[action] * (1 - 0.4 * hard)


@cache
def values(shift: float, hard: float) -> tuple[list[list[float]], list[list[tuple[float, float]]]]:
    """V[t][progress] and Q[t][progress][action] of a policy, by backward induction."""
    v = [[float(progress >= GOAL) for progress in range(STEPS + 2)]]
    q: list[list[tuple[float, float]]] = []
    for _ in range(STEPS):
        after = v[0]
        now = [tuple(success(a, hard) * after[s + 1] + (1 - success(a, hard)) * after[s] for a in (0, 1)) for s in range(STEPS + 1)]
        q.insert(0, now)  # type: ignore[arg-type]
        second = [readiness(shift, s) for s in range(STEPS + 1)]
        v.insert(0, [second[s] * now[s][1] + (1 - second[s]) * now[s][0] for s in range(STEPS + 1)] + [after[-1]])
    return v, q


def truth(shift: float) -> float:
    """The expected reward over tasks."""
    return statistics.fmean(values(shift, hard)[0][0][0] for hard in HARDNESS)


def logs(rng: random.Random, *, tasks: int, runs: int, shift: float, model: str | None, misjudged: float = 0.0) -> list[LoggedRun]:
    """Runs of the logging policy (shift 0); `misjudged` is added to the log-probability it is said to have of its second action."""
    made = []
    for number in range(tasks):
        hard = rng.choice(HARDNESS)
        guess = None if model is None else values(shift, hard if model == "exact" else 0.5)
        for _ in range(runs):
            progress, decisions = 0, []
            for t in range(STEPS):
                old, new = readiness(0.0, progress), readiness(shift, progress)
                action = int(rng.random() < old)
                said = [math.log(p if action else 1 - p) for p in (old, new)]
                v, q = (0.0, None) if guess is None else (guess[0][t][progress], guess[1][t][progress][action])
                progress += rng.random() < success(action, hard)
                paid = float(t == STEPS - 1 and progress >= GOAL)
                decisions.append(Decision(said[0] + misjudged * action, said[1], paid, v, q))
            made.append(LoggedRun(f"task {number}", tuple(decisions)))
    return made


def measure(experiments: int, *, tasks: int, runs: int, shift: float, model: str | None, seed: str = "") -> dict[str, Any]:
    """One row of the table."""
    true, rng = truth(shift), random.Random(f"{seed}/{tasks}/{runs}/{shift}/{model}")
    found = [
        estimate(logs(rng, tasks=tasks, runs=runs, shift=shift, model=model), fewest=2, least_covered=0.0, seed=number, resamples=500)
        for number in range(experiments)
    ]
    row: dict[str, Any] = {"tasks": tasks, "runs": runs, "shift": shift, "model": model, "truth": true}
    row["effective"] = statistics.fmean(one.effective for one in found)
    for method in (one.method for one in found[0].estimates):
        each = [one[method] for one in found]
        row[method] = {
            "bias": statistics.fmean(one.value for one in each) - true,
            "sd": statistics.stdev(one.value for one in each),
            "coverage": statistics.fmean(one.interval[0] <= true <= one.interval[1] for one in each),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [
        measure(given.experiments, tasks=tasks, runs=runs, shift=shift, model=model)
        for tasks, runs, shift in ((50, 2, 0.5), (100, 2, 0.5), (100, 2, 1.0), (300, 1, 1.0), (300, 1, -1.0), (300, 1, 2.0))
        for model in (None, "middling", "exact")
    ]
    if given.json:
        print(json.dumps({"experiments": given.experiments, "rows": rows}))
        return
    print("| tasks x runs | shift | model | truth | effective tasks | weighted | doubly robust | weighted doubly robust |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        each = (row[method] for method in ("weighted", "doubly robust", "weighted doubly robust"))
        cells = " | ".join(f"{one['bias']:+.3f} ± {one['sd']:.3f}, {100 * one['coverage']:.1f} %" for one in each)
        head = f"{row['tasks']} x {row['runs']} | {row['shift']:+g} | {row['model'] or 'none'} | {row['truth']:.3f}"
        print(f"| {head} | {row['effective']:.0f} | {cells} |")


if __name__ == "__main__":
    main()
