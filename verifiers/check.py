"""A conformance check for verifier authors: in range, the same each time and in any order or company, and leaving its input alone."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import islice
from typing import Any

from counterplay.core.canonical import content_key, dumps
from counterplay.core.errors import VerifierError
from counterplay.core.journal import ask, ask_all, batch_of, is_relative, verifier_identity
from counterplay.core.nouns import Score, Trajectory
from counterplay.core.protocols import Verifier, fingerprint_of

Answer = Score | VerifierError | None

SAME = 1e-6  # what the arithmetic of one model may differ by from one day to the next
IN_A_BATCH = 1e-3  # padding and another order of sums
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen. `problems` is empty for a verifier that may be used; `warnings` are worth a look.

    `opinions` counts scores on `asked` trajectories and prefixes; `separation` is the mean score of successes minus that of
    failures among whole trajectories with a known outcome, None where one of the two is missing; `mean_ms` is per question.
    """

    name: str
    version: str
    asked: int
    opinions: int
    separation: float | None
    mean_ms: float
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


async def check(
    verifier: Verifier,
    trajectories: Sequence[Trajectory],
    *,
    successes: Sequence[bool | None] | None = None,
    prefixes: int = 4,
    probes: Mapping[str, Trajectory] | None = None,
    together: int | None = 16,
) -> Report:
    """Ask `verifier` about every trajectory, evenly spaced `prefixes` of it and its bare prompt, and about `probes`.

    `successes` says of each trajectory whether it ended well, None where that is not known; without it, the reward of a last step says so.
    Each question is put twice, forwards and backwards; the first `together` of them (None: all) also at once, in threads where the
    verifier does not wait for anything, and as a batch where it has one.
    """
    questions = named(trajectories, prefixes, probes or {})
    name, version = verifier_identity(verifier)
    seen = Examination(verifier, questions)
    started = time.perf_counter()
    await seen.twice()
    elapsed_s = time.perf_counter() - started
    await seen.at_once(together)
    seen.settings()
    answers = [answer for answer in seen.answers.values() if isinstance(answer, Score)]
    wholes = [seen.answers[_label(number, len(trajectory))] for number, trajectory in enumerate(trajectories)]
    separation = _separation(list(zip(successes or map(_paid, trajectories), wholes, strict=True)))
    silent = [trajectory for trajectory, answer in zip(trajectories, wholes, strict=True) if answer is None]
    warnings = (
        *_warnings(version, len(questions), answers, separation),
        *without_end(trajectories, silent),
        *notes_of(verifier, trajectories),
    )
    return Report(
        name,
        version,
        len(questions),
        len(answers),
        separation,
        500 * elapsed_s / max(len(questions), 1),
        tuple(seen.problems.values()),
        warnings,
    )


def named(trajectories: Sequence[Trajectory], prefixes: int, probes: Mapping[str, Trajectory]) -> dict[str, Trajectory]:
    """Every question by a name that a person can find it by."""
    found: dict[str, Trajectory] = {}
    for number, trajectory in enumerate(trajectories):
        lengths = {round(len(trajectory) * i / (prefixes + 1)) for i in range(prefixes + 1)} | {len(trajectory)}
        found |= {_label(number, length): trajectory.prefix(length) for length in sorted(lengths)}
    return {**found, **probes}


def without_end(trajectories: Sequence[Trajectory], silent: Sequence[Trajectory]) -> Iterator[str]:
    """What to say where runs have no end in the log and a verifier is `silent` on every one of them."""
    endless = sum(not trajectory.finished for trajectory in trajectories)
    if endless and endless == sum(not trajectory.finished for trajectory in silent):
        said = f"{endless} of {len(trajectories)} runs have no end in the log"
        yield f"{said}: verifiers of finished runs have no opinion on {'it' if endless == 1 else 'them'}"


def without_change(scores: Sequence[float]) -> Iterator[str]:
    """What to say where a verifier gave one and the same score to everything."""
    if len(scores) > 1 and max(scores) - min(scores) <= SAME:
        yield f"its score never varies: all {len(scores)} opinions are {scores[0]:.3g}, so it tells nothing apart here"


