"""Datasets on disk: Parquet and JSONL in splits, a dataset card, and a manifest of everything that was left out.

Written beside its place and renamed into it, so that a folder is whole or not there. The Parquet files load in `datasets` with explicit
`List(Json())` columns; `read_dataset` reads the same files without a rounding of numbers that `datasets` 5.2 does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace
from counterplay.finetune.balance import balance
from counterplay.finetune.card import MANIFEST, DatasetReport, card, sources
from counterplay.finetune.formats import FORMATS, UnsayableError
from counterplay.finetune.gates.account import account, told
from counterplay.finetune.kinds import LAYOUTS, LINEAGE
from counterplay.finetune.noise import noise_of
from counterplay.finetune.pairs import label_noise
from counterplay.finetune.records import Record, Records, make_records
from counterplay.finetune.rows import AnyRow, Drop, Gate, Harvest, Kind, Row
from counterplay.finetune.splits import BY, SplitBy, assign, distinct

Format: TypeAlias = Literal["parquet", "jsonl", "openai", "sharegpt"]

Ties: TypeAlias = Callable[[Sequence[Row]], Sequence[Sequence[str]]]
"""Names for every row; rows that have one in common stay in one split."""

GROUP_CHARS = 1 << 28
"""How much JSON text a row group of a Parquet file holds, unless one row is longer: at 4 bytes a character half of what Arrow can."""

NINE_TO_ONE: Mapping[str, float] = {"train": 0.9, "test": 0.1}


def write_dataset(
    rows: Harvest[AnyRow] | Sequence[AnyRow],
    folder: str | Path,
    *,
    tokenizer: Any = None,
    max_length: int | None = None,
    split: Mapping[str, float] = NINE_TO_ONE,
    seed: int = 0,
    formats: Sequence[Format] = ("parquet", "jsonl"),
    licence: str = "unknown",
    gates: Sequence[Gate] = (),
    by: Sequence[SplitBy] = BY,
    ties: Ties | None = None,
    traces: Iterable[Trace] = (),
    settings: Mapping[str, object] | None = None,
) -> DatasetReport:
    """Write rows of one kind as a dataset. Replaces a dataset written here before, and nothing else.

    `tokenizer` is a transformers tokenizer whose chat template measures every row; rows over `max_length` tokens are dropped by
    name (None: measured, never dropped). Rows pass the `gates` in their order. `split` gives each split's share; tasks, traces
    and what `by` names are never shared between splits, nor are rows with a name of `ties` in common, which gives names for every row.
    `traces` are those that the lineage names, and `settings` what chose the rows; both are for the card alone.

    Raises UserError where no row is left, or none that one of the `formats` can say, where `max_length` has no tokenizer, and where
    `folder` holds something else.
    """
    incoming, lost = (rows.rows, rows.drops) if isinstance(rows, Harvest) else (rows, ())
    target = Path(folder)
    _check_target(target)
    if max_length is not None and tokenizer is None:
        raise UserError(f"got max_length {max_length} without a tokenizer", "the tokenizer whose tokens it counts")
    _check_formats(formats)
    if not split or min(split.values()) < 0 or sum(split.values()) <= 0:
        raise UserError(f"got split {dict(split)}", "shares that are not negative")
    kept: Sequence[Row]
    kept, repeated = distinct(incoming)
    drops = [*lost, *repeated]
    for gate in gates:
        kept, refused = gate(kept)
        drops += refused
    made = make_records(kept, tokenizer=tokenizer, max_length=max_length)
    drops = told([*drops, *made.drops], gates)
    if not made.kept:
        raise UserError(f"no row is left to write to {target}", "at least one", f"Left out: {_reasons(drops) or 'nothing; none came in'}.")
    rows_kept = [row for row, _ in made.kept]
    names = assign(
        [row.lineage for row in rows_kept], split, seed, by=by, ties=ties(rows_kept) if ties is not None and len(split) > 1 else ()
    )
    parts = {name: _arranged(pair for pair, place in zip(made.kept, names, strict=True) if place == name) for name in split}
    kind = made.kept[0][0].kind
    lines, unsayable = _lines(kind, parts, formats)
    report = _report(
        target,
        kind,
        made,
        parts,
        tuple(drops),
        unsayable=unsayable,
        sources=sources([row.lineage for row in rows_kept], traces),
        by=tuple(by),
        gates=account(Counter(drop.reason for drop in drops), gates, max_length=max_length),
        settings={name: value for name, value in (settings or {}).items() if value is not None},
        max_length=max_length,
        split=split,
        seed=seed,
        licence=licence,
        formats=tuple(formats),
    )
    _replace(parts, lines, report)
    return report


def _check_formats(formats: Sequence[Format]) -> None:
    known = get_args(Format)
    if not formats or not set(formats) <= set(known):
        raise UserError(f"got formats {', '.join(formats) or 'none'}", f"at least one of {', '.join(known)}")


def _arranged(made: Iterable[tuple[Row, Record]]) -> list[Record]:
    """The records of one split in the order their kind is written in."""
    pairs = list(made)
    return [pairs[index][1] for index in type(pairs[0][0]).arrange([row for row, _ in pairs])] if pairs else []


_Lines: TypeAlias = dict[str, dict[str, list[Record]]]


def _lines(kind: Kind, parts: Mapping[str, list[Record]], formats: Sequence[Format]) -> tuple[_Lines, dict[str, dict[str, int]]]:
    """For every format of lines, those of each split; and what a format has no words for, by reason."""
    lines: _Lines = {"jsonl": dict(parts)} if "jsonl" in formats else {}
    unsayable: dict[str, dict[str, int]] = {}
    for name in (name for name in formats if name in FORMATS):
        lost: Counter[str] = Counter()
        lines[name] = {split: [] for split in parts}
        for split, records in parts.items():
            for record in records:
                try:
                    lines[name][split].append(FORMATS[name](kind, record))
                except UnsayableError as error:
                    lost[str(error)] += 1
        if not any(lines[name].values()):
            why = ", ".join(f"{count} with {reason}" for reason, count in lost.most_common(3))
            raise UserError(f"no row can be said in the {name} format: {why}", "at least one", "Leave that format out.")
        unsayable[name] = dict(lost)
    return lines, unsayable


_AGAIN = "Export the dataset again, into a new folder."


def read_dataset(folder: str | Path, split: str = "train") -> tuple[Kind, list[Record]]:
    """The kind and the records of one split, exactly as they were written. Raises UserError where there is none, or it is damaged."""
    path, manifest = Path(folder), Path(folder) / MANIFEST
    if not manifest.is_file():
        raise UserError(f"no dataset in {path}", f"a folder with {MANIFEST}", "Write one with: counterplay export")
    parquet, jsonl = path / "data" / f"{split}.parquet", path / "jsonl" / f"{split}.jsonl"
    if not (parquet.is_file() or jsonl.is_file()):
        raise UserError(f"no split {split!r} in {path}", f"one of {', '.join(sorted(p.stem for p in path.glob('*/*.*')))}")
    read = parquet if parquet.is_file() else jsonl
    try:
        told = loads(manifest.read_text(encoding="utf-8"))
        kind: Kind = told["kind"]
        records = _read_parquet(read, kind) if read is parquet else _read_jsonl(read)
        written = told["rows"][split]
    except (ValueError, KeyError, TypeError, OSError) as error:
        got = f"{read} or {manifest.name} beside it is damaged: {type(error).__name__}: {str(error)[:120]}"
        raise UserError(got, "the files as they were exported", _AGAIN) from error
    if len(records) < written:
        raise UserError(f"{read} holds {len(records)} rows", f"the {written} that were exported", _AGAIN)
    return kind, records


def _reasons(drops: Sequence[Drop]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(drop.reason for drop in drops).most_common(5))


def _check_target(target: Path) -> None:
    if target.exists() and not (target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))):
        raise UserError(
            f"{target} exists and is no dataset of counterplay", "a new or empty folder, or a dataset to replace", "Give another folder."
        )


def _report(
    target: Path, kind: Kind, made: Records, parts: Mapping[str, list[Record]], drops: tuple[Drop, ...], **settings: Any
) -> DatasetReport:
    rows = [row for row, _ in made.kept]
    return DatasetReport(
        folder=target,
        kind=kind,
        rows={name: len(part) for name, part in parts.items()},
        tasks={name: len({record["task"] for record in part} - {None}) for name, part in parts.items()},
        dropped=dict(Counter(drop.reason for drop in drops).most_common()),
        drops=drops,
        grades=dict(Counter(row.lineage.grade.name.lower() for row in rows).most_common()),
        algorithms=dict(Counter(row.lineage.algorithm or "logged" for row in rows).most_common()),
        verifiers=tuple(sorted({name for row in rows for name in row.lineage.verifiers})),
        tokens=_lengths(made.lengths) if made.lengths else None,
        label_noise=label_noise(rows) if any(row.values.get("probability", 1.0) < 1.0 for row in rows) else None,
        noise=noise_of([record for _, record in made.kept]) if kind in ("dpo", "reward") else None,
        labels=dict(Counter(row.values["label"] for row in rows)) if "label" in LAYOUTS[kind].values else None,
        neutralised=made.neutralised,
        reissued=made.reissued,
        fractions=made.fractions,
        undefined=made.undefined,
        logged=sum(row.lineage.logged for row in rows),
        balance=balance(rows),
        **settings,
    )


def _lengths(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    ranks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {**{name: ordered[round(rank * (len(ordered) - 1))] for name, rank in ranks.items()}, "total": sum(ordered)}


def _replace(parts: Mapping[str, list[Record]], lines: _Lines, report: DatasetReport) -> None:
    target = report.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (target.with_name(f".{target.name}.{state}-{os.getpid()}") for state in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _write(fresh, parts, lines, report)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path, parts: Mapping[str, list[Record]], lines: _Lines, report: DatasetReport) -> None:
    folder.mkdir()
    if "parquet" in report.formats:
        (folder / "data").mkdir()
        for name, records in parts.items():
            if records:
                _write_parquet(folder / "data" / f"{name}.parquet", report.kind, records)
    for place, named in lines.items():
        (folder / place).mkdir()
        for name, records in named.items():
            if records:
                (folder / place / f"{name}.jsonl").write_text("".join(dumps(record) + "\n" for record in records), encoding="utf-8")
    escaped = {"encoding": "utf-8", "errors": "backslashreplace"}  # names of what was left out may hold lone surrogates
    (folder / "README.md").write_text(card(report), **escaped)
    (folder / MANIFEST).write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n", **escaped)


def _write_parquet(path: Path, kind: Kind, records: Sequence[Record]) -> None:
    import pyarrow.parquet as pq

    groups = (_table(kind, group) for group in _groups(records, LAYOUTS[kind].json))
    first = next(groups)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in groups:
            writer.write_table(table)


def _groups(records: Iterable[Record], columns: Sequence[str]) -> Iterator[list[Record]]:
    """The records with the items of `columns` as JSON text, in groups of about `GROUP_CHARS`: a column of Arrow's holds 2 GiB."""
    group: list[Record] = []
    size = 0
    for record in records:
        texts = {column: None if record[column] is None else [dumps(item) for item in record[column]] for column in columns}
        more = sum(len(text) for column in texts.values() for text in column or ())
        if group and size + more > GROUP_CHARS:
            yield group
            group, size = [], 0
        group.append({**record, **texts})
        size += more
    yield group


def _table(kind: Kind, records: Sequence[Record]) -> Any:
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


def _read_jsonl(path: Path) -> list[Record]:
    return [loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _read_parquet(path: Path, kind: Kind) -> list[Record]:
    import pyarrow.parquet as pq

    records: list[Record] = pq.read_table(path).to_pylist()
    for record in records:
        for column in LAYOUTS[kind].json:
            record[column] = None if record[column] is None else [loads(text) for text in record[column]]
    return records
