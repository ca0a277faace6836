"""States that an instance can be brought to without executing anything: snapshots, copies, or idle instances at their tip.

An instance is never in two hands: what is taken from here belongs to the caller, and a copy that is being copied is not
closed under the copier. Safe to use from several threads and from coroutines that wait in between.
"""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from counterplay.core.errors import UserError
from counterplay.replay.acting import fresh, release, settled
from counterplay.replay.world import Factory, World

Manner: TypeAlias = Literal["snapshot", "copy", "tip"]


def manner_of(world: World | type[World]) -> Manner:
    """How a state of this world is kept: as a snapshot, as an instance that is copied and never stepped, or as the instance itself."""
    if hasattr(world, "snapshot") and hasattr(world, "restore"):
        return "snapshot"
    return "copy" if hasattr(world, "copy") else "tip"


@dataclass(eq=False, slots=True)
class Entry:
    """One kept state. `users` are copying it now; `gone` says that the last of them closes it.

    `pinned`: the instance can't be made again, so no limit throws it out.
    """

    manner: Manner
    saved: Any
    size: int = 0
    pinned: bool = False
    idle_limit: int | None = None
    users: int = 0
    gone: bool = False


class Kept:
    """At most `limit` states of at most `limit_bytes` together (None: no limit), least recently used first out.

    A state may be kept as several instances at its tip: branches that look alike so far have each their own. A state whose
    size alone is over the limit is not kept.
    """

    def __init__(self, limit: int, limit_bytes: int | None = None) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self._entries: OrderedDict[tuple[str, int], Entry] = OrderedDict()
        self._of: dict[str, list[int]] = {}
        self._made = self._pinned = self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all that is kept; 0 where they are not limited, for then nothing is measured."""
        return self._bytes

    async def capture(self, world: World, *, stays: bool = False) -> Entry | None:
        """The state of an instance, as something to keep. Raises UserError where bytes are limited and it can't be measured.

        `stays` says that its owner goes on with it; None where it can't be kept beside that. Where its owner is done with it
        the instance is closed, or is itself what is kept.
        """
        manner = manner_of(world)
        if manner == "snapshot":
            entry = self._measured(world, manner, await settled(cast("Any", world).snapshot()))
            if not stays:
                await release(world)
            return entry
        if not stays:
            return self._measured(world, manner, world)
        if manner == "tip":
            return None
        twin = await settled(cast("Any", world).copy())
        try:
            return self._measured(world, manner, twin)
        except BaseException:
            await release(twin)
            raise

    def instance(self, world: World) -> Entry:
        """The instance itself, whatever else it could do, as something that is taken once."""
        return self._measured(world, "tip", world)

    async def store(self, key: str, entry: Entry) -> None:
        """Keep an entry. What is thrown out for it is closed."""
        with self._lock:
            out = self._shared_before(key, entry.manner)
            self._made += 1
            self._entries[key, self._made] = entry
            self._of.setdefault(key, []).append(self._made)
            self._bytes += entry.size
            self._pinned += entry.pinned
            idle = _given_up(out + self._over(entry))
        await _close(idle)

    async def take(self, key: str, factory: Factory) -> World | None:
        """An instance of the caller's own in this state; None where it is not kept."""
        with self._lock:
            place = self._find(key)
            if place is None:
                return None
            entry = self._entries[place]
            if entry.manner == "tip":
                self._remove(place)
                return cast("World", entry.saved)
            self._entries.move_to_end(place)
            entry.users += 1
        try:
            return await _instance(entry, factory)
        finally:
            with self._lock:
                entry.users -= 1
                closing = entry.gone and not entry.users
            if closing:
                await _close([entry])

    async def clear(self) -> None:
        """Let go of everything; what is being copied is closed by the last copier."""
        with self._lock:
            idle = _given_up(list(self._entries.values()))
            self._entries.clear()
            self._of.clear()
            self._pinned = self._bytes = 0
        await _close(idle)

    def _find(self, key: str) -> tuple[str, int] | None:
        """The place of an idle instance in this state, else of anything that is kept of it."""
        places = [(key, number) for number in reversed(self._of.get(key, ()))]
        return next((place for place in places if self._entries[place].manner == "tip"), places[0] if places else None)

    def _remove(self, place: tuple[str, int]) -> Entry:
        entry = self._entries.pop(place)
        numbers = self._of[place[0]]
        numbers.remove(place[1])
        if not numbers:
            del self._of[place[0]]
        self._bytes -= entry.size
        self._pinned -= entry.pinned
        return entry

    def _shared_before(self, key: str, manner: Manner) -> list[Entry]:
        """What a new snapshot or copy of the same state takes the place of."""
        if manner == "tip":
            return []
        return [self._remove((key, n)) for n in list(self._of.get(key, ())) if self._entries[key, n].manner != "tip"]

    def _over(self, new: Entry) -> list[Entry]:
        """Throw out what is over a limit, oldest first."""
        out: list[Entry] = []
        while self._overfull() and (oldest := self._oldest()) is not None:
            out.append(self._remove(oldest))
        if new.manner == "tip" and new.idle_limit is not None:
            tips = [place for place, entry in self._entries.items() if entry.manner == "tip" and not entry.pinned]
            out += [self._remove(place) for place in tips[: max(0, len(tips) - new.idle_limit)]]
        return out

    def _overfull(self) -> bool:
        return len(self._entries) - self._pinned > self._limit or (self._limit_bytes is not None and self._bytes > self._limit_bytes)

    def _oldest(self) -> tuple[str, int] | None:
        return next((place for place, entry in self._entries.items() if not entry.pinned), None)

    def _measured(self, world: World, manner: Manner, saved: Any) -> Entry:
        size = 0 if self._limit_bytes is None else _size(world, manner, saved)
        pinned = manner == "tip" and getattr(world, "replayable", True) is False
        return Entry(manner, saved, size, pinned, getattr(world, "idle_limit", None))


async def _instance(entry: Entry, factory: Factory) -> World:
    """A new instance in the kept state."""
    if entry.manner == "copy":
        return cast("World", await settled(entry.saved.copy()))
    world = await fresh(factory)
    try:
        await settled(cast("Any", world).restore(entry.saved))
    except BaseException:
        await release(world)
        raise
    return world


def _given_up(entries: list[Entry]) -> list[Entry]:
    """Mark entries as thrown out; the ones that nobody is copying, which are to be closed now."""
    for entry in entries:
        entry.gone = True
    return [entry for entry in entries if not entry.users]


async def _close(entries: list[Entry]) -> None:
    """Close every instance, then raise the first error, if there was one."""
    errors: list[Exception] = []
    for entry in entries:
        try:
            if entry.manner != "snapshot":
                await release(entry.saved)
        except Exception as error:  # noqa: BLE001  one that can't be closed must not keep the others open
            errors.append(error)
    if errors:
        raise errors[0]


class _Count:
    """A file that only counts what is written."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)


def _size(world: World, manner: Manner, saved: Any) -> int:
    measure = getattr(world, "snapshot_bytes", None)
    if measure is not None:
        return int(measure(saved))
    if manner == "tip":
        return 0  # a process or a connection: what it holds can't be seen from here
    count = _Count()
    try:
        pickle.Pickler(count, pickle.HIGHEST_PROTOCOL).dump(saved)
    except Exception as error:
        got = f"a state of {type(world).__name__} can't be measured: it does not pickle ({type(error).__name__}: {error})"
        raise UserError(got, "snapshot_bytes(saved) -> int on the world", "Or limit cache_states instead of cache_bytes.") from error
    return count.size
