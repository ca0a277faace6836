"""A question's parameters as they stand behind `?`, and what is said where they make no sense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from counterplay.core.errors import UserError


class MissingError(UserError):
    """There is nothing of that name: 404."""


class Query:
    """Parameters by name. Every method gives None where the parameter is not there, and raises UserError where it can't be read."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given

    def text(self, name: str) -> str | None:
        return self._given.get(name)

    def one_of(self, name: str, known: Sequence[str]) -> str | None:
        value = self._given.get(name) or None
        if value is not None and value not in known:
            raise UserError(f"got {name}={value!r}", f"one of {', '.join(known)}")
        return value

    def number(self, name: str) -> float | None:
        value = self._given.get(name) or None
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"got {name}={value!r}", "a number")
        return number

    def whole(self, name: str, default: int, largest: int) -> int:
        """A whole number from 0 to `largest`; what is larger counts as the largest."""
        value = self._given.get(name) or str(default)
        if not (value.isascii() and value.isdigit()):
            raise UserError(f"got {name}={value!r}", "a whole number, 0 or more")
        return int(value) if len(value) <= len(str(largest)) and int(value) <= largest else largest

    def window(self, default: int, largest: int) -> tuple[int, int]:
        """`offset` and `limit`."""
        return self.whole("offset", 0, 1 << 40), self.whole("limit", default, largest)

    def numbers(self, name: str, most: int) -> list[int]:
        """Whole numbers with commas between them."""
        parts = [part for part in (self._given.get(name) or "").split(",") if part]
        if len(parts) > most or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            raise UserError(f"got {name}={','.join(parts)[:40]!r}", f"at most {most} whole numbers with commas between them")
        return [int(part) for part in parts]
