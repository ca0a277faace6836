"""Rows as plain records ready for a file: messages as dicts, checked, neutralised and measured with the real chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

from counterplay.core.canonical import dumps
from counterplay.finetune.answers import left_out
from counterplay.finetune.kinds import LAYOUTS
from counterplay.finetune.masks import render
from counterplay.finetune.portable import control_pattern, has_fraction, neutralise, portable, unfit
from counterplay.finetune.rows import Drop, Lineage, Row

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one row: its record, or the `reason` why it has none.

    `texts` are the items of its JSON columns as JSON text, None for a column that is null. `length` is in tokens, None without a
    tokenizer. The flags say what was noticed: control tokens broken, call ids re-issued, fractions, tools called that are not defined.
    """

    record: Record
    reason: str = ""
    texts: Mapping[str, list[str] | None] = field(default_factory=dict)
    length: int | None = None
    neutralised: bool = False
    reissued: bool = False
    fractions: bool = False
    undefined: bool = False


class RecordMaker:
    """Converts and checks rows one by one; what can't be written, or is longer than `max_length` tokens, has a reason."""

    def __init__(self, *, tokenizer: Any = None, max_length: int | None = None) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self._patterns = _control_patterns(tokenizer)

    def make(self, row: Row) -> Made:
        columns = LAYOUTS[row.kind].json
        record, texts, broken, reason = _checked(row, columns, self._patterns)
        length = None
        if not reason and self._tokenizer is not None:
            length, reason = _measure(row, record, self._tokenizer)
            if not reason and self._max_length is not None and length > self._max_length:
                reason = f"longer than {self._max_length} tokens"
        if reason:
            return Made(record, reason)
        logged = [message for messages in row.parts.values() for message in messages]
        return Made(
            record,
            texts=texts,
            length=length,
            neutralised=broken > 0,
            reissued=_call_ids([m.fields for m in logged]) != _call_ids(_flat(record, row.parts)),
            fractions=any(_fraction(record[column], texts[column]) for column in columns),
            undefined=not record["tools"] and any(message.tool_calls for message in logged),
        )


@dataclass
class Records:
    """Records beside the rows they came from, what became none, and in how many rows something was noticed (`Made`).

    `lengths` in tokens aligns with `kept` where there was a tokenizer, and is empty without one.
    """

    kept: list[tuple[Row, Record]] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    neutralised: int = 0
    reissued: int = 0
    fractions: int = 0
    undefined: int = 0


def make_records(rows: Iterable[Row], *, tokenizer: Any = None, max_length: int | None = None) -> Records:
    """All rows through a `RecordMaker`; what has a reason becomes a drop."""
    found, maker = Records(), RecordMaker(tokenizer=tokenizer, max_length=max_length)
    for row in rows:
        made = maker.make(row)
        if made.reason:
            found.drops.append(Drop(made.reason, row.name))
            continue
        found.kept.append((row, made.record))
        found.lengths += [] if made.length is None else [made.length]
        for flag in ("neutralised", "reissued", "fractions", "undefined"):
            setattr(found, flag, getattr(found, flag) + getattr(made, flag))
    return found


_Texts: TypeAlias = dict[str, list[str] | None]


def _checked(row: Row, columns: Sequence[str], patterns: tuple[re.Pattern[str], re.Pattern[str]]) -> tuple[Record, _Texts, int, str]:
    """The record, its JSON columns as text, how many control tokens were broken, and why it can't be written; empty where it can."""
    try:
        record, broken = _record(row, patterns)
        texts = {column: None if record[column] is None else [dumps(item) for item in record[column]] for column in columns}
        return record, texts, broken, next(filter(None, (_unfit(value, texts.get(name)) for name, value in record.items())), "")
    except RecursionError:
        return {}, {}, 0, "nested too deeply"
    except ValueError as error:
        return {}, {}, 0, f"no record can be made of it: {error}"[:200]


_SUSPECT = re.compile(r"[0-9]{19}|NaN|Infinity|\\u[dD][89a-fA-F]")
_FRACTION = re.compile(r"(?:^|[\[:,])-?[0-9]+[.eE]")


def _unfit(value: Any, texts: list[str] | None) -> str:
    """`unfit`, asked only of what has a text that may say so: looking through text is many times faster."""
    if texts is not None and not any(map(_SUSPECT.search, texts)):
        return ""
    return unfit(value)


def _fraction(value: Any, texts: list[str] | None) -> bool:
    return texts is not None and any(map(_FRACTION.search, texts)) and has_fraction(value)


def _record(row: Row, patterns: tuple[re.Pattern[str], re.Pattern[str]]) -> tuple[Record, int]:
    """The record, and how many control tokens were broken. Each conversation is made portable as a whole, since ids run through it."""
    columns: Record = {}
    broken = 0
    for conversation in row.conversations:
        made, more = neutralise(portable([message for column in conversation for message in row.parts[column]]), *patterns)
        broken += more
        for column in conversation:
            columns[column], made = made[: len(row.parts[column])], made[len(row.parts[column]) :]
    for column, sizes in row.groups.items():
        items = iter(columns[column])
        columns[column] = [list(islice(items, size)) for size in sizes]
    return {
        **columns,
        "tools": [tool.to_openai() for tool in row.tools] or None,
        **row.values,
        "name": row.name,
        **_origin(row.lineage),
    }, broken


def _origin(lineage: Lineage) -> Record:
    return {
        "task": lineage.task,
        "traces": list(lineage.traces),
        "sessions": list(lineage.sessions),
        "search": lineage.search,
        "algorithm": lineage.algorithm,
        "fork_step": lineage.fork_step,
        "nodes": list(lineage.nodes),
        "verifiers": list(lineage.verifiers),
        "grade": lineage.grade.name.lower(),
        "logged": lineage.logged,
        "agent": lineage.agent,
        "users": list(lineage.users),
    }


def _control_patterns(tokenizer: Any) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """For text of users and tools: special tokens and markup like <tool_call>. For others', whose markup may be meant: special."""
    added = [] if tokenizer is None else list(tokenizer.added_tokens_decoder.values())
    special = [token.content for token in added if token.special]
    markup = [token.content for token in added if re.fullmatch(r"[<\[].+[>\]]", token.content)]
    return control_pattern([*special, *markup]), control_pattern(special)


def _measure(row: Row, record: Record, tokenizer: Any) -> tuple[int, str]:
    """Tokens of the longest text the record renders to, and why it can't be rendered; an empty reason where it can."""
    conversations = [_flat(record, conversation) for conversation in row.conversations]
    try:
        texts = render(tokenizer, conversations, record["tools"])
        lost = next(filter(None, (left_out(tokenizer, each, record["tools"]) for each in conversations)), "")
    except Exception as error:  # noqa: BLE001  a chat template is foreign code and may raise anything; the row is dropped by name
        return 0, f"the chat template refuses it: {type(error).__name__}: {error}"[:200]
    if lost:
        return 0, f"the chat template leaves out {lost}"
    return max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])), ""


def _flat(record: Record, columns: Iterable[str]) -> list[Record]:
    """The messages of some columns in order, those in lists within the list too."""
    items = (item for column in columns for item in record[column])
    return [message for item in items for message in (item if isinstance(item, list) else [item])]


def _call_ids(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    return [call.get("id") for fields in messages for call in fields.get("tool_calls") or ()]
