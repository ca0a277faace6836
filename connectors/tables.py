"""Rows of a table, whatever it is kept in: Parquet, CSV, JSON lines or a JSON array, each row as a dict.

Columns that hold JSON stay text. Parquet is read a few rows at a time, so that memory follows the largest row group's pages and
not the file. A rejected row has its number, from 1, in place of a line; of CSV it is the line on which the row begins.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote

from counterplay.connectors.lines import MAX_RECORD_BYTES, Entry, entries, leading_objects, open_bytes
from counterplay.core.errors import SourceError
from counterplay.core.records import Rejected

if TYPE_CHECKING:
    import pyarrow.parquet as pq

PARQUET = b"PAR1"
_BATCH_ROWS = 64
_MAX_GROUP_BYTES = 4 << 30
_HEADER_BYTES = 1 << 16
_MAX_COMMAS = 1 << 20
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def columns_of(sample: bytes, path: Path) -> frozenset[str]:
    """The names of a table's columns, from its first bytes and, for Parquet, from the schema at its end; of JSON those of its first rows.

    Empty where it is no table. Never raises.
    """
    if sample.startswith(PARQUET):
        try:
            with _opened(path) as file:
                return frozenset(file.schema_arrow.names)
        except SourceError:
            return frozenset()
    if sample.lstrip()[:1] in (b"{", b"["):
        return frozenset(key for row in leading_objects(sample, 3) for key in row)
    return frozenset(_header(sample) or ())


def rows_of(path: Path) -> Iterator[Entry | Rejected]:
    """Every row of a table in order; what can't be read is Rejected. Raises SourceError where the file as a whole can't be."""
    with open_bytes(path) as stream:
        try:
            head = stream.read(_HEADER_BYTES)
        except (EOFError, OSError):
            head = b""
    if head.startswith(PARQUET):
        yield from parquet_rows(path)
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"[", b"") and _header(head) is not None:
        yield from _csv_rows(path)
    else:
        yield from entries(path)


def rows_of_all(paths: Iterable[Path]) -> Iterator[Entry | Rejected]:
    """The rows of several files in order; a file that can't be read at all is one Rejected and the others go on."""
    for path in paths:
        try:
            yield from rows_of(path)
        except SourceError as error:
            yield Rejected(str(path), str(error))


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet. Raises OSError where it can't be opened."""
    with path.open("rb") as stream:
        return bool(stream.read(len(PARQUET)) == PARQUET)


def parquet_rows(path: Path) -> Iterator[Entry | Rejected]:
    """As `rows_of`, of a Parquet file. Columns that its folders name (`agent=support/`) and it has not itself are those of every row."""
    import pyarrow as pa

    named = _partition_of(path)
    with _opened(path) as file:
        if not file.metadata.num_rows:
            yield Rejected(str(path), f"a table without rows; its columns are {', '.join(file.schema_arrow.names)[:300]}", 1)
        row = 0
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            after = row + about.num_rows
            if about.total_byte_size > _MAX_GROUP_BYTES:
                yield Rejected(str(path), f"rows {row + 1} to {after}, a row group of more than {_MAX_GROUP_BYTES} bytes", row + 1)
                row = after
                continue
            try:
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    for value in batch.to_pylist():
                        row += 1
                        yield _entry({**named, **value}, path, row)
            except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                yield Rejected(str(path), f"rows {row + 1} to {after} can't be read: {_first_line(error)}", row + 1)
            row = after


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        try:
            file = stack.enter_context(pq.ParquetFile(stack.enter_context(path.open("rb")), pre_buffer=False))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"got {path}, a Parquet file that can't be opened ({_first_line(error)})", "a whole Parquet file") from error
        yield file


def _partition_of(path: Path) -> dict[str, str]:
    """What the folders of a file say in Hive's way."""
    pairs = (part.partition("=") for part in path.parts[:-1])
    return {name: unquote(value) for name, equals, value in pairs if name and equals and value != _HIVE_NULL}


def _entry(value: dict[str, Any], path: Path, row: int) -> Entry | Rejected:
    try:
        return Entry({str(key): plain(inner) for key, inner in value.items()}, path, row - 1, row, 0)
    except RecursionError:
        return Rejected(str(path), "nested too deeply to be read", row)


def plain(value: Any) -> Any:
    """A table's value as JSON has it: moments as ISO text, bytes as text or base64, maps as objects, what is not finite as None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
            return {str(key): plain(inner) for key, inner in value}
        return [plain(inner) for inner in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    match value:
        case float() | Decimal():
            return float(value) if math.isfinite(value) else None
        case datetime():
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return _text(value)
    return str(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _header(sample: bytes) -> Sequence[str] | None:
    """The column names of a CSV file; None where its first line can't be a header: names without repetition, at least two."""
    first = sample.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0]
    if b"\0" in first or not first.strip():
        return None
    try:
        names = next(csv.reader([first.decode().rstrip("\r")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        return None
    return names if len(names) > 1 and all(name.strip() for name in names) and len(set(names)) == len(names) else None


def _csv_rows(path: Path) -> Iterator[Entry | Rejected]:
    """Rows of a CSV file with a header; a row of another length is Rejected."""
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(cast("BinaryIO", stream), encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(_bounded(text))
        names: list[str] = []
        line, rows = 1, 0
        limit = csv.field_size_limit(MAX_RECORD_BYTES)
        try:
            for index, fields in enumerate(reader):
                if not index:
                    names = fields
                elif fields:
                    rows += 1
                    yield _csv_entry(names, fields, path, index, line)
                line = reader.line_num + 1
            if not rows:
                yield Rejected(str(path), f"a table without rows; its columns are {', '.join(names)[:300]}", 1)
        except (csv.Error, EOFError, OSError) as error:
            yield Rejected(str(path), f"the table can't be read on from here ({_first_line(error)})", line)
        finally:
            csv.field_size_limit(limit)


def _bounded(text: io.TextIOBase) -> Iterator[str]:
    """The lines of a text. Raises csv.Error where one is too long to be held, or has more commas than any table has columns."""
    while line := text.readline(MAX_RECORD_BYTES + 1):
        if len(line) > MAX_RECORD_BYTES or line.count(",") > _MAX_COMMAS + len(line) // 8:
            msg = f"a line of {len(line)} characters or more, wanted at most {MAX_RECORD_BYTES}, and fewer commas"
            raise csv.Error(msg)
        yield line


def _csv_entry(names: Sequence[str], fields: Sequence[str], path: Path, index: int, line: int) -> Entry | Rejected:
    raw = ",".join(fields)[:400].encode(errors="surrogateescape").decode(errors="replace")
    if len(fields) != len(names):
        return Rejected(str(path), f"a row of {len(fields)} fields, wanted {len(names)}", line, 0, raw)
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return Rejected(str(path), "not UTF-8", line, 0, raw)
    return Entry(dict(zip(names, fields, strict=True)), path, index - 1, line, 0)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
