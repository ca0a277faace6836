"""Three rounds of improvement of the example agent by search, and by rejection sampling on the same number of model calls.

Every arm is `counterplay improve` with the same tasks, seeds, budget and training; only how failed runs are searched differs:
`search` goes back to the first error that the ledger's rules see (repair), `rejection sampling` plays whole lines with the same model until
one is verified (best_of_n, n=1, from the start), as ReST-EM and STaR do. Two more arms show what is there without rules: the
outcome alone in round 1, and a PRM trained on all searches so far from round 2 on; and `--from previous` in place of `--from base`.
Held-out success is after each round, over all seeds; intervals are bootstrapped over tasks, differences paired by task.

    python bench/improve.py [--arms search sampling prm implicit previous] [--seeds 3] [--size small] [--json]

What is in bench/out/improve already is not made again. The plot is written beside it, and with --docs to docs/improving.svg.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from counterplay import console
from counterplay.examples.ledger import tasks
from counterplay.examples.ledger.tasks import make_task
from counterplay.finetune.evaluate import Comparison, Results, Summary, compare, summarise
from counterplay.improve import Improved, Improvement, improve, report
from counterplay.parts import Asked
from counterplay.plan import Plan

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "out" / "improve"
RULES, OUTCOME = ("outcome", "ledger"), ("outcome",)
NAMES = {
    "search": "search (repair)",
    "sampling": "rejection sampling",
    "prm": "search, outcome and PRM",
    "implicit": "search, outcome and implicit PRM",
    "previous": "search, each round from the last model",
}


@dataclass(frozen=True)
class Size:
    """`calls` is the budget of a round, of which working on a task takes about 15. `pitfalls` is how many a training task has at least."""

    tasks_per_round: int
    calls: int
    pitfalls: int = 0
    held_out: int = 300
    rounds: int = 3


SIZES = {
    "several": Size(24, 24 * 60, pitfalls=2),
    "small": Size(12, 12 * 30),
    "large": Size(60, 60 * 30),
    "quick": Size(8, 8 * 60, pitfalls=2, held_out=40, rounds=2),
}


def asked_for(arm: str, seed: int, size: Size) -> Improvement:
    """One arm with one seed: its own training tasks, the common held-out ones."""
    each = size.rounds * size.tasks_per_round
    learned = arm in ("prm", "implicit")
    sampling = Plan.parse("best_of_n", ["n=1"], fork="start", budget=f"model_calls={size.calls}", split="even", concurrency=128)
    searching = Plan.parse(None, [], budget=f"model_calls={size.calls}", split="even", concurrency=128)
    return Improvement(
        model=ROOT / "examples" / "ledger" / "model",
        asked=Asked(
            environment="counterplay.examples.ledger:Ledger",
            verifiers=OUTCOME if learned else RULES,
            max_tokens=64,
            max_steps=40,
            seed=seed,
        ),
        held_out=tuple(tasks("heldout", size.held_out)),
        tasks=tuple(training_tasks((seed + 1) * each, size.pitfalls)[seed * each :]),
        tasks_per_round=size.tasks_per_round,
        plan=sampling if arm == "sampling" else searching,
        temperature=0.4,
        start="previous" if arm == "previous" else "base",
        prm=arm if learned else "none",
        training={"epochs": 3.0, "learning_rate": 5e-4},
        prm_training={"epochs": 4.0, "learning_rate": 1e-3} if arm == "prm" else {"epochs": 2.0, "learning_rate": 5e-4},
    )


def training_tasks(n: int, pitfalls: int) -> list[str]:
    """The first `n` tasks with so many pitfalls. None of them is held out."""
    return list(islice((task for task in tasks("new", 9999) if len(make_task(task).pitfalls) >= pitfalls), n))


def pooled(arm: str, runs: Sequence[Improved], number: int) -> Results:
    """Held-out outcomes after a round, by task one for each seed."""
    found = [json.loads((run.folder / "rounds" / f"{number:02d}" / "evaluation.json").read_text())["outcomes"] for run in runs]
    return Results(NAMES[arm], {task: tuple(one[task] for one in found) for task in found[0]})


@dataclass(frozen=True)
class Arm:
    """What came of one arm after each round, and what it took, all seeds together."""

    name: str
    success: tuple[Summary, ...]
    by_seed: tuple[tuple[float, ...], ...]
    model_calls: tuple[int, ...]
    solved: tuple[str, ...]
    cpu_seconds: float
    seconds: float


def measured(arm: str, runs: Sequence[Improved], size: Size) -> Arm:
    numbers = range(size.rounds + 1)
    rounds = [one for run in runs for one in run.rounds]
    return Arm(
        NAMES[arm],
        tuple(summarise(pooled(arm, runs, number)) for number in numbers),
        tuple(tuple(one.success for one in run.rounds) for run in runs),
        tuple(sum(run.rounds[number].model_calls for run in runs) for number in numbers),
        tuple(f"{sum(r.rounds[n].solved for r in runs)} of {sum(r.rounds[n].failed for r in runs)}" for n in numbers),
        sum(one.cpu_seconds for one in rounds),
        sum(one.seconds for one in rounds),
    )


def gains(runs: Mapping[str, Sequence[Improved]], size: Size) -> list[tuple[int, Comparison]]:
    """After each round, every other arm against rejection sampling; and every arm's last round against the logged agent."""
    found = []
    for arm, own in runs.items():
        if arm != "sampling" and "sampling" in runs:
            pairs = [(n, compare(pooled("sampling", runs["sampling"], n), pooled(arm, own, n))) for n in range(1, size.rounds + 1)]
            found += pairs
        logged = Results("the logged agent", pooled(arm, own, 0).outcomes)
        found.append((size.rounds, compare(logged, pooled(arm, own, size.rounds))))
    return found


