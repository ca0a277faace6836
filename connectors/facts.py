"""What log rows say about a call or a run beside its messages: ids, usage, times, outcome. Every reader takes any JSON value.

A value of the wrong type counts as not logged; none of these functions raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast, get_args

from counterplay.core.nouns import Outcome, OutcomeSource, Usage

_SOURCES = get_args(OutcomeSource)
_MICROSECONDS = ((1e17, 1e-3), (1e14, 1.0), (1e11, 1e3), (0.0, 1e6))


def number(value: Any) -> float | None:
    """A finite number; None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def count(value: Any) -> int:
    """A number of tokens; 0 where none is logged."""
    found = number(value)
    return int(found) if found is not None and found > 0 else 0


def word(value: Any) -> str | None:
    """An id or name: text that is not empty, or a whole number as text."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def record(value: Any) -> dict[str, Any]:
    """An object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def first_word(keys: Iterable[str], places: Iterable[Any]) -> str | None:
    """The first id under any of `keys` (in lower case, with `_`) in any of the objects `places`, in that order of keys."""
    spelled = [{str(key).lower().replace("-", "_"): value for key, value in record(place).items()} for place in places]
    return next((found for key in keys for place in spelled if (found := word(place.get(key)))), None)


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
    """A moment in microseconds since 1970 from seconds, milli-, micro- or nanoseconds (told by their size) or ISO 8601 text."""
    amount = number(value)
    if amount is not None:
        return next((int(amount * factor) for least, factor in _MICROSECONDS if amount > least), None)
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
