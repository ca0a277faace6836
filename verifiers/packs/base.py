"""What the packs of rules share: one reading of calls and answers, one way to a score, and what is known of a prefix, kept.

Every pack of rules answers on a prefix with the best value that a continuation of it can still reach, and on a finished trajectory with the
value itself. So along one trajectory a value never rises, prefixes and ends compare, and steps that only pad gain nothing. Packs that
run what was produced (`code`, `sql`) judge what there is so far instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from counterplay.core.canonical import canonical, content_key, loads
from counterplay.core.effects import overlap
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Score, Step, ToolCall, Trace, Trajectory
from counterplay.core.protocols import fingerprint_of
from counterplay.core.tool_errors import is_error

S = TypeVar("S")
V = TypeVar("V")

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Pack:
    """Base of the packs: settings are fields, and `fingerprint` follows from name, version and every setting.

    A pack is a subclass under `@dataclass(frozen=True, eq=False)`. A setting that is a function is known by its module and name: give
    functions that differ different names, or a `fingerprint`.
    """

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"

    @cached_property
    def fingerprint(self) -> str:
        settings = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        return f"{self.name}@{self.version}#{content_key(canonical(settings))}"

    def __eq__(self, other: object) -> bool:
        """Equal settings of one kind of pack, whether or not they can be hashed."""
        return type(other) is type(self) and all(getattr(self, each.name) == getattr(other, each.name) for each in fields(self))

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled and copied as its settings alone, without what it remembers."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def score(self, value: float, reason: str) -> Score:
        return Score(min(1.0, max(0.0, value)), reason, self.name, self.version)

    def verdict(self, findings: Sequence[Finding], clean: str, decay: float) -> Score:
        """`decay` to the power of the findings' weights; the reason names the first few findings, those that weigh nothing last."""
        if not findings:
            return self.score(1.0, clean)
        ordered = sorted(findings, key=lambda finding: (finding.weight <= 0, finding.step))
        told = [f"step {finding.step}: {finding.reason}" for finding in ordered[:_SHOWN]]
        more = f"; and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
        return self.score(decay ** sum(finding.weight for finding in findings), "; ".join(told) + more)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at `step` (0-based): what a person can act on, and how much it weighs. `kind` groups findings."""

    step: int
    reason: str
    weight: float = 1.0
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """One tool call and its answer; None where no answer was logged."""

    step: int
    call: ToolCall
    answer: Message | None
    failed: bool

    @property
    def text(self) -> str:
        return "" if self.answer is None else self.answer.content_text

    @property
    def done(self) -> bool:
        """Whether it was answered, and not with an error."""
        return self.answer is not None and not self.failed

    @property
    def value(self) -> Any:
        """The answer as JSON; None where it is not JSON."""
        return parsed(self.text)


def uses_of(step: Step, index: int) -> list[Use]:
    """The calls of a step with their answers: by id where the ids tell them apart, else in order (ids may repeat in a log)."""
    calls = step.action.tool_calls
    answers = [message for message in step.observations if message.role == "tool"]
    ids = {call.id for call in calls}
    by_id = {message.tool_call_id: message for message in answers}
    if len(ids) == len(calls) and len(by_id) == len(answers) and ids >= by_id.keys():
        paired = [by_id.get(call.id) for call in calls]
    else:
        paired = [*answers[: len(calls)], *[None] * (len(calls) - len(answers))]
    return [Use(index, call, answer, answer is not None and is_error(answer)) for call, answer in zip(calls, paired, strict=True)]


def parsed(text: str) -> Any:
    """The JSON value of `text`; None where it is not JSON."""
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of these, or fits a pattern such as `update_*`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def at(value: Any, path: str) -> Any:
    """What stands at a path of field names joined by dots, in each object of a list; None where nothing does. Empty is the value."""
    for name in path.split(".") if path else ():
        if isinstance(value, list):
            value = [found for each in value if isinstance(each, Mapping) and (found := each.get(name)) is not None]
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def leaves(value: Any) -> Iterator[Any]:
    """The plain values in a JSON value, in order; none of them null."""
    if isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(each)
    elif value is not None:
        yield value


@dataclass(frozen=True, slots=True)
class Index(Generic[V]):
    """A map that never changes and is cheap to extend: parts of doubling size, the newest last. What was put last is found first."""

    parts: tuple[dict[Any, V], ...] = ()

    def put(self, items: Iterable[tuple[Any, V]]) -> Index[V]:
        new = dict(items)
        if not new:
            return self
        parts = list(self.parts)
        while parts and len(parts[-1]) <= len(new):
            new = {**parts.pop(), **new}
        return Index((*parts, new))

    def get(self, key: Any) -> V | None:
        part: dict[Any, V] = next((part for part in reversed(self.parts) if key in part), {})
        return part.get(key)

    def __contains__(self, key: Any) -> bool:
        return any(key in part for part in self.parts)

    def __iter__(self) -> Iterator[Any]:
        return iter({key for part in self.parts for key in part})


@dataclass(frozen=True, slots=True)
class Change:
    """Something that may have changed the world: when, what it touched (concrete resources, see `Effect.touches`), and those before it."""

    when: int
    touched: tuple[str, ...]
    earlier: Change | None = None


def changed(change: Change | None, since: int, touched: Sequence[str]) -> bool:
    """Whether something of what is `touched` may have changed after `since`; `change` is the latest one."""
    while change is not None and change.when > since:
        if any(overlap(left, right) for left in change.touched for right in touched):
            return True
        change = change.earlier
    return False


class _Known(Generic[S]):
    __slots__ = ("after", "state")

    def __init__(self, state: S) -> None:
        self.state = state
        self.after: dict[str, _Known[S]] = {}


class Fold(Generic[S]):
    """What is known after every step, computed once for all trajectories that share a prefix.

    `start` reads tools and prompt, `add` one step at an index; both depend on content alone, not on flags, rewards or grades.
    States are never changed. At most `most` prefixes are remembered; past that all are forgotten and computed anew when asked for.
    """

    def __init__(self, start: Callable[[Trajectory], S], add: Callable[[S, Step, int], S], *, most: int = 8192) -> None:
        self._start, self._add, self._most = start, add, most
        self._roots: dict[Any, _Known[S]] = {}
        self._count = 0

    def __call__(self, trajectory: Trajectory) -> S:
        keys, roots = trajectory.prefix_keys, self._roots
        root = (keys[0], trajectory.tools)
        known = roots.get(root)
        if known is None:
            known = roots[root] = _Known(self._start(trajectory))
        for index, step in enumerate(trajectory.steps):
            following = known.after.get(keys[index + 1])
            if following is None:
                following = _Known(self._add(known.state, step, index))
                known.after[keys[index + 1]] = following
                self._count += 1
            known = following
        if self._count > self._most:
            self._roots, self._count = {}, 0
        return known.state


@dataclass(frozen=True)
class ByPrefix(Generic[V]):
    """A value for each logged task, found for whatever shares a prefix with one of its logged trajectories.

    Tasks with one prompt and different values are told apart by what followed; no value (None) up to where they part.
    """

    table: Mapping[str, V | None]

    @classmethod
    def of(cls, pairs: Iterable[tuple[Trajectory, V]]) -> ByPrefix[V]:
        by_prompt: dict[str, list[tuple[Trajectory, V]]] = {}
        for trajectory, value in pairs:
            by_prompt.setdefault(trajectory.prefix_keys[0], []).append((trajectory, value))
        table: dict[str, V | None] = {}
        for prompt, group in by_prompt.items():
            if all(value == group[0][1] for _, value in group):
                table[prompt] = group[0][1]
                continue
            for trajectory, value in group:
                for key in trajectory.prefix_keys:
                    table[key] = value if key not in table or table[key] == value else None
        return cls(table)

    @classmethod
    def from_traces(cls, traces: Iterable[Trace], field: str) -> ByPrefix[Any]:
        """Read `field` of each trace's metadata, or of its outcome's details; a dot looks into an object. Traces without it are left out.

        Raises UserError where no trace has it.
        """
        traces = list(traces)
        found = [(trace.trajectory, value) for trace in traces if (value := _noted(trace, field)) is not None]
        if not found:
            known = sorted({str(key) for trace in traces[:100] for key in (*trace.metadata, *trace.outcome.details)})
            wanted = f"one of: {', '.join(known)}" if known else "traces with metadata"
            raise UserError(f"got {len(traces)} traces, none of them with {field!r} in its metadata or outcome", wanted)
        return cls.of(found)

    def __call__(self, trajectory: Trajectory) -> V | None:
        for key in reversed(trajectory.prefix_keys):
            if key in self.table:
                return self.table[key]
        return None


def _noted(trace: Trace, field: str) -> Any:
    return next((value for holder in (trace.metadata, trace.outcome.details) if (value := at(holder, field)) is not None), None)


def _plain(value: Any) -> Any:
    """A setting as JSON that is the same in every process."""
    if is_dataclass(value) and not isinstance(value, type) and not isinstance(value, Pack):
        return {"": type(value).__qualname__} | {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(each) for each in value), key=canonical)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return fingerprint_of(value) if callable(value) else f"{type(value).__name__} {value}"
