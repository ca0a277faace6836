"""`--search auto`: which search, learned for each class of traces while they are searched.

Traces are searched in rounds of 8, 8, 16, 32, ...: the searches of one round are chosen by what the rounds before it came to, so it does
not matter which of its traces is done first, and only few rounds wait for one another. What was chosen and what came of it is kept in
the store, so a job that is run again chooses as it did, and the next job begins with what this one learned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import content_key, dumps, loads
from counterplay.core.errors import UserError
from counterplay.search.bandit import Strategies
from counterplay.search.registry import LOGGED, UNSTOPPABLE

if TYPE_CHECKING:
    from counterplay.core.nouns import Trace
    from counterplay.core.store import Store
    from counterplay.replay.capabilities import Capabilities

FIRST_ROUND = 8
_SCOPE = "search/auto"
_MANY, _VERY_MANY = 8, 24  # lines' worth of calls


def arms(found: Capabilities, *, process: bool, lines: float, forked: str | None = None, stops: bool = False) -> tuple[str, ...]:
    """The searches that are sensible, the cheapest first (docs/search-quality.md).

    `process` says that the verifier has opinions on unfinished runs, `lines` for how many lines of play the trace's budget lasts (infinite
    without a limit), `forked` where the user wants to begin (None: not said), `stops` that a condition has to be able to end it. Raises
    UserError where none is left.
    """
    known: tuple[str, ...]
    if not found.forks:
        known = ("independent", "lookahead") if process else ("independent", "greedy")
    elif not found.reenacts:
        known = ("best_of_n", "archive", "rebase") if process else ("best_of_n", "archive")
    elif not process:
        known = ("fork_best_of_n", "best_of_n", "archive") if lines < _MANY else ("fork_best_of_n", "archive", "mcts")
    elif lines < _MANY:
        known = ("repair", "fork_best_of_n", "independent")
    elif lines < _VERY_MANY:
        known = ("repair", "rebase", "mcts_star")
    else:
        known = ("repair", "rebase", "gumbel", "best_first")
    if forked is not None:
        one_state = forked == "start" or forked.removeprefix("-").isdecimal()
        known = tuple(name for name in known if not (one_state and name in LOGGED) and not (forked == "every" and name not in LOGGED))
    left = tuple(name for name in known if not (stops and name in UNSTOPPABLE))
    if not left:
        raise UserError("got --search auto with a fork or a condition that none of its searches can keep to", "another of the two")
    return left


def sized(search: str, calls: float | None, length: int) -> dict[str, Any]:
    """Options with which a search of `arms` makes use of `calls` model calls where a line takes `length` of them; None: its defaults."""
    if calls is None:
        return {}
    lines = max(1, int(calls) // max(1, length))
    actions = max(min(2, lines), lines // 2)  # actions a node: the calls last for about two lines of nodes
    pivots = 3 if lines > 2 else 1
    sizes: dict[str, dict[str, Any]] = {
        "greedy": {"num_samples": lines},
        "independent": {"n": lines},
        "best_of_n": {"n": lines},
        "lookahead": {"num_actions": lines},
        "archive": {"num_lines": 2 * lines, "wave_size": min(4, lines)},
        "rebase": {"width": lines},
        "mcts": {"num_simulations": int(calls), "num_actions": actions, "rollouts": "always"},
        "mcts_star": {"num_iterations": int(calls), "num_actions": actions},
        "gumbel": {
            "num_simulations": max(1, int(calls) // actions),
            "num_actions": actions,
            "num_considered": max(2, min(16, lines)),
        },
        "best_first": {"num_expansions": int(calls), "num_actions": actions},
        "fork_best_of_n": {
            "n": max(2, min(8, int(calls) // (2 * pivots))),
            "num_pivots": pivots,
            "rollouts_per_alternative": max(1, lines // (2 * pivots)),
        },
        "repair": {"n": max(1, min(16, int(calls) // (2 * max(1, length)))), "rounds": 8},
    }
    return sizes[search]


def family(trace: Trace) -> str:
    """The class of a trace: its agent, and its task up to the first number (`train-0001` is of `train`); a task in words is of none."""
    task = trace.task or ""
    name = "" if re.search(r"\s", task) else re.split(r"[\W_]*\d", task, maxsplit=1)[0]
    return f"{trace.agent or ''}/{name}"


def rounds(traces: Sequence[Trace]) -> Iterator[Sequence[Trace]]:
    """The traces in order, in rounds of which each is as large as all before it."""
    start = 0
    while start < len(traces):
        size = max(FIRST_ROUND, start)
        yield traces[start : start + size]
        start += size


class Auto:
    """The choices of one job, `key`, about `traces`. `others` is what decides a search besides the trace, so that no two are mixed up."""

    def __init__(self, store: Store, key: str, others: Sequence[str], traces: Iterable[Trace], *, seed: int) -> None:
        self.journal, self.key, self.others, self.seed = store.journal(_SCOPE), key, others, seed
        self.waiting = {trace.id for trace in traces}
        self.chosen: dict[str, tuple[str, str]] = {}
        self.known: dict[str, dict[str, list[Any]]] = {}

    def choose(self, trace: Trace, names: Sequence[str]) -> str:
        """One of `names` for this trace: the one that it was given before, else by Thompson sampling of success per model call."""
        task_class = content_key("auto", family(trace), *self.others, *names)
        key = content_key("chosen", self.key, task_class, trace.id)
        name = self.journal.get(key)
        if name is None:
            draw = int(content_key(str(self.seed), trace.id)[:12], 16)
            name = self._learned(task_class, names).choose(task_class, seed=draw)
            self.journal.put(key, "chosen", name)
        self.chosen[trace.id] = (task_class, name)
        return name

    def learn(self, results: Mapping[str, tuple[bool, float]]) -> None:
        """Take in a round, by trace: whether it improved on the log, and for how many model calls."""
        classes = set()
        for trace, (improved, calls) in results.items():
            task_class, name = self.chosen[trace]
            self._of(task_class)[trace] = [name, int(improved), calls]
            classes.add(task_class)
        self.waiting -= self.chosen.keys()
        for task_class in sorted(classes):
            self.journal.put(task_class, "strategies", dumps(self._of(task_class)))

    def _learned(self, task_class: str, names: Sequence[str]) -> Strategies:
        """What is known of the class but for this and later rounds: the same however far a job came before it was killed."""
        strategies = Strategies(tuple(names))
        known = self._of(task_class)
        for trace in sorted(known.keys() - self.waiting):
            name, improved, calls = known[trace]
            strategies = strategies.after(task_class, name, float(improved), cost=max(1.0, calls))
        return strategies

    def _of(self, task_class: str) -> dict[str, list[Any]]:
        if task_class not in self.known:
            held = self.journal.get(task_class)
            self.known[task_class] = {} if held is None else loads(held)
        return self.known[task_class]


def lines_of(calls: float | None, length: int) -> float:
    """For how many lines of play a budget lasts; infinity without a limit."""
    return math.inf if calls is None else calls / max(1, length)