def notes_of(verifier: object, trajectories: Sequence[Trajectory]) -> tuple[str, ...]:
    """What a verifier, and the parts it is made of, have to say themselves: the texts of `notes(trajectories)` where one has it."""
    notes = getattr(verifier, "notes", None)
    own = tuple(notes(trajectories)) if callable(notes) else ()
    return (*own, *(note for part in parts_of(verifier) for note in notes_of(part, trajectories)))


def parts_of(verifier: object) -> list[object]:
    """The verifiers that a verifier is made of; empty for a plain one."""
    parts = getattr(verifier, "parts", None)
    held = [*(parts if isinstance(parts, list | tuple) else ()), getattr(verifier, "verifier", None)]
    return [part for part in held if part is not None]


def _label(number: int, length: int) -> str:
    return f"trajectory {number}, first {length} steps"


def _paid(trajectory: Trajectory) -> bool | None:
    reward = trajectory.steps[-1].reward if trajectory.finished else None
    return None if reward is None else reward > 0.5


class Examination:
    """Asks a verifier the same questions in different ways. `problems` holds each kind of problem once, with where it was seen first."""

    def __init__(self, verifier: Verifier, questions: Mapping[str, Trajectory]) -> None:
        self.verifier, self.questions = verifier, questions
        self.problems: dict[str, str] = {}
        self.answers: dict[str, Answer] = {}

    async def twice(self) -> None:
        """One by one, there and back: errors, changed input, second thoughts."""
        for label, trajectory in self.questions.items():
            before = _content(trajectory)
            self.answers[label] = answer = await _asked(self.verifier, trajectory)
            if isinstance(answer, VerifierError):
                cause = f"{type(answer.__cause__).__name__}: {answer.__cause__}"
                self.problems.setdefault(f"error {cause}", f"on {label!r}: {answer.got}")
            if _content(trajectory) != before:
                self.problems.setdefault("changed", f"it changes its input: {label!r} is not what it was before the question")
        for label in reversed(list(self.questions)):
            self.compare(label, await _asked(self.verifier, self.questions[label]), "two answers on one trajectory", SAME)

    async def at_once(self, most: int | None) -> None:
        """All together: in one event loop, in threads, in a batch and in that batch backwards."""
        labels = list(islice(self.questions, most))
        asked = [self.questions[label] for label in labels]
        for label, answer in zip(labels, await asyncio.gather(*(_asked(self.verifier, t) for t in asked)), strict=True):
            self.compare(label, answer, "another answer when asked about many at once", SAME)
        if labels and not await _waits(self.verifier, asked[0]):
            with ThreadPoolExecutor(_THREADS) as threads:
                answers = list(threads.map(lambda trajectory: asyncio.run(_asked(self.verifier, trajectory)), asked))
            for label, answer in zip(labels, answers, strict=True):
                self.compare(label, answer, "another answer when asked in several threads", SAME)
        if batch_of(self.verifier) is None or is_relative(self.verifier):
            return
        for order in (labels, labels[::-1]):
            batch = await _batch(self.verifier, [self.questions[label] for label in order])
            if isinstance(batch, str):
                self.problems.setdefault("batch", batch)
                return
            for label, answer in zip(order, batch, strict=True):
                self.compare(label, answer, "another answer in a batch", IN_A_BATCH)

    def compare(self, label: str, answer: Answer, what: str, tolerance: float) -> None:
        """Note where `answer` is not the one that was given first."""
        first = self.answers[label]
        if isinstance(first, VerifierError) and isinstance(answer, VerifierError):
            return
        one, two = _told(first), _told(answer)
        if one == two or (isinstance(one, float) and isinstance(two, float) and abs(one - two) <= tolerance):
            return
        seen = f"{what}: {one} then {two}, on {label!r}"
        self.problems.setdefault(what, f"{seen}; a verifier must be deterministic or cached, and keep nothing between questions")

    def settings(self) -> None:
        """Two settings of a dataclass must not be taken for one another."""
        verifier: Any = self.verifier
        if not is_dataclass(verifier) or inspect.isclass(verifier):
            return
        known = fingerprint_of(verifier)
        for field in fields(verifier):
            other = _other(getattr(verifier, field.name))
            if other is None or not field.compare or not field.init:
                continue
            try:
                changed = fingerprint_of(replace(verifier, **{field.name: other}))
            except Exception:  # noqa: BLE001, S112  a value that this verifier refuses tells nothing
                continue
            if changed == known:
                said = f"its setting {field.name!r} does not show in its fingerprint, so recorded scores of two settings are mixed up"
                self.problems.setdefault("settings", f"{said}; decorate the class with @verifier")


