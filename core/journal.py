"""Resume is replay: answered calls are journalled by content, and a search that runs again finds them answered.

Wrap policy, environment and verifier once; the search itself has no resume code. Entries are keyed by what was asked
(fingerprint, state key, draw number or action), never by when, so one journal serves any number of searches.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import replace
from math import isfinite
from types import NoneType
from typing import Any, Protocol

import orjson

from counterplay.core.canonical import content_keys, dumps, loads
from counterplay.core.errors import PolicyError, VerifierError
from counterplay.core.nouns import Grade, Message, Proposal, Score, State, Step, Trajectory, Usage
from counterplay.core.protocols import Environment, Opinion, Policy, Verifier, fingerprint_of, first_draw
from counterplay.core.turns import propose_in_turn

_OPINIONS = (float, int, Score, NoneType)


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

    takes_turns = True

    def __init__(self, policy: Policy, journal: Journal) -> None:
        self.policy, self.journal = policy, journal
        self.fingerprint = fingerprint_of(policy)
        self._key = content_keys("propose", self.fingerprint)
        self.estimate = getattr(policy, "estimate", None)
        self.live_calls = 0
        self._drawn: Counter[str] = Counter()

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        start = self._drawn[state.key]
        self._drawn[state.key] += n
        key = self._key(state.key, str(start), str(n))
        known = self.journal.get(key)
        if known is not None:
            return [_proposal(fields) for fields in loads(known)]
        token = first_draw.set(start)
        try:
            proposals = _checked(await propose_in_turn(self.policy, state, n))
        finally:
            first_draw.reset(token)
        self.live_calls += len(proposals)
        self.journal.put(key, "propose", _text([_proposal_to_json(p) for p in proposals], _numbers(proposals)))
        return proposals


class JournaledEnvironment:
    """Answers a repeated `step` from the journal: no side effect is repeated. Observations that came without a grade were executed."""

    def __init__(self, environment: Environment, journal: Journal) -> None:
        self.environment, self.journal = environment, journal
        self.fingerprint = fingerprint_of(environment)
        self._key = content_keys("step", self.fingerprint)

    async def step(self, state: State, action: Message) -> Step:
        key = self._key(state.key, action.wire)
        known = self.journal.get(key)
        if known is not None:
            return step_from_json(loads(known))
        step = _graded(await self.environment.step(state, action))
        self.journal.put(key, "step", _text(step_to_json(step), (step.reward,)))
        return step


class JournaledVerifier:
    """Answers a repeated question from the journal. Errors are not journalled: the next run asks again."""

    def __init__(self, verifier: Verifier, journal: Journal) -> None:
        self.verifier, self.journal = verifier, journal
        self.name, self.version = verifier_identity(verifier)
        self.fingerprint = fingerprint_of(verifier)
        self._key = content_keys("verify", self.fingerprint)

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        ending = trajectory.steps[-1] if trajectory.steps else None
        flags = "" if ending is None else f"{ending.terminated}{ending.truncated}{ending.error}{ending.reward}"
        key = self._key(trajectory.key, flags)
        known = self.journal.get(key)
        if known is not None:
            fields = loads(known)
            return None if fields is None else Score(**fields)
        score = await ask(self.verifier, trajectory, (self.name, self.version))
        self.journal.put(key, "verify", "null" if score is None else _text(_score_to_json(score), ()))
        return score


async def ask(verifier: Verifier, trajectory: Trajectory, identity: tuple[str, str] | None = None) -> Score | None:
    """The one error boundary round verifier code: its score with name and version, or None for no opinion.

    `identity` is `verifier_identity(verifier)`, for who asks often; None looks it up. Raises VerifierError where the verifier raises or
    returns something that is not a score.
    """
    name, version = identity or verifier_identity(verifier)
    try:
        opinion = verifier(trajectory)
        if isinstance(opinion, _OPINIONS):
            return as_score(opinion, name, version)
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
    if type(value) is float:
        return Score(value, "", name, version)
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


def _text(value: Any, numbers: Iterable[float | None]) -> str:
    """Compact JSON. What the fast encoder would refuse or blur (lone surrogates, `numbers` that are not finite) goes to the exact one."""
    for number in numbers:
        if number is not None and not isfinite(number):
            return dumps(value)
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return dumps(value)


def _score_to_json(score: Score) -> dict[str, Any]:
    return {"value": score.value, "reason": score.reason, "verifier": score.verifier, "version": score.version}


def _proposal_to_json(proposal: Proposal) -> dict[str, Any]:
    usage = proposal.usage
    return {
        "action": proposal.action.wire,
        "prior": proposal.prior,
        "logprob": proposal.logprob,
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "cost_usd": usage.cost_usd,
        },
        "model": proposal.model,
        "finish_reason": proposal.finish_reason,
    }


def _numbers(proposals: Sequence[Proposal]) -> list[float | None]:
    return [number for p in proposals for number in (p.prior, p.logprob, p.usage.cost_usd)]


def _proposal(fields: dict[str, Any]) -> Proposal:
    return Proposal(**{**fields, "action": Message(fields["action"]), "usage": Usage(**fields["usage"])})
