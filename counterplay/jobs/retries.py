"""What is tried again, when, and how often: by the class of what went wrong, and without chance, so that a job does the same twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_WAITS = {"rate_limit": 8.0, "server": 2.0, "unreached": 2.0, "lost": 0.5}
_LONGEST_S = 900.0
NEVER = frozenset({"user", "refused"})
"""The classes of `work.ERRORS` that another try would not help."""
EVERYBODY = frozenset({"unreached", "closed"})
"""Those that are no unit's own: where nothing helps, the job stops and the units stay as they are."""
LOST = frozenset({"lost", "beside"})
"""Those of units whose worker is gone."""


@dataclass(frozen=True, slots=True)
class Retries:
    """`attempts` tries in all; the second `backoff_s` seconds after the first (8 times that after a rate limit, twice after a failure of
    a server, half after a lost worker), doubled from one to the next, 15 minutes at most. A try beside others that may have cost the
    worker is none: the unit is tried alone at once. A server that lets nobody in is not asked again.
    """

    attempts: int = 3
    backoff_s: float = 2.0

    def counts(self, error_class: str) -> bool:
        """Whether what went wrong so was a try."""
        return error_class != "beside"

    def again_s(self, error_class: str, tries: int) -> float | None:
        """Seconds to wait before the next try after `tries` that went wrong, the last of them so; None where there is none."""
        if not self.counts(error_class):
            return 0.0
        if error_class in NEVER or error_class == "closed" or tries >= self.attempts:
            return None
        return min(_LONGEST_S, self.backoff_s * _WAITS.get(error_class, 1.0) * float(2 ** (tries - 1)))

    def given_up(self, error_class: str) -> Literal["failed", "parked"]:
        """What a unit is that is not tried again: failed where trying would not help, parked where somebody should look."""
        return "failed" if error_class in NEVER else "parked"
