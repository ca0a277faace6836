"""Logs of a shelf: what an agent did, executed once, and then graded as a log is."""

from __future__ import annotations

from dataclasses import replace

from counterplay.core.nouns import Grade, Message, Trajectory
from counterplay.replay.live import LiveEnvironment, initial
from tests.replay.shelf import Shelf, SnapshotShelf, act, walk

GET_A, GET_B, TOTAL = act(("get", {"name": "a"})), act(("get", {"name": "b"})), act("total")


def put(name: str, n: int = 1) -> Message:
    return act(("put", {"name": name, "n": n}))


async def logged(*actions: Message) -> Trajectory:
    state = await walk(LiveEnvironment(SnapshotShelf, allow_external={"mail"}), initial(SnapshotShelf), *actions)
    exact = tuple(replace(step, grades=(Grade.EXACT,) * len(step.observations)) for step in state.steps)
    Shelf.executed.clear()
    return replace(state, steps=exact)


def grades(state: Trajectory) -> list[str]:
    return [grade.name.lower() for step in state.steps for grade in step.grades]
