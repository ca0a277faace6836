"""A process reward model of the example agent, trained on searched traces: does it find the first wrong step, and does a search with it do
better?

Training tasks are searched (`prm_data`), their trees labelled (`sorm`: can any line from here still succeed?), and a token-classification
head is trained on the agent's own model. On held-out tasks the first step whose value falls below a threshold, chosen on a part of the
training tasks, is compared with the truth from the environment, as in ProcessBench: accuracy on wrong and on right lines, and their
harmonic mean F1. Beside it the implicit PRM, trained on the outcomes of the same lines. Then the same searches with the PRM and with the
outcome alone, at equal model calls.

Run it as `python bench/prm.py [--quick] [--folder bench/out/prm] [--json]`; what is in the folder already is not made again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from prm_data import MAX_STEPS, MODEL, Searched, confirmed, make_policy, searched

from counterplay.core.budget import Budget
from counterplay.core.nouns import Trajectory
from counterplay.examples.ledger import Ledger, tasks
from counterplay.finetune.labels import StepwiseRow, sorm, stepwise_rows
from counterplay.finetune.prm import train_implicit, train_prm
from counterplay.finetune.rows import SourcedTree
from counterplay.replay.live import LiveEnvironment
from counterplay.search.registry import LOGGED, SEARCHES
from counterplay.verifiers.learned import ImplicitPRM, LearnedPRM
from counterplay.verifiers.learned.scoring import LearnedVerifier
from counterplay.verifiers.outcome import outcome

OUT = Path(__file__).parent / "out" / "prm"
Rule = Callable[[Sequence[float]], int]
"""From the values after every step to the first wrong step, -1 for none."""


@dataclass(frozen=True)
class Size:
    train: int = 640
    heldout: int = 300
    search: int = 120
    epochs: float = 8.0
    implicit_epochs: float = 3.0
    train_lines: int = 16
    truth_lines: int = 32
    confirm_lines: int = 96
    budgets: tuple[int, ...] = (32, 64)


QUICK = Size(train=64, heldout=32, search=16, epochs=1.0, implicit_epochs=1.0, budgets=(32,))

# --- training --------------------------------------------------------------------------------------------------------------------------


def trees_of(found: Iterable[Searched]) -> list[SourcedTree]:
    return [SourcedTree.of(record) for one in found for record in one.records]


def labelled(found: Sequence[Searched], *, lines: int) -> list[StepwiseRow]:
    """Rows with hard labels: can any line from here still succeed? A state before which 12 lines and more all fail can't."""
    return [row for tree in trees_of(found) for row in stepwise_rows(tree, sorm(tree, lines=lines, balance=False))[0]]


def outcomes(found: Sequence[Searched]) -> list[tuple[Trajectory, float]]:
    """Every line that was played from the start, and what the environment paid for it."""
    return [
        (leaf.state, leaf.score.value) for one in found for leaf in SourcedTree.of(one.records[0]).tree.finished() if leaf.score is not None
    ]


def trained(found: Sequence[Searched], size: Size, folder: Path, log: Callable[[str], None]) -> tuple[LearnedPRM, ImplicitPRM]:
    if not (folder / "prm" / "config.json").is_file():
        rows, began = labelled(found, lines=3 * size.train_lines // 4), time.process_time()
        report = train_prm(MODEL, rows, folder / "prm", epochs=size.epochs, learning_rate=1e-3, batch_size=16)
        log(f"prm: {report.examples} rows, {report.labels} labels, {report.tokens:,} tokens, {time.process_time() - began:.0f} s of CPU")
    if not (folder / "implicit" / "config.json").is_file():
        ends, began = outcomes(found), time.process_time()
        report = train_implicit(MODEL, ends, folder / "implicit", epochs=size.implicit_epochs, learning_rate=5e-4, batch_size=16, beta=0.05)
        log(f"implicit: {report.examples} lines, {report.tokens:,} tokens, {time.process_time() - began:.0f} s of CPU")
    return LearnedPRM(folder / "prm"), ImplicitPRM(folder / "implicit", MODEL, beta=0.05)


# --- the first wrong step -----------------------------------------------------------------------------------------------------------------


def below(threshold: float) -> Rule:
    return lambda values: next((step for step, value in enumerate(values) if value < threshold), -1)


def falls(drop: float) -> Rule:
    """The step at which the value falls most, where it falls by `drop`."""

    def rule(values: Sequence[float]) -> int:
        drops = [before - after for before, after in zip((values[0], *values), values, strict=False)]
        most = max(range(len(drops)), key=drops.__getitem__)
        return most if drops[most] >= drop else -1

    return rule


RULES: Mapping[str, Rule] = {
    **{f"below {t:.2f}": below(t) for t in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)},
    **{f"falls by {d:.2f}": falls(d) for d in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)},
}


