"""How to search: which algorithm with which options, where to fork, and what it may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from counterplay.core.budget import KINDS, Budget
from counterplay.core.errors import UserError


@dataclass(frozen=True)
class Plan:
    """How to search. `fork` is `start`, `pivot` or a step number.

    `budget` is for all traces together, `trace_budget` for each; both as text, empty is no limit.
    """

    algorithm: str = "fork_best_of_n"
    options: Mapping[str, Any] = field(default_factory=dict)
    fork: str = "pivot"
    budget: str = ""
    trace_budget: str = ""
    concurrency: int = 64

    @classmethod
    def parse(cls, algorithm: str, options: Sequence[str], **settings: Any) -> Plan:
        """Check names and values as a user writes them. Raises UserError on an unknown algorithm or option, or a value of another type."""
        from counterplay.search.registry import SEARCHES, find, parse_options

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

    def share(self, traces: int) -> Callable[[], Budget]:
        """A maker of one trace's budget: `trace_budget` where given, else an even share of what can be counted; the clock is common."""
        whole, each = Budget.parse(self.budget), Budget.parse(self.trace_budget)
        limits = {kind: getattr(whole.limits, kind) for kind in KINDS}
        shares = {kind: limit if kind == "seconds" or limit is None else limit / max(traces, 1) for kind, limit in limits.items()}
        own = {kind: getattr(each.limits, kind) for kind in KINDS}
        merged = {kind: own[kind] if own[kind] is not None else shares[kind] for kind in KINDS}

        def make() -> Budget:
            made = Budget.of(**merged)
            made.limits = replace(made.limits, **{k: float(int(v)) for k, v in merged.items() if v is not None and k in _COUNTED})
            return made

        return make

    def limits(self, kind: str) -> bool:
        """Whether one of the two budgets has a limit of this kind."""
        return any(getattr(Budget.parse(text).limits, kind) is not None for text in (self.budget, self.trace_budget))

    def affordable(self, traces: int) -> int:
        """How many traces fit into `budget` at `trace_budget` each; all of them where one of the two is open."""
        whole, each = Budget.parse(self.budget), Budget.parse(self.trace_budget)
        pairs = [(getattr(whole.limits, kind), getattr(each.limits, kind)) for kind in KINDS if kind != "seconds"]
        return min([traces, *(int(limit // own) for limit, own in pairs if limit is not None and own)])


_COUNTED = ("simulations", "model_calls", "tokens", "tool_calls")
