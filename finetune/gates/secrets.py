"""Rows that still hold a secret, or personal data where asked: left out, named with kind and place, never with the value.

What a secret is, a `Scan` says; the front door gives the detectors of ingestion. A row is looked through as it will be written: messages,
tool definitions, its other columns, and where it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

from counterplay.core.nouns import Message, ToolSpec
from counterplay.finetune.gates.protocol import through
from counterplay.finetune.rows import Drop, Row

Scan: TypeAlias = Callable[[Any], tuple[Any, Mapping[str, int]]]
"""A JSON value with everything found in it replaced, and how many values of each kind were; none where there is nothing to find."""

_PLACES = 5
_REMEMBERED = 4096
_TOKEN = re.compile(r"\[([a-z0-9-]+):redacted:[a-p]+\]")


@dataclass(frozen=True)
class Secrets:
    """A gate for rows. What is found in a row's name is replaced there (`told`), for a task may be named by what it says."""

    scan: Scan
    name = "secrets"
    reason = "a secret"

    def __call__(self, rows: Sequence[Row]) -> tuple[list[Row], list[Drop]]:
        return through(self, rows)

    def refusal(self, row: Row) -> Drop | None:
        places = [f"{found.kinds} in {place}{found.path}" for place, found in self._findings(row)]
        if not places:
            return None
        more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
        return Drop(self.reason, self.told(row.name), ", ".join(places[:_PLACES]) + more)

    def told(self, text: str) -> str:
        """A text of a report, such as the name of what another gate left out, with everything found in it replaced by its kind."""
        clean, kinds = self.scan(text)
        return _TOKEN.sub(r"[\1]", str(clean)) if kinds else text

    def _findings(self, row: Row) -> Iterator[tuple[str, _Finding]]:
        """What each message, tool and column holds. Equal messages, which the rows of a trace share, are looked at once."""
        said: list[tuple[str, Message | ToolSpec]] = [("a tool definition", tool) for tool in row.tools]
        said += [(f"{column}[{index}]", message) for column, messages in row.parts.items() for index, message in enumerate(messages)]
        for place, part in said:
            if (found := self._known_of(part)) is not None:
                yield place, found
        lineage = row.lineage
        origin = {each.name: value for each in fields(lineage) if isinstance(value := getattr(lineage, each.name), str | tuple)}
        for name, value in {**origin, **row.values}.items():
            if (found := self._finding(value)) is not None:
                yield name, found

    def _known_of(self, part: Message | ToolSpec) -> _Finding | None:
        known = self._known
        if part.wire not in known:
            if len(known) >= _REMEMBERED:
                known.clear()
            known[part.wire] = self._finding(dict(part.fields))
        return known[part.wire]

    @cached_property
    def _known(self) -> dict[str, _Finding | None]:
        return {}

    def _finding(self, value: Any) -> _Finding | None:
        clean, kinds = self.scan(value)
        return _Finding(", ".join(sorted(kinds)), next(_different(value, clean), "")) if kinds else None


@dataclass(frozen=True, slots=True)
class _Finding:
    """The kinds of what is in one value, and the path of the first."""

    kinds: str
    path: str


def _different(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The paths at which two JSON values differ. A key that was itself replaced is not told."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in before:
            if key in after:
                yield from _different(before[key], after[key], f"{path}.{key}")
            else:
                yield path
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _different(one, other, f"{path}[{index}]")
    elif before != after:
        yield path
