"""Putting questions to a verifier: each once, siblings together, its errors kept as data, its time and cost counted."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask, ask_all, batch_of, verifier_identity
from counterplay.core.nouns import Score, Trajectory, Usage
from counterplay.core.protocols import Verifier
from counterplay.verifiers.check import parts_of
from counterplay.verifiers.evaluation.intervals import Estimate, share
from counterplay.verifiers.evaluation.steps import Values

_Question: TypeAlias = tuple[str, bool, bool, str | None]

_AT_ONCE = 512
_EQUAL = 1e-6


@dataclass(frozen=True)
class Answers:
    """What the questions came to: shares without an opinion and failed, the errors by text, seconds and US dollars a question.

    `tokens` and `cost_usd` come from the `usage`, or `tally.usage`, of the verifier or its parts; None where none counts or has a price.
    """

    questions: int
    abstained: Estimate | None
    failed: Estimate | None
    errors: dict[str, int]
    seconds: float
    tokens: int | None
    cost_usd: float | None

    @property
    def useless(self) -> bool:
        """Whether questions failed and none got a score: what had no opinion was not put to whatever failed."""
        silent = 0 if self.abstained is None else round(self.abstained.value * self.questions)
        return bool(self.errors) and sum(self.errors.values()) + silent == self.questions

    @property
    def complaint(self) -> str | None:
        """How many questions failed, and the commonest error; None where none failed."""
        if not self.errors:
            return None
        return f"{sum(self.errors.values())} of {self.questions} questions failed: {next(iter(self.errors))}"

    @property
    def seconds_per_question(self) -> float:
        return self.seconds / self.questions if self.questions else 0.0


class Asker:
    """Asks one verifier, and remembers every answer: equal questions are put once."""

    def __init__(self, verifier: Verifier, on_question: Callable[[int], None] = lambda _: None) -> None:
        self.verifier, self.on_question = verifier, on_question
        self.identity = verifier_identity(verifier)
        self.seconds = 0.0
        self._known: dict[_Question, Score | VerifierError | None] = {}
        self._groups: list[str] = []
        self._usage = _usage(verifier)

    async def values(self, trajectories: Sequence[Trajectory], groups: Sequence[str]) -> list[float | None]:
        """The score of each, None where there is no opinion or the verifier failed. `groups` name the tasks."""
        keys = [_question(trajectory) for trajectory in trajectories]
        open_: dict[_Question, tuple[Trajectory, str]] = {}
        for key, trajectory, group in zip(keys, trajectories, groups, strict=True):
            if key not in self._known and key not in open_:
                open_[key] = (trajectory, group)
        todo = list(open_.items())
        for start in range(0, len(todo), _AT_ONCE):
            part = todo[start : start + _AT_ONCE]
            began = time.perf_counter()
            answers = await ask_all(self.verifier, [trajectory for _, (trajectory, _) in part], self.identity)
            self.seconds += time.perf_counter() - began
            self._known.update(zip((key for key, _ in part), answers, strict=True))
            self._groups += [group for _, (_, group) in part]
            self.on_question(len(part))
        return [value_of(self._known[key]) for key in keys]

    async def steps(self, trajectories: Sequence[Trajectory], groups: Sequence[str]) -> list[Values]:
        """For each trajectory the score after every step, which is that of the prefix that ends with the step."""
        prefixes = [[trajectory.prefix(i) for i in range(1, len(trajectory) + 1)] for trajectory in trajectories]
        named = [group for group, held in zip(groups, prefixes, strict=True) for _ in held]
        found = iter(await self.values([prefix for held in prefixes for prefix in held], named))
        return [[next(found) for _ in held] for held in prefixes]

    async def wholes(self, trajectories: Sequence[Trajectory], groups: Sequence[str]) -> list[float | None]:
        """The score of each whole trajectory; where a verifier speaks of prefixes alone, that before the last step."""
        found = await self.values(trajectories, groups)
        silent = [i for i, value in enumerate(found) if value is None and len(trajectories[i]) > 1]
        before = await self.values([trajectories[i].prefix(len(trajectories[i]) - 1) for i in silent], [groups[i] for i in silent])
        for i, value in zip(silent, before, strict=True):
            found[i] = value
        return found

    @property
    def scores(self) -> list[float]:
        """Every score so far."""
        return [answer.value for answer in self._known.values() if isinstance(answer, Score)]

    @property
    def answers(self) -> Answers:
        """All questions so far."""
        given, used, groups = list(self._known.values()), _usage(self.verifier), self._groups
        spent = None if used is None or self._usage is None else used.tokens - self._usage.tokens
        cost = None if used is None or used.cost_usd is None else used.cost_usd - ((self._usage or Usage()).cost_usd or 0.0)
        return Answers(
            questions=len(given),
            abstained=share([float(answer is None) for answer in given], groups),
            failed=share([float(isinstance(answer, VerifierError)) for answer in given], groups),
            errors=dict(Counter(_cause(answer) for answer in given if isinstance(answer, VerifierError)).most_common()),
            seconds=self.seconds,
            tokens=spent,
            cost_usd=cost,
        )


def value_of(answer: Score | VerifierError | None) -> float | None:
    """The number in an answer; a failure has none."""
    return answer.value if isinstance(answer, Score) else None


def _question(trajectory: Trajectory) -> _Question:
    """What tells questions apart: the state, and how it ended."""
    if not trajectory.steps:
        return trajectory.key, False, False, None
    last = trajectory.steps[-1]
    return trajectory.key, last.terminated, last.truncated, last.error


def _usage(verifier: object) -> Usage | None:
    """What a verifier and its parts have used so far; None where none of them counts."""
    counted: dict[int, Usage] = {}
    _collect(verifier, counted, set())
    return sum(counted.values(), Usage()) if counted else None


def _collect(part: object, counted: dict[int, Usage], seen: set[int]) -> None:
    if id(part) in seen:
        return
    seen.add(id(part))
    holder = getattr(part, "tally", None) or part
    found = getattr(holder, "usage", None)
    if isinstance(found, Usage):
        counted[id(holder)] = found
        return
    for inner in parts_of(part):
        _collect(inner, counted, seen)


def _cause(error: VerifierError) -> str:
    return f"{type(error.__cause__).__name__}: {error.__cause__}"[:200]


@dataclass(frozen=True)
class Consistency:
    """Whether the same questions get the same answers: all at once in their order, again, in shuffled orders, and alone.

    `same` is the share of trajectories whose score is everywhere the same to 1e-6, `moved` the mean distance between its highest and
    lowest score, `pairs` the share of sibling pairs that are ranked alike everywhere (None without siblings). `batched` says whether the
    verifier sees several at once; for one that does not, only repetition is seen. An answer that is missing in some rounds alone counts as
    different.
    """

    same: Estimate
    moved: float
    pairs: Estimate | None
    batched: bool


async def consistency(
    verifier: Verifier, trajectories: Sequence[Trajectory], groups: Sequence[str], *, orders: int = 2, seed: int = 0
) -> Consistency | None:
    """Ask about every trajectory 3 + `orders` times (twice without a batch). None where there is no opinion on any."""
    identity, rng, n = verifier_identity(verifier), random.Random(seed), len(trajectories)
    batched = batch_of(verifier) is not None
    rounds = [list(range(n)), list(range(n))]
    rounds += [rng.sample(range(n), n) for _ in range(orders)] if batched else []
    columns = []
    for order in rounds:
        answers = await ask_all(verifier, [trajectories[i] for i in order], identity)
        columns.append(_placed(order, [value_of(answer) for answer in answers]))
    if batched:
        columns.append([await _alone(verifier, trajectory, identity) for trajectory in trajectories])
    kept = [(list(row), group) for row, group in zip(zip(*columns, strict=True), groups, strict=True) if any(v is not None for v in row)]
    rows, groups = [row for row, _ in kept], [group for _, group in kept]
    same = share([float(_spread(row) <= _EQUAL) for row in rows], groups)
    if same is None:
        return None
    spreads = [spread for spread in map(_spread, rows) if math.isfinite(spread)]
    moved = sum(spreads) / len(spreads) if spreads else 0.0
    pairs = [(a, b) for a, b in combinations(range(len(rows)), 2) if groups[a] == groups[b]]
    alike = share([float(_alike(rows[a], rows[b])) for a, b in pairs], [groups[a] for a, _ in pairs])
    return Consistency(same, moved, alike, batched)


async def _alone(verifier: Verifier, trajectory: Trajectory, identity: tuple[str, str]) -> float | None:
    try:
        return value_of(await ask(verifier, trajectory, identity))
    except VerifierError:
        return None


def _placed(order: Sequence[int], values: Iterable[float | None]) -> list[float | None]:
    """The values in the order of the trajectories."""
    found = dict(zip(order, values, strict=True))
    return [found[i] for i in range(len(order))]


def _spread(row: Sequence[float | None]) -> float:
    held = [value for value in row if value is not None]
    if len(held) < len(row):
        return math.inf
    return max(held) - min(held)


def _alike(left: Sequence[float | None], right: Sequence[float | None]) -> bool:
    """Whether two siblings are ranked the same in every round."""
    signs = {None if a is None or b is None else (a > b + _EQUAL) - (a < b - _EQUAL) for a, b in zip(left, right, strict=True)}
    return len(signs) == 1
