"""A conformance check for the worlds that users write: run it once in your tests, and forks can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolCall
from counterplay.replay.live import call_text
from counterplay.replay.world import World

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


def check_world(factory: Callable[[], World], calls: Calls) -> WorldCheck:
    """Play `calls` in many ways that must give the same results. Raises UserError naming the first property that fails.

    * deterministic: two fresh instances answer alike;
    * restore (where there are snapshots): an instance restored to any point answers the rest as one that got there by calls,
      also where it was used before, and a snapshot is good for more than one restore;
    * copy (where there is one): likewise, and the two never see each other's calls;
    * no leak: an instance that others were played beside answers as if alone.

    The checks see what tools answer, so `calls` should end with reads of what the writes changed.
    """
    texts = _Player(factory, calls)
    truth = texts.rest(factory(), 0)
    _same(truth, texts.rest(factory(), 0), "deterministic: a second fresh instance answers otherwise")
    checked = ["deterministic"]
    world = factory()
    if hasattr(world, "snapshot") and hasattr(world, "restore"):
        _check_restore(texts, truth)
        checked.append("restore")
    if hasattr(world, "copy"):
        _check_copy(texts, truth)
        checked.append("copy")
    _check_leak(texts, truth)
    return WorldCheck((*checked, "no leak"), texts.count)


class _Player:
    def __init__(self, factory: Callable[[], World], calls: Calls) -> None:
        self.factory, self.calls, self.count = factory, [ToolCall("", name, dumps(dict(arguments))) for name, arguments in calls], 0

    def one(self, world: World, index: int) -> str:
        self.count += 1
        return call_text(world, self.calls[index])

    def rest(self, world: World, start: int) -> list[str]:
        return [self.one(world, i) for i in range(start, len(self.calls))]

    def at(self, length: int) -> World:
        world = self.factory()
        for i in range(length):
            self.one(world, i)
        return world


def _check_restore(play: _Player, truth: list[str]) -> None:
    for point in range(len(truth) + 1):
        origin = cast("_Whole", play.at(point))
        snapshot = origin.snapshot()
        _same(truth[point:], play.rest(origin, point), f"restore: taking a snapshot after {point} calls changed the instance", point)
        for which in ("first", "second"):
            fresh = cast("_Whole", play.factory())
            fresh.restore(snapshot)
            _same(truth[point:], play.rest(fresh, point), f"restore: the {which} restore to the state after {point} calls", point)
        origin.restore(snapshot)
        _same(truth[point:], play.rest(origin, point), f"restore: an instance that had gone on, put back after {point} calls", point)


def _check_copy(play: _Player, truth: list[str]) -> None:
    for point in range(len(truth) + 1):
        origin = cast("_Whole", play.at(point))
        twin = origin.copy()
        _same(truth[point:], play.rest(twin, point), f"copy: a copy made after {point} calls", point)
        _same(truth[point:], play.rest(origin, point), f"copy: the original, after its copy made at call {point} had gone on", point)


def _check_leak(play: _Player, truth: list[str]) -> None:
    left, right = play.factory(), play.factory()
    answers = [(play.one(left, i), play.one(right, i)) for i in range(len(truth))]
    for i, side in enumerate(("first", "second")):
        _same(truth, [pair[i] for pair in answers], f"no leak: the {side} of two instances played side by side")


def _same(wanted: list[str], got: list[str], what: str, offset: int = 0) -> None:
    for i, (was, now) in enumerate(zip(wanted, got, strict=True)):
        if was != now:
            raise UserError(
                f"{what}: call {i + offset} answered {now!r}", repr(was), "State must live in the instance, and snapshots hold all of it."
            )
