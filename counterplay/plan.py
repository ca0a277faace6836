"""How to search: which algorithm with which options, where to fork, and what it may cost."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from counterplay.core.budget import KINDS, Amounts, Budget
from counterplay.core.errors import UserError
from counterplay.search.branching import Strategy
from counterplay.search.fairness import Limiter, shared
from counterplay.search.registry import LOGGED, SEARCHES, UNSTOPPABLE, find, meant, parse_options
from counterplay.search.registry import options as options_of
from counterplay.search.stopping import StopWhen

if TYPE_CHECKING:
    from counterplay.parts import Asked

STRATEGIES: tuple[str, ...] = get_args(Strategy)
DEFAULTS = ("fork_best_of_n", "repair")
"""What an unnamed search may be where logged states can be reached; which of them, the verifier says (`choosing.py`)."""
_IN_FLIGHT = 64
OTHERS = ("stitch", "auto")
"""What `--search` may be besides the searches: logs merged, or the search chosen by what was learned (`strategies.py`)."""


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
    """How to search. `algorithm` is a search or one of `OTHERS`, `fork` `start`, a step number, or a strategy of `search/branching.py`.

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

        Options of an algorithm that was not named are those of the first of `DEFAULTS` that knows them all. Raises UserError on an unknown
        algorithm or option, or a value of another type.
        """
        given = _pairs(options)
        if algorithm == "stitch":
            _refuse_for_stitch({**{f"--option {name}": True for name in given}, "--fork": fork, **_flags(settings)})
        settings |= {"named": algorithm is not None, "forked": fork is not None, "fork": fork or cls.fork}
        algorithm = algorithm or next((name for name in DEFAULTS if knows(name, given)), cls.algorithm)
        if algorithm == "auto" and given:
            raise UserError(f"got --option {', '.join(given)} for auto", "none: it fits the options to the budget", "Or name a --search.")
        if algorithm in OTHERS:
            return cls(algorithm, **settings)
        if algorithm not in SEARCHES:
            known = [*SEARCHES, *OTHERS]
            raise UserError(f"got search {algorithm!r}", f"one of {', '.join(known)}", meant(algorithm, known))
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
        if self.named:
            check_stop(self.algorithm, self.stop_when)
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


def _pairs(options: Sequence[str]) -> dict[str, str]:
    """`key=value` texts by key. Raises UserError where one is something else."""
    malformed = next((text for text in options if "=" not in text), None)
    if malformed is not None:
        raise UserError(f"got option {malformed!r}", "key=value")
    return {key.strip(): value for key, value in (text.split("=", 1) for text in options)}


def knows(algorithm: str, given: Iterable[str]) -> bool:
    """Whether a search has all of these options."""
    known = options_of(find(algorithm))
    return all(name in known for name in given)


def check_stop(algorithm: str, stop_when: str) -> None:
    """Raises UserError where a condition is given to a search that it can never end."""
    if stop_when and algorithm in UNSTOPPABLE:
        got = f"got --stop-when {stop_when} for {algorithm}, which scores nothing before all its lines have ended"
        stopped = ", ".join(name for name in SEARCHES if name not in UNSTOPPABLE)
        raise UserError(got, f"a search that can stop: {stopped}", "Name one with --search, or leave --stop-when out.")


_PLAN_FLAGS = {"budget": "--budget", "trace_budget": "--trace-budget", "stop_when": "--stop-when"}


def _flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {flag: settings.get(name) for name, flag in _PLAN_FLAGS.items()}


def _refuse_for_stitch(given: Mapping[str, Any]) -> None:
    """Raises UserError where anything is given to a search that plays nothing."""
    flags = [flag for flag, value in given.items() if value]
    if flags:
        got = f"got {', '.join(flags)} for stitch, which merges logged runs: it plays and asks nothing, and stops nowhere"
        raise UserError(got, "none of them", "Leave them out, or name another --search.")


def check_stitch(asked: Asked, plan: Plan) -> None:
    """Raises UserError where parts or a plan of play are given to `stitch`."""
    parts = {
        "--policy": asked.policy,
        "--environment": asked.environment != "recorded",
        "--verifier": asked.verifiers,
        "--max-steps": asked.max_steps is not None,
        "--simulate": asked.simulator,
        "--option": plan.options,
        "--fork": plan.fork != Plan.fork,
    }
    _refuse_for_stitch({**parts, **_flags(vars(plan))})


def _check_fork(algorithm: str, fork: str) -> None:
    """Raises UserError where a search can't begin there."""
    named = fork in STRATEGIES
    if algorithm in LOGGED and not named:
        do = "Choose the steps with --option, e.g. pivots=3,7 for fork_best_of_n."
        do = meant(fork, STRATEGIES) or do
        raise UserError(f"got --fork {fork} for {algorithm}, which forks a whole run itself", f"one of {_STRATEGIES}", do)
    if algorithm not in LOGGED and algorithm != "auto" and fork == "every":
        raise UserError(f"got --fork every for {algorithm}, which goes on from one state", "start, a step number or another strategy")
    if not named and fork != "start" and not fork.removeprefix("-").isdecimal():
        raise UserError(f"got --fork {fork!r}", f"start, a step number, or one of {_STRATEGIES}", meant(fork, ("start", *STRATEGIES)))
