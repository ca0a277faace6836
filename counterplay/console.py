"""What a person sees and what a machine reads: tables and progress on a terminal, one JSON object with `--json`.

Progress and errors go to stderr, results to stdout, so that a pipe only ever receives results.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from counterplay import wrapping
from counterplay.core.errors import CounterplayError

_SHOWN = 12
_EDGES, _BETWEEN = 2, 3  # what SIMPLE_HEAD takes beside the columns, and between two of them
_NARROW = 20

out = Console()
err = Console(stderr=True)


class Ticker:
    """One progress bar. `total` None shows activity without an end."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)

    def at(self, completed: float, total: float | None = None, note: str | None = None) -> None:
        self._progress.update(self._task, completed=completed, total=total)
        if note is not None:
            self.note(note)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)


@contextmanager
def ticking(label: str, total: float | None = None, *, quiet: bool = False) -> Iterator[Ticker]:
    """A progress bar with elapsed and remaining time; shown only where stderr is a terminal and not `quiet`."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as progress:
        yield Ticker(progress, progress.add_task(label, total=total, note=""))


def emit(result: Any, *, as_json: bool, human: Any = None) -> None:
    """Print `result` as one JSON object, or `human` (a text or rich renderable, or several) for a person.

    A text is printed as it is: brackets are no markup, and a long line stays one line, so that commands can be copied.
    """
    if as_json:
        print(json.dumps(plain(result), ensure_ascii=False), flush=True)  # noqa: T201  the result itself, also of a command that goes on
        return
    shown = human if human is not None else facts(plain(result))
    for part in shown if isinstance(shown, list) else [shown]:
        if isinstance(part, str):
            out.print(part, markup=False, highlight=False, soft_wrap=True)
        else:
            out.print(part)


def complain(error: CounterplayError, *, as_json: bool) -> None:
    """Say what went wrong, without a traceback."""
    if as_json:
        print(json.dumps({"error": {"got": error.got, "wanted": error.wanted, "do": error.do, "kind": type(error).__name__}}))  # noqa: T201
    err.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses become objects, NaN and infinity null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if not field.name.startswith("_")}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table whose number columns are right-aligned, no wider than the terminal: see `wrapping` for where its texts are broken.

    Where the terminal is too narrow for that, each row is a list of names and values.
    """
    made = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD, pad_edge=False)
    texts = [[_cell(value) for value in row] for row in rows]
    numeric = [_is_numeric([row[at] for row in rows]) for at in range(len(columns))]
    in_columns = [[name, *(text[at] for text in texts)] for at, name in enumerate(columns)]
    widths = wrapping.widths(in_columns, out.width - _EDGES - _BETWEEN * (len(columns) - 1))
    if widths is None:
        return _listed(made, columns, texts)
    for name, is_numeric, width in zip(columns, numeric, widths, strict=True):
        made.add_column(Text(wrapping.folded(name, width)), justify="right" if is_numeric else "left", no_wrap=True)
    for text in texts:
        made.add_row(*(Text(wrapping.folded(cell, width)) for cell, width in zip(text, widths, strict=True)))
    return made


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) for value in known)


def _listed(made: Table, columns: Sequence[str], texts: Sequence[Sequence[str]]) -> Table:
    """Rows as names and values, one below the other."""
    made.show_header = False
    made.add_column(style="dim", no_wrap=True)
    made.add_column(no_wrap=True)
    width = out.width - _EDGES - _BETWEEN - max(map(cell_len, columns), default=0)
    for text in texts:
        for at, (name, cell) in enumerate(zip(columns, text, strict=True)):
            made.add_row(name, Text(wrapping.folded(cell, width), overflow="fold"), end_section=at == len(columns) - 1)
    return made


def facts(values: Mapping[str, Any]) -> Table:
    """Two columns, name and value; what is nested as `name: value, ...`, deeper as compact JSON."""
    made = Table(show_header=False, box=None, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    width = max(_NARROW, out.width - 1 - max(map(cell_len, values), default=0))
    for name, value in values.items():
        long = isinstance(value, list | tuple | dict) and len(value) > _SHOWN
        shown = f"{len(value)} (--json lists them)" if long else _cell(value)
        made.add_row(Text(name.replace("_", " ")), Text(wrapping.folded(shown, width)))
    return made


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if value is None:
        return "-"
    if isinstance(value, list | tuple | dict) and not value:
        return "none"
    if isinstance(value, dict) and not any(isinstance(part, list | tuple | dict) for part in value.values()):
        return ", ".join(f"{name}: {_cell(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
