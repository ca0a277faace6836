"""Success against model calls: every search on the example agent's failed runs, with one policy and one noisy verifier.

Each search has to book the ledger of a failed run again with 8 to 512 model calls: all of it (`--fork start`), or from a little before
the step where the noisy verifier falls most (`--fork pivot`). `fork_best_of_n` and `repair` are given the run itself, for they look for
that step. The verifier is the ledger's rules squeezed to 0.1 + 0.8 v plus seeded normal noise (`--noise`, its standard deviation); a
success is a best branch that the environment, whose word no search hears, pays in full. Every draw of the model is kept under (state,
number of the draw), so all searches at all budgets see the same draws, and a run that is stopped goes on where it was.

    python bench/search_quality.py [--quick] [--fork pivot] [--noise 0] [--traces 128] [--budgets 8 16 ...] [--searches mcts ...] [--json]
    python bench/search_quality.py --readme    # which search for which budget, from what has been played before

Tables and a plot are written to bench/out.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import math
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from counterplay.core.beta import wilson
from counterplay.core.budget import Budget
from counterplay.core.canonical import content_key
from counterplay.core.nouns import Message, Proposal, Score, State, Step, Trace, Usage
from counterplay.core.protocols import first_draw
from counterplay.examples.ledger import Ledger
from counterplay.replay.fork import fork
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.siblings import sibling_priors
from counterplay.replay.transformers_policy import TransformersPolicy
from counterplay.search import registry
from counterplay.search.localise import first_drop
from counterplay.search.registry import LOGGED, SEARCHES
from counterplay.verifiers.packs.ledger import LedgerRules

EXAMPLE = Path(__file__).parents[1] / "examples" / "ledger"
OUT = Path(__file__).parent / "out"
BUDGETS = (8, 16, 32, 64, 128, 256, 512)
TEMPERATURE, MAX_TOKENS, MAX_STEPS, GROUP, LOOKBACK = 1.0, 64, 40, 64, 4

# --- what is searched: the same for every search ---------------------------------------------------------------------------------------


Row: TypeAlias = tuple[str, int, str, int, float, int]
"""Search, budget, trace, success, model calls used, nodes."""
Setting: TypeAlias = tuple[str, float]
"""Where the searches begin, and the standard deviation of the verifier's noise."""
LEAST = 0.05
"""A success that is not worth naming."""
SETTINGS: tuple[Setting, ...] = (("start", 0.2), ("pivot", 0.2), ("start", 0.0))