async def _asked(verifier: Verifier, trajectory: Trajectory) -> Answer:
    try:
        return await ask(verifier, trajectory)
    except VerifierError as error:
        return error


async def _batch(verifier: Verifier, trajectories: Sequence[Trajectory]) -> list[Answer] | str:
    """The answers of the verifier's own batch; what is wrong with it where it gives none."""
    batch = batch_of(verifier)
    if batch is None:
        return []
    try:
        given = batch(trajectories)
        count = len(await given if inspect.isawaitable(given) else given)
    except Exception as error:  # noqa: BLE001  that is what is reported
        failed = f"its batch of {len(trajectories)} fails as a whole: {type(error).__name__}: {error}"
        return f"{failed}; put an exception in the place of one answer"
    if count != len(trajectories):
        return f"its batch gave {count} opinions on {len(trajectories)} trajectories, wanted one each, in order"
    return await ask_all(verifier, trajectories)


async def _waits(verifier: Verifier, trajectory: Trajectory) -> bool:
    """Whether the verifier is asynchronous."""
    try:
        opinion = verifier(trajectory)
    except Exception:  # noqa: BLE001  told elsewhere
        return False
    if not inspect.isawaitable(opinion):
        return False
    try:
        await opinion
    except Exception:  # noqa: BLE001  told elsewhere
        return True
    return True


def _content(trajectory: Trajectory) -> str:
    """Everything a verifier could change, parsed views included."""
    tools, messages, steps = trajectory.tools, trajectory.messages, trajectory.steps
    wires = [*(tool.wire for tool in tools), *(message.wire for message in messages)]
    parsed = [*(dumps(dict(tool.fields)) for tool in tools), *(dumps(dict(message.fields)) for message in messages)]
    flags = [repr((s.sampled, s.terminated, s.truncated, s.error, s.reward, s.grades, len(s.observations))) for s in steps]
    return content_key(*wires, *parsed, *flags)


def _told(answer: Answer) -> float | str | None:
    return answer.value if isinstance(answer, Score) else None if answer is None else f"{type(answer.__cause__).__name__}"


def _other(value: object) -> object:
    """Another value of a plain setting; None for kinds that nothing is known of."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) and value else value + 1
    return f"{value}_" if isinstance(value, str) else None


def _separation(answers: Sequence[tuple[bool | None, Answer]]) -> float | None:
    values: dict[bool, list[float]] = {True: [], False: []}
    for success, answer in answers:
        if isinstance(answer, Score) and success is not None:
            values[success].append(answer.value)
    if not values[True] or not values[False]:
        return None
    found = sum(values[True]) / len(values[True]) - sum(values[False]) / len(values[False])
    return 0.0 if abs(found) <= SAME else found


def _warnings(version: str, asked: int, opinions: Sequence[Score], separation: float | None) -> tuple[str, ...]:
    found = []
    if not version:
        found.append("it has no version: scores of two revisions can't be told apart (decorate it with @verifier, or set `version`)")
    if asked and not opinions:
        found.append("it had no opinion on anything it was asked")
    if separation is not None and separation <= 0:
        found.append(f"it scores logged failures no lower than successes (separation {separation:+.2f})")
    return (*found, *without_change([opinion.value for opinion in opinions]))
