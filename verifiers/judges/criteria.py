"""Criteria: what a judge is asked to look at, each by name, with a weight. They live in code or in a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from counterplay.core.canonical import canonical, dumps
from counterplay.core.errors import UserError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_FORM = '[[criterion]] tables with name = "...", text = "..." and, where it is not 1, weight = ...'


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion. `text` says when it is fully met. `name` is a word (letters, digits, _); `weight` is positive."""

    name: str
    text: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not self.text.strip() or not 0 < self.weight < float("inf"):
            raise UserError(
                f"got criterion {self.name!r}, text {self.text[:60]!r}, weight {self.weight!r}", "a word, a text, a weight above 0"
            )


@dataclass(frozen=True)
class Criteria:
    """At least one criterion, names unique. The value of a judgement is sum w_i s_i / sum w_i. `source` says where they come from."""

    criteria: tuple[Criterion, ...]
    source: str = ""

    def __post_init__(self) -> None:
        names = [criterion.name for criterion in self.criteria]
        if not names or len(set(names)) < len(names):
            raise UserError(f"got criteria {', '.join(names) or 'none'}", "at least one, each under a name of its own")

    def __iter__(self) -> Iterator[Criterion]:
        return iter(self.criteria)

    def __len__(self) -> int:
        return len(self.criteria)

    @property
    def text(self) -> str:
        """One line a criterion, as a judge is shown them. Weights are applied afterwards and not shown."""
        return "\n".join(f"- {each.name}: {' '.join(each.text.split())}" for each in self)

    @property
    def fingerprint(self) -> str:
        return canonical([[each.name, each.text, each.weight] for each in self])

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a file. Raises UserError where it can't be read or is none."""
        try:
            return cls.parse(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UserError(f"criteria can't be read from {path}: {error}", _FORM) from error

    @classmethod
    def parse(cls, text: str) -> Self:
        """Criteria out of TOML text. Raises UserError where a table has other fields, TOMLDecodeError where it is no TOML."""
        table: dict[str, Any] = tomllib.loads(text)
        rows = table.get("criterion")
        unknown = set(table) - {"criterion", "source"}
        if not isinstance(rows, list) or unknown or not isinstance(table.get("source", ""), str):
            raise UserError(f"got criteria with {', '.join(sorted(table)) or 'nothing'}", _FORM)
        return cls(tuple(_criterion(row) for row in rows), table.get("source", ""))

    def to_toml(self) -> str:
        """The text of a file; `parse` is its inverse."""
        blocks = [f"source = {_quoted(self.source)}\n"] if self.source else []
        for each in self:
            weight = "" if each.weight == 1 else f"weight = {float(each.weight)!r}\n"
            blocks.append(f"[[criterion]]\nname = {_quoted(each.name)}\ntext = {_quoted(each.text)}\n{weight}")
        return "\n".join(blocks)


def _criterion(row: Any) -> Criterion:
    fields = row if isinstance(row, dict) else {}
    weight = fields.get("weight", 1)
    good = set(fields) <= {"name", "text", "weight"} and isinstance(fields.get("name"), str) and isinstance(fields.get("text"), str)
    if not good or isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"got criterion {row!r:.200}", _FORM)
    return Criterion(fields["name"], fields["text"], float(weight))


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, with the one control character escaped that JSON leaves as it is."""
    return dumps(text.encode("utf-8", "replace").decode()).replace("\x7f", "\\u007f")


OUTCOME = Criteria(
    (
        Criterion(
            "success",
            "The task is done as it was set, completely and correctly, as the tool results show; what was to be left alone is untouched.",
        ),
    )
)
STEP = Criteria(
    (
        Criterion(
            "soundness",
            "The step is right given what was known before it: the action is called for, its arguments follow from the task and earlier "
            "results, it breaks no rule the agent was given, and it neither repeats nor undoes good work.",
        ),
    )
)
PROGRESS = Criteria(
    (
        Criterion(
            "promise",
            "The task can still be completed from here, and what was done so far is right and brings it nearer; errors that can't be "
            "undone make it impossible.",
        ),
    )
)