def tables(arms: Sequence[Arm], compared: Sequence[tuple[int, Comparison]], seeds: int) -> str:
    rounds = range(len(arms[0].success))
    lines = [f"| held-out success [95 %] after round | {' | '.join(map(str, rounds))} |", "|---" * (len(rounds) + 1) + "|"]
    for arm in arms:
        cells = [f"{100 * one.rate:.1f} % [{100 * one.interval[0]:.1f}, {100 * one.interval[1]:.1f}]" for one in arm.success]
        lines.append(f"| {arm.name} | {' | '.join(cells)} |")
    lines += [
        f"\n{arms[0].success[0].tasks} held-out tasks, {seeds} seeds.\n",
        f"| model calls in round | {' | '.join(map(str, rounds[1:]))} | in all | CPU |",
    ]
    lines.append("|---" * (len(rounds) + 2) + "|")
    for arm in arms:
        calls = " | ".join(f"{one:,}" for one in arm.model_calls[1:])
        lines.append(f"| {arm.name} | {calls} | {sum(arm.model_calls):,} | {arm.cpu_seconds:.0f} s |")
    lines += [f"\n| failed runs solved in round | {' | '.join(map(str, rounds[1:]))} |", "|---" * len(rounds) + "|"]
    lines += [f"| {arm.name} | {' | '.join(arm.solved[1:])} |" for arm in arms]
    lines += ["", *(f"* after round {number}: {one.sentence()}" for number, one in compared), ""]
    lines += [f"* {arm.name}, by seed: " + "; ".join(", ".join(f"{100 * s:.1f}" for s in seed) for seed in arm.by_seed) for arm in arms]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(NAMES), default=["search", "sampling"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=OUT)
    parser.add_argument("--size", choices=list(SIZES), default="several", help="tasks with several errors, few tasks, many tasks, a check")
    parser.add_argument("--docs", action="store_true", help="write docs/improving.svg")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    size, folder = SIZES[given.size], given.folder / given.size
    runs: dict[str, list[Improved]] = {arm: [] for arm in given.arms}
    for seed in range(given.seeds):
        for arm in given.arms:
            folder.mkdir(parents=True, exist_ok=True)
            done = improve(asked_for(arm, seed, size), folder / f"{arm}-{seed}", rounds=size.rounds, until_no_gain=False, quiet=given.json)
            runs[arm].append(done)
    arms, compared = [measured(arm, found, size) for arm, found in runs.items()], gains(runs, size)
    drawn = report.plot({arm.name: [(one.rate, *one.interval) for one in arm.success] for arm in arms})
    (folder / "improving.svg").write_text(drawn)
    if given.docs:
        (ROOT / "docs" / "improving.svg").write_text(drawn)
    told: dict[str, Any] = {"arms": arms, "compared": [{"round": number, **console.plain(one)} for number, one in compared]}
    print(json.dumps(console.plain(told)) if given.json else tables(arms, compared, given.seeds))


if __name__ == "__main__":
    main()
