"""Ids as people write them: whole, or as far as it takes to tell one from the others, as git does."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from counterplay.core.store import Store

_SHORT = 12


def whole_id(given: str, known: Iterable[str], kind: str) -> str:
    """The one of the `known` ids that is `given` or alone begins so; `given` where none does. Raises UserError where several do."""
    found = sorted({each for each in known if each.startswith(given)})
    if len(found) > 1 and given not in found:
        raise UserError(f"got {kind} {given!r}, which {len(found)} ids begin with", "one of them", f"For example: {', '.join(found[:4])}")
    return found[0] if len(found) == 1 else given


def whole_trace_ids(store: Store, given: Sequence[str] | None) -> list[str]:
    """The trace ids that a user named, whole. Raises UserError where one is the beginning of several."""
    known = [row.id for row in store.traces()] if given else []
    return [whole_id(each, known, "trace") for each in given or ()]


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """By id the shortest beginning, 12 characters or more, that no other of the ids has."""
    ordered = sorted(set(ids))
    short = {}
    for each in ordered:
        place = bisect_left(ordered, each)
        beside = [ordered[i] for i in (place - 1, place + 1) if 0 <= i < len(ordered)]
        short[each] = each[: max(_SHORT, *(1 + _common(each, other) for other in beside))] if beside else each[:_SHORT]
    return short


def _common(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
