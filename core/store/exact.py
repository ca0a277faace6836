"""Columns as the canonical JSON of their rows: the very text of `canonical`, written by orjson where that is sure to write the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from types import NoneType
from typing import Any

import orjson

from counterplay.core.canonical import canonical
from counterplay.core.store.tables import Columns

_SAME = {str, int, bool, NoneType}


def listed(columns: Sequence[Sequence[Any]]) -> str:
    """`canonical` of the rows as lists. Raises TypeError where a value is not JSON."""
    try:
        return orjson.dumps(list(zip(*map(_exact, columns), strict=True))).decode()
    except TypeError:
        return canonical(list(zip(*columns, strict=True)))


def named(columns: Columns, later: Mapping[str, Any]) -> str:
    """`canonical` of the rows as dicts, without those of the `later` columns that hold their default. Raises TypeError likewise."""
    told = {name: columns[name] for name in sorted(columns) if name not in later or columns[name].count(later[name]) < len(columns[name])}
    silent = {name: [value == later[name] for value in told[name]] for name in told if name in later and later[name] in told[name]}
    try:
        return orjson.dumps(_rows({name: _exact(values) for name, values in told.items()}, silent)).decode()
    except TypeError:
        return canonical(_rows(told, silent))


def _rows(told: Columns, silent: Mapping[str, Sequence[bool]]) -> list[dict[str, Any]]:
    """The rows of `told`, which has the keys in order. `silent` are the columns that some rows leave out, and whether each does."""
    rows = [dict(zip(told, values, strict=True)) for values in zip(*told.values(), strict=True)]
    for name, left_out in silent.items():
        for row, out in zip(rows, left_out, strict=True):
            if out:
                del row[name]
    return rows


def _exact(values: Sequence[Any]) -> Sequence[Any]:
    """The values, floats as Python writes them. Raises TypeError where orjson may write another text, or a text where json raises."""
    kinds = set(map(type, values))
    if kinds <= _SAME:
        return values
    if kinds <= {float, *_SAME}:
        return [_written(value) if type(value) is float else value for value in values]
    if kinds <= {list, NoneType} and set(map(type, chain.from_iterable([value for value in values if value is not None]))) <= _SAME:
        return values
    raise TypeError(kinds)


def _written(value: float) -> orjson.Fragment:
    if not math.isfinite(value):
        raise TypeError(value)
    return orjson.Fragment(repr(value))