class Keep:
    """Draws of the model and rows of results in one SQLite file."""

    def __init__(self, file: Path) -> None:
        self.connection = sqlite3.connect(file)
        self.connection.executescript(
            "CREATE TABLE IF NOT EXISTS draw(trace, state, number, wire, logprob, tokens, PRIMARY KEY (trace, state, number)) WITHOUT ROWID;"  # noqa: E501
            "CREATE TABLE IF NOT EXISTS result(setting, search, options, budget, trace, success, calls, nodes,"
            " PRIMARY KEY (setting, search, options, budget, trace)) WITHOUT ROWID;"
            "CREATE TABLE IF NOT EXISTS drawn_by(policy);"
        )

    def of(self, policy: str) -> None:
        """Forget the draws of any other model."""
        known = self.connection.execute("SELECT policy FROM drawn_by").fetchone()
        if known != (policy,):
            self.connection.executescript("DELETE FROM draw; DELETE FROM drawn_by;")
            self.put("drawn_by", [(policy,)])

    def draws(self, trace: str) -> dict[tuple[str, int], tuple[str, float, int]]:
        rows = self.connection.execute("SELECT state, number, wire, logprob, tokens FROM draw WHERE trace = ?", (trace,))
        return {(state, number): (wire, logprob, tokens) for state, number, wire, logprob, tokens in rows}

    def put(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            self.connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
            self.connection.commit()

    def result(self, key: Sequence[Any]) -> tuple[int, float, int] | None:
        where = " AND ".join(f"{name} = ?" for name in ("setting", "search", "options", "budget", "trace"))
        found = self.connection.execute(f"SELECT success, calls, nodes FROM result WHERE {where}", key).fetchone()
        return None if found is None else tuple(found)


class Drawn:
    """The model, each of whose draws is made once."""

    def __init__(self, policy: TransformersPolicy, trace: str, keep: Keep) -> None:
        self.policy, self.trace, self.made = policy, trace, keep.draws(trace)
        self._new: list[tuple[Any, ...]] = []

    async def propose(self, state: State, n: int) -> list[Proposal]:
        start, key = first_draw.get(), state.key
        have = 0
        while have < n and (key, start + have) in self.made:
            have += 1
        if have < n:
            token = first_draw.set(start + have)
            try:
                fresh = await self.policy.propose(state, n - have)
            finally:
                first_draw.reset(token)
            for number, proposal in enumerate(fresh, start + have):
                row = (proposal.action.wire, proposal.logprob or 0.0, proposal.usage.output_tokens)
                if (key, number) not in self.made:
                    self.made[key, number] = row
                    self._new.append((self.trace, key, number, *row))
        drawn = [self.made[key, number] for number in range(start, start + n)]
        actions = [Message(wire) for wire, _, _ in drawn]
        priors = sibling_priors([action.signature for action in actions], [row[1] for row in drawn], [row[2] for row in drawn])
        return [Proposal(a, p, row[1], Usage(0, row[2])) for a, p, row in zip(actions, priors, drawn, strict=True)]

    def take_new(self) -> list[tuple[Any, ...]]:
        """Draws that were made since the last call."""
        new, self._new = self._new, []
        return new


class Subject:
    """One failed run: its environment and its verifier, each asked once about one thing."""

    def __init__(self, trace: Trace, policy: TransformersPolicy, keep: Keep, noise: float) -> None:
        self.trace, self.policy, self.noise = trace, Drawn(policy, trace.id, keep), noise
        self.environment = LiveEnvironment(lambda: Ledger(str(trace.task)), task=str(trace.task), max_steps=MAX_STEPS, cache_states=256)
        self.rules, self.forked_at = LedgerRules(), 0
        self.steps: dict[tuple[str, str], Step] = {}
        self.scores: dict[tuple[str, bool], Score | None] = {}

    async def step(self, state: State, action: Message) -> Step:
        known = self.steps.get((state.key, action.wire))
        if known is None:
            known = self.steps[state.key, action.wire] = await self.environment.step(state, action)
        return known

    def verify(self, state: State) -> Score | None:
        asked = (state.key, state.finished)
        if asked not in self.scores:
            score = self.rules(state)
            if score is not None:
                noise = random.Random(f"{asked}").gauss(0, self.noise)
                score = Score(min(1.0, max(0.0, 0.1 + 0.8 * score.value + noise)), score.reason)
            self.scores[asked] = score
        return self.scores[asked]

    async def start(self, where: str) -> None:
        """Decide where the searches begin."""
        if where == "pivot":
            pivot = (await first_drop(self.trace.trajectory, self.verify)).step or 0
            self.forked_at = max(0, pivot - LOOKBACK)

    def plan(self, name: str, calls: int) -> tuple[str, dict[str, Any]]:
        """The search and its options."""
        search, extra = VARIANTS.get(name, (name, {}))
        return search, {**plan(search, calls, len(self.trace.trajectory) - self.forked_at), **extra}

    async def search(self, name: str, given: Mapping[str, Any], calls: int) -> tuple[int, float, int]:
        """Whether the best branch is right, model calls used, nodes."""
        state = self.trace.trajectory if name in LOGGED else fork(self.trace, self.forked_at)
        budget = Budget.of(model_calls=calls)
        tree = await SEARCHES[name](state, self.policy, self, self.verify, budget, max_steps=MAX_STEPS, **given)
        best = tree.best()
        reward = best.state.steps[-1].reward if best is not None and best.state.steps else None
        return int(reward == 1.0), tree.used.model_calls or 0, len(tree.nodes)


def subjects(count: int) -> list[Trace]:
    """Failed runs of the example agent, in the order of their ids."""
    from counterplay import loop
    from counterplay.core.store import Store

    with Store.open(":memory:") as store:
        loop.ingest([EXAMPLE / "logs.jsonl.gz"], store, processes=0)
        return sorted(loop.select(store, which="failed"), key=lambda trace: trace.id)[:count]


# --- how each search is given its budget ------------------------------------------------------------------------------------------------


def plan(name: str, calls: int, length: int) -> dict[str, Any]:
    """Options that make a search fit `calls` model calls where a line takes `length` of them. What is not named here keeps its default.

    Fork-best-of-n spends up to half of the calls on its draws, the rest on lines of half the length from two alternatives a pivot.
    """
    lines = max(1, calls // length)
    wide, actions = max(1, math.isqrt(lines)), max(min(2, lines), lines // 2)  # actions a node: the calls last for about two lines of nodes
    pivots = 3 if lines > 2 else 1
    forked = max(2, min(8, calls // (2 * pivots)))
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "greedy": lambda: {"num_samples": lines},
        "best_of_n": lambda: {"n": lines},
        "independent": lambda: {"n": lines},
        "lookahead": lambda: {"num_actions": lines},
        "archive": lambda: {"num_lines": 2 * lines, "wave_size": min(4, lines)},
        "beam": lambda: {"width": wide, "num_actions": max(1, lines // wide)},
        "dvts": lambda: {"num_subtrees": wide, "num_actions": max(1, lines // wide)},
        "rebase": lambda: {"width": lines},
        "particle_filter": lambda: {"num_particles": lines},
        "best_first": lambda: {"num_expansions": calls, "num_actions": actions},
        "depth_first": lambda: {"num_expansions": calls, "num_actions": actions},
        "mcts": lambda: {"num_simulations": calls, "num_actions": actions},
        "mcts_star": lambda: {"num_iterations": calls, "num_actions": actions},
        "gumbel": lambda: {"num_simulations": max(1, calls // actions), "num_actions": actions, "num_considered": max(2, min(16, lines))},
        "lats": lambda: {"num_iterations": calls, "num_actions": actions},
        "receding_horizon": lambda: {"num_simulations": max(1, lines // 2), "num_actions": 2 if lines < 16 else 4},
        "fork_best_of_n": lambda: {"n": forked, "num_pivots": pivots, "rollouts_per_alternative": max(1, lines // (2 * pivots))},
        "repair": lambda: {"n": max(1, min(16, calls // (2 * length))), "rounds": 8},
    }
    return table[name]() if name in table else {}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mcts with rollouts": ("mcts", {"rollouts": "always"}),
    "lats without votes or lessons": ("lats", {"agreement": 0.0, "num_reflections": 0}),
}


async def measured(made: Sequence[Subject], keep: Keep, setting: str, chosen: Sequence[str], budgets: Sequence[int]) -> list[Row]:
    """Play what is not known yet, for a group of runs together so that the model batches. Returns all rows of the group."""
    rows: list[Row] = []
    for name in chosen:
        for budget in budgets:
            began, asked = time.perf_counter(), []
            for subject in made:
                search, given = subject.plan(name, budget)
                key = (setting, search, json.dumps(given, sort_keys=True), budget, subject.trace.id)
                known = keep.result(key)
                if known is None:
                    asked.append((subject, search, given, key))
                else:
                    rows.append((name, budget, subject.trace.id, *known))
            found = await asyncio.gather(*(subject.search(search, given, budget) for subject, search, given, _ in asked))
            keep.put("draw", [row for subject in made for row in subject.policy.take_new()])
            keep.put("result", [(*key, *row) for (_, _, _, key), row in zip(asked, found, strict=True)])
            rows += [(name, budget, key[-1], *row) for (_, _, _, key), row in zip(asked, found, strict=True)]
            if asked:
                won, took = sum(row[0] for row in found), time.perf_counter() - began
                print(f"  {name} {budget}: {won} of {len(found)}, {took:.1f} s", file=sys.stderr)
    return rows


# --- what came of it ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Success of one search at one budget, with its 95 % Wilson interval, and what it used of the budget."""

    search: str
    budget: int
    traces: int
    success: float
    low: float
    high: float
    calls: float


def cells(rows: Sequence[Row], chosen: Sequence[str], budgets: Sequence[int]) -> list[Cell]:
    made = []
    for name in chosen:
        for budget in budgets:
            here = [row for row in rows if row[:2] == (name, budget)]
            wins, calls = sum(row[3] for row in here), sum(row[4] for row in here)
            made.append(Cell(name, budget, len(here), wins / len(here), *wilson(wins / len(here), len(here)), calls / len(here)))
    return made


def table(made: Sequence[Cell], budgets: Sequence[int], title: str, text: Callable[[Cell], str]) -> str:
    by = {(cell.search, cell.budget): cell for cell in made}
    names = sorted({cell.search for cell in made}, key=lambda name: (-sum(cell.success for cell in made if cell.search == name), name))
    lines = [f"| {title} | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(text(by[name, budget]) for budget in budgets) + " |" for name in names)])


def tables(made: Sequence[Cell], budgets: Sequence[int]) -> str:
    share = table(made, budgets, "success (95 % interval)", lambda c: f"{c.success:.2f} ({c.low:.2f}-{c.high:.2f})")
    return share + "\n\n" + table(made, budgets, "model calls used of", lambda c: f"{c.calls:.0f}")


def best_for_each(every: Mapping[Setting, Sequence[Row]], chosen: Sequence[str], budgets: Sequence[int]) -> str:
    """The best search for each budget in each setting, and up to three more that are not surely worse on the same runs."""
    heads = [f"{'exact' if not noise else 'noisy'} verifier, from the {where}" for where, noise in every]
    lines = [f"| model calls | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for budget in budgets:
        texts = []
        for rows in every.values():
            ranked = sorted(cells(rows, chosen, [budget]), key=lambda cell: -cell.success)
            best, equal = ranked[0], [c for c in ranked[1:] if not surely_better(rows, budget, ranked[0].search, c.search)][:3]
            also = f"; also {', '.join(f'{c.search} {c.success:.2f}' for c in equal)}" if equal else ""
            shown = f"**{best.search} {best.success:.2f}** ({best.low:.2f}-{best.high:.2f}){also}"
            texts.append(shown if best.success >= LEAST else f"none reaches {LEAST:g}")
        lines.append(f"| {budget} | {' | '.join(texts)} |")
    return "\n".join(lines)


def surely_better(rows: Sequence[Row], budget: int, one: str, other: str, z: float = 1.96) -> bool:
    """Whether the 95 % interval of the difference of success, run by run, lies above 0."""
    wins = {name: {row[2]: row[3] for row in rows if row[:2] == (name, budget)} for name in (one, other)}
    differences = [wins[one][trace] - wins[other][trace] for trace in wins[one]]
    mean = sum(differences) / len(differences)
    spread = sum((d - mean) ** 2 for d in differences) / max(1, len(differences) - 1)
    return mean > z * math.sqrt(spread / len(differences))


def plot(made: Sequence[Cell], budgets: Sequence[int], title: str) -> str:
    """Small panels, one a search: its success and interval over log2 of the budget, all others in grey."""
    names = sorted({cell.search for cell in made}, key=lambda name: (-sum(cell.success for cell in made if cell.search == name), name))
    wide, high, pad, columns = 220, 150, 34, 5
    rows = math.ceil(len(names) / columns)
    span = max(len(budgets) - 1, 1)
    lines = {name: sorted((c for c in made if c.search == name), key=lambda c: c.budget) for name in names}

    def x(cell: Cell) -> float:
        return pad + (wide - pad - 8) * budgets.index(cell.budget) / span

    def y(value: float) -> float:
        return high - 22 - (high - 44) * value

    def path(points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * wide}" height="{rows * high + 30}" font-family="sans-serif" font-size="10">',  # noqa: E501
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18" font-size="13">{html.escape(title)}</text>',
    ]
    greys = "".join(f'<polyline points="{path((x(c), y(c.success)) for c in line)}"/>' for line in lines.values())
    parts.append(f'<defs><g id="all" fill="none" stroke="#ddd">{greys}</g></defs>')
    for at, name in enumerate(names):
        parts.append(f'<g transform="translate({at % columns * wide},{at // columns * high + 30})">')
        parts.append('<use href="#all"/>')
        line = lines[name]
        band = [*((x(c), y(c.high)) for c in line), *((x(c), y(c.low)) for c in reversed(line))]
        parts.append(f'<polygon fill="#2563eb" fill-opacity="0.18" points="{path(band)}"/>')
        parts.append(f'<polyline fill="none" stroke="#2563eb" stroke-width="2" points="{path((x(c), y(c.success)) for c in line)}"/>')
        parts.append(f'<text x="{pad}" y="14" font-weight="bold">{html.escape(name)}</text>')
        parts += [f'<text x="{pad - 4}" y="{y(v) + 3:.0f}" text-anchor="end" fill="#555">{v:g}</text>' for v in (0, 0.5, 1)]
        parts += [
            f'<text x="{x(c):.0f}" y="{high - 8}" text-anchor="middle" fill="#555">{c.budget}</text>' for c in line[:: max(1, span // 3)]
        ]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


async def play(traces: Sequence[Trace], keep: Keep, setting: Setting, chosen: Sequence[str], budgets: Sequence[int]) -> list[Row]:
    where, noise = setting
    code = content_key(*(file.read_text() for file in sorted(Path(registry.__file__).parent.glob("*.py"))))
    policy = TransformersPolicy(EXAMPLE / "model", temperature=TEMPERATURE, max_new_tokens=MAX_TOKENS, batch_size=128)
    keep.of(policy.fingerprint)
    played = f"{policy.fingerprint} noise {noise:g} fork {where} search {code}"
    rows: list[Row] = []
    try:
        for at in range(0, len(traces), GROUP):
            group = [Subject(trace, policy, keep, noise) for trace in traces[at : at + GROUP]]
            print(f"runs {at + 1} to {at + len(group)} of {len(traces)}", file=sys.stderr)
            for subject in group:
                await subject.start(where)
            rows += await measured(group, keep, played, chosen, budgets)
    finally:
        policy.close()
    return rows


def main() -> None:
    names = [*SEARCHES, *VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fork", choices=("start", "pivot"), default="start")
    parser.add_argument("--noise", type=float, default=0.2, help="standard deviation of the noise on the verifier's opinions")
    parser.add_argument("--traces", type=int, default=128)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--searches", nargs="+", default=names, choices=names)
    parser.add_argument("--quick", action="store_true", help="24 runs; 8, 32 and 128 calls")
    parser.add_argument("--readme", action="store_true", help="the best searches for each budget, in three settings")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    traces, budgets = (24, [8, 32, 128]) if asked.quick else (asked.traces, asked.budgets)
    OUT.mkdir(exist_ok=True)
    (OUT / ".gitignore").write_text("*\n")
    keep, failed = Keep(OUT / "search_quality.sqlite"), subjects(traces)
    if asked.readme:
        every = {setting: asyncio.run(play(failed, keep, setting, asked.searches, budgets)) for setting in SETTINGS}
        print(best_for_each(every, asked.searches, budgets))
        return
    began = time.perf_counter()
    made = cells(asyncio.run(play(failed, keep, (asked.fork, asked.noise), asked.searches, budgets)), asked.searches, budgets)
    shown, file = tables(made, budgets), OUT / f"search_quality_{asked.fork}{'' if asked.noise == 0.2 else f'_noise_{asked.noise:g}'}"
    title = f"Success against model calls, {len(failed)} failed runs from the {asked.fork}, noise {asked.noise:g}, 95 % intervals"
    file.with_suffix(".md").write_text(shown + "\n")
    file.with_suffix(".svg").write_text(plot(made, budgets, title))
    if asked.json:
        print(json.dumps([cell.__dict__ for cell in made]))
    print(f"{shown}\n\n{title}; {time.perf_counter() - began:.0f} s; table and plot in {OUT.name}/")


if __name__ == "__main__":
    main()
