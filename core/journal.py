"""Resume is replay: answered calls are journalled by content, and a search that runs again finds them answered.

Wrap policy, environment and verifier once; the search itself has no resume code. Entries are keyed by what was asked
(fingerprint, state key, draw number or action), never by when, so one journal serves any number of searches.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Iterable, MutableMapping, Sequence
from math import isfinite
from types import NoneType
from typing import Any, Protocol

import orjson

from counterplay.core.canonical import content_key, content_keys, dumps, loads
from counterplay.core.errors import PolicyError, StoreError, UserError, VerifierError
from counterplay.core.nouns import Grade, Message, Proposal, Score, State, Step, Trajectory, Usage
from counterplay.core.protocols import Batch, Environment, Opinion, Policy, Verifier, calls_at_once, fingerprint_of, first_draw, requests
from counterplay.core.turns import propose_in_turn, turns

_OPINIONS = (float, int, Score, NoneType)


class Journal(Protocol):
    """What was asked and answered. `put` is durable before it returns, or the journal has a coroutine function `delivered`.

    That is awaited before any answer is used, and returns once all that was put before is durable.
    """

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


async def delivered(journal: Journal) -> None:
    """Wait until all that was put into the journal is durable."""
    waiting = getattr(journal, "delivered", None)
    if waiting is not None:
        await waiting()


class JournaledPolicy:
    """Answers a repeated `propose` from the journal. Draw numbers count per state, so asking a state again draws afresh.

    `live_calls` counts the proposals that the policy itself was asked for and gave. A policy with `keeps_requests` has each request of a
    proposal of several answered from the journal, too.
    """

    takes_turns = True

    def __init__(self, policy: Policy, journal: Journal) -> None:
        self.policy, self.journal = policy, journal
        self.fingerprint = fingerprint_of(policy)
        self._key = content_keys("propose", self.fingerprint)
        self._keeps = JournaledRequests(journal, self.fingerprint) if getattr(policy, "keeps_requests", False) else None
        self.estimate = getattr(policy, "estimate", None)
        self._given = 0
        self._drawn: Counter[str] = Counter()

    @property
    def live_calls(self) -> int:
        return self._given - (0 if self._keeps is None else self._keeps.found)

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        start = self._drawn[state.key]
        self._drawn[state.key] += n
        key = self._key(state.key, str(start), str(n))
        known = self.journal.get(key)
        if known is not None:
            await delivered(self.journal)
            return [_proposal(fields) for fields in loads(known)]
        token = None if first_draw.get() == start else first_draw.set(start)
        keeping = None if self._keeps is None or n == 1 else requests.set(self._keeps)
        try:
            if turns.get() is None:
                answer: Any = self.policy.propose(state, n)
                proposals = _checked(await answer if inspect.isawaitable(answer) else answer)
            else:
                proposals = _checked(await propose_in_turn(self.policy, state, n))
        finally:
            if token is not None:
                first_draw.reset(token)
            if keeping is not None:
                requests.reset(keeping)
        self._given += len(proposals)
        self.journal.put(key, "propose", _text([_proposal_to_json(p) for p in proposals], _numbers(proposals)))
        await delivered(self.journal)
        return proposals


class JournaledRequests:
    """The requests of one policy's proposals; see `protocols.requests`."""

    def __init__(self, journal: Journal, fingerprint: str) -> None:
        self.journal, self.found = journal, 0
        self._key = content_keys("request", fingerprint)

    def get(self, asked: str) -> str | None:
        known = self.journal.get(self._key(asked))
        self.found += known is not None
        return known

    def put(self, asked: str, answer: str) -> None:
        self.journal.put(self._key(asked), "request", answer)


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
            await delivered(self.journal)
            return step_from_json(loads(known))
        step = _graded(await self.environment.step(state, action))
        self.journal.put(key, "step", _text(step_to_json(step), (step.reward,)))
        await delivered(self.journal)
        return step


