"""Works over the game of moves, whose parts have names, so that any process can make them."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from counterplay.core.store import NewUnit
from counterplay.jobs.driver import Driver
from counterplay.jobs.loading import Loader
from counterplay.jobs.progress import Progress
from counterplay.jobs.retries import Retries
from counterplay.parts import Asked
from counterplay.plan import Plan
from tests.front import moves
from tests.front.moves import logged

RUNS = ("bbaaaa", "babbbb", "bbbbba", "bbbbbb")
TASKS = ("t0", "t1", "t2")
MCTS = Plan("mcts", {"num_simulations": 12, "wave_size": 2}, fork="start")


def modules(folder, monkeypatch):
    """`moves` and `game_parts`, importable here and wherever this path goes; what they note is in the folder that is given back."""
    for file in (Path(moves.__file__), Path(__file__).with_name("game_parts.py")):
        shutil.copy(file, folder)
    monkeypatch.syspath_prepend(folder)
    notes = folder / "notes"
    notes.mkdir()
    monkeypatch.setenv("NOTES", str(notes))
    return notes


def asked(policy="game_parts:policy", environment="moves:World", verifiers=("outcome", "moves:sound"), **given):
    return Asked(policy, environment, verifiers, **given)


def runs(tasks=TASKS):
    """Four runs of each task, the last by another agent."""
    return [logged(task, played, agent="b" if played == RUNS[-1] else "a") for played in RUNS for task in tasks]


def works(store, asked, plan, traces=None):
    """The work of every trace, or of every task for stitch."""
    rows = [row for row in store.traces() if traces is None or row.id in traces]
    units = [SimpleNamespace(id=row.id, traces=(row.id,), share={}) for row in rows]
    if plan.algorithm == "stitch":
        tasks = {task: tuple(row.id for row in rows if row.task == task) for task in sorted({row.task for row in rows})}
        units = [SimpleNamespace(id=task, traces=ids, share={}) for task, ids in tasks.items()]
    return Loader(store, "game", asked, plan).load(units)


async def driven(store, crew, asked, plan, *, attempts=3):
    """A job over every trace of the store, driven to its end by this crew; its units by id, and its progress."""
    store.put_job("game", "game", "{}")
    store.add_units("game", [NewUnit(row.id, (row.id,)) for row in store.traces()])
    progress = Progress(store.path, "game", store.unit_counts("game"))
    loader = Loader(store, "game", asked, plan)
    assert await Driver(store, "game", loader, crew, progress, retries=Retries(attempts, 0.01)).run() == ""
    return {unit.id: unit for unit in store.units("game")}, progress


def paid(store):
    """What was answered about all traces, by the journal: draws, and the tokens that went in."""
    (whole,) = store.costs("")
    return whole.paid.calls, whole.paid.input_tokens


def told(units):
    """The same by what came of the units."""
    return tuple(
        sum(amounts)
        for amounts in zip(*((u.result.get("live_calls", 0), u.result.get("tally", {}).get("input_tokens", 0)) for u in units), strict=True)
    )


async def worked(crew, works):
    """What comes of works, all submitted at once, by unit. The crew is let go."""
    try:
        found = await asyncio.gather(*(crew.submit(work) for work in works))
    finally:
        await crew.close()
    return {one.unit: one for one in found}


def unclocked(record):
    """A tree without the time it took, which is all that may differ."""
    return replace(record, used=replace(record.used, seconds=None))


def trees(made):
    """The trees of all units, by unit, as they are compared."""
    return {unit: tuple(map(unclocked, one.records)) for unit, one in made.items()}


def draws(notes):
    """The draws that were really made, with the ids of the processes that made them."""
    file = notes / "draws"
    return [tuple(line.split()) for line in file.read_text().splitlines()] if file.exists() else []
