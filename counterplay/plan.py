"""How to search: which algorithm with which options, where to fork, and what it may cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.budget import KINDS, Budget
from counterplay.core.errors import UserError


@dataclass(frozen=True)
class Plan:
    """How to search. `fork` is `start`, `pivot` or a step number.

    `budget` is for all traces together, `trace_budget` for each; both as text, empty is no limit. `named` and `forked` say whether
    the user chose the algorithm and the fork; what she left open may be replaced where an environment can't be restored.
    """

    algorithm: str = "fork_best_of_n"
    options: Mapping[str, Any] = field(default_factory=dict)
    fork: str = "pivot"
    budget: str = ""
    trace_budget: str = ""
    concurrency: int = 64
    named: bool = True
    forked: bool = True

    @classmethod
    def parse(cls, algorithm: str | None, options: Sequence[str], *, fork: str | None = None, **settings: Any) -> Plan:
        """Check names and values as a user writes them; None is what she left open.

        Raises UserError on an unknown algorithm or option, or a value of another type.
        """
        from counterplay.search.registry import SEARCHES, find, parse_options

        settings |= {"named": algorithm is not None, "forked": fork is not None, "fork": fork or cls.fork}
        algorithm = algorithm or cls.algorithm
        if algorithm != "stitch" and algorithm not in SEARCHES:
            raise UserError(f"got search {algorithm!r}", f"one of {', '.join([*SEARCHES, 'stitch'])}")
        malformed = next((text for text in options if "=" not in text), None)
        if malformed is not None:
            raise UserError(f"got option {malformed!r}", "key=value")
        given = {key.strip(): value for key, value in (text.split("=", 1) for text in options)}
        if algorithm == "stitch":
            if given:
                raise UserError(f"got option {next(iter(given))!r}", "none: stitch has no options")
            return cls(algorithm, **settings)
        return cls(algorithm, parse_options(find(algorithm), given), **settings)

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise UserError(f"got concurrency {self.concurrency}", "at least 1")

    def share(self, traces: int) -> Callable[[], Budget]:
        """A maker of one trace's budget: `trace_budget` where given, else an even share of what can be counted.

        Seconds of `budget` count from this call and are common to all; seconds of `trace_budget` count for each trace.
        """
        whole, own = Budget.parse(self.budget), Budget.parse(self.trace_budget)
        merged: dict[str, float] = {}
        for kind in KINDS:
            given, limit = getattr(own.limits, kind), getattr(whole.limits, kind)
            if given is not None:
                merged[kind] = given
            elif limit is not None:
                merged[kind] = limit if kind == "seconds" else limit // max(traces, 1) if kind in _COUNTED else limit / max(traces, 1)
        common_clock = own.limits.seconds is None

        def make() -> Budget:
            return Budget(Budget.of(**merged).limits, _started_s=whole._started_s) if common_clock else Budget.of(**merged)  # noqa: SLF001

        return make

    def limits(self, kind: str) -> bool:
        """Whether one of the two budgets has a limit of this kind."""
        return any(getattr(Budget.parse(text).limits, kind) is not None for text in (self.budget, self.trace_budget))

    def affordable(self, traces: int) -> int:
        """How many traces fit into `budget`: at `trace_budget` each, and where that is open at one of each kind that is counted."""
        whole, own = Budget.parse(self.budget), Budget.parse(self.trace_budget)
        fitting = [traces]
        for kind in KINDS:
            limit, each = getattr(whole.limits, kind), getattr(own.limits, kind)
            least = each if each is not None else 1 if kind in _COUNTED else None
            if kind != "seconds" and limit is not None and least:
                fitting.append(math.floor(limit / least + 1e-9))
        return min(fitting)


_COUNTED = ("simulations", "model_calls", "tokens", "tool_calls")
