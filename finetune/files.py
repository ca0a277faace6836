"""The files of a dataset, written row by row from what was set aside: Parquet in row groups of bounded size, and JSON lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeAlias

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import UserError
from counterplay.finetune.exactness import COLUMN as RECORDED
from counterplay.finetune.formats import FORMATS, UnsayableError
from counterplay.finetune.incoming import Columns, Incoming
from counterplay.finetune.kinds import LAYOUTS, LINEAGE
from counterplay.finetune.noise import Difference, difference, sample
from counterplay.finetune.records import Record
from counterplay.finetune.rows import Kind

Format: TypeAlias = Literal["parquet", "jsonl", "openai", "sharegpt"]


@dataclass
class Writing:
    """The rows of each split, streamed into files, once. `unsayable` counts by format and reason what a format has no words for.

    A row group of a Parquet file holds `group_chars` characters of JSON text, unless one row is longer.
    """

    incoming: Incoming
    parts: Mapping[str, Sequence[int]]
    kept: Sequence[int]
    kind: Kind
    formats: tuple[Format, ...]
    group_chars: int
    unsayable: dict[str, dict[str, int]] = field(default_factory=dict)

    def run(self, folder: Path) -> None:
        """Write all files of rows. Raises UserError where no row can be said in one of the formats."""
        places = {name: folder / ("data" if name == "parquet" else name) for name in self.formats}
        for place in places.values():
            place.mkdir()
        lost = {name: Counter[str]() for name in self.formats if name in FORMATS}
        said = Counter[str]()
        for split, numbers in self.parts.items():
            with ExitStack() as stack:
                writers: dict[Format, _Parquet | _Lines] = {}
                for name, place in places.items():
                    writers[name] = self._writer(name, place, split)
                    stack.push(writers[name])
                for number in numbers:
                    columns = self._columns(number)
                    for name, writer in writers.items():
                        try:
                            writer.add(columns)
                            said[name] += 1
                        except UnsayableError as error:
                            lost[name][str(error)] += 1
        for name, counts in lost.items():
            if not said[name]:
                why = ", ".join(f"{count} with {reason}" for reason, count in counts.most_common(3))
                raise UserError(f"no row can be said in the {name} format: {why}", "at least one", "Leave that format out.")
        self.unsayable = {name: dict(counts) for name, counts in lost.items()}

    def differences(self) -> list[Difference]:
        """Of the pairs that tell of wrong labels, what sets their sides apart, in the order they are drawn."""
        looked_at = sample((row.name, row.size) for row in self.incoming.rows(self.kept))
        found = {at: difference(self._record(self.incoming.columns(self.kept[at]))) for at in sorted(looked_at)}
        return [found[at] for at in looked_at]

    def _writer(self, name: Format, folder: Path, split: str) -> _Parquet | _Lines:
        if name == "parquet":
            return _Parquet(folder / f"{split}.parquet", self.kind, self.group_chars)
        return _Lines(folder / f"{split}.jsonl", self._line if name == "jsonl" else partial(self._said, name))

    @cached_property
    def _recorded(self) -> bool:
        return any(row.recorded for row in self.incoming.rows(self.kept))

    def _columns(self, number: int) -> Columns:
        """The record; where other rows have ids that a policy sampled, and it has none, with a column that says so."""
        columns = self.incoming.columns(number)
        if not self._recorded or RECORDED in columns:
            return columns
        values = {name: columns[name] for name in columns if name not in LINEAGE}
        none = dumps([None] * len(columns["messages"]))
        return {**values, RECORDED: none, **{name: columns[name] for name in columns if name in LINEAGE}}

    def _line(self, columns: Columns) -> str:
        """What `dumps` would make of the record, from the texts of its items."""
        parts = []
        for name, value in columns.items():
            told = f"[{','.join(value)}]" if name in LAYOUTS[self.kind].json and value is not None else dumps(value)
            parts.append(f"{dumps(name)}:{told}")
        return "{" + ",".join(parts) + "}"

    def _said(self, name: str, columns: Columns) -> str:
        return dumps(FORMATS[name](self.kind, self._record(columns)))

    def _record(self, columns: Columns) -> Record:
        texts = {column: columns[column] for column in LAYOUTS[self.kind].json}
        return {**columns, **{column: None if items is None else [loads(item) for item in items] for column, items in texts.items()}}


class _Lines:
    """A file of lines, made with the first of them."""

    def __init__(self, path: Path, say: Callable[[Columns], str]) -> None:
        self._path, self._say, self._stack = path, say, ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, columns: Columns) -> None:
        """Raises UnsayableError where the format has no words for it."""
        line = self._say(columns)
        if self._file is None:
            self._file = self._stack.enter_context(self._path.open("w", encoding="utf-8"))
        self._file.write(line + "\n")


class _Parquet:
    """A Parquet file, made with its first row group. Of a file that is given up, only the open handle is closed."""

    def __init__(self, path: Path, kind: Kind, most: int) -> None:
        self._path, self._kind, self._most = path, kind, most
        self._columns = LAYOUTS[kind].json
        self._group: list[Columns] = []
        self._size = 0
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def add(self, columns: Columns) -> None:
        more = sum(len(text) for column in self._columns for text in columns[column] or ())
        if self._group and self._size + more > self._most:
            self._flush()
        self._group.append(columns)
        self._size += more

    def _flush(self) -> None:
        import pyarrow.parquet as pq

        if self._group:
            table = _table(self._kind, self._group)
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
            self._writer.write_table(table)
            self._group, self._size = [], 0


def _table(kind: Kind, records: Sequence[Columns]) -> Any:
    import pyarrow as pa

    arrays, features = {}, {}
    layout = LAYOUTS[kind]
    types = {**layout.values, **LINEAGE}
    for column in records[0]:
        values = [record[column] for record in records]
        if column in layout.json:
            arrays[column], features[column] = _json_lists(values), {"feature": {"_type": "Json"}, "_type": "List"}
            continue
        declared = types[column]
        name = declared[0] if isinstance(declared, list) else declared
        arrow = pa.float64() if name == "float64" else pa.type_for_alias(name)
        feature: dict[str, Any] = {"dtype": name, "_type": "Value"}
        arrays[column] = pa.array(values, pa.list_(arrow) if isinstance(declared, list) else arrow)
        features[column] = {"feature": feature, "_type": "List"} if isinstance(declared, list) else feature
    return pa.table(arrays).replace_schema_metadata({"huggingface": dumps({"info": {"features": features}})})


def _json_lists(values: Sequence[Sequence[str] | None]) -> Any:
    import pyarrow as pa

    texts = pa.array([item for value in values for item in value or ()], pa.string())
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value or ()))
    missing = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.ExtensionArray.from_storage(pa.json_(), texts), mask=missing)
