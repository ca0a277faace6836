"""Conformance checks for the worlds and environments that users write: run one in your tests, and forks can be trusted.

`check_world` takes a plain world apart; `check_environment` asks any environment, also an asynchronous or a foreign one.
Neither executes an external tool that is not named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolCall
from counterplay.replay.acting import answer, close_world, drive
from counterplay.replay.environment_check import EnvironmentCheck, check_environment
from counterplay.replay.world import Content, World

__all__ = ["Calls", "EnvironmentCheck", "WorldCheck", "check_environment", "check_world"]

Calls = Sequence[tuple[str, Mapping[str, Any]]]


class _Whole(World, Protocol):
    def snapshot(self) -> object: ...
    def restore(self, snapshot: object) -> None: ...
    def copy(self) -> World: ...


@dataclass(frozen=True, slots=True)
class WorldCheck:
    """What was found in order: `checked` names the properties, `calls` counts the tool calls made."""

    checked: tuple[str, ...]
    calls: int


def check_world(factory: Callable[[], World], calls: Calls, *, allow_external: Iterable[str] = ()) -> WorldCheck:
    """Play `calls` in many ways that must give the same results. Raises UserError naming the first property that fails.

    * deterministic: two fresh instances answer alike;
    * restore (where there are snapshots): an instance restored to any point answers the rest as one that got there by calls,
      also where it was used before, and a snapshot is good for more than one restore;
    * copy (where there is one): likewise, and the two never see each other's calls;
    * no leak: an instance that others were played beside answers as if alone.

    The checks see what tools answer, so `calls` should end with reads of what the writes changed. A call of an external tool
    that `allow_external` does not name is refused before anything is executed.
    """
    play = _Player(factory, calls)
    try:
        world = play.fresh()
        _refuse_externals(world, calls, frozenset(allow_external))
        truth = play.rest(world, 0)
        _same(truth, play.rest(play.fresh(), 0), "deterministic: a second fresh instance answers otherwise")
        checked = ["deterministic"]
        if hasattr(world, "snapshot") and hasattr(world, "restore"):
            _check_restore(play, truth)
            checked.append("restore")
        if hasattr(world, "copy"):
            _check_copy(play, truth)
            checked.append("copy")
        _check_leak(play, truth)
        return WorldCheck((*checked, "no leak"), play.count)
    finally:
        play.close()


class _Player:
    """Makes instances, counts their calls, and closes them all at the end."""

    def __init__(self, factory: Callable[[], World], calls: Calls) -> None:
        self.factory, self.calls, self.count = factory, [ToolCall("", name, dumps(dict(arguments))) for name, arguments in calls], 0
        self._made: list[World] = []

    def fresh(self) -> World:
        return self.owned(self.factory())

    def owned(self, world: World) -> World:
        self._made.append(world)
        return world

    def one(self, world: World, index: int) -> Content:
        self.count += 1
        return drive(answer(world, self.calls[index]))

    def rest(self, world: World, start: int) -> list[Content]:
        return [self.one(world, i) for i in range(start, len(self.calls))]

    def at(self, length: int) -> World:
        world = self.fresh()
        for i in range(length):
            self.one(world, i)
        return world

    def close(self) -> None:
        while self._made:
            close_world(self._made.pop())


def _refuse_externals(world: World, calls: Calls, allow_external: frozenset[str]) -> None:
    named = {name for name, _ in calls} - allow_external
    external = [tool.name for tool in world.tools if tool.effect.kind == "external" and tool.name in named]
    if external:
        raise UserError(
            f"got a call of {external[0]}, which is external", "calls that change nothing outside", "Or name it in allow_external."
        )


def _check_restore(play: _Player, truth: list[Content]) -> None:
    for point in range(len(truth) + 1):
        origin = cast("_Whole", play.at(point))
        snapshot = origin.snapshot()
        _same(truth[point:], play.rest(origin, point), f"restore: taking a snapshot after {point} calls changed the instance", point)
        for which in ("first", "second"):
            restored = cast("_Whole", play.fresh())
            restored.restore(snapshot)
            _same(truth[point:], play.rest(restored, point), f"restore: the {which} restore to the state after {point} calls", point)
        origin.restore(snapshot)
        _same(truth[point:], play.rest(origin, point), f"restore: an instance that had gone on, put back after {point} calls", point)


def _check_copy(play: _Player, truth: list[Content]) -> None:
    for point in range(len(truth) + 1):
        origin = cast("_Whole", play.at(point))
        twin = play.owned(origin.copy())
        _same(truth[point:], play.rest(twin, point), f"copy: a copy made after {point} calls", point)
        _same(truth[point:], play.rest(origin, point), f"copy: the original, after its copy made at call {point} had gone on", point)


def _check_leak(play: _Player, truth: list[Content]) -> None:
    left, right = play.fresh(), play.fresh()
    answers = [(play.one(left, i), play.one(right, i)) for i in range(len(truth))]
    for i, side in enumerate(("first", "second")):
        _same(truth, [pair[i] for pair in answers], f"no leak: the {side} of two instances played side by side")


def _same(wanted: list[Content], got: list[Content], what: str, offset: int = 0) -> None:
    for i, (was, now) in enumerate(zip(wanted, got, strict=True)):
        if was != now:
            raise UserError(
                f"{what}: call {i + offset} answered {now!r}", repr(was), "State must live in the instance, and snapshots hold all of it."
            )
