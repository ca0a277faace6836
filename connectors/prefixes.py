"""Lists of objects in JSON text that were read before, found again at the beginning of longer ones.

Logs keep the whole prompt of every model call, so that each repeats all messages of the one before it. What a list shares with one that
was read is compared byte by byte, some ten times as fast as it is parsed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import AnyStr, Generic, TypeVar

What = TypeVar("What")

_CANDIDATES = 16
_PIECES = 16
_BEFORE, _BEHIND = 256, 512
_FIRST = 1 << 16


@dataclass(slots=True, eq=False)
class Seen(Generic[AnyStr, What]):
    """A list that was read: its text without the closing bracket, where in the text each object ends, and what was read.

    The text is in pieces, as the list grew: put together again each time, it would be copied as often as it is compared.
    """

    text: AnyStr
    news: list[AnyStr]
    ends: list[int]
    size: int
    what: What
    key: AnyStr

    def begins(self, data: AnyStr, start: int) -> bool:
        """Whether the list at `start` begins with all of this one."""
        if not data.startswith(self.text, start):
            return False
        place = start + len(self.text)
        for piece in self.news:
            if not data.startswith(piece, place):
                return False
            place += len(piece)
        return True

    def shared(self, data: AnyStr, start: int) -> int:
        """How many of its objects the list at `start` begins with. An object that is there up to its closing brace is there whole."""
        self.gather()
        low, high = 0, len(self.ends)
        while low < high:
            middle = (low + high + 1) // 2
            if data.startswith(self.text[: self.ends[middle - 1]], start):
                low = middle
            else:
                high = middle - 1
        return low

    def gather(self) -> None:
        if self.news:
            self.text += self.text[:0].join(self.news)
            self.news.clear()


class Prefixes(Generic[AnyStr, What]):
    """The lists that were met last: of those that begin alike a few, of all `held` bytes. `user` and `brace` are those words as text."""

    def __init__(self, user: AnyStr, brace: AnyStr, *, held: int) -> None:
        self._user: AnyStr = user
        self._brace: AnyStr = brace
        self._known: OrderedDict[AnyStr, list[Seen[AnyStr, What]]] = OrderedDict()
        self._last: Seen[AnyStr, What] | None = None
        self._size, self._held = 0, held

    def longest(self, data: AnyStr, start: int, last: int) -> tuple[Seen[AnyStr, What] | None, int]:
        """The list that shares most with the one from `start` to `last`, and how many objects; (None, 0) where none shares one."""
        before = self._last
        if before is not None and before.begins(data, start):
            return before, len(before.ends)
        known = self._known.get(beginning(data, start, last, self._user, self._brace), ())
        wholes = [seen for seen in known if seen.begins(data, start)]
        if wholes:
            found = max(wholes, key=lambda seen: len(seen.ends))
            return found, len(found.ends)
        shared = [seen.shared(data, start) for seen in known]
        most = max(shared, default=0)
        return (known[shared.index(most)], most) if most else (None, 0)

    def keep(self, data: AnyStr, start: int, ends: list[int], what: What) -> None:
        """Remember the list at `start`, whose objects end at `ends`."""
        text = data[start : start + ends[-1]]
        seen: Seen[AnyStr, What] = Seen(text, [], ends, ends[-1], what, beginning(text, 0, len(text), self._user, self._brace))
        known: list[Seen[AnyStr, What]] = self._known.setdefault(seen.key, [])
        known.insert(0, seen)
        self._met(seen, seen.size - sum(old.size for old in known[_CANDIDATES:]))
        del known[_CANDIDATES:]

    def grow(self, seen: Seen[AnyStr, What], data: AnyStr, start: int, ends: list[int], what: What) -> None:
        """Remember the list at `start` in place of one that is all at its beginning."""
        before, seen.size = seen.size, ends[-1]
        seen.ends, seen.what = ends, what
        if seen.size > before:
            seen.news.append(data[start + before : start + seen.size])
        if len(seen.news) > _PIECES:
            seen.gather()
        if seen is not self._last:
            known: list[Seen[AnyStr, What]] = self._known[seen.key]
            known.remove(seen)
            known.insert(0, seen)
        self._met(seen, seen.size - before)

    def _met(self, seen: Seen[AnyStr, What], more: int) -> None:
        self._size += more
        if seen is not self._last:
            self._known.move_to_end(seen.key)
            self._last = seen
        while self._size > self._held and len(self._known) > 1:
            _, old = self._known.popitem(last=False)
            self._size -= sum(each.size for each in old)


def beginning(data: AnyStr, start: int, last: int, user: AnyStr, brace: AnyStr) -> AnyStr:
    """What stays as it is while the list from `start` grows and tells it from others: the text round its first user's role.

    `user` and `brace` are those words as text.
    """
    role = data.find(user, start, min(start + _FIRST, last))
    if role < 0:
        return data[start : min(start + _BEFORE, last)]
    furthest = min(role + _BEHIND, last)
    end = data.find(brace, role, furthest)
    return data[max(start, role - _BEFORE) : furthest if end < 0 else end + 1]