class JournaledVerifier:
    """Answers a repeated question from the journal. Errors are not journalled: the next run asks again.

    Has a `batch` where the verifier has one; it passes on what the journal does not know, each question once. A verifier that compares
    (`relative`) is answered from the journal where it was asked about the very same trajectories together, and else about all of them.
    """

    def __init__(self, verifier: Verifier, journal: Journal) -> None:
        self.verifier, self.journal = verifier, journal
        self.name, self.version = verifier_identity(verifier)
        self.fingerprint = fingerprint_of(verifier)
        self._key = content_keys("verify", self.fingerprint)

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        answer = self.answer(trajectory)
        return await answer if isinstance(answer, Awaitable) else answer

    def answer(self, trajectory: Trajectory) -> Score | Awaitable[Score | None] | None:
        """What `await self(trajectory)` gives; at once where the journal or a verifier that is no coroutine has it, and it is durable."""
        key = self._key(*question(trajectory))
        known = self.journal.get(key)
        if known is not None:
            return self._durable(_score_from(known))
        answer = begin(self.verifier, trajectory, (self.name, self.version))
        if isinstance(answer, VerifierError):
            raise answer from answer.__cause__
        if answer is None or isinstance(answer, Score):
            self._keep(key, answer)
            return self._durable(answer)
        return self._kept(key, answer, trajectory)

    def _durable(self, score: Score | None) -> Score | Awaitable[Score | None] | None:
        return score if getattr(self.journal, "delivered", None) is None else self._delivered(score)

    async def _delivered(self, score: Score | None) -> Score | None:
        await delivered(self.journal)
        return score

    async def _kept(self, key: str, opinion: Awaitable[Opinion], trajectory: Trajectory) -> Score | None:
        score = await awaited(opinion, trajectory, (self.name, self.version))
        if isinstance(score, VerifierError):
            raise score from score.__cause__
        self._keep(key, score)
        return await self._delivered(score)

    @property
    def batch(self) -> Batch | None:
        return None if batch_of(self.verifier) is None else self._batch

    async def _batch(self, trajectories: Sequence[Trajectory]) -> list[Score | VerifierError | None]:
        questions = [question(trajectory) for trajectory in trajectories]
        relative = is_relative(self.verifier)
        company = [content_key(*(part for one in sorted(set(questions)) for part in one))] if relative else []
        keys = [self._key(*one, *company) for one in questions]
        answers: dict[str, Score | VerifierError | None] = {}
        open_: dict[str, Trajectory] = {}
        for key, trajectory in zip(keys, trajectories, strict=True):
            known = self.journal.get(key)
            if known is None:
                open_[key] = trajectory
            else:
                answers[key] = _score_from(known)
        if relative and open_:
            open_ = dict(zip(keys, trajectories, strict=True))
        asked = await ask_all(self.verifier, list(open_.values()), (self.name, self.version))
        for key, answer in zip(open_, asked, strict=True):
            answers[key] = answer
            if not isinstance(answer, VerifierError):
                self._keep(key, answer)
        await delivered(self.journal)
        return [answers[key] for key in keys]

    def _keep(self, key: str, score: Score | None) -> None:
        self.journal.put(key, "verify", "null" if score is None else _text(_score_to_json(score), ()))


_GOES_ON = "FalseFalseNoneNone"


def question(trajectory: Trajectory) -> tuple[str, str]:
    """What makes two questions to one verifier the same: equal messages and an equal ending."""
    ending = trajectory.steps[-1] if trajectory.steps else None
    if ending is None:
        return trajectory.key, ""
    if ending.reward is None and not ending.finished:
        return trajectory.key, _GOES_ON
    return trajectory.key, f"{ending.terminated}{ending.truncated}{ending.error}{ending.reward}"


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
        raise _failed(name, trajectory, error) from error


async def ask_all(
    verifier: Verifier, trajectories: Sequence[Trajectory], identity: tuple[str, str] | None = None
) -> list[Score | VerifierError | None]:
    """`ask` about many trajectories at once: what it gives for each, in order, and the VerifierError it would raise as data.

    One call of the verifier's `batch` where it has one, else its calls, at most `calls_at_once` of them in flight. A batch that raises
    is asked again one by one, so that one bad trajectory costs the others nothing; one that gives another number of opinions than it
    was asked for is an error on all, and so is one of a `relative` verifier that raises, for alone a trajectory is not compared.
    """
    identity = identity or verifier_identity(verifier)
    batch = batch_of(verifier)
    if batch is None or not trajectories:
        return await _one_by_one(verifier, trajectories, identity)
    name = identity[0]
    try:
        given = batch(trajectories)
        answers: list[Any] = list(await given if inspect.isawaitable(given) else given)
        if len(answers) != len(trajectories):
            msg = f"its batch gave {len(answers)} opinions on {len(trajectories)} trajectories"
            raise UserError(msg, "one opinion a trajectory, in order")  # noqa: TRY301
    except (StoreError, UserError) as error:
        return [_failed(name, trajectory, error) for trajectory in trajectories]
    except Exception as error:  # noqa: BLE001  which of them it failed on shows one by one
        if is_relative(verifier):
            return [_failed(name, trajectory, error) for trajectory in trajectories]
        return await _one_by_one(verifier, trajectories, identity)
    return [_read(answer, trajectory, identity) for answer, trajectory in zip(answers, trajectories, strict=True)]


