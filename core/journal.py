"""Resume is replay: answered calls are journalled by content, and a search that runs again finds them answered.

Wrap policy, environment and verifier once; the search itself has no resume code. Entries are keyed by what was asked
(fingerprint, state key, draw number or action), never by when, so one journal serves any number of searches.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from counterplay.core.canonical import content_key, dumps, loads
from counterplay.core.errors import PolicyError, VerifierError
from counterplay.core.nouns import Grade, Message, Proposal, Score, State, Step, Trajectory, Usage
from counterplay.core.protocols import Environment, Opinion, Policy, Verifier, fingerprint_of, first_draw


class Journal(Protocol):
    """What was asked and answered. `put` is durable, or queued to be, before it returns."""

    def get(self, key: str) -> str | None: ...
    def put(self, key: str, kind: str, answer: str) -> None: ...


class MemoryJournal:
    """A journal for one process; nothing is kept on disk."""

    def __init__(self, entries: MutableMapping[str, str] | None = None) -> None:
        self.entries: MutableMapping[str, str] = {} if entries is None else entries

    def get(self, key: str) -> str | None:
        return self.entries.get(key)

    def put(self, key: str, kind: str, answer: str) -> None:  # noqa: ARG002  the protocol's shape
        self.entries[key] = answer


class JournaledPolicy:
    """Answers a repeated `propose` from the journal. Draw numbers count per state, so asking a state again draws afresh.

    `live_calls` counts the proposals that the policy itself was asked for and gave.
    """

    def __init__(self, policy: Policy, journal: Journal) -> None:
        self.policy, self.journal = policy, journal
        self.fingerprint = fingerprint_of(policy)
        self.estimate = getattr(policy, "estimate", None)
        self.live_calls = 0
        self._drawn: Counter[str] = Counter()

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        start = self._drawn[state.key]
        self._drawn[state.key] += n
        key = content_key("propose", self.fingerprint, state.key, str(start), str(n))
        known = self.journal.get(key)
        if known is not None:
            return [_proposal(fields) for fields in loads(known)]
        token = first_draw.set(start)
        try:
            answer: Any = self.policy.propose(state, n)
            proposals = _checked(await answer if inspect.isawaitable(answer) else answer)
        finally:
            first_draw.reset(token)
        self.live_calls += len(proposals)
        self.journal.put(key, "propose", dumps([{**asdict(p), "action": p.action.wire} for p in proposals]))
        return proposals


class JournaledEnvironment:
    """Answers a repeated `step` from the journal: no side effect is repeated. Observations that came without a grade were executed."""

    def __init__(self, environment: Environment, journal: Journal) -> None:
        self.environment, self.journal = environment, journal
        self.fingerprint = fingerprint_of(environment)

    async def step(self, state: State, action: Message) -> Step:
        key = content_key("step", self.fingerprint, state.key, action.wire)
        known = self.journal.get(key)
        if known is not None:
            return step_from_json(loads(known))
        step = _graded(await self.environment.step(state, action))
        self.journal.put(key, "step", dumps(step_to_json(step)))
        return step


class JournaledVerifier:
    """Answers a repeated question from the journal. Errors are not journalled: the next run asks again."""

    def __init__(self, verifier: Verifier, journal: Journal) -> None:
        self.verifier, self.journal = verifier, journal
        self.name, self.version = verifier_identity(verifier)
        self.fingerprint = fingerprint_of(verifier)

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        ending = trajectory.steps[-1] if trajectory.steps else None
        flags = "" if ending is None else f"{ending.terminated}{ending.truncated}{ending.error}{ending.reward}"
        key = content_key("verify", self.fingerprint, trajectory.key, flags)
        known = self.journal.get(key)
        if known is not None:
            fields = loads(known)
            return None if fields is None else Score(**fields)
        score = await ask(self.verifier, trajectory)
        self.journal.put(key, "verify", dumps(None if score is None else asdict(score)))
        return score


async def ask(verifier: Verifier, trajectory: Trajectory) -> Score | None:
    """The one error boundary round verifier code: its score with name and version, or None for no opinion.

    Raises VerifierError where it raises or returns something that is not a score.
    """
    name, version = verifier_identity(verifier)
    try:
        opinion = verifier(trajectory)
        value: Opinion = await opinion if inspect.isawaitable(opinion) else opinion
        return as_score(value, name, version)
    except Exception as error:
        got = f"verifier {name} failed on a trajectory of {len(trajectory)} steps: {type(error).__name__}: {error}"
        raise VerifierError(
            got, "a Score, a number in [0, 1] or None", "Try it alone with: counterplay verifiers check NAME --store STORE"
        ) from error


def as_score(value: Any, name: str, version: str) -> Score | None:
    """Normalise a verifier's answer. Booleans and numbers become scores; identity is filled in where the verifier left it empty."""
    if value is None:
        return None
    if isinstance(value, Score):
        return Score(value.value, value.reason, value.verifier or name, value.version or version)
    if isinstance(value, bool | int | float):
        return Score(float(value), "", name, version)
    msg = f"got {type(value).__name__} {value!r}"
    raise TypeError(msg)


def verifier_identity(verifier: object) -> tuple[str, str]:
    """Name and version of a verifier: its attributes where it has them, else its own name and an empty version."""
    name = getattr(verifier, "name", None) or getattr(verifier, "__name__", None) or type(verifier).__name__
    return str(name), str(getattr(verifier, "version", "") or "")


def step_to_json(step: Step) -> dict[str, Any]:
    """A step as plain JSON; `step_from_json` is its inverse."""
    return {
        "action": step.action.wire,
        "observations": [message.wire for message in step.observations],
        "sampled": step.sampled,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "error": step.error,
        "reward": step.reward,
        "grades": [int(grade) for grade in step.grades],
    }


def step_from_json(fields: dict[str, Any]) -> Step:
    return Step(
        **{
            **fields,
            "action": Message(fields["action"]),
            "observations": tuple(Message(wire) for wire in fields["observations"]),
            "grades": tuple(Grade(grade) for grade in fields["grades"]),
        }
    )


def _graded(step: Step) -> Step:
    """A step whose every observation has a grade: a plain environment's are `executed`, and never pass for better."""
    missing = len(step.observations) - len(step.grades)
    return step if missing <= 0 else replace(step, grades=(*step.grades, *(Grade.EXECUTED,) * missing))


def _checked(answer: Any) -> Sequence[Proposal]:
    if isinstance(answer, Sequence) and all(isinstance(item, Proposal) for item in answer):
        return answer
    raise PolicyError(f"got {type(answer).__name__} {answer!r:.120} from the policy", "a sequence of Proposal")


def _proposal(fields: dict[str, Any]) -> Proposal:
    return Proposal(**{**fields, "action": Message(fields["action"]), "usage": Usage(**fields["usage"])})
