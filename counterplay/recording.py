"""`counterplay.record`: an agent's runs, recorded as they happen, whatever makes its model calls.

A run is one block, one call of a function, or one call of an agent. What it asked and was answered goes to a tape event by event, or
into a store at its end. Recording never gets in the agent's way: what can't be written is warned of, once, and named in the run.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, cast, get_args, overload

from counterplay.cleaning import Cleaner
from counterplay.core.errors import CounterplayError, UserError
from counterplay.core.nouns import Outcome, OutcomeSource, Trace
from counterplay.core.records import Rejected
from counterplay.recording_targets import Output, Target, is_store, items_from, outputs_of
from counterplay.replay.agents.ambient import current, intercepting
from counterplay.replay.agents.pins import pinned
from counterplay.replay.agents.tape import RecordingFailed, Tape

F = TypeVar("F", bound=Callable[..., Any])
OfCall: TypeAlias = "str | Callable[..., str | None] | None"
"""A name, or a function of the arguments of a call that gives it."""

DEFAULT_TAPE = "runs.jsonl"
ENTRIES = ("invoke", "ainvoke", "run", "arun", "run_sync")
"""Methods of an agent object each call of which is a run."""

_NOT_ENTRIES = ("stream", "astream", "astream_events", "batch", "abatch")


class Run:
    """One run of an agent, while it goes on and after."""

    def __init__(self, course: _Course) -> None:
        self._course = course

    @property
    def id(self) -> str:
        """The id of the run in the tape; its trace has an id that is made of this one."""
        return self._course.tape.run

    @property
    def incomplete(self) -> str | None:
        """Why not all of the run could be written; None where it was."""
        failure = self._course.tape.failure
        return None if failure is None else f"{type(failure).__name__}: {failure}"

    def outcome(
        self,
        *,
        reward: float | None = None,
        success: bool | None = None,
        source: OutcomeSource = "harness",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Say how the run ended; also after its end, and the last word counts. `source` is whose word it is.

        Raises UserError where neither reward nor success is given, or one is of another kind; a reward is in [0, 1].
        """
        given = reward is not None or success is not None
        if not given or not isinstance(success, bool | None) or not (reward is None or (_is_number(reward) and 0 <= reward <= 1)):
            raise UserError(f"got the outcome reward={reward!r}, success={success!r}", "a number in [0, 1], True or False, or both")
        if source not in get_args(OutcomeSource):
            raise UserError(f"got the outcome source {source!r}", f"one of {', '.join(get_args(OutcomeSource))}")
        self._course.outcome = Outcome(None if reward is None else float(reward), success, source, dict(details or {}))
        self._course.told(outcome=self._course.outcome)

    def score(
        self,
        name: str,
        value: bool | float | str,
        low: float = 0.0,
        high: float = 1.0,
        comment: str = "",
        *,
        source: OutcomeSource = "unknown",
    ) -> None:
        """Add a score of the run, on the scale from `low` to `high` where it is a number; also after its end.

        Raises UserError where the value is none, or the scale is empty.
        """
        if not isinstance(value, bool | str) and not (_is_number(value) and high > low):
            got = f"got the score {name}={value!r} from {low!r} to {high!r}"
            raise UserError(got, "a finite number on a scale, True or False, or a text")
        scale = {} if isinstance(value, str) else {"low": low, "high": high}
        score = {"name": name, "value": value, **scale, "source": source, **({"comment": comment} if comment else {})}
        self._course.scores.append(score)
        self._course.told(scores=[score])

    def tag(self, *tags: str) -> None:
        """Add tags; also after the end."""
        self._course.tags += tags
        self._course.told(tags=tags)

    def trace(self) -> Trace:
        """The run as a trace, as the connector reads it. Raises UserError before its end, and where no model call was answered."""
        if not self._course.over:
            raise UserError(f"run {self.id} has not ended", "its trace after the end of the block or call that it is")
        items = items_from(self._course.output.events(self.id), f"run:{self.id}")
        found = next((item for item in items if isinstance(item, Trace)), None)
        if found is None:
            reasons = "; ".join(item.reason for item in items if isinstance(item, Rejected))
            raise UserError(f"run {self.id} makes no trace: {reasons or 'nothing of it could be written'}", "an answered model call")
        return found