def batch_of(verifier: object) -> Batch | None:
    """The verifier's way to be asked about many trajectories at once; None where it has none."""
    batch: Batch | None = getattr(verifier, "batch", None)
    return batch


def is_relative(verifier: object) -> bool:
    """Whether the verifier's opinion on one trajectory depends on which others it is asked about with it."""
    return bool(getattr(verifier, "relative", False))


async def _one_by_one(
    verifier: Verifier, trajectories: Sequence[Trajectory], identity: tuple[str, str]
) -> list[Score | VerifierError | None]:
    """Ask about each. No task is made before the first question that has to wait."""
    answers: list[Score | VerifierError | None] = [None] * len(trajectories)
    todo = iter(range(len(trajectories)))

    async def work() -> None:
        for i in todo:
            answer = begin(verifier, trajectories[i], identity)
            answers[i] = await awaited(answer, trajectories[i], identity) if isinstance(answer, Awaitable) else answer

    for i in todo:
        answer = begin(verifier, trajectories[i], identity)
        if isinstance(answer, Awaitable):
            others = min(calls_at_once.get(), len(trajectories) - i) - 1
            tasks = [asyncio.create_task(work()) for _ in range(others)]
            try:
                answers[i] = await awaited(answer, trajectories[i], identity)
                await work()
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        else:
            answers[i] = answer
    return answers


def begin(verifier: Verifier, trajectory: Trajectory, identity: tuple[str, str]) -> Score | VerifierError | Awaitable[Opinion] | None:
    """`ask` without waiting: the answer or the error of a verifier that answers at once, else what is to be given to `awaited`."""
    try:
        opinion = verifier.answer(trajectory) if isinstance(verifier, JournaledVerifier) else verifier(trajectory)
    except Exception as error:  # noqa: BLE001  a failed question is data
        return _failed(identity[0], trajectory, error)
    if type(opinion) is not float and not isinstance(opinion, _OPINIONS) and inspect.isawaitable(opinion):
        return opinion
    return _read(opinion, trajectory, identity)


async def awaited(opinion: Awaitable[Opinion], trajectory: Trajectory, identity: tuple[str, str]) -> Score | VerifierError | None:
    """The answer to a question that was begun; an error of the verifier's is data."""
    try:
        return _read(await opinion, trajectory, identity)
    except Exception as error:  # noqa: BLE001  a failed question is data
        return _failed(identity[0], trajectory, error)


def _read(answer: Any, trajectory: Trajectory, identity: tuple[str, str]) -> Score | VerifierError | None:
    if isinstance(answer, Exception):
        return _failed(identity[0], trajectory, answer)
    try:
        return as_score(answer, *identity)
    except (TypeError, ValueError) as error:
        return _failed(identity[0], trajectory, error)


def _failed(name: str, trajectory: Trajectory, error: Exception) -> VerifierError:
    """The error of one question. One that is a VerifierError already, from a part within, is its cause."""
    failed = VerifierError(
        f"verifier {name} failed on a trajectory of {len(trajectory)} steps: {type(error).__name__}: {error}",
        "a Score, a number in [0, 1] or None",
        "Try it alone with: counterplay verifiers check NAME --store STORE",
    )
    failed.__cause__ = error
    return failed


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
    if missing <= 0:
        return step
    grades = (*step.grades, *(Grade.EXECUTED,) * missing)
    flags = step.sampled, step.terminated, step.truncated, step.error, step.reward
    return Step(step.action, step.observations, *flags, grades)  # a third of the time of dataclasses.replace


def _checked(answer: Any) -> Sequence[Proposal]:
    if isinstance(answer, (list, tuple, Sequence)):
        for item in answer:
            if not isinstance(item, Proposal):
                break
        else:
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


def _score_from(text: str) -> Score | None:
    fields = loads(text)
    return None if fields is None else Score(**fields)


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
        **({} if proposal.token_ids is None else {"token_ids": proposal.token_ids}),
    }


def _numbers(proposals: Sequence[Proposal]) -> list[float | None]:
    return [number for p in proposals for number in (p.prior, p.logprob, p.usage.cost_usd)]


def _proposal(fields: dict[str, Any]) -> Proposal:
    ids = fields.get("token_ids")
    read = {"action": Message(fields["action"]), "usage": Usage(**fields["usage"]), "token_ids": None if ids is None else tuple(ids)}
    return Proposal(**{**fields, **read})
