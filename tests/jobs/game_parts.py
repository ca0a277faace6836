"""Parts of the game of moves for workers, copied beside `moves.py`: they note every draw that is really made, and by whom."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

from moves import Mover, sound

from counterplay.core.protocols import first_draw


def note(file, what):
    folder = Path(os.environ["NOTES"])
    if folder.is_dir():
        with (folder / file).open("a") as notes:
            notes.write(f"{what} {os.getpid()}\n")


def said(file):
    """What a note says that was left for the parts; empty where there is none."""
    found = Path(os.environ["NOTES"], file)
    return found.read_text() if found.exists() else ""


class Noted(Mover):
    """Kills its process at the third move of a task that is called poison, and lets it stand still at that of one that is called stuck.

    Takes as long for an answer as it is told to.
    """

    async def propose(self, state, n):
        if "stuck" in state.prompt[-1].content_text and len(state) >= 2:
            threading.Event().wait()
        if "poison" in state.prompt[-1].content_text and len(state) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(float(os.environ.get("DELAY_S") or said("delay_s") or 0))
        note("draws", f"{state.key}/{first_draw.get()}/{n}")
        return await super().propose(state, n)


policy = Noted()


class Batched:
    """As `sound`, in batches; notes how many it was asked about at once."""

    name, version = "batched", "1"

    def __call__(self, trajectory):
        return sound(trajectory)

    def batch(self, trajectories):
        note("batches", len(trajectories))
        return [sound(trajectory) for trajectory in trajectories]


batched = Batched()


def slow(trajectory):
    """As `sound`, and does not let go of the event loop for a third of a second."""
    time.sleep(0.35)
    return sound(trajectory)


def stuck_once(trajectory):
    """As `sound`; the first process that is asked about a third move stands still."""
    if len(trajectory) >= 3 and not said("stuck"):
        note("stuck", "here")
        threading.Event().wait()
    return sound(trajectory)
