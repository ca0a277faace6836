"""What log rows say about a call or a run beside its messages: ids, usage, times, outcome. Every reader takes any JSON value.

A value of the wrong type counts as not logged; none of these functions raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast, get_args

from counterplay.connectors.lines import refuse_dense
from counterplay.core.nouns import Outcome, OutcomeSource, Usage

_SOURCES = get_args(OutcomeSource)
_MICROSECONDS = ((1e17, 1e-3), (1e14, 1.0), (1e11, 1e3), (0.0, 1e6))
_LAST_US = 253_402_300_800 * 10**6  # the year 10000
_LONGEST_S = 1e10  # three centuries
_MOST_TOKENS = 1 << 53
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1467][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBERS = (int, float)
_BITS = range(-(1 << 63), 1 << 63)


def number(value: Any) -> float | None:
    """A finite number; None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def count(value: Any) -> int:
    """A number of tokens; 0 where none is logged, or one that can be none."""
    if value is None:
        return 0
    if type(value) is int:
        return value if 0 < value <= _MOST_TOKENS else 0
    found = number(value)
    return int(found) if found is not None and 0 < found <= _MOST_TOKENS else 0


def seconds(value: Any) -> float | None:
    """A length of time; None where it is none, negative or longer than centuries, so that it can be added to any moment."""
    found = number(value)
    return found if found is not None and 0 <= found <= _LONGEST_S else None


def word(value: Any) -> str | None:
    """An id or name: text that is not empty, or a whole number as text."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def is_unique(name: str | None) -> bool:
    """Whether an id is one that nothing else has: a UUID drawn by chance or from the clock, not one made of a name or chosen by hand."""
    return name is not None and _UUID.fullmatch(name) is not None


def record(value: Any) -> dict[str, Any]:
    """An object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def first_word(keys: Iterable[str], places: Iterable[Any]) -> str | None:
    """The first id under any of `keys` (in lower case, with `_`) in any of the objects `places`, in that order of keys."""
    return first_spelled(keys, spelled(places))


def spelled(places: Iterable[Any]) -> list[dict[str, Any]]:
    """Objects with their keys in lower case, with `_`; what is no object is left out."""
    return [
        {_known_spelling(key) if type(key) is str and len(key) <= _SHORT else _spelling(key): value for key, value in place.items()}
        for place in places
        if place and isinstance(place, dict)
    ]


def first_spelled(keys: Iterable[str], places: Sequence[Mapping[str, Any]]) -> str | None:
    """As `first_word`, of places that were `spelled`."""
    for key in keys:
        for place in places:
            if key in place and (found := word(place[key])):
                return found
    return None


def _spelling(key: Any) -> str:
    return str(key).lower().replace("-", "_")


_SHORT = 64
_known_spelling = lru_cache(maxsize=4096)(_spelling)


def usage_of(value: Any, cost_usd: Any = None) -> Usage:
    """Usage in Chat Completions or Responses words; cached and reasoning tokens are part of input and output."""
    fields = record(value)
    prompt = record(fields.get("prompt_tokens_details")) or record(fields.get("input_tokens_details"))
    completion = record(fields.get("completion_tokens_details")) or record(fields.get("output_tokens_details"))
    return Usage(
        count(fields.get("prompt_tokens", fields.get("input_tokens"))),
        count(fields.get("completion_tokens", fields.get("output_tokens"))),
        count(prompt.get("cached_tokens")),
        count(completion.get("reasoning_tokens")),
        number(cost_usd),
    )


def time_us(value: Any) -> int | None:
    """A moment in microseconds since 1970 from seconds, milli-, micro- or nanoseconds (told by their size) or ISO 8601 text.

    None where it is none, or after the year 9999.
    """
    amount = number(value)
    if amount is not None:
        for least, factor in _MICROSECONDS:
            if amount > least:
                found = int(amount * factor)
                return found if found < _LAST_US else None
        return None
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
    except (ValueError, OverflowError):
        return None


def outcome_of(fields: Mapping[str, Any]) -> Outcome | None:
    """An outcome from `reward`, `success`, `source` and `details`; None where neither of the first two is there."""
    reward, success = number(fields.get("reward")), fields.get("success")
    if reward is None and not isinstance(success, bool):
        return None
    source = fields.get("source")
    known = cast("OutcomeSource", source) if source in _SOURCES else "unknown"
    return Outcome(reward, success if isinstance(success, bool) else None, known, record(fields.get("details")))


def parse(text: Any) -> Any:
    """The JSON value in `text`, with infinities and NaN as strings. Raises ValueError where it is none, or has too many parts."""
    if not isinstance(text, str):
        msg = f"got a {type(text).__name__}, wanted JSON text"
        raise ValueError(msg)
    refuse_dense(text)
    try:
        return json.loads(text, parse_constant=str, parse_float=finite)
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None


def parsed_or(text: Any, default: Any = None) -> Any:
    """The JSON value in `text`; what is no text passes unchanged; `default` where it is text and not JSON."""
    if not isinstance(text, str):
        return text
    try:
        return parse(text)
    except ValueError:
        return default


def whole_number(raw: Any) -> int | None:
    """An integer of 64 bits from a number or its text; None where it is neither."""
    if isinstance(raw, bool) or raw is None:
        return None
    try:
        return found if (found := int(raw)) in _BITS else None
    except (ValueError, TypeError, OverflowError):
        return None


def finite(text: str) -> Any:
    """A float from its text; the text itself where it is too large to be one."""
    number = float(text)
    return number if abs(number) != float("inf") else text
