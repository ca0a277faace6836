"""Proof that the splits of a written folder share nothing: no task, trace, session or user, and no two tasks that ask nearly the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.gates.near import clusters
from counterplay.finetune.gates.words import opening, plain
from counterplay.finetune.splits import BY, SplitBy
from counterplay.finetune.write import read_dataset

_COLUMNS: Mapping[str, str] = {"session": "sessions", "user": "users"}


@dataclass(frozen=True, slots=True)
class Leak:
    """Something that two splits share. `kind` is task, trace, session, user, text or near-duplicate; `rows` names one row of either."""

    kind: str
    value: str
    splits: tuple[str, str]
    rows: tuple[str, str]


def leaks(folder: str | Path, *, by: Sequence[SplitBy] = BY, threshold: float = 0.8) -> list[Leak]:
    """What the splits of a dataset folder share, read from its files alone; empty where they share nothing.

    Tasks and traces always count, sessions and users where `by` has them. Two tasks that ask the same in other words than `threshold`
    allows are no leak (`gates.near.near_ties`). Raises UserError where there is no dataset.
    """
    path = Path(folder)
    splits = sorted({file.stem for file in (*path.glob("data/*.parquet"), *path.glob("jsonl/*.jsonl"))})
    if not splits:
        raise UserError(f"got no dataset in {path}", "a folder that counterplay export has written")
    rows = [(split, record) for split in splits for record in read_dataset(path, split)[1]]
    texts = [plain(opening(_messages(record))) for _, record in rows]
    like = clusters(texts, threshold)
    met: dict[tuple[str, str], dict[str, str]] = {}
    found = []
    for (split, record), text in zip(rows, texts, strict=True):
        for kind, value in (*_shared(record, by), *_said(text, like)):
            first, name = met.setdefault((kind, value), {}), record["name"]
            if split not in first:
                found += [Leak(kind, _short(value), (other, split), (twin, name)) for other, twin in first.items()]
                first[split] = name
    texts_told = {leak.rows for leak in found if leak.kind == "text"}
    return [leak for leak in found if leak.kind != "near-duplicate" or leak.rows not in texts_told]


def _shared(record: Mapping[str, Any], by: Sequence[SplitBy]) -> Iterator[tuple[str, str]]:
    if record["task"] is not None:
        yield "task", record["task"]
    yield from (("trace", trace) for trace in record["traces"])
    for kind, column in _COLUMNS.items():
        yield from ((kind, value) for value in (record.get(column) or () if kind in by else ()))


def _said(text: str, like: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if text in like:
        yield "text", text
        yield "near-duplicate", like[text]


def _messages(record: Mapping[str, Any]) -> list[Message]:
    found = record.get("messages") or record.get("prompt") or record.get("chosen") or []
    return [Message.from_openai(fields) for fields in found if isinstance(fields, dict)]


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:79]}…"
