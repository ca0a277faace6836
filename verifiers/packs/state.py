"""The state pack: is the world as it should be when the agent is done?

States are plain JSON. They are compared whole, by hash as benchmarks do, or as a diff: what should have changed and did, what should
have and did not, and what changed though nobody asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias

from counterplay.core.canonical import canonical, content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Score, Trajectory
from counterplay.verifiers.packs.base import ByPrefix, Pack, at, uses_of

Path: TypeAlias = tuple[str, ...]
Where: TypeAlias = "ByPrefix[Any] | Callable[[Trajectory], Any]"

_MISSING = "(missing)"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two states differ. `got` or `wanted` is `(missing)` where only the other has it; a dot leads into an object."""

    path: str
    got: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.path or 'the state'}: got {_short(self.got)}, wanted {_short(self.wanted)}"


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """The state that the last answer of a tool shows, as JSON; `field` (dots look into objects) is where in it.

    No state where the tool (a name or a pattern) never answered, answered with an error or not with JSON, or the field is not there.
    """

    tool: str
    field: str = ""

    def __call__(self, trajectory: Trajectory) -> Any:
        for index in reversed(range(len(trajectory))):
            for use in reversed(uses_of(trajectory.steps[index], index)):
                if fnmatchcase(use.call.name, self.tool) and use.done:
                    return at(use.value, self.field)
        return None


@dataclass(frozen=True, slots=True)
class AtEnd:
    """The state that was logged for a finished trajectory: for that very one, not for those that share a prefix with it."""

    table: Mapping[str, Any]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Trajectory, Any]]) -> AtEnd:
        return cls({trajectory.key: state for trajectory, state in pairs})

    def __call__(self, trajectory: Trajectory) -> Any:
        return self.table.get(trajectory.key)


@dataclass(frozen=True, eq=False)
class StateMatch(Pack):
    """An outcome verifier: is the final state as expected? No opinion on prefixes, nor where one of the two states is not known.

    `actual` finds the state a trajectory ended in: a callable (it may ask an environment), `LastAnswer(tool)`, or `AtEnd.of(...)` from
    logs. `expected` is the state, or `ByPrefix` or a callable that finds it; or its `hash_of` as text, which is compared alone.
    `value` "exact" is 1 or 0. "changes" is the share of right changes among all that were wanted or made, in [0, 1], against the state
    `before` (None: everything counts as a change): what was left out and what nobody asked for weigh alike.

    `ignore` are paths that do not matter, such as `orders.*.updated_at` (`*` is one level, or an element of a list); `unordered`
    are lists whose order does not. Numbers are equal within `tolerance`.
    """

    name: ClassVar[str] = "state"
    expected: Any
    actual: Where
    value: Literal["exact", "changes"] = "exact"
    before: Any = None
    ignore: tuple[str, ...] = ()
    unordered: tuple[str, ...] = ()
    tolerance: float = 1e-9

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.finished:
            return None
        expected, actual = _found(self.expected, trajectory), self.actual(trajectory)
        if expected is None or actual is None:
            return None
        if isinstance(expected, str) and _is_hash(expected) and not isinstance(actual, str):
            same = hash_of(actual, ignore=self.ignore, unordered=self.unordered) == expected
            return self.score(float(same), "the state is as expected" if same else "the state's hash is not the expected one")
        found = self.differences(actual, expected)
        if not found:
            return self.score(1.0, "the state is as expected")
        told = "; ".join(map(str, found[:_SHOWN])) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        return self.score(0.0 if self.value == "exact" else self._share(_found(self.before, trajectory), actual, expected), told)

    def differences(self, actual: Any, expected: Any) -> list[Difference]:
        """Where two states differ, apart from what is ignored, in the order of the paths."""
        return diff(actual, expected, ignore=self.ignore, unordered=self.unordered, tolerance=self.tolerance)

    def _share(self, before: Any, actual: Any, expected: Any) -> float:
        """Right changes among those wanted or made."""
        wanted = {each.path: each.wanted for each in self._changes(before, expected)}
        made = {each.path: each.wanted for each in self._changes(before, actual)}
        wrong = {each.path for each in self._changes(actual, expected)}
        every = wanted.keys() | made.keys() | wrong
        return len(every - wrong) / len(every)

    def _changes(self, before: Any, after: Any) -> list[Difference]:
        return diff(before, after, ignore=self.ignore, unordered=self.unordered, tolerance=self.tolerance, whole=False)


