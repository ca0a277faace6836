"""Where did it go wrong: how often each method finds the pivotal step, at what cost, and how often it says that it does not know.

    python bench/localise.py [--runs 200] [--ledger 40] [--quick] [--json] [--processes N]

First a synthetic agent whose rates are known: runs of 100 steps, success at p_ok from prefixes that end before the error and at p_bad
after it. Then the example agent's failed runs, played by its own model, where the world knows the first wrong step.
All is measured through the library's own `localise`. `near` is the share of all runs whose likeliest step is within one of the truth,
`abstained` of those without an answer (their likeliest step, where there is one, still counts as near). Costs are agent steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.search_quality import EXAMPLE, MAX_STEPS, MAX_TOKENS, OUT, TEMPERATURE, Drawn, Keep, subjects
from counterplay.core.beta import wilson
from counterplay.core.budget import Budget
from counterplay.core.nouns import Message, Proposal, State, Step, Trace, Trajectory
from counterplay.examples.ledger import Ledger
from counterplay.examples.ledger.demonstrations import PERFECT, demonstrate
from counterplay.examples.ledger.tasks import Task, expected_postings, make_task
from counterplay.examples.ledger.world import Books
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.transformers_policy import TransformersPolicy
from counterplay.replay.world import ToolError
from counterplay.search.localise import Localisation, first_drop, localise
from counterplay.verifiers.packs.ledger import LedgerRules

STEPS = 100
P_OK, P_BAD = (0.3, 0.45, 0.6, 0.75, 0.9), (0.0, 0.05, 0.1, 0.2, 0.3)
METHODS: dict[str, dict[str, Any]] = {
    "omega": {"method": "omega"},
    "threshold": {"method": "threshold"},
    "bayes": {},
    "bayes, p_two 0": {"p_two": 0.0},
    "every": {"method": "every"},
}
TWO = ((0.9, 0.5, 0.05), (0.9, 0.4, 0.1), (0.75, 0.4, 0.05))
WON, LOST = (Proposal(Message.assistant(word)) for word in ("won", "lost"))
ENDS = {WON.action: Step(WON.action, terminated=True, reward=1.0), LOST.action: Step(LOST.action, terminated=True, reward=0.0)}
STEP = tuple(Step(Message.assistant(f"step {t}"), (Message.user("and then?"),)) for t in range(STEPS - 1))


class Agent:
    """Policy and environment in one. A line is played in one draw and counted as the steps it stands for, `STEPS` less its prefix."""

    def __init__(self, errors: Sequence[int], rates: Sequence[float], seed: int) -> None:
        self.errors, self.rates, self.random = errors, rates, random.Random(seed)
        self.steps = self.lines = 0

    async def propose(self, state: State, n: int) -> list[Proposal]:
        rate = self.rates[sum(len(state) > error for error in self.errors)]
        self.steps += n * (STEPS - len(state))
        self.lines += n
        return [WON if self.random.random() < rate else LOST for _ in range(n)]

    async def step(self, _state: State, action: Message) -> Step:
        return ENDS[action]


def outcome(state: State) -> float | None:
    return state.steps[-1].reward if state.finished else None


def failed_run() -> Trajectory:
    return Trajectory((), (Message.user("task"),), (*STEP, Step(Message.assistant("the end"), terminated=True, reward=0.0)))


@dataclass(frozen=True)
class Trial:
    """One localisation: where the errors were, what was found, the likeliest steps, what it cost."""

    errors: tuple[int, ...]
    found: bool
    likeliest: tuple[int, ...]
    steps: int
    lines: int


def likeliest(found: Localisation) -> tuple[int, ...]:
    posteriors = [masses for masses in (found.posterior, found.second_posterior) if masses]
    steps = tuple(max(range(len(masses)), key=masses.__getitem__) for masses in posteriors)
    return steps or (() if found.step is None else (found.step,))


def trial(rates: Sequence[float], options: dict[str, Any], seed: int, *, opinion: float = 0.0, siblings: int = 0) -> Trial:
    """One run of a synthetic agent. `opinion`: a process verifier sees the error so often, else another step; `siblings`: logged runs."""
    chance = random.Random(f"trial {seed}")
    errors = sorted(chance.sample(range(STEPS), len(rates) - 1))
    run, agent = failed_run(), Agent(errors, rates, seed)
    if opinion:
        seen = errors[0] if chance.random() < opinion else chance.randrange(STEPS)
        options = {**options, "process_verifier": lambda state: 0.9 if len(state) <= seen else 0.1}
    others = [Trajectory((), run.prompt, (ENDS[(WON if chance.random() < rates[0] else LOST).action],)) for _ in range(siblings)]
    found = asyncio.run(localise(run, agent, agent, outcome, Budget(), siblings=others, concurrency=1, seed=seed, **options))
    return Trial(tuple(errors), found.step is not None, likeliest(found), agent.steps, agent.lines)


def cell(job: tuple[dict[str, Any], Sequence[float], dict[str, Any], int]) -> dict[str, Any]:
    """All runs of one cell as one row."""
    named, rates, options, runs = job
    special = {name: options[name] for name in ("opinion", "siblings") if name in options}
    plain = {name: value for name, value in options.items() if name not in special}
    return {**named, **row([trial(rates, plain, seed, **special) for seed in range(runs)])}


def row(trials: Sequence[Trial], tolerance: int = 1) -> dict[str, Any]:
    n = len(trials)
    near = sum(any(abs(t.likeliest[0] - error) <= tolerance for error in t.errors) for t in trials if t.likeliest)
    sure = [t for t in trials if t.found]
    wrong = sum(all(abs(t.likeliest[0] - error) > tolerance for error in t.errors) for t in sure)
    steps = [t.steps for t in trials]
    mean = sum(steps) / n
    spread = 1.96 * math.sqrt(sum((s - mean) ** 2 for s in steps) / max(1, n - 1) / n)
    return {
        "runs": n,
        "near": near / n,
        "near_interval": wilson(near / n, n),
        "abstained": 1 - len(sure) / n,
        "abstained_interval": wilson(1 - len(sure) / n, n),
        "wrong_when_sure": wrong / len(sure) if sure else None,
        "steps": mean,
        "steps_interval": (mean - spread, mean + spread),
        "lines": sum(t.lines for t in trials) / n,
        "both": sum(
            len(t.likeliest) == 2 and all(abs(a - b) <= tolerance for a, b in zip(t.likeliest, t.errors, strict=False)) for t in trials
        )
        / n,
        "two": sum(len(t.likeliest) == 2 for t in trials) / n,
    }


# --- the example agent ------------------------------------------------------------------------------------------------------------------


RULES = LedgerRules()
LEDGER: dict[str, dict[str, Any]] = {
    "omega": {"method": "omega"},
    "threshold": {"method": "threshold"},
    "bayes": {},
    "bayes, min_p_ok .05": {"min_p_ok": 0.05},
    "bayes, .05, opinion of the ledger's rules": {"min_p_ok": 0.05, "process_verifier": RULES},
    "every": {"method": "every"},
}


def first_wrong(trace: Trace) -> tuple[int, int]:
    """Where the run first did what a bookkeeper without fault would not have done, and the step after which its books stayed wrong.

    The second by the world's own books; the last step, which closed the period, where nothing wrong was ever posted.
    """
    task, world = make_task(str(trace.task)), Ledger(str(trace.task))
    right = [m for m in map(Message.from_openai, demonstrate(str(trace.task), random.Random(0), PERFECT).messages) if m.role == "assistant"]
    done = [step.action.signature for step in trace.trajectory.steps]
    decided = next(t for t, (a, b) in enumerate(zip_longest(done, [m.signature for m in right])) if a != b)
    booked, was = len(done) - 1, False
    for t, step in enumerate(trace.trajectory.steps):
        for call in step.action.tool_calls:
            with suppress(ToolError):
                world.call(call.name, call.args or {})
        now = broken(task, world.snapshot())
        booked = t if now and not was else booked
        was = now
    return decided, booked if was else len(done) - 1


def broken(task: Task, books: object) -> bool:
    """Whether a posting stands that should not, or one was taken back that should stand."""
    assert isinstance(books, Books)
    cancelled = {document.entry for document in task.documents if document.entry}
    standing = Counter(posting for entry, posting in books.entries if entry not in books.reversed | cancelled)
    return bool(standing - Counter(expected_postings(task))) or bool((books.reversed & set(task.opening)) - cancelled)


def paid(state: State) -> float | None:
    """What the world paid at the end; nothing for a line that never got there."""
    return (state.steps[-1].reward or 0.0) if state.finished else None


async def at_work(traces: Sequence[Trace], keep: Keep) -> list[dict[str, Any]]:
    """Every method on every run; the model's draws are made once, so that all methods meet the same ones."""
    policy = TransformersPolicy(EXAMPLE / "model", temperature=TEMPERATURE, max_new_tokens=MAX_TOKENS, batch_size=128)
    keep.of(policy.fingerprint)
    truths = [first_wrong(trace) for trace in traces]
    drawn = [Drawn(policy, trace.id, keep) for trace in traces]
    worlds = [LiveEnvironment(lambda t=t: Ledger(str(t.task)), task=str(t.task), max_steps=MAX_STEPS, cache_states=256) for t in traces]
    rows = []
    try:
        for name, options in LEDGER.items():
            began = time.perf_counter()
            parts = zip(traces, drawn, worlds, strict=True)
            found = await asyncio.gather(
                *(localise(t.trajectory, d, w, paid, Budget(), max_steps=MAX_STEPS, **options) for t, d, w in parts)
            )
            keep.put("draw", [row for each in drawn for row in each.take_new()])
            rows.append(ledger_row(name, found, truths))
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    finally:
        policy.close()
    seen = [await first_drop(trace.trajectory, RULES) for trace in traces]
    return [*rows, ledger_row("first_drop, the ledger's rules", seen, truths)]


