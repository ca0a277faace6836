"""Rows of a written dataset, checked for a kind of training before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.records import Record
from counterplay.finetune.write import read_dataset


def records_of(dataset: str | Path, split: str, wanted: str, columns: Sequence[str]) -> list[Record]:
    """The records of a split. Raises UserError for rows of another kind, none, or without the `columns` that are read."""
    kind, records = read_dataset(dataset, split)
    if kind != wanted:
        raise UserError(f"{dataset} holds {kind} rows", f"{wanted} rows", f"Train it with: counterplay train {kind}")
    if not records:
        raise UserError(f"the split {split!r} of {dataset} is empty", "at least one row")
    missing = [column for column in columns if any(column not in record for record in records)]
    if missing:
        raise UserError(f"{dataset} lacks the column {missing[0]!r}", f"{', '.join(columns)} in every row", "Export it anew.")
    return records


def messages_of(written: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages of a dataset as they were logged: arguments as text, in the order of the row."""
    return tuple(
        Message.from_openai({**fields, "tool_calls": list(map(_as_text, fields["tool_calls"]))} if fields.get("tool_calls") else fields)
        for fields in written
    )


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    if isinstance(function.get("arguments"), dict):
        function["arguments"] = dumps(function["arguments"])
    return {**call, "function": function}


def check_length(name: str, length: int, max_length: int) -> None:
    """Raises UserError for a row over `max_length` tokens, by name."""
    if length > max_length:
        do = "Export with max_length, which drops such rows by name, or raise it here."
        raise UserError(f"row {name} has {length} tokens", f"at most {max_length}; nothing is truncated", do)


def check_rates(**given: float | None) -> None:
    """Raises UserError for a setting that is not above zero. None is the recipe's own."""
    for name, value in given.items():
        if value is not None and not value > 0:
            raise UserError(f"got {name} {value:g}", "a number above 0")