def diff(
    actual: Any, expected: Any, *, ignore: Sequence[str] = (), unordered: Sequence[str] = (), tolerance: float = 1e-9, whole: bool = True
) -> list[Difference]:
    """Where `actual` differs from `expected`. What only one of them has is one difference; not `whole`, one for each value in it."""
    left, right = (_normal(state, tuple(ignore), tuple(unordered), ()) for state in (actual, expected))
    return list(_differences(left, right, (), tolerance, whole=whole))


def hash_of(state: Any, *, ignore: Sequence[str] = (), unordered: Sequence[str] = ()) -> str:
    """A hash of a state apart from what is ignored: 32 hex digits, the same for whole numbers written as 1 and 1.0."""
    return content_key(canonical(_normal(state, tuple(ignore), tuple(unordered), ())))


def _differences(got: Any, wanted: Any, path: Path, tolerance: float, *, whole: bool) -> Iterator[Difference]:
    if isinstance(got, dict) and isinstance(wanted, dict):
        for key in sorted({*got, *wanted}):
            yield from _differences(got.get(key, _GONE), wanted.get(key, _GONE), (*path, key), tolerance, whole=whole)
    elif isinstance(got, list) and isinstance(wanted, list):
        for index in range(max(len(got), len(wanted))):
            left, right = (each[index] if index < len(each) else _GONE for each in (got, wanted))
            yield from _differences(left, right, (*path, str(index)), tolerance, whole=whole)
    elif not whole and (isinstance(got, dict | list) or isinstance(wanted, dict | list)):
        left, right = got if _holds(got) else _like(wanted), wanted if _holds(wanted) else _like(got)
        yield from _differences(left, right, path, tolerance, whole=whole)
    elif not _same(got, wanted, tolerance):
        yield Difference(".".join(path), *(_MISSING if each is _GONE else each for each in (got, wanted)))


_GONE = object()


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)


def _like(value: Any) -> Any:
    return [] if isinstance(value, list) else {}


def _same(got: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(got, bool) or isinstance(wanted, bool) or not isinstance(got, int | float) or not isinstance(wanted, int | float):
        return type(got) is type(wanted) and bool(got == wanted)
    return got == wanted or abs(got - wanted) <= tolerance * max(1.0, abs(got), abs(wanted))


def _normal(state: Any, ignore: tuple[str, ...], unordered: tuple[str, ...], path: Path) -> Any:
    """The state without what is ignored, unordered lists in one order, whole numbers as such. Tuples are lists, keys are text."""
    if isinstance(state, Mapping):
        inner = {str(key): (value, (*path, str(key))) for key, value in state.items()}
        return {key: _normal(value, ignore, unordered, place) for key, (value, place) in inner.items() if not _listed(place, ignore)}
    if isinstance(state, list | tuple):
        places = [(each, (*path, str(index))) for index, each in enumerate(state)]
        values = [_normal(each, ignore, unordered, place) for each, place in places if not _listed(place, ignore)]
        return sorted(values, key=canonical) if _listed(path, unordered) else values
    if isinstance(state, set | frozenset):
        return sorted((_normal(each, ignore, unordered, path) for each in state), key=canonical)
    if isinstance(state, float) and state.is_integer():
        return int(state)
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise UserError(f"got a {type(state).__name__} at {'.'.join(path) or 'the top'} of a state", "plain JSON")


@lru_cache(maxsize=65536)
def _listed(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(_fits(path, tuple(pattern.split("."))) for pattern in patterns)


def _fits(path: Path, pattern: Path) -> bool:
    return len(path) == len(pattern) and all(fnmatchcase(name, want) for name, want in zip(path, pattern, strict=True))


def _found(source: Any, trajectory: Trajectory) -> Any:
    return source(trajectory) if callable(source) else source


def _is_hash(text: str) -> bool:
    return len(text) == 32 and all(each in "0123456789abcdef" for each in text)


def _short(value: Any) -> str:
    text = value if value == _MISSING else canonical(value)
    return text if len(text) <= 60 else text[:57] + "..."