def ledger_row(name: str, found: Sequence[Localisation], truths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """`near` the first wrong decision; `near_entry` the first wrong entry in the books."""
    by_truth = []
    for which in (0, 1):
        trials = [
            Trial((truth[which],), each.step is not None, likeliest(each), _steps(each), _lines(each))
            for each, truth in zip(found, truths, strict=True)
        ]
        by_truth.append(row(trials))
    entry = {"near_entry": by_truth[1]["near"], "near_entry_interval": by_truth[1]["near_interval"]}
    return {"part": "ledger", "method": name, **by_truth[0], **entry}


def _steps(found: Localisation) -> int:
    return int(found.tree.used.model_calls or 0) if found.tree is not None else 0


def _lines(found: Localisation) -> int:
    return sum(probe.lines for probe in found.probes if not probe.logged)


# --- tables -------------------------------------------------------------------------------------------------------------------------


def least_lines(p_ok: float, p_bad: float) -> float:
    """Lines that any method needs on average to be within one step nine times in ten, though it knew both rates (Fano's inequality)."""
    if p_ok <= p_bad:
        return math.inf
    shares = [share / 1000 for share in range(1, 1000)]
    bits = max(_entropy(a * p_ok + (1 - a) * p_bad) - a * _entropy(p_ok) - (1 - a) * _entropy(p_bad) for a in shares)
    return (0.9 * math.log2(STEPS / 3) - _entropy(0.9)) / bits


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def synthetic(runs: int, quick: bool) -> Iterator[tuple[dict[str, Any], Sequence[float], dict[str, Any], int]]:
    grid = [(ok, bad) for ok in P_OK for bad in P_BAD if not quick or (ok in (0.45, 0.75) and bad in (0.0, 0.05, 0.2))]
    for ok, bad in grid:
        for method, options in METHODS.items():
            yield {"part": "one", "method": method, "p_ok": ok, "p_bad": bad}, (ok, bad), options, runs
    for rates in TWO[:1] if quick else TWO:
        for p_two in (0.0, 0.2, 0.5):
            yield {"part": "two", "rates": rates, "p_two": p_two}, rates, {"p_two": p_two}, runs
    for name, options in EXTRAS.items():
        for rates in ((0.9, 0.05), (0.45, 0.05)):
            yield {"part": "extras", "given": name, "p_ok": rates[0], "p_bad": rates[1]}, rates, options, runs


EXTRAS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "16 logged runs of the task": {"siblings": 16},
    "a process verifier, right in 7 of 10": {"opinion": 0.7},
    "both": {"siblings": 16, "opinion": 0.7},
}


