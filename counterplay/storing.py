"""The store from the command line: questions in SQL, Parquet for other tools, and a file without holes."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from counterplay.core.store import Answer

FORMATS = ("table", "json", "csv")
_LEAST_WIDTH = 7
_SHOWN_ROWS = 200
_SHOWN_TEXT = 300
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])B", re.IGNORECASE)
_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_OWN_MEMORY = 256e6


def moment(text: str) -> int:
    """Microseconds since 1970 of a date or time, or of an age such as 90d before now. Raises UserError where it is neither."""
    from counterplay.connectors.pulls.address import moment_us, span_us

    if text[:1].isdigit() and text[-1:] in "smhd":
        return time.time_ns() // 1000 - span_us(text, "--drop-before ")
    return moment_us(text, "--drop-before ")


def query_text(query: str) -> str:
    """The query itself, or standard input for `-`. Raises UserError where there is none."""
    text = sys.stdin.read() if query == "-" else query
    if not text.strip():
        raise UserError("got an empty query", "one SELECT, such as: SELECT * FROM traces LIMIT 10")
    return text


def sql(store: Path, query: str, *, format: str, max_seconds: float, max_memory: str) -> None:  # noqa: A002  the user's word
    """Run one query that only reads, and print its rows as they come."""
    from counterplay.core.store import ask

    if format not in FORMATS:
        raise UserError(f"got --format {format!r}", f"one of {', '.join(FORMATS)}")
    size = _MEMORY.fullmatch(max_memory.strip())
    if size is None:
        raise UserError(f"got --max-memory {max_memory!r}", "a size, such as 500MB or 2GB")
    _cap_memory(float(size[1]) * _UNITS[size[2].upper()])
    with ask(str(store), query_text(query), max_seconds=max_seconds, max_memory=max_memory) as answer:
        {"table": _table, "json": _json, "csv": _csv}[format](answer)


def _cap_memory(size: float) -> None:
    """Hold this process to `size` bytes more, as far as the system can: DuckDB does not count what single functions take."""
    status = Path("/proc/self/status")
    if not status.exists():
        return
    import resource

    found = re.search(r"^VmData:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int((int(found[1]) * 1024 if found else 0) + size + _OWN_MEMORY)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _table(answer: Answer) -> None:
    """A table; where its columns would be too narrow to read, one record under another, without what is NULL."""
    rows = list(itertools.islice(answer.rows, _SHOWN_ROWS + 1))
    shown = [[_shown(value) for value in row] for row in rows[:_SHOWN_ROWS]]
    if len(answer.columns) * _LEAST_WIDTH <= console.out.width:
        console.out.print(console.table("", list(answer.columns), shown))
    else:
        for row in shown:
            console.out.print(console.facts({name: value for name, value in zip(answer.columns, row, strict=True) if value is not None}))
            console.out.print()
    if len(rows) > _SHOWN_ROWS:
        console.err.print(f"the first {_SHOWN_ROWS} rows; all of them with --format json or csv")


def _json(answer: Answer) -> None:
    """One array of objects, written row by row."""
    write = sys.stdout.write
    lead = "["
    for row in answer.rows:
        write(f"{lead}\n" + json.dumps(console.plain(dict(zip(answer.columns, row, strict=True))), ensure_ascii=False))
        lead = ","
    write("[]\n" if lead == "[" else "\n]\n")


def _csv(answer: Answer) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(answer.columns)
    for row in answer.rows:
        out.writerow([json.dumps(console.plain(v), ensure_ascii=False) if isinstance(v, list | dict) else v for v in row])


def _shown(value: Any) -> Any:
    """A cell of bounded length whose control characters, which a terminal would obey, are shown in place of sent."""
    if isinstance(value, list | dict):
        value = json.dumps(console.plain(value), ensure_ascii=False)
    if not isinstance(value, str):
        return value
    text = value if len(value) <= _SHOWN_TEXT else value[: _SHOWN_TEXT - 1] + "…"
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
