"""Caps, so that no task and no tool dominates a dataset, and a report of who does.

A tool belongs to a row where a message that is trained on calls it; a row may have several, or none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.gates.protocol import RowOf, Sketches, through
from counterplay.finetune.rows import Drop, Row

_SIDES = {"dpo": ("chosen",), "reward": ("chosen",)}
"""Where only some columns are what a row teaches to do."""


def taught(row: Row) -> list[Message]:
    """The messages that a row teaches a model to write: those flagged as trained, but nothing rejected or undesirable."""
    values, found = row.values, list[Message]()
    if values.get("label") is False:
        return found
    for column, messages in row.parts.items():
        if column not in _SIDES.get(row.kind, (column,)):
            continue
        flags = values.get(f"{column}_trained", values.get("trained") if len(row.parts) == 1 else None)
        if isinstance(flags, list) and len(flags) == len(messages):
            found += [message for message, flag in zip(messages, flags, strict=True) if flag]
    return found


def tools_of(row: Row) -> list[str]:
    """The names of the tools that a row teaches to call, each once."""
    return list(dict.fromkeys(call.name for message in taught(row) for call in message.tool_calls))


def capped(rows: Sequence[Row], *, per_task: int | None = None, per_tool: int | None = None, seed: int = 0) -> tuple[list[Row], list[Drop]]:
    """At most `per_task` rows of a task (of a trace where none is known), and `per_tool` rows that call a tool; None: no cap.

    The best are kept, by `probability` or `score` where rows have one; which of equals follows from their names and `seed`. A row of
    several tools counts for each, and is left out where any of them is full. Kept rows stay in order. With its options bound it is a
    `Gate`; `Caps` is one that needs no row to be in memory.
    """
    return through(Caps(per_task=per_task, per_tool=per_tool, seed=seed), rows)


@dataclass(frozen=True, kw_only=True)
class Caps:
    """`capped` as a gate."""

    per_task: int | None = None
    per_tool: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, cap in (("per_task", self.per_task), ("per_tool", self.per_tool)):
            if cap is not None and cap < 1:
                raise UserError(f"got {name}={cap}", "at least 1, or none for no cap")

    def __call__(self, rows: Sequence[Row]) -> tuple[list[Row], list[Drop]]:
        return through(self, rows)

    def begin(self, _: Path) -> Sketches:
        return _Ranked(self)


@dataclass(frozen=True)
class _Ranked:
    """Of every row its rank, what orders it among equals, its name, its task, and its tools."""

    caps: Caps
    known: dict[int, tuple[float, bytes, str, str, tuple[str, ...]]] = field(default_factory=dict)
    tools: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    def add(self, number: int, row: Row) -> None:
        tools = tuple(tools_of(row)) if self.caps.per_tool is not None else ()
        drawn = bytes.fromhex(content_key(str(self.caps.seed), row.name))
        self.known[number] = -_rank(row), drawn, row.name, row.lineage.unit, self.tools.setdefault(tools, tools)

    def refused(self, numbers: Sequence[int], _: RowOf) -> Mapping[int, Drop]:
        taken: Counter[tuple[str, str]] = Counter()
        drops: dict[int, Drop] = {}
        for number in sorted(numbers, key=lambda n: (*self.known[n][:2], n)):
            _rank, _drawn, name, unit, tools = self.known[number]
            units = {("task", unit): self.caps.per_task, **{("tool", tool): self.caps.per_tool for tool in tools}}
            full = next((each for each, cap in units.items() if cap is not None and taken[each] >= cap), None)
            if full is None:
                taken.update(units.keys())
            else:
                what = "of a task" if full[0] == "task" else f"that call {full[1]}"
                drops[number] = Drop(f"over the cap of {units[full]} rows {what}", name)
        return drops


def _rank(row: Row) -> float:
    values = row.values
    found = next((values[name] for name in ("probability", "score") if values.get(name) is not None), 0.0)
    return float(found)


@dataclass(frozen=True)
class Spread:
    """How rows spread over the values of one property: `rows` and `messages` (those trained on) by value, most rows first.

    Messages without a value are under "none". `share` is that of the largest value, by messages where there are any, else by rows;
    `effective` is exp(entropy) of the same shares: how many equally large values would be as diverse. 0 for nothing.
    """

    rows: Mapping[str, int]
    messages: Mapping[str, int]

    @cached_property
    def _shares(self) -> list[float]:
        counts = self.messages if sum(self.messages.values()) else self.rows
        total = sum(counts.values())
        return [count / total for count in counts.values() if count] if total else []

    @property
    def share(self) -> float:
        return max(self._shares, default=0.0)

    @property
    def effective(self) -> float:
        return math.exp(-sum(share * math.log(share) for share in self._shares)) if self._shares else 0.0


@dataclass(frozen=True)
class Balance:
    """Who a dataset is made of."""

    task: Spread
    tool: Spread
    agent: Spread
    algorithm: Spread

    def to_json(self) -> dict[str, Any]:
        """Counts by value, with `share` and `effective`, under each property."""
        spreads = {name: getattr(self, name) for name in ("task", "tool", "agent", "algorithm")}
        return {name: {**asdict(spread), "share": spread.share, "effective": spread.effective} for name, spread in spreads.items()}

    def markdown(self, *, most: int = 5) -> str:
        """A table of the four properties with their `most` frequent values, and how to read it."""
        head = "| | different | effective | largest share | most frequent (rows, trained messages) |\n|---|---|---|---|---|\n"
        lines = []
        for name in ("task", "tool", "agent", "algorithm"):
            spread: Spread = getattr(self, name)
            top = ", ".join(f"{_cell(value)} ({spread.rows[value]}, {spread.messages[value]})" for value in list(spread.rows)[:most])
            lines.append(f"| {name} | {len(spread.rows)} | {spread.effective:.1f} | {spread.share:.0%} | {top} |")
        note = "\n\nEffective: how many equally frequent ones would be as diverse, exp(entropy) of the shares of trained messages."
        return head + "\n".join(lines) + note


def _cell(value: str) -> str:
    text = " ".join(value.split()).replace("|", "\\|")
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True, slots=True)
class Taught:
    """What the balance counts of one row: who it is from, how many messages it teaches, and in how many of them each tool is called."""

    task: str
    agent: str
    algorithm: str
    messages: int
    tools: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, row: Row) -> Taught:
        messages, lineage = taught(row), row.lineage
        called = Counter(tool for message in messages for tool in ({call.name for call in message.tool_calls} or {"none"}))
        names = lineage.unit or "none", lineage.agent or "none", lineage.algorithm or "logged"
        return cls(*names, len(messages), tuple(sorted(called.items())))


def balance(rows: Iterable[Row | Taught]) -> Balance:
    """How rows and trained messages spread over tasks, tools, agents and algorithms. A row of several tools is counted for each."""
    counts: dict[str, tuple[Counter[str], Counter[str]]] = {name: (Counter(), Counter()) for name in ("task", "tool", "agent", "algorithm")}
    for row in rows:
        found = row if isinstance(row, Taught) else Taught.of(row)
        for name in ("task", "agent", "algorithm"):
            counts[name][0][getattr(found, name)] += 1
            counts[name][1][getattr(found, name)] += found.messages
        for tool, messages in found.tools:
            counts["tool"][0][tool] += 1
            counts["tool"][1][tool] += messages
    return Balance(**{name: _spread(*pair) for name, pair in counts.items()})


def _spread(rows: Counter[str], messages: Counter[str]) -> Spread:
    names = sorted(rows, key=lambda name: (-rows[name], name))
    return Spread({name: rows[name] for name in names}, {name: messages[name] for name in names})