def measured(jobs: Sequence[Any], processes: int, work: Callable[[Any], dict[str, Any]] = cell) -> list[dict[str, Any]]:
    if processes == 1:
        return [work(job) for job in jobs]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(work, jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200, help="runs of the synthetic agent a cell")
    parser.add_argument("--ledger", type=int, default=40, help="failed runs of the example agent")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a few cells of 40 runs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    runs, failed = (40, 8) if given.quick else (given.runs, given.ledger)
    rows = measured(list(synthetic(runs, given.quick)), given.processes) if runs else []
    if failed:
        OUT.mkdir(exist_ok=True)
        (OUT / ".gitignore").write_text("*\n")
        rows += asyncio.run(at_work(subjects(failed), Keep(OUT / "localise.sqlite")))
    if given.json:
        print(json.dumps({"steps": STEPS, "rows": rows}))
        return
    show(rows)


def show(rows: Sequence[dict[str, Any]]) -> None:
    parts = {part: [row for row in rows if row["part"] == part] for part in ("one", "two", "extras", "ledger")}
    if parts["one"]:
        _show_grid(parts["one"])
    if parts["two"]:
        print("\ntwo errors: rates before, between and after; `both` found within one step; `two` claimed")
        print(f"{'rates':>18}{'p_two':>7}{'a first error near':>22}{'both':>7}{'two':>6}{'abstained':>11}{'steps':>8}")
        for r in parts["two"]:
            rates = " ".join(f"{rate:g}" for rate in r["rates"])
            print(f"{rates:>18}{r['p_two']:7g}{_near(r):>22}{r['both']:7.2f}{r['two']:6.2f}{r['abstained']:11.2f}{r['steps']:8.0f}")
    if parts["extras"]:
        print("\ngiven beforehand")
        for r in parts["extras"]:
            print(f"{r['given']:>40}  {r['p_ok']:g}/{r['p_bad']:g}{_near(r):>20}{r['steps']:8.0f} steps, {r['abstained']:.2f} abstained")
    if parts["ledger"]:
        print(f"\n{parts['ledger'][0]['runs']} failed runs of the example agent: near its first wrong decision, near its first wrong entry")
        print(f"{'method':>44}{'decision':>20}{'entry':>20}{'abstained':>20}{'wrong if sure':>14}{'steps':>7}")
        for r in parts["ledger"]:
            shown = "".join(f"{_near(r, what):>20}" for what in ("near", "near_entry", "abstained"))
            print(f"{r['method']:>44}{shown}{_share(r['wrong_when_sure']):>14}{r['steps']:7.0f}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _show_grid(rows: Sequence[dict[str, Any]]) -> None:
    by = {(r["p_ok"], r["p_bad"], r["method"]): r for r in rows}
    print(f"{rows[0]['runs']} runs a cell, {STEPS} steps: near [95 %], agent steps in thousands, abstained; least lines any method needs")
    print(f"{'p_ok':>5}{'p_bad':>6}" + "".join(f"{name:>29}" for name in METHODS) + f"{'least':>8}")
    for ok, bad in dict.fromkeys((key[0], key[1]) for key in by):
        cells = [by[ok, bad, name] for name in METHODS]
        shown = "".join(f"{_near(cell):>18}{cell['steps'] / 1000:5.1f}{cell['abstained']:6.2f}" for cell in cells)
        least = least_lines(ok, bad)
        print(f"{ok:5.2f}{bad:6.2f}{shown}{'never' if least == math.inf else f'{least:.0f}':>8}")


def _near(r: dict[str, Any], what: str = "near") -> str:
    low, high = r[f"{what}_interval"]
    return f"{r[what]:.2f} [{low:.2f} {high:.2f}]"


if __name__ == "__main__":
    main()
