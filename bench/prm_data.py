"""Searched traces for `bench/prm.py`: a line of the example agent for every task, and for each failed one where it went wrong.

The truth comes from the environment: the wrong step of a failed line is the first after which none of so many lines that the agent plays
from there is paid, found by halving (OmegaPRM) and then confirmed with more lines. Tasks of which no line from the start is paid have no
such step; they are left out.
"""

from __future__ import annotations

import asyncio
import pickle
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterplay.core.budget import Budget
from counterplay.core.nouns import Trajectory
from counterplay.core.records import SearchRecord
from counterplay.examples.ledger import Ledger
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.transformers_policy import TransformersPolicy
from counterplay.search.best_of_n import best_of_n
from counterplay.search.localise import localise
from counterplay.verifiers.outcome import outcome

MODEL = Path(__file__).parents[1] / "examples" / "ledger" / "model"
MAX_STEPS, GROUP = 40, 64


@dataclass(frozen=True)
class Searched:
    """One line of a task and the searches around it. `wrong` is its first wrong step, -1 where it was paid, None where there is none."""

    task: str
    line: Trajectory
    wrong: int | None
    records: tuple[SearchRecord, ...]


def make_policy(seed: int) -> TransformersPolicy:
    return TransformersPolicy(MODEL, temperature=1.0, max_new_tokens=64, batch_size=128, seed=seed)


async def search(task: str, policy: TransformersPolicy, lines: int) -> Searched:
    """`lines` from the start, one of which, drawn at random, is judged, and its halving where it failed."""
    environment = LiveEnvironment(lambda: Ledger(task))
    start = await environment.initial()
    tree = await best_of_n(start, policy, environment, outcome, Budget(), n=lines, max_steps=MAX_STEPS)
    records = [tree.to_record(f"start-{task}", task=task)]
    ends = tree.finished()
    line = random.Random(task).choices(ends, [end.visits for end in ends])[0].state
    if line.steps[-1].reward:
        return Searched(task, line, -1, tuple(records))
    if not tree.root.value_sum:
        return Searched(task, line, None, tuple(records))
    found = await localise(line, policy, environment, outcome, Budget(), method="omega", lines_per_probe=lines, max_steps=MAX_STEPS)
    if found.tree is not None:
        records.append(found.tree.to_record(f"halved-{task}", task=task))
    return Searched(task, line, found.step, tuple(records))


async def confirm(one: Searched, policy: TransformersPolicy, lines: int) -> Searched:
    """The wrong step moved on until none of `lines` more lines after it is paid: a few failures prove little where success is rare."""
    wrong, environment = one.wrong, LiveEnvironment(lambda: Ledger(one.task))
    while wrong is not None and 0 <= wrong < len(one.line) - 1:
        state = one.line.prefix(wrong + 1)
        tree = await best_of_n(state, policy, environment, outcome, Budget(), n=lines, max_steps=MAX_STEPS)
        if not tree.root.value_sum:
            break
        wrong += 1
    return replace(one, wrong=wrong)


def confirmed(found: Sequence[Searched], file: Path, *, lines: int, seed: int) -> list[Searched]:
    """The same with their wrong steps confirmed, kept in `file`."""
    return _kept(file, lambda policy: _in_groups([confirm(one, policy, lines) for one in found]), seed)


def searched(names: Sequence[str], file: Path, *, lines: int, seed: int) -> list[Searched]:
    """The searches of these tasks, kept in `file`."""
    return _kept(file, lambda policy: _in_groups([search(name, policy, lines) for name in names]), seed)


async def _in_groups(asked: Sequence[Coroutine[Any, Any, Searched]]) -> list[Searched]:
    found: list[Searched] = []
    for at in range(0, len(asked), GROUP):
        found += await asyncio.gather(*asked[at : at + GROUP])
    return found


def _kept(file: Path, play: Callable[[TransformersPolicy], Coroutine[Any, Any, list[Searched]]], seed: int) -> list[Searched]:
    if file.is_file():
        with file.open("rb") as stream:
            known: list[Searched] = pickle.load(stream)
        return known
    began, policy = time.process_time(), make_policy(seed)
    try:
        found = asyncio.run(play(policy))
    finally:
        policy.close()
    with file.open("wb") as stream:
        pickle.dump(found, stream)
    failed = [one for one in found if one.wrong != -1]
    unknown = sum(one.wrong is None for one in failed)
    cost = f"{time.process_time() - began:.0f} s of CPU"
    print(f"  {file.stem}: {len(found)} lines, {len(failed)} failed, {unknown} of them without a step, {cost}", flush=True)
    return found
