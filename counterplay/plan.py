"""How to search: which algorithm with which options, where to fork, and what it may cost."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

from counterplay.core.budget import KINDS, Amounts, Budget
from counterplay.core.errors import UserError
from counterplay.search.branching import Strategy
from counterplay.search.fairness import Limiter, shared
from counterplay.search.registry import LOGGED, SEARCHES, find, parse_options
from counterplay.search.stopping import StopWhen

STRATEGIES: tuple[str, ...] = get_args(Strategy)
_IN_FLIGHT = 64


@dataclass(frozen=True)
class Pace:
    """How much all searches together may ask of a server: requests in flight, requests and tokens a minute.

    `in_flight` None is 64, or no limit for a model in this process, which makes batches of what it is asked; the others None: no limit.
    """

    in_flight: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        self._limiter(self.requests)  # refuses limits below 1

    @property
    def requests(self) -> int:
        """How many requests a server may get at once."""
        return _IN_FLIGHT if self.in_flight is None else self.in_flight

    def kept(self, *, local: bool) -> AbstractContextManager[Limiter | None]:
        """Everything that asks inside keeps to this pace together; `local` says that the policy is a model in this process."""
        if local and self == Pace():
            return nullcontext()
        return shared(self._limiter(sys.maxsize if local and self.in_flight is None else self.requests))

    def _limiter(self, in_flight: int) -> Limiter:
        return Limiter(in_flight, requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute)


@dataclass(frozen=True)
class Plan:
    """How to search. `fork` is `start`, a step number, or a strategy of `search/branching.py`.

    For a search that is given a whole logged run the strategy is its `localisation`; any other goes on from the step it puts first.
    `budget` is for all traces together, `trace_budget` for each; both as text, empty is no limit. `split` says how `budget` is divided:
    `gain`, by what it is expected to bring, or `even`. `stop_when` is text for `StopWhen.parse`. `named` and `forked` say whether
    the user chose the algorithm and the fork; what she left open may be replaced where an environment can't be restored.
    """

    algorithm: str = "fork_best_of_n"
    options: Mapping[str, Any] = field(default_factory=dict)
    fork: str = "value_drop"
    budget: str = ""
    trace_budget: str = ""
    concurrency: int = 64
    named: bool = True
    forked: bool = True
    split: str = "gain"
    stop_when: str = ""
    pace: Pace = Pace()

    @classmethod
    def parse(cls, algorithm: str | None, options: Sequence[str], *, fork: str | None = None, **settings: Any) -> Plan:
        """Check names and values as a user writes them; None is what she left open.

        Raises UserError on an unknown algorithm or option, or a value of another type.
        """
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
        twice = next((name for name in ("pivots", "localisation") if name in given and fork is not None and algorithm in LOGGED), None)
        if twice is not None:
            raise UserError(f"got --fork {fork} beside --option {twice}={given[twice]}", "one of them")
        return cls(algorithm, parse_options(find(algorithm), given), **settings)

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise UserError(f"got concurrency {self.concurrency}", "at least 1")
        if self.split not in ("gain", "even"):
            raise UserError(f"got --split {self.split}", "gain or even")
        self.condition  # noqa: B018  an unreadable one is refused now
        if self.algorithm != "stitch":
            _check_fork(self.algorithm, self.fork)

    @property
    def localisation(self) -> str:
        """`fork`, or the option of that name of a search that forks a whole run, where `fork` says nothing else."""
        if self.algorithm in LOGGED and self.fork == type(self).fork:
            return str(self.options.get("localisation", self.fork))
        return self.fork

    @property
    def condition(self) -> StopWhen:
        """When a search has found enough."""
        return StopWhen.parse(self.stop_when)

    def share(self, traces: int) -> Callable[[], Budget]:
        """A maker of one trace's budget: `trace_budget` where given, else an even share of what can be counted.

        Seconds of `budget` count from this call and are common to all; seconds of `trace_budget` count for each trace.
        """
        whole, traces = Budget.parse(self.budget), max(traces, 1)
        parts = {kind: limit // traces if kind in COUNTED else limit / traces for kind, limit in _given(whole.limits).items()}
        return self.made_of(Amounts(**{**parts, "seconds": whole.limits.seconds}), whole)

    def made_of(self, part: Amounts, whole: Budget) -> Callable[[], Budget]:
        """A maker of budgets of `part`, what one trace gets of `whole`, or of `trace_budget` where that has a limit of the kind."""
        own = Budget.parse(self.trace_budget).limits
        limits = Amounts(**{**_given(part), **_given(own)})

        def make() -> Budget:
            return Budget(limits) if own.seconds is not None else Budget(limits, _started_s=whole._started_s)  # noqa: SLF001  one clock

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
            least = each if each is not None else 1 if kind in COUNTED else None
            if kind != "seconds" and limit is not None and least:
                fitting.append(math.floor(min(limit / least + 1e-9, traces)))
        return min(fitting)


COUNTED = ("simulations", "model_calls", "tokens", "tool_calls")
_STRATEGIES = ", ".join(STRATEGIES)


def _given(limits: Amounts) -> dict[str, float]:
    """The limits there are."""
    return {kind: limit for kind in KINDS if (limit := getattr(limits, kind)) is not None}


def _check_fork(algorithm: str, fork: str) -> None:
    """Raises UserError where a search can't begin there."""
    named = fork in STRATEGIES
    if algorithm in LOGGED and not named:
        do = "Choose the steps with --option, e.g. pivots=3,7 for fork_best_of_n."
        raise UserError(f"got --fork {fork} for {algorithm}, which forks a whole run itself", f"one of {_STRATEGIES}", do)
    if algorithm not in LOGGED and fork == "every":
        raise UserError(f"got --fork every for {algorithm}, which goes on from one state", "start, a step number or another strategy")
    if not named and fork != "start" and not fork.removeprefix("-").isdecimal():
        raise UserError(f"got --fork {fork!r}", f"start, a step number, or one of {_STRATEGIES}")
