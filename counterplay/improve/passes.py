"""Failed runs searched until each has a solution or the budget of the round is spent."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from counterplay import searching
from counterplay.choosing import fit, weighs_prefixes
from counterplay.core.budget import KINDS, Budget
from counterplay.core.nouns import Trace
from counterplay.improve.settings import Guided, Improvement
from counterplay.improve.working import left_of, used_by
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.replay.capabilities import capabilities
from counterplay.search.tree import SearchTree
from counterplay.strategies import sized

if TYPE_CHECKING:
    from collections.abc import Callable

    from counterplay.core.store import Store

PASSES = 16
_SOLVED = 1.0


def search_failed(
    store: Store,
    given: Improvement,
    failed: Sequence[Trace],
    model: Path,
    *,
    prm: str,
    budget: Budget,
    on_trace: Callable[[], None],
) -> dict[str, Any]:
    """Search the failed runs of a round with what is left of its budget.

    With a budget this is done in passes with new draws: what a pass leaves over goes to the runs that are not solved yet, and no run is
    given less than what nine in ten failed runs took. Without one there is one pass. `prm` is the spec of a learned verifier that is
    heard too, or empty.
    """
    lines = [used_by([trace]) for trace in failed]
    mean, most = (_each(lines, of) for of in (fmean, _most))
    asked = Guided(**vars(given.asked_by(model)), prm=prm)
    plan = asyncio.run(settled(given.plan, asked, failed))
    unsolved, passes = list(failed), list[dict[str, Any]]()
    while len(passes) < PASSES and (chosen := unsolved[: affordable(budget, most, len(unsolved))]):
        here, began_s = replace(asked, seed=asked.seed + 1 + len(passes)), time.monotonic()
        done = asyncio.run(searching.search(store, chosen, here, narrowed(plan, budget, mean, len(chosen)), on_trace=on_trace))
        solved = solved_by(store, done.searches)
        passes.append({"traces": len(chosen), "solved": len(solved), "used": dict(done.used), "skipped": len(done.skipped)})
        budget = left_of(_text(budget), {**done.used, "seconds": time.monotonic() - began_s})
        unsolved = [trace for trace in (*unsolved[len(chosen) :], *chosen) if trace.id not in solved]
        if not given.plan.budget or not done.used:
            break
    used = {kind: sum(one["used"].get(kind, 0) for one in passes) for kind in ("model_calls", "tokens")}
    counts = {"failed": len(failed), "solved": len(failed) - len(unsolved)}
    return {"search": plan.algorithm if failed else "", **counts, "used": used, "passes": passes}


async def settled(plan: Plan, asked: Asked, traces: Sequence[Trace]) -> Plan:
    """The plan that is carried out. Where no search was named: `repair` if the verifier has opinions on unfinished runs, `mcts` if it knows
    ends alone (the best ones by docs/search-quality.md and docs/learned-verifiers.md), or what an environment that restores nothing allows.
    """
    if not traces:
        return plan
    found = capabilities(asked.make_environment(traces)(traces[0]))
    process = await weighs_prefixes(asked.make_verifier(), traces[0].trajectory)
    if not plan.named and found.forks and found.reenacts:
        if process:
            return replace(plan, algorithm="repair", named=True, forked=True)
        return replace(plan, algorithm="mcts", fork=plan.fork if plan.forked else "start", named=True, forked=True)
    chosen, _ = fit(plan, found, named=plan.named, forked=plan.forked, process=process)
    return replace(chosen, named=True, forked=plan.forked or chosen.fork == "start")


def affordable(budget: Budget, line: Mapping[str, float], traces: int) -> int:
    """How many of `traces` runs can be given a line's worth of every kind that is limited."""
    limited = [kind for kind in KINDS if getattr(budget.limits, kind) is not None]
    if any(budget.left(kind) <= 0 for kind in limited):
        return 0
    return min([traces, *(int(budget.left(kind) / line[kind]) for kind in limited if kind in line)])


def narrowed(plan: Plan, budget: Budget, line: Mapping[str, float], traces: int) -> Plan:
    """The plan with what is left as its budget, and options that fit what each run gets of it. The user's own options come first."""
    shares = [budget.left(kind) / traces / amount for kind, amount in line.items() if getattr(budget.limits, kind) is not None]
    length = line.get("model_calls", 0.0)
    try:
        own = sized(plan.algorithm, min(shares) * length, round(length)) if shares and length else {}
    except KeyError:  # a search whose defaults do not go by the budget
        own = {}
    return replace(plan, budget=_text(budget), options={**own, **plan.options})


def solved_by(store: Store, searches: Iterable[str]) -> set[str]:
    """The traces whose search found an end that every verifier is content with."""
    solved = set[str]()
    for search_id in searches:
        record = store.search(search_id)
        best = SearchTree.from_record(record).best()
        if record.trace is not None and best is not None and best.score is not None and best.score.value >= _SOLVED and not best.logged:
            solved.add(record.trace)
    return solved


def _each(lines: Sequence[Mapping[str, float]], of: Callable[[list[float]], float]) -> dict[str, float]:
    """`of` all lines, for every kind that is known."""
    found = {kind: of([line[kind] for line in lines]) for kind in (lines[0] if lines else ())}
    return {kind: amount for kind, amount in found.items() if amount}


def _most(amounts: list[float]) -> float:
    """What nine in ten don't exceed."""
    return sorted(amounts)[math.ceil(0.9 * len(amounts)) - 1]


def _text(budget: Budget) -> str:
    left = {kind: budget.left(kind) for kind in KINDS if getattr(budget.limits, kind) is not None}
    return ",".join(f"{kind}={max(0.0, amount):.12g}" for kind, amount in left.items())
