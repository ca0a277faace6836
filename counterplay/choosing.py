"""Which search the verifier and the environment allow: one that goes back where states can be restored, else one that only goes forward.

A search that was not named is replaced by what works; one that was named is refused, with the reason and what would work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from counterplay.core.canonical import content_key, dumps, loads
from counterplay.core.errors import CounterplayError, UserError, VerifierError
from counterplay.core.journal import Journal, ask, delivered, step_from_json, step_to_json
from counterplay.core.nouns import Message, State, Step, Trajectory
from counterplay.core.protocols import Environment, Verifier, fingerprint_of
from counterplay.plan import Plan, check_stop, knows
from counterplay.replay.acting import settled
from counterplay.replay.capabilities import Capabilities
from counterplay.search.best_of_n import best_of_n
from counterplay.search.independent import independent
from counterplay.search.lookahead import lookahead
from counterplay.search.registry import LOGGED
from counterplay.search.registry import options as options_of

DEFAULT = Plan().algorithm
FORWARD = frozenset({"rollout", "greedy", "self_consistency", "lookahead", "independent"})
"""The searches that never go back to an earlier state."""

_INSTEAD: Mapping[str, Callable[..., Any]] = {"lookahead": lookahead, "independent": independent, "best_of_n": best_of_n}


@dataclass(frozen=True, slots=True)
class Choice:
    """`algorithm` with `options`, from `fork` (None: wherever was asked for). `why` is empty where nothing had to be changed."""

    algorithm: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fork: str | None = None
    why: str = ""


def choose(
    found: Capabilities,
    asked: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    fork: str | None = None,
    process: bool = False,
) -> Choice:
    """The search to run in an environment of these capabilities. `asked` None means that none was named, `fork` None that no step was.

    Where every logged state can be reached this is `repair` if the verifier has opinions on prefixes (`process`), else `fork_best_of_n`,
    or whichever of the two knows the `options`. Where nothing can be restored it is `lookahead` or `independent` alike, from the start;
    options that the replacement does not know are left out. Raises UserError where the search that was asked for, or the step to
    fork at, can't be had.
    """
    given = dict(options or {})
    if found.forks and found.reenacts:
        return Choice(asked, given) if asked is not None else _default(given, process=process)
    instead = "best_of_n" if found.forks else "lookahead" if process else "independent"
    problem = _problem(found, asked, fork, given)
    if problem:
        raise UserError(f"got {problem}: {found.why}", f"{instead} from the start", "Leave --search and --fork out to have it chosen.")
    if asked is not None:
        return Choice(asked, given, "start")
    known = options_of(_INSTEAD[instead])
    return Choice(
        instead, {name: value for name, value in given.items() if name in known}, "start", f"{instead} from the start: {found.why}"
    )


def _default(options: Mapping[str, Any], *, process: bool) -> Choice:
    """What is run where everything can be reached and nothing was asked for. `repair` needs opinions on prefixes, to see a first error."""
    if not knows("repair", options):
        return Choice(DEFAULT, options)
    if process:
        return Choice("repair", options, why="repair: the verifier has opinions on unfinished runs")
    return Choice(DEFAULT if knows(DEFAULT, options) else "repair", options)


def _problem(found: Capabilities, asked: str | None, fork: str | None, options: Mapping[str, Any]) -> str:
    """What was asked for and can't be had; empty where all can."""
    if fork not in (None, "start", "0"):
        return f"fork {fork}, but no logged state can be reached"
    if asked in LOGGED:
        return f"search {asked}, which forks a logged run, but no logged state can be reached"
    plans_elsewhere = asked == "receding_horizon" and options.get("world_model") is not None
    if asked is not None and not found.forks and asked not in FORWARD and not plans_elsewhere:
        return f"search {asked}, which goes back to earlier states, but none can be restored"
    return ""


def fit(plan: Plan, found: Capabilities, *, named: bool, forked: bool, process: bool) -> tuple[Plan, str]:
    """The plan that can be carried out, and why it is not the one that was given (empty where it is).

    `named` and `forked` say whether the user named the search and the step to fork at, or left them to the defaults.
    """
    fork = plan.fork if forked else None
    chosen = choose(found, plan.algorithm if named else None, plan.options, fork=fork, process=process)
    check_stop(chosen.algorithm, plan.stop_when)
    return replace(plan, algorithm=chosen.algorithm, options=chosen.options, fork=chosen.fork or plan.fork), chosen.why


async def weighs_prefixes(verifier: Verifier, trajectory: Trajectory) -> bool:
    """Whether the verifier has an opinion on the middle of this trajectory: then it can weigh actions before they are executed.

    One that fails there has none, for it may have been written for what has ended.
    """
    middle = trajectory.prefix(max(1, len(trajectory) // 2)) if len(trajectory) > 1 else trajectory.prefix(0)
    try:
        return await ask(verifier, middle) is not None
    except VerifierError:
        return False


@contextmanager
def theirs(part: str) -> Iterator[None]:
    """The error boundary round what a user wrote, where no search is asking: what it raises is a UserError that names the `part`."""
    try:
        yield
    except CounterplayError:
        raise
    except Exception as error:
        do = "Try it alone: counterplay replay --environment ENVIRONMENT --store STORE"
        raise UserError(f"{part} raised {type(error).__name__}: {error}", "one that works", do) from error


@asynccontextmanager
async def opened(environment: Environment, name: str = "the environment") -> AsyncIterator[Environment]:
    """The environment, looked at beforehand where it offers that, and let go of at the end, whichever way it has of closing.

    Raises UserError, which tells it by its `name`, where its own code raises.
    """
    try:
        with theirs(name):
            if hasattr(environment, "open"):
                await settled(environment.open())
        yield environment
    finally:
        with theirs(f"{name}, while it was closed,"):
            close = getattr(environment, "aclose", None) or getattr(environment, "close", None)
            if close is not None:
                await settled(close())


class JournaledLines:
    """A journal for environments that restore nothing: equal steps of different lines are steps of their own.

    After a crash the answered steps of every line are found, and nothing is executed again; a line that was under way ends
    there, because its instance is gone.
    """

    def __init__(self, environment: Environment, journal: Journal) -> None:
        self.environment, self.journal = environment, journal
        self.fingerprint = fingerprint_of(environment)
        self._asked: Counter[str] = Counter()

    async def step(self, state: State, action: Message) -> Step:
        key = content_key("step", self.fingerprint, state.key, action.wire)
        number = self._asked[key]
        self._asked[key] += 1
        if number:
            key = content_key(key, str(number))
        known = self.journal.get(key)
        if known is not None:
            await delivered(self.journal)
            return step_from_json(loads(known))
        step = await self.environment.step(state, action)
        self.journal.put(key, "step", dumps(step_to_json(step)))
        await delivered(self.journal)
        return step
