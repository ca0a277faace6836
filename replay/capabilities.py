"""What an environment can do about the past: how a recorded state is reached again, and why not where it can't be.

Searches that fork need it. Where nothing can be restored, a look one step ahead and a choice among whole trajectories remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Restorable: TypeAlias = Literal["snapshot", "copy", "re-execute", "recorded", "none"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`restorable` says how an earlier state is reached: from a snapshot or a copy, by executing the prefix again, because a
    recording answers, or not at all. `why` is for people to read. `reenacts` says whether a prefix that was logged elsewhere can
    be acted out; without it only states that were reached here can be gone back to.

    An environment of one's own declares it as an attribute `capabilities`.
    """

    restorable: Restorable
    why: str
    reenacts: bool = True

    @property
    def forks(self) -> bool:
        """Whether a search may go back to an earlier state."""
        return self.restorable != "none"


def capabilities(environment: object) -> Capabilities:
    """What `environment` can do, from its own word, or that of what it wraps (shown as `.environment`).

    An environment that says nothing is taken at the word of the protocol: it executes an action in the state it is given.
    Raises UserError where an instance has to be looked at and that takes waiting: open the environment first.
    """
    from counterplay.replay.recorded import RecordedEnvironment

    part: object | None = environment
    while part is not None:
        declared = getattr(part, "capabilities", None)
        if isinstance(declared, Capabilities):
            return declared
        if isinstance(part, RecordedEnvironment):
            return _recorded(part.fallback)
        part = getattr(part, "environment", None)
    return Capabilities("re-execute", f"{type(environment).__name__} says nothing else than that it takes a whole state with each step")


def _recorded(fallback: object | None) -> Capabilities:
    if fallback is None:
        return Capabilities("recorded", "the log answers, and a branch ends where it has no answer")
    behind = capabilities(fallback)
    if behind.restorable == "none":
        return Capabilities("recorded", f"the log answers, and a branch ends where it has no answer, because behind it {behind.why}")
    return Capabilities("recorded", f"the log answers, and behind it {behind.why}")