@dataclass(frozen=True)
class Judged:
    """Of one line: the truth, what was found, -1 for no wrong step."""

    truth: int
    found: int


def f1(judged: Sequence[Judged]) -> tuple[float, float, float]:
    """Accuracy on wrong lines (exact step), on right lines (none found), and their harmonic mean."""
    sides = ([one for one in judged if (one.truth >= 0) is wrong] for wrong in (True, False))
    on_wrong, on_right = (sum(one.truth == one.found for one in side) / len(side) if side else 0.0 for side in sides)
    return on_wrong, on_right, 2 * on_wrong * on_right / (on_wrong + on_right) if on_wrong + on_right else 0.0


def judge(values: Sequence[Sequence[float]], truths: Sequence[int], rule: Rule) -> list[Judged]:
    return [Judged(truth, rule(row)) for row, truth in zip(values, truths, strict=True)]


def interval(judged: Sequence[Judged], draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of F1, by a bootstrap over lines (one a task)."""
    rng = random.Random(0)
    found = sorted(f1(rng.choices(judged, k=len(judged)))[2] for _ in range(draws))
    return found[round(0.025 * draws)], found[round(0.975 * draws) - 1]


def localisation(models: Mapping[str, LearnedVerifier], chosen: Sequence[Searched], held: Sequence[Searched]) -> list[dict[str, Any]]:
    """Every model with the rule that is best for it on the lines it is `chosen` on, on the lines that are held out."""
    rows = []
    for name, model in models.items():
        (own, own_truth), (other, truth) = (_scored(model, part) for part in (chosen, held))
        rule = max(RULES, key=lambda one: f1(judge(own, own_truth, RULES[one]))[2])
        judged = judge(other, truth, RULES[rule])
        on_wrong, on_right, both = f1(judged)
        low, high = interval(judged)
        named = [abs(one.truth - one.found) <= 1 for one in judged if one.truth >= 0 and one.found >= 0]
        rows.append(
            {
                "model": name,
                "rule": rule,
                "lines": len(judged),
                "wrong_lines": sum(one.truth >= 0 for one in judged),
                "accuracy_on_wrong": on_wrong,
                "accuracy_on_right": on_right,
                "f1": both,
                "low": low,
                "high": high,
                "within_one_step": sum(named) / max(1, len(named)),
            }
        )
    return rows


def _scored(model: LearnedVerifier, found: Sequence[Searched]) -> tuple[list[tuple[float, ...]], list[int]]:
    known = [(one.line, one.wrong) for one in found if one.wrong is not None]
    return model.steps([line for line, _ in known]), [wrong for _, wrong in known]


# --- search -------------------------------------------------------------------------------------------------------------------------------


class Guided:
    """The environment's word on finished lines, the PRM's on all others."""

    def __init__(self, prm: LearnedPRM) -> None:
        self.prm, self.name, self.version = prm, "guided", prm.version

    def __call__(self, trajectory: Trajectory) -> Any:
        return outcome(trajectory) if trajectory.finished else self.prm(trajectory)

    def batch(self, trajectories: Sequence[Trajectory]) -> list[Any]:
        scores = iter(self.prm.batch([one for one in trajectories if not one.finished]))
        return [outcome(one) if one.finished else next(scores) for one in trajectories]


def options(search: str, verifier: str, calls: int, length: int = 16) -> dict[str, Any]:
    """Options that make a search fit `calls` where most lines take at most `length`: what does not come to an end wins nothing."""
    lines = max(1, calls // length)
    return {
        "best_of_n": {"n": lines},
        "mcts": {"num_simulations": calls, "num_actions": max(2, lines)},
        "fork_best_of_n": {"n": 6, "num_pivots": 1 if calls < 64 else 2}
        if verifier == "prm"
        else {"n": 2, "num_pivots": max(3, calls // 8)},
        "repair": {"n": 6, "lookback": 0, "rounds": 8},
    }[search]


ARMS = (("best_of_n", "outcome"), ("mcts", "outcome"), ("fork_best_of_n", "outcome"), ("fork_best_of_n", "prm"), ("repair", "prm"))
"""A search that goes back to where a line failed needs an opinion on unfinished lines; without one it forks at even distances."""


def playing(prm: LearnedPRM, failed: Sequence[Searched], budgets: Sequence[int], log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Success of searches over tasks whose line failed, with the outcome alone and with the PRM beside it."""
    policy, rows = make_policy(7), []
    try:
        for calls in budgets:
            for search, verifier in ARMS:
                began = time.process_time()
                won, used = asyncio.run(_play((search, verifier), outcome if verifier == "outcome" else Guided(prm), policy, failed, calls))
                low, high = wilson(sum(won), len(won))
                told = {"search": search, "verifier": verifier, "budget": calls, "tasks": len(won), "calls": used, "won": won}
                rows.append({**told, "success": sum(won) / len(won), "low": low, "high": high})
                log(f"{search} {verifier} {calls}: {sum(won)} of {len(won)}, {used:.1f} calls, {time.process_time() - began:.0f} s of CPU")
    finally:
        policy.close()
    return rows


async def _play(arm: tuple[str, str], verifier: Any, policy: Any, failed: Sequence[Searched], calls: int) -> tuple[list[int], float]:
    async def one(given: Searched) -> tuple[int, float]:
        environment = LiveEnvironment(lambda: Ledger(given.task))
        start = given.line if arm[0] in LOGGED else await environment.initial()
        budget = Budget.of(model_calls=calls)
        tree = await SEARCHES[arm[0]](start, policy, environment, verifier, budget, max_steps=MAX_STEPS, **options(*arm, calls))
        best = tree.best()
        return int(best is not None and best.state.steps[-1].reward == 1.0), float(tree.used.model_calls or 0)

    found = await asyncio.gather(*(one(given) for given in failed))
    return [won for won, _ in found], statistics.mean(used for _, used in found)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    share, room = successes / n, z * z / n
    middle, half = share + room / 2, z * math.sqrt(share * (1 - share) / n + room / (4 * n))
    return max(0.0, (middle - half) / (1 + room)), min(1.0, (middle + half) / (1 + room))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: a check that it works")
    parser.add_argument("--parts", nargs="+", choices=("steps", "search"), default=["steps", "search"])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    size, folder = QUICK if asked.quick else Size(), asked.folder
    folder.mkdir(parents=True, exist_ok=True)

    def log(text: str) -> None:
        if not asked.json:
            print(f"  {text}", flush=True)

    found = searched(tasks("train", size.train), folder / "train.pickle", lines=size.train_lines, seed=0)
    cut = len(found) * 4 // 5
    prm, implicit = trained(found[:cut], size, folder, log)
    report: dict[str, Any] = {}
    held = searched(tasks("heldout", size.heldout), folder / "heldout.pickle", lines=size.truth_lines, seed=1)
    if "steps" in asked.parts:
        truths = confirmed(held, folder / "heldout_confirmed.pickle", lines=size.confirm_lines, seed=2)
        chosen = confirmed(found[cut:], folder / "chosen_confirmed.pickle", lines=size.confirm_lines, seed=3)
        report["left_out"] = sum(one.wrong is None for one in truths)
        report["steps"] = localisation({"prm": prm, "implicit prm, outcomes only": implicit}, chosen, truths)
    if "search" in asked.parts:
        failed = [one for one in held if one.wrong != -1][: size.search]
        report["search"] = playing(prm, failed, size.budgets, log)
    print(json.dumps(report) if asked.json else table(report))


def table(report: Mapping[str, Any]) -> str:
    lines = []
    if "steps" in report:
        lines += [
            "| first wrong step | rule | on wrong lines | on right lines | F1 (95 % interval) | steps named on wrong lines within one |",
            "|---" * 6 + "|",
        ]
        for row in report["steps"]:
            scores = (
                f"{row['accuracy_on_wrong']:.3f} | {row['accuracy_on_right']:.3f} | {row['f1']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
            )
            lines.append(f"| {row['model']} | {row['rule']} | {scores} | {row['within_one_step']:.3f} |")
        first = report["steps"][0]
        lines.append(f"\n{first['lines']} held-out lines, {first['wrong_lines']} of them wrong; {report['left_out']} left out.\n")
    if "search" in report:
        lines += ["| search | verifier | budget | calls used | success (95 % interval) |", "|---" * 5 + "|"]
        for row in report["search"]:
            share = f"{row['success']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
            lines.append(f"| {row['search']} | {row['verifier']} | {row['budget']} | {row['calls']:.1f} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
