"""Reading a judge's answer: one JSON object of the form asked for, or the words for why it is none. Nothing is guessed.

A number is taken from its field alone, never searched for in prose; one outside the scale is a misread scale, not a very good
mark. What hardly leaves the scale (a twentieth of it) is clamped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from counterplay.core.canonical import canonical
from counterplay.verifiers.judges.replies import Reply

T = TypeVar("T")
SLACK = 0.05
_LONGEST_CHARS, _MOST_FAILURES = 200_000, 1000


class UnreadableError(ValueError):
    """An answer that can't be read as what was asked for. Its text says why, in words that the judge is shown when asked again."""


@dataclass(frozen=True)
class Form(Generic[T]):
    """The form of an answer: its JSON schema, and how to read an object of it. `read` raises UnreadableError where it is none."""

    schema: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], T]

    def parse(self, reply: Reply) -> T:
        try:
            return self.read(read_object(reply.text))
        except UnreadableError as error:
            if reply.refusal:
                raise UnreadableError(f"it was refused: {reply.refusal[:200]}") from None
            if reply.finish_reason == "length":
                raise UnreadableError(f"it was cut off at the limit of tokens ({error})") from None
            raise


def schema_of(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of an object that has exactly these fields, in this order."""
    return {"type": "object", "properties": dict(fields), "required": list(fields), "additionalProperties": False}


def read_object(text: str) -> Mapping[str, Any]:
    """The one JSON object in `text`, which may stand in a code fence or between words. What a model thought aloud before is left out."""
    said = text.rpartition("</think>")[2]
    if len(said) > _LONGEST_CHARS:
        raise UnreadableError(f"it has {len(said)} characters")
    found = _objects(said)
    if not found:
        raise UnreadableError("there is no complete JSON object in it")
    if len({canonical(each) for each in found}) > 1:
        raise UnreadableError("it holds several different JSON objects")
    return found[0]


def number(fields: Mapping[str, Any], name: str) -> float:
    """The field as a number in [0, 1]."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableError(f"{name!r} is {_shown(fields, name)}, not a number")
    if not -SLACK <= value <= 1 + SLACK:
        raise UnreadableError(f"{name!r} is {value:g}, outside 0 to 1")
    return min(1.0, max(0.0, float(value)))


def text(fields: Mapping[str, Any], name: str) -> str:
    """The field as text that says something."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UnreadableError(f"{name!r} is {_shown(fields, name)}, not a text")
    return value.strip()


def part(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The field as an object."""
    value = fields.get(name)
    if not isinstance(value, dict):
        raise UnreadableError(f"{name!r} is {_shown(fields, name)}, not an object")
    return value


def items(fields: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The field as a list of objects."""
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise UnreadableError(f"{name!r} is {_shown(fields, name)}, not a list of objects")
    return value


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name])[:80] if name in fields else "missing"


def _objects(said: str) -> list[dict[str, Any]]:
    """Every JSON object that stands in `said` and not within another."""
    decoder = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_constant=_not_json)
    found, failed, place = [], 0, said.find("{")
    while place >= 0 and failed < _MOST_FAILURES:
        try:
            value, end = decoder.raw_decode(said, place)
        except json.JSONDecodeError:
            end, failed = place + 1, failed + 1
        except RecursionError:
            raise UnreadableError("it is nested too deeply") from None
        else:
            found.append(value)
        place = said.find("{", end)
    return found


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise UnreadableError("a field of it is given twice")
    return fields


def _not_json(word: str) -> float:
    raise UnreadableError(f"{word} is not a JSON number")
