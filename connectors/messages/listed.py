"""Lists of objects in JSON text, as spans hold prompts and tools: what a list repeats of an earlier one is compared, not parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from counterplay.connectors.facts import finite, parse
from counterplay.connectors.lines import MAX_PARTS
from counterplay.connectors.prefixes import Prefixes

_LEAST = 512
_HELD = 16 << 20
_FIRST = re.compile(r"[ \t\r\n]*(?=\{)")
_NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_END = re.compile(r"[ \t\r\n]*\][ \t\r\n]*\Z")
_scanned: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(  # type: ignore[attr-defined]  # public, but in no stub
    parse_constant=str, parse_float=finite
).scan_once


class Known(dict[str, Any]):
    """An object of a list, not to be changed: other lists hold it too. `made` is what somebody made of it, None before that."""

    __slots__ = ("made",)

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.made: Any = None


class Lists:
    """Reads lists of one kind, and remembers a bounded number of them."""

    def __init__(self) -> None:
        self._known: Prefixes[str, list[Known]] = Prefixes('"user"', "}", held=_HELD)

    def parse(self, text: str) -> Any:
        """As `facts.parse`; the objects of a list of objects are `Known`."""
        if text[:1] != "[" or not _LEAST <= len(text) <= MAX_PARTS:
            return parse(text)
        seen, count = self._known.longest(text, 0, len(text))
        ends, found = (list(seen.ends[:count]), seen.what[:count]) if seen else ([], [])
        if not self._read_on(text, ends, found):
            return parse(text)
        if seen and count == len(seen.ends):
            self._known.grow(seen, text, 0, ends, found)
        elif ends:
            self._known.keep(text, 0, ends, found)
        return list(found)

    @staticmethod
    def _read_on(text: str, ends: list[int], found: list[Known]) -> bool:
        """Read what follows the objects that are known. False where it is anything but objects up to the end of the list."""
        place = ends[-1] if ends else 1
        try:
            while begins := (_NEXT if ends else _FIRST).match(text, place):
                value, place = _scanned(text, begins.end())
                found.append(Known(value))
                ends.append(place)
        except (ValueError, StopIteration, RecursionError):
            return False
        return _END.match(text, place) is not None
