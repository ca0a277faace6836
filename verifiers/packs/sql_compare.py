"""Whether two query results are the same: bags of rows, or lists where the query says an order; numbers within a tolerance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Row = Sequence[Any]
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


def difference(got: Sequence[Row], wanted: Sequence[Row], *, order: Sequence[int] | None = None, ordered: bool = False) -> str | None:
    """How two results differ, None where they are the same. Column names don't count, column order does.

    With `ordered`, rows must come in the wanted order; where `order` names the columns that decide it, rows equal in those may
    change places.
    """
    if len(got) != len(wanted):
        return f"{len(got)} rows, wanted {len(wanted)}"
    if got and len(got[0]) != len(wanted[0]):
        return f"{len(got[0])} columns, wanted {len(wanted[0])}"
    if ordered:
        columns = range(len(wanted[0]) if wanted else 0) if order is None else order
        for index, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
            if not all(same(ours[column], theirs[column]) for column in columns):
                return f"row {index}: {_shown(ours)}, wanted {_shown(theirs)}"
    return _bags(got, wanted)


def _bags(got: Sequence[Row], wanted: Sequence[Row]) -> str | None:
    """Rows are put together by all that is exact; within one such group numbers are matched."""
    groups: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((got, wanted)):
        for row in rows:
            groups[repr([_exact(value) for value in row])][side].append(row)
    for ours, theirs in groups.values():
        left = _unmatched(sorted(ours, key=_by_number), sorted(theirs, key=_by_number))
        if left is not None:
            return left
    return None


def _unmatched(ours: list[Row], theirs: list[Row]) -> str | None:
    if len(ours) == len(theirs) and all(map(_same_rows, ours, theirs)):
        return None
    for row in ours:  # near numbers may sort differently: look for each row's partner
        partner = next((index for index, other in enumerate(theirs) if _same_rows(row, other)), None)
        if partner is None:
            return f"a row that is not wanted: {_shown(row)}"
        theirs.pop(partner)
    return f"a row is missing: {_shown(theirs[0])}" if theirs else None


def same(one: Any, other: Any) -> bool:
    """Equal values: NULL is NULL, numbers of any kind within a tolerance, all else exact."""
    ours, theirs = _number(one), _number(other)
    if ours is None or theirs is None:
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(same, one, other))
        return ours is theirs and bool(one == other)
    if isinstance(ours, int) and isinstance(theirs, int):
        return ours == theirs
    a, b = float(ours), float(theirs)
    return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) or (math.isnan(a) and math.isnan(b))


def _same_rows(one: Row, other: Row) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def _number(value: Any) -> int | float | None:
    if isinstance(value, int | float):
        try:
            return value if isinstance(value, float) or abs(value) < 1 << 1000 else None
        except OverflowError:
            return None
    if isinstance(value, dict) and "number" in value:
        text = value["number"]
        return int(text) if text.lstrip("-").isdigit() and len(text) < 300 else float(text)
    return None


def _exact(value: Any) -> Any:
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return value if _number(value) is None else "a number"


def _by_number(row: Row) -> list[tuple[bool, float]]:
    numbers = [float(number) for value in row if (number := _number(value)) is not None]
    return [(math.isnan(number), 0.0 if math.isnan(number) else number) for number in numbers]


def _shown(row: Row) -> str:
    return f"({', '.join('NULL' if value is None else str(value) for value in row)})"[:120]
