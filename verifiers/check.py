"""A conformance check for verifier authors: does it answer on prefixes and whole trajectories, in range, and the same each time?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask, verifier_identity
from counterplay.core.nouns import Score, Trajectory
from counterplay.core.protocols import Verifier


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen. `problems` is empty for a verifier that may be used; `warnings` are worth a look.

    `opinions` counts scores on `asked` trajectories and prefixes; `separation` is the mean score of successes minus that of
    failures among finished trajectories with a known outcome, None where one of the two is missing; `mean_ms` is per question.
    """

    name: str
    version: str
    asked: int
    opinions: int
    separation: float | None
    mean_ms: float
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


async def check(verifier: Verifier, trajectories: Sequence[Trajectory], *, prefixes: int = 4) -> Report:
    """Ask `verifier` twice about every trajectory, evenly spaced `prefixes` of it and its bare prompt."""
    name, version = verifier_identity(verifier)
    problems: dict[str, str] = {}
    asked = opinions = 0
    values: dict[bool, list[float]] = {True: [], False: []}
    started = time.perf_counter()
    for trajectory in trajectories:
        for state in _states(trajectory, prefixes):
            asked += 1
            try:
                first, second = await ask(verifier, state), await ask(verifier, state)
            except VerifierError as error:
                problems.setdefault(_cause(error), error.got)
                continue
            opinions += first is not None
            if _value(first) != _value(second):
                seen = f"two answers on one trajectory: {_value(first)} then {_value(second)}"
                problems.setdefault("fickle", f"{seen}; a verifier must be deterministic or cached")
            if first is not None and state.finished and state.steps[-1].reward is not None:
                values[state.steps[-1].reward > 0.5].append(first.value)
    elapsed_s = time.perf_counter() - started
    separation = _mean(values[True]) - _mean(values[False]) if values[True] and values[False] else None
    return Report(
        name,
        version,
        asked,
        opinions,
        separation,
        500 * elapsed_s / max(asked, 1),
        tuple(problems.values()),
        _warnings(version, asked, opinions, separation),
    )


def _warnings(version: str, asked: int, opinions: int, separation: float | None) -> tuple[str, ...]:
    found = []
    if not version:
        found.append('it has no version: scores of two revisions can\'t be told apart (set `version = "1"`)')
    if asked and not opinions:
        found.append("it had no opinion on anything it was asked")
    if separation is not None and separation <= 0:
        found.append(f"it scores logged failures no lower than successes (separation {separation:+.2f})")
    return tuple(found)


def _states(trajectory: Trajectory, prefixes: int) -> list[Trajectory]:
    lengths = {round(len(trajectory) * i / (prefixes + 1)) for i in range(prefixes + 1)} | {len(trajectory)}
    return [trajectory.prefix(length) for length in sorted(lengths)]


def _cause(error: VerifierError) -> str:
    """What went wrong, apart from the trajectory it went wrong on."""
    return f"{type(error.__cause__).__name__}: {error.__cause__}"


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
