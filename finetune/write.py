"""Datasets on disk: Parquet and JSONL in splits, a dataset card, and a manifest of everything that was left out.

Written beside its place and renamed into it, so that a folder is whole or not there. The Parquet files load in `datasets` with explicit
`List(Json())` columns; `read_dataset` reads the same files without a rounding of numbers that `datasets` 5.2 does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import UserError
from counterplay.finetune.card import MANIFEST, DatasetReport, card
from counterplay.finetune.kinds import LAYOUTS, LINEAGE
from counterplay.finetune.pairs import label_noise
from counterplay.finetune.records import Record, Records, make_records
from counterplay.finetune.rows import AnyRow, DPORow, Drop, Harvest, Kind
from counterplay.finetune.splits import assign, distinct

Format: TypeAlias = Literal["parquet", "jsonl"]

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
) -> DatasetReport:
    """Write rows of one kind as a dataset. Replaces a dataset written here before, and nothing else.

    `tokenizer` is a transformers tokenizer whose chat template measures every row; rows over `max_length` tokens are dropped by
    name (None: measured, never dropped). `split` gives each split's share; tasks, sessions and traces are never shared between splits.
    Raises UserError where no row is left, where `max_length` has no tokenizer, and where `folder` holds something else.
    """
    incoming, lost = (rows.rows, rows.drops) if isinstance(rows, Harvest) else (rows, ())
    target = Path(folder)
    _check_target(target)
    if max_length is not None and tokenizer is None:
        raise UserError(f"got max_length {max_length} without a tokenizer", "the tokenizer whose tokens it counts")
    if not formats or not split or min(split.values()) < 0 or sum(split.values()) <= 0:
        raise UserError(f"got formats {list(formats)} and split {dict(split)}", "at least one format and shares that are not negative")
    unique, repeated = distinct(incoming)
    made = make_records(unique, tokenizer=tokenizer, max_length=max_length)
    drops = (*lost, *repeated, *made.drops)
    if not made.kept:
        raise UserError(f"no row is left to write to {target}", "at least one", f"Left out: {_reasons(drops) or 'nothing; none came in'}.")
    names = assign([row.lineage for row, _ in made.kept], split, seed)
    parts: dict[str, list[Record]] = {name: [] for name in split}
    for name, (_, record) in zip(names, made.kept, strict=True):
        parts[name].append(record)
    kind = made.kept[0][0].kind
    report = _report(target, kind, made, parts, drops, max_length=max_length, split=split, seed=seed, licence=licence)
    _replace(target, kind, parts, report, formats)
    return report


def read_dataset(folder: str | Path, split: str = "train") -> tuple[Kind, list[Record]]:
    """The kind and the records of one split, exactly as they were written. Raises UserError where there is no such dataset."""
    path, manifest = Path(folder), Path(folder) / MANIFEST
    if not manifest.is_file():
        raise UserError(f"no dataset in {path}", f"a folder with {MANIFEST}", "Write one with: counterplay export sft|dpo")
    kind: Kind = loads(manifest.read_text(encoding="utf-8"))["kind"]
    parquet, jsonl = path / "data" / f"{split}.parquet", path / "jsonl" / f"{split}.jsonl"
    if parquet.is_file():
        return kind, _read_parquet(parquet, kind)
    if jsonl.is_file():
        return kind, [loads(line) for line in jsonl.read_text(encoding="utf-8").split("\n") if line]
    raise UserError(f"no split {split!r} in {path}", f"one of {', '.join(sorted(p.stem for p in path.glob('*/*.*')))}")


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
        label_noise=label_noise(row for row in rows if isinstance(row, DPORow)) if kind == "dpo" else None,
        neutralised=made.neutralised,
        reissued=made.reissued,
        fractions=made.fractions,
        undefined=made.undefined,
        logged=sum(row.lineage.logged for row in rows),
        **settings,
    )


def _lengths(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    ranks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {**{name: ordered[round(rank * (len(ordered) - 1))] for name, rank in ranks.items()}, "total": sum(ordered)}


def _replace(target: Path, kind: Kind, parts: Mapping[str, list[Record]], report: DatasetReport, formats: Sequence[Format]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (target.with_name(f".{target.name}.{state}-{os.getpid()}") for state in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _write(fresh, kind, parts, report, formats)
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


def _write(folder: Path, kind: Kind, parts: Mapping[str, list[Record]], report: DatasetReport, formats: Sequence[Format]) -> None:
    folder.mkdir()
    filled = {name: records for name, records in parts.items() if records}
    if "parquet" in formats:
        (folder / "data").mkdir()
        for name, records in filled.items():
            _write_parquet(folder / "data" / f"{name}.parquet", kind, records)
    if "jsonl" in formats:
        (folder / "jsonl").mkdir()
        for name, records in filled.items():
            (folder / "jsonl" / f"{name}.jsonl").write_text("".join(dumps(record) + "\n" for record in records), encoding="utf-8")
    (folder / "README.md").write_text(card(report, formats), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_parquet(path: Path, kind: Kind, records: Sequence[Record]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    table = pa.table(arrays).replace_schema_metadata({"huggingface": dumps({"info": {"features": features}})})
    pq.write_table(table, path, compression="zstd")


def _json_lists(values: Sequence[Sequence[Any] | None]) -> Any:
    import pyarrow as pa

    texts = pa.array([dumps(item) for value in values for item in value or ()], pa.string())
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value or ()))
    missing = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.ExtensionArray.from_storage(pa.json_(), texts), mask=missing)


def _read_parquet(path: Path, kind: Kind) -> list[Record]:
    import pyarrow.parquet as pq

    records: list[Record] = pq.read_table(path).to_pylist()
    for record in records:
        for column in LAYOUTS[kind].json:
            record[column] = None if record[column] is None else [loads(text) for text in record[column]]
    return records
