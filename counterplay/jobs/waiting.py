"""What a job waits for while nothing comes in: the servers of its model, looked at from beside.

A policy asks a server that is down again and again, which takes its time and is told by nobody. So where no unit has settled and no call
was answered for a second, each server is asked for its models, which costs nothing; what is wrong is said once, and then seldom.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from counterplay.replay.openai_policy import addresses

if TYPE_CHECKING:
    from counterplay.jobs.progress import Progress
    from counterplay.jobs.spec import Job

_FIRST_S, _LOOK_S, _SELDOM_S = 0.3, 1.0, 30.0
_TIMEOUT_S = 5.0
_AGAIN_S, _AGAIN_AT_MOST_S = 60.0, 960.0
_FAILING, _LISTS_NONE = 500, 501
_OPENAI = "https://api.openai.com/v1"


def servers_of(job: Job) -> tuple[str, ...]:
    """The addresses at which the job's model is asked; none where it is no server's."""
    if job.stitches or job.policy.spec.partition(":")[0] not in ("openai", "batch"):
        return ()
    return addresses(",".join(job.policy.base_urls)) or (os.environ.get("OPENAI_BASE_URL") or _OPENAI,)


class Waiting:
    """Looks at `servers` while nothing moves in `progress`, notes there what is waited for, and tells it to `say`."""

    def __init__(self, servers: Sequence[str], progress: Progress, say: Callable[[str], None]) -> None:
        self.servers, self.progress, self.say = tuple(servers), progress, say
        self._over = Event()
        self._last = progress.moves
        self._said = ""
        self._due_s = self._again_s = 0.0

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Look on while the block runs."""
        thread = Thread(target=self._look_on, daemon=True)
        if self.servers:
            thread.start()
        try:
            yield
        finally:
            self._over.set()

    def _look_on(self) -> None:
        pause_s = _FIRST_S
        while not self._over.wait(pause_s):
            moves = self.progress.moves
            if moves != self._last:
                self._last, pause_s = moves, _LOOK_S
                self._tell("")
                continue
            problem = self._problem()
            if not self._over.is_set():
                self._tell(problem)
            pause_s = _LOOK_S if problem else min(2 * pause_s, _SELDOM_S)

    def _tell(self, problem: str) -> None:
        now_s = time.monotonic()
        self.progress.waiting = problem
        if problem and (not self._said or now_s >= self._due_s):
            self._again_s = min(2 * self._again_s, _AGAIN_AT_MOST_S) if self._said else _AGAIN_S
            self._due_s = now_s + self._again_s
            self.progress.errors.append(problem)
            self.say(f"waiting: {problem}; it is asked again and again")
            self._said = problem
        elif self._said and not problem:
            self.say("the server answers again")
            self._said = ""

    def _problem(self) -> str:
        """What is wrong with the servers, in words; empty where one of them is well."""
        with ThreadPoolExecutor(len(self.servers)) as at_once:
            found = list(at_once.map(problem_with, self.servers))
        return "" if "" in found else "; ".join(found)


def problem_with(base_url: str) -> str:
    """Why a server can't answer; empty where it does, whatever it says."""
    import httpx2

    key = os.environ.get("OPENAI_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx2.get(f"{base_url.rstrip('/')}/models", headers=headers, timeout=_TIMEOUT_S)
    except httpx2.TimeoutException:
        return f"{base_url} did not answer within {_TIMEOUT_S:g} s"
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{base_url} can't be reached ({error})"
    return f"{base_url} answers {answer.status_code}" if answer.status_code >= _FAILING and answer.status_code != _LISTS_NONE else ""