class Recording:
    """What `record` gives for a target: `with` and `async with` make one run, and so does each call of a function it decorates."""

    def __init__(
        self,
        to: Target,
        *,
        task: OfCall = None,
        session: OfCall = None,
        agent: str | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        pin: bool = False,
        redact: bool | Sequence[str] = False,
        strict: bool = False,
    ) -> None:
        self._outputs = outputs_of(to)
        self._task, self._session, self._agent = task, session, agent
        self._tags, self._metadata = tuple(tags), dict(metadata or {})
        self._pin, self._strict = pin, strict
        kinds = ("secrets", "pii") if redact is True else tuple(redact or ())
        self._cleaner = Cleaner(kinds or None)

    def __enter__(self) -> Run:
        if callable(self._task) or callable(self._session):
            raise UserError("got a function for the task or session of a block", "a text", "It is of a call's arguments: decorate one.")
        course = self._course(self._task, self._session, self._agent)
        with _explained():
            course.enter()
        _STACK.set((*_STACK.get(), course))
        return Run(course)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        course = self._innermost()
        with _explained(error):
            course.end(error)
            course.finish()

    async def __aenter__(self) -> Run:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        course = self._innermost()
        with _explained(error):
            course.end(error)
            await course.afinish()

    def __call__(self, function: F) -> F:
        """Record each call of a sync or async function as a run. Raises UserError on a generator function, and on a class."""
        return self.wrapped(function, self._agent or getattr(function, "__name__", None) or type(function).__name__)

    def wrapped(self, function: F, agent: str) -> F:
        """`function`, each call of which is a run of the agent of that name."""
        _refuse(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(self._course_of(agent, args, kwargs), lambda: function(*args, **kwargs))

        @wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            return await self._acall(self._course_of(agent, args, kwargs), lambda: function(*args, **kwargs))

        return cast("F", acall if _is_async(function) else call)

    def _call(self, course: _Course, act: Callable[[], Any]) -> Any:
        with _explained():
            course.enter()
            try:
                result = act()
            except BaseException as error:
                course.end(error)
                course.finish()
                raise
            if inspect.isawaitable(result):  # a plain function that gives a coroutine: the run goes on in it
                course.leave()
                return self._acall(course, lambda: result)
            course.end(None)
            course.finish()
            return result

    async def _acall(self, course: _Course, act: Callable[[], Awaitable[Any]]) -> Any:
        with _explained():
            course.enter()
            try:
                result = await act()
            except BaseException as error:
                course.end(error)
                await course.afinish()
                raise
            course.end(None)
            await course.afinish()
            return result

    def _course_of(self, agent: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Course:
        return self._course(_of_call(self._task, args, kwargs), _of_call(self._session, args, kwargs), agent)

    def _course(self, task: Any, session: Any, agent: str | None) -> _Course:
        around = current()
        parent = {"parent_run": around.run} if isinstance(around, Tape) else {}
        output = self._outputs.new()
        tape = Tape(
            output,
            task=None if task is None else str(task),
            session=None if session is None else str(session),
            agent=agent,
            tags=self._tags,
            metadata={**self._metadata, **parent},
            clean=self._cleaner,
            strict=self._strict,
        )
        return _Course(self, tape, output, self._cleaner, pin=self._pin, slow=self._outputs.slow)

    def _innermost(self) -> _Course:
        """The innermost open block of this recording in this context."""
        stack = _STACK.get()
        place = max(index for index, course in enumerate(stack) if course.recording is self)
        _STACK.set((*stack[:place], *stack[place + 1 :]))
        return stack[place]


class RecordedAgent:
    """An agent object whose entries (`ENTRIES`, and calling it) are recorded; everything else is the agent's own."""

    def __init__(self, agent: Any, recording: Recording, name: str) -> None:
        self._agent, self._recording, self._name = agent, recording, name

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._agent, name)
        if name in ENTRIES and callable(value):
            return self._recording.wrapped(value, self._name)
        return _refusing(name) if name in _NOT_ENTRIES and callable(value) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._recording.wrapped(self._agent, self._name)(*args, **kwargs)


@overload
def record(
    target: Target | None = None,
    *,
    task: OfCall = None,
    session: OfCall = None,
    agent: str | None = None,
    tags: Iterable[str] = (),
    metadata: Mapping[str, Any] | None = None,
    pin: bool = False,
    redact: bool | Sequence[str] = False,
    strict: bool = False,
) -> Recording: ...


@overload
def record(
    target: F,
    *,
    to: Target | None = None,
    task: OfCall = None,
    session: OfCall = None,
    agent: str | None = None,
    tags: Iterable[str] = (),
    metadata: Mapping[str, Any] | None = None,
    pin: bool = False,
    redact: bool | Sequence[str] = False,
    strict: bool = False,
) -> F: ...


def record(target: Any = None, *, to: Target | None = None, **options: Any) -> Any:
    """Record an agent's runs: `with counterplay.record("runs.jsonl", task="17") as run:` and `async with` one block,
    `@counterplay.record("runs.jsonl")` each call of a function, `counterplay.record(agent, to="runs.jsonl")` each call of an agent.

    They go to a tape (a path, `.jsonl` or `.jsonl.gz`), to a store (`.duckdb`, or an open Store), into which each run is put at its
    end, or to a Sink; None is `runs.jsonl`. `task` and `session` name what a run is about and what it is a part of; for calls they
    may be functions of the arguments. `agent` is the agent's name, None: the function's or the class's. `pin` seeds what the run draws
    by chance. `redact` replaces secrets and personal data, or the kinds that are named; keys that errors repeat are never written.
    What can't be written is warned of once and never reaches the agent; `strict` ends the agent with a CounterplayError.

    Raises UserError where the target is none, or is an agent that can't be recorded.
    """
    if not _is_agent(target):
        if target is not None and to is not None:
            raise UserError(f"got two targets, {target!r:.80} and {to!r:.80}", "one, or an agent and one")
        return Recording(_default(target, to), **options)
    recording = Recording(_default(to), **options)
    if inspect.isroutine(target) or isinstance(target, functools.partial | type):
        return recording(target)
    name = getattr(target, "name", None)
    return RecordedAgent(target, recording, options.get("agent") or (name if isinstance(name, str) and name else type(target).__name__))


class _Course:
    """A run from its beginning to its end, and what is told of it."""

    def __init__(self, recording: Recording, tape: Tape, output: Output, cleaner: Cleaner, *, pin: bool, slow: bool) -> None:
        self.recording, self.tape, self.output = recording, tape, output
        self.outcome: Outcome | None = None
        self.scores: list[Mapping[str, Any]] = []
        self.tags: list[str] = []
        self.begun = self.over = False
        self._cleaner, self._pin, self._slow = cleaner, pin, slow
        self._open = ExitStack()

    def enter(self) -> None:
        """Watch what happens from here."""
        if self._pin:
            self._pinned()
        try:
            if not self.begun:
                self.begun = True
                self.tape.begin()
            self._open.enter_context(intercepting(self.tape))
        except BaseException:
            self._open.close()
            raise

    def leave(self) -> None:
        """Watch no more; the run has not ended."""
        self._open.close()

    def end(self, error: BaseException | None) -> None:
        self._open.close()
        self.over = True
        self.tape.end(error=None if error is None else self._cleaner.named(error), outcome=self.outcome, scores=self.scores, tags=self.tags)

    def told(self, **said: Any) -> None:
        """What is said after the end is a line of its own."""
        if self.over:
            with _explained():
                self.tape.end(**said)
                self.finish()

    def finish(self) -> None:
        """Have stored what was written."""
        try:
            self.output.finish()
        except Exception as failure:  # noqa: BLE001  whatever a target may raise is none of the agent's business
            self.tape.failed(failure)

    async def afinish(self) -> None:
        if self._slow:
            await asyncio.to_thread(self.finish)
        else:
            self.finish()

    def _pinned(self) -> None:
        """Pins are one run's at a time: a run beside another, or within it, draws from whatever there is."""
        seed = self.tape.pins.setdefault("seed", int.from_bytes(os.urandom(4), "big"))
        try:
            self._open.enter_context(pinned(seed=seed))
        except UserError as error:
            self.tape.pins.clear()
            warnings.warn(f"run {self.tape.run} is not pinned: {error}", RuntimeWarning, stacklevel=2)


_STACK: ContextVar[tuple[_Course, ...]] = ContextVar("counterplay_recordings", default=())


@contextmanager
def _explained(failure: BaseException | None = None) -> Iterator[None]:
    """A strict recording that can't be written ends in an error for a person to read; so does one that had already ended the agent."""
    try:
        yield
        if isinstance(failure, RecordingFailed):
            raise failure
    except RecordingFailed as found:
        raise CounterplayError(f"the recording can't be written ({found})", do="Make room for it, or record without strict.") from found


def _default(*targets: Target | None) -> Target:
    return next((target for target in targets if target is not None), DEFAULT_TAPE)


def _is_agent(target: object) -> bool:
    if target is None or isinstance(target, str | os.PathLike) or is_store(target):
        return False
    return callable(target) or any(hasattr(target, name) for name in ENTRIES)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _refuse(function: Callable[..., Any]) -> None:
    do = "Put the loop that uses it into a block: with counterplay.record(...)."
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f"got {function!r:.80}, a generator function", "a function that returns when the run is over", do)
    if isinstance(function, type):
        raise UserError(f"got {function!r:.80}, a class", "an agent, or a function that runs it")


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        do = "Put it into a block: with counterplay.record(...)."
        raise UserError(f"got a call of {name}, of which it can't be said when a run ends", f"one of {', '.join(ENTRIES)}", do)

    return refuse


def _of_call(what: OfCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What a call is about. A function that fails costs the name, not the run."""
    if what is None or isinstance(what, str):
        return what
    try:
        return what(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  recording never gets in the agent's way
        warnings.warn(f"the function that names a run failed: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
