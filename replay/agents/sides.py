"""What sub-agents' models answered live on the branches of one agent, to be answered again when a branch is re-enacted."""

from __future__ import annotations

import threading
from collections import OrderedDict

from counterplay.replay.agents.ambient import ModelAnswer

SideKey = tuple[str, int]
"""What was asked, and for the how-manieth time on the branch."""


class Sides:
    """Answers by what was asked, the latest `kept` of them. Safe to use from several threads."""

    def __init__(self, kept: int = 4096) -> None:
        self._answers: OrderedDict[SideKey, ModelAnswer] = OrderedDict()
        self._kept = kept
        self._lock = threading.Lock()

    def keep(self, key: SideKey, answer: ModelAnswer) -> None:
        with self._lock:
            self._answers.setdefault(key, answer)
            while len(self._answers) > self._kept:
                self._answers.popitem(last=False)

    def get(self, key: SideKey) -> ModelAnswer | None:
        with self._lock:
            return self._answers.get(key)
