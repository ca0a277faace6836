"""Datasets on disk: Parquet and JSONL in splits, a dataset card, and a manifest of everything that was left out.

Written beside its place and renamed into it, so that a folder is whole or not there. The Parquet files load in `datasets` with explicit
`List(Json())` columns; `read_dataset` reads the same files without a rounding of numbers that `datasets` 5.2 does.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

from counterplay.core.canonical import loads
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace
from counterplay.finetune.card import DROPPED, MANIFEST, DatasetReport, Origin, card, sources
from counterplay.finetune.counted import Counts
from counterplay.finetune.files import Format, Writing
from counterplay.finetune.gates.account import account
from counterplay.finetune.gates.protocol import TieSource
from counterplay.finetune.incoming import AnyGate, Incoming, PlainTies
from counterplay.finetune.kinds import LAYOUTS
from counterplay.finetune.noise import estimated
from counterplay.finetune.records import Record, RecordMaker
from counterplay.finetune.rows import AnyRow, Harvest, Kind, Row
from counterplay.finetune.splits import BY, SplitBy, assign
from counterplay.finetune.spool import NAMED, Dropped, write_dropped

GROUP_CHARS = 1 << 24
"""How much JSON text a row group of a Parquet file holds, unless one row is longer: what is in memory of a dataset while it is written."""

NINE_TO_ONE: Mapping[str, float] = {"train": 0.9, "test": 0.1}


def write_dataset(
    rows: Harvest[AnyRow] | Sequence[AnyRow] | Iterator[Harvest[AnyRow]],
    folder: str | Path,
    *,
    tokenizer: Any = None,
    max_length: int | None = None,
    split: Mapping[str, float] = NINE_TO_ONE,
    seed: int = 0,
    formats: Sequence[Format] = ("parquet", "jsonl"),
    licence: str = "unknown",
    gates: Sequence[AnyGate] = (),
    by: Sequence[SplitBy] = BY,
    ties: TieSource | PlainTies | None = None,
    traces: Iterable[Trace | Origin] = (),
    settings: Mapping[str, object] | None = None,
) -> DatasetReport:
    """Write rows of one kind as a dataset. Replaces a dataset written here before, and nothing else.

    An iterator of harvests is read once, and what it gives is set aside on disk: only a little of each row stays in memory, as long as
    `gates` and `ties` can say so (`gates.protocol`). A gate or ties that are a mere function are given all rows at once.

    `tokenizer` is a transformers tokenizer whose chat template measures every row; rows over `max_length` tokens are dropped by
    name (None: measured, never dropped). Rows pass the `gates` in their order. `split` gives each split's share; tasks, traces
    and what `by` names are never shared between splits, nor are rows with a name of `ties` in common, which gives names for every row.
    `traces` are those that the lineage names, and `settings` what chose the rows; both are for the card alone, and `traces` are read last.

    Raises UserError where no row is left, or none that one of the `formats` can say, where `max_length` has no tokenizer, where `folder`
    holds something else, and where it can't be written.
    """
    target = Path(folder)
    check_writing(target, tokenizer=tokenizer, max_length=max_length, split=split, formats=formats)
    maker = RecordMaker(tokenizer=tokenizer, max_length=max_length)
    incoming = Incoming(beside(target), maker, gates, ties if len(split) > 1 else None)
    for harvest in _harvests(rows):
        incoming.take(harvest)
    kept = incoming.kept()
    dropped = _added(incoming.stages)
    if incoming.row_type is None or not kept:
        left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common(5)) or "nothing; none came in"
        raise UserError(f"no row is left to write to {target}", "at least one", f"Left out: {left_out}.")
    chosen = assign(incoming.rows(kept), split, seed, by=by, ties=incoming.ties(kept))
    parts = {name: _arranged(incoming, array("Q", (n for n, at in zip(kept, chosen, strict=True) if at == name))) for name in split}
    writing = Writing(incoming, parts, kept, incoming.row_type.kind, tuple(formats), GROUP_CHARS)
    with _on_disk(target), _replacing(target) as fresh:
        writing.run(fresh)
        report = _report(
            target,
            writing,
            dropped,
            sources=sources({trace for row in incoming.rows(kept) for trace in row.traces}, traces),
            by=tuple(by),
            gates=account(dropped, gates, max_length=max_length),
            settings={name: value for name, value in (settings or {}).items() if value is not None},
            max_length=max_length,
            split=split,
            seed=seed,
            licence=licence,
            formats=tuple(formats),
            replaced=(target / MANIFEST).is_file(),
        )
        if not report.all_named:
            write_dropped(fresh / DROPPED, incoming.stages)
        escaped = {"encoding": "utf-8", "errors": "backslashreplace"}  # names of what was left out may hold lone surrogates
        (fresh / "README.md").write_text(card(report), **escaped)
        (fresh / MANIFEST).write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n", **escaped)
    return report


def check_writing(target: Path, *, tokenizer: Any, max_length: int | None, split: Mapping[str, float], formats: Sequence[Format]) -> None:
    """Raises UserError where `write_dataset` could not write there, or not so, whatever the rows."""
    _check_target(target)
    if max_length is not None and max_length < 1:
        raise UserError(f"got max_length {max_length}", "at least 1, or none for no limit")
    if max_length is not None and tokenizer is None:
        raise UserError(f"got max_length {max_length} without a tokenizer", "the tokenizer whose tokens it counts")
    _check_formats(formats)
    if not split or min(split.values()) < 0 or sum(split.values()) <= 0:
        raise UserError(f"got split {dict(split)}", "shares that are not negative")


def _harvests(rows: Harvest[AnyRow] | Sequence[AnyRow] | Iterator[Harvest[AnyRow]]) -> Iterable[Harvest[AnyRow]]:
    if isinstance(rows, Harvest):
        return [rows]
    return rows if isinstance(rows, Iterator) else [Harvest(tuple(rows))]


def beside(target: Path) -> Path:
    """The folder that `target` is to be in, or the nearest above it that there is."""
    return next((folder for folder in target.absolute().parents if folder.is_dir()), Path(target.anchor))


def _added(stages: Iterable[Dropped]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for stage in stages:
        counts.update(stage.counts)
    return counts


def _check_formats(formats: Sequence[Format]) -> None:
    known = get_args(Format)
    if not formats or not set(formats) <= set(known):
        raise UserError(f"got formats {', '.join(formats) or 'none'}", f"at least one of {', '.join(known)}")


def _arranged(incoming: Incoming, numbers: Sequence[int]) -> Sequence[int]:
    """The rows of one split in the order their kind is written in."""
    row_type = incoming.row_type or Row
    return array("Q", (numbers[index] for index in row_type.arrange(incoming.rows(numbers)))) if numbers else numbers


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


def _check_target(target: Path) -> None:
    if target.exists() and not (target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))):
        raise UserError(
            f"{target} exists and is no dataset of counterplay", "a new or empty folder, or a dataset to replace", "Give another folder."
        )


def _report(target: Path, writing: Writing, dropped: Counter[str], **settings: Any) -> DatasetReport:
    counts = Counts.of(writing.incoming.rows(writing.kept))
    return DatasetReport(
        folder=target,
        kind=writing.kind,
        rows={name: len(part) for name, part in writing.parts.items()},
        tasks={name: len({row.task for row in writing.incoming.rows(part)} - {None}) for name, part in writing.parts.items()},
        dropped=dict(dropped.most_common()),
        drops=tuple(islice(chain.from_iterable(writing.incoming.stages), NAMED)),
        grades=dict(counts.grades.most_common()),
        algorithms=dict(counts.algorithms.most_common()),
        verifiers=tuple(sorted(counts.verifiers)),
        tokens=counts.tokens,
        label_noise=counts.label_noise,
        noise=estimated(writing.differences(), counts.probabilities) if writing.kind in ("dpo", "reward") else None,
        labels=dict(counts.labels) if "label" in LAYOUTS[writing.kind].values else None,
        unsayable=writing.unsayable,
        balance=counts.balance,
        **{**counts.noticed, **settings},
    )


@contextmanager
def _on_disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        got = f"the dataset can't be written to {target}: {error.strerror or error}"
        raise UserError(got, "a folder that may be written to, with room", "What was there before is as it was.") from error


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place once it is whole; until then, and where it fails, what was there stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _tidy(target)
    fresh, old = (target.with_name(f".{target.name}.{state}-{os.getpid()}") for state in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        yield fresh
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


def _tidy(target: Path) -> None:
    """Remove what processes that were killed have left beside `target`."""
    for place in target.parent.glob(f".{glob.escape(target.name)}.*-*"):
        state, _, pid = place.name.removeprefix(f".{target.name}.").rpartition("-")
        if state in ("new", "old") and pid.isdecimal() and not _alive(int(pid)):
            if state == "old" and not target.exists():
                place.rename(target)
            else:
                shutil.rmtree(place, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and is another user's
    return True


def _read_jsonl(path: Path) -> list[Record]:
    return [loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _read_parquet(path: Path, kind: Kind) -> list[Record]:
    import pyarrow.parquet as pq

    records: list[Record] = pq.read_table(path).to_pylist()
    for record in records:
        for column in LAYOUTS[kind].json:
            record[column] = None if record[column] is None else [loads(text) for text in record[column]]
    return records
