"""Damaged input for every connector: nothing crashes, nothing hangs, nothing is lost in silence.

    python bench/fuzz.py [--inputs 1000] [--seed 0] [--connector NAME]... [--jobs 1] [--keep FOLDER]

Each input is a small file of the connector's format, hand-made or (where ../shared/data is) real, with values in it replaced, dropped,
swapped, retyped or nested, or with its bytes damaged. The connector reads it, and: only traces and rejected rows come out, or a
SourceError; each holds together and can be stored; something comes out of whatever is not empty; of every tenth file also that it
reads differently without the record that was damaged, so that the record was not passed over; and no file takes 5 seconds or 300 MB.
What breaks one of these is a finding: the exit status is then 1, and with --keep the file is kept. Input n of a connector follows from
the seed and n alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
import sqlite3
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.fuzzing.checks import Hang, Reader, check, limited, meaning
from bench.fuzzing.mutations import damaged, mutated
from bench.fuzzing.samples import Kind, Sample, by_connector, hand_made, real, rendered
from counterplay.connectors.base import CONNECTORS, Item
from counterplay.connectors.redaction import rules_of
from counterplay.core.nouns import Trace
from counterplay.core.store import Store
from counterplay.reading import Door

MEMORY_KB = 300 << 10
STORED = 300
STORED_OF, PASSED_OVER = 10, 10
"""The traces of one file in so many are stored; of one in so many it is asked whether the damaged record was passed over."""


@dataclass(frozen=True)
class Finding:
    """What went wrong with which input; `kind` is the same for findings of one cause."""

    index: int
    sample: str
    kind: str
    detail: str
    data: bytes


@dataclass
class Tally:
    """What came of one connector's inputs."""

    connector: str
    inputs: int = 0
    refused: int = 0
    traces: int = 0
    rejected: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)

    def found(self, finding: Finding) -> None:
        self.kinds[finding.kind] += 1
        known = self.findings.get(finding.kind)
        if known is None or len(finding.data) < len(known.data):
            self.findings[finding.kind] = finding


def fuzz(name: str, samples: list[Sample], inputs: int, seed: int) -> Tally:
    """Read that many damaged files with one connector."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        return _Run(name, samples, seed, Path(folder, "log")).through(inputs)


class _Run:
    """One connector's inputs, one after another."""

    def __init__(self, name: str, samples: list[Sample], seed: int, path: Path) -> None:
        self._name, self._samples, self._seed = name, samples, seed
        self._connector, self._reader, self._redact = CONNECTORS[name], Reader(path), Door(rules=rules_of(), salt=b"salt").opener()
        self._parts = [sample.value for sample in samples if sample.kind != "bytes"] or [{}]
        self._tally = Tally(name)

    def through(self, inputs: int) -> Tally:
        start, shelf = time.perf_counter(), []
        for index in range(inputs):
            random = Random(f"{self._seed}:{self._name}:{index}")
            damaged_one = damage(random.choice(self._samples), self._parts, random)
            traces = self._one(index, damaged_one)
            if index % STORED_OF == 0:
                shelf.append((index, damaged_one, traces))
            if len(shelf) == STORED or index == inputs - 1:
                self._store(shelf)
                shelf = []
        self._reader.close()
        self._tally.inputs, self._tally.seconds = inputs, time.perf_counter() - start
        return self._tally

    def _one(self, index: int, given: Damaged) -> list[Trace]:
        """Read one file and check what comes out; its traces, redacted where they are to be stored."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            items = self._read(given.data)
            taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert taken < MEMORY_KB, f"took more than {MEMORY_KB >> 10} MB"
            assert items is None or items or not tells(self._name, given.data), "nothing came out"
            if index % PASSED_OVER == 0 and items:
                self._check_told(given, items)
            if index % STORED_OF == 0 and items:
                with limited():
                    items = [self._redact(item) for item in items]
                check(items)
        except (Exception, Hang) as error:  # noqa: BLE001  whatever it is, it is what we are looking for
            self._tally.found(Finding(index, given.sample.name, _kind(error), "".join(traceback.format_exception(error)[-14:]), given.data))
            return []
        traces = [item for item in items or () if isinstance(item, Trace)]
        self._tally.refused += items is None
        self._tally.traces += len(traces)
        self._tally.rejected += len(items or ()) - len(traces)
        return traces

    def _read(self, data: bytes) -> list[Item] | None:
        items = self._reader.read(self._connector, data)
        check(items or ())
        return items

    def _check_told(self, given: Damaged, items: list[Item]) -> None:
        """A record that tells something in the whole file tells something, or is rejected, when it is damaged."""
        kind, whole, records, which = given.sample.kind, given.sample.value, given.value, given.which
        if which is None or kind not in ("lines", "document") or not isinstance(records, list) or len(records) < 2:
            return
        others = records[:which] + records[which + 1 :]
        if records[which] in others or not re.search(_TELLING.get(self._name, ""), json.dumps(_about(self._name, records[which]))):
            return
        if meaning(items) != self._meaning(kind, others):
            return
        if self._meaning(kind, whole) != self._meaning(kind, whole[:which] + whole[which + 1 :]):
            error = AssertionError("a record was passed over")
            error.add_note(json.dumps(records[which])[:1000])
            raise error

    def _meaning(self, kind: Kind, value: Any) -> list[str]:
        return meaning(self._reader.read(self._connector, rendered(kind, value)))

    def _store(self, shelf: list[tuple[int, Damaged, list[Trace]]]) -> None:
        """Take traces in; where that fails, find the one that can't be."""
        try:
            with Store.open(":memory:") as store:
                store.ingest([replace(trace, id=f"{index}.{i}") for index, _, traces in shelf for i, trace in enumerate(traces)])
                problems = [str(problem) for problem in store.verify()]
                assert not problems, f"the store does not verify: {problems[0]}"
        except Exception as error:  # noqa: BLE001  as above
            if len(shelf) > 1:
                self._store(shelf[: len(shelf) // 2])
                self._store(shelf[len(shelf) // 2 :])
                return
            index, given, _ = shelf[0]
            detail = "".join(traceback.format_exception(error)[-6:])
            self._tally.found(Finding(index, given.sample.name, f"stored: {_kind(error)}", detail, given.data))


@dataclass(frozen=True)
class Damaged:
    """A damaged file, what stands in it, and which of its records was damaged: None where it is more than one, or bytes."""

    sample: Sample
    data: bytes
    value: Any = None
    which: int | None = None


def damage(sample: Sample, parts: list[Any], random: Random) -> Damaged:
    """A sample with something done to it; `parts` are values to take pieces from."""
    value, which = sample.value, None
    if sample.kind != "bytes":
        value, which = _changed(sample, parts, random)
    data = _rendered(sample, value, random)
    if sample.kind == "bytes" or random.random() < 0.2:
        return Damaged(sample, damaged(data, random))
    return Damaged(sample, data, value, which)


def _changed(sample: Sample, parts: list[Any], random: Random) -> tuple[Any, int | None]:
    """The value with one record of it changed, mostly; sometimes records are lost, doubled or come in another order."""
    if not isinstance(sample.value, list) or not sample.value:
        return mutated(_copy(sample.value), parts, random), None
    records = list(sample.value)
    which = random.randrange(len(records))
    if random.random() < 0.85:
        records[which] = mutated(_copy(records[which]), parts, random)
        return records, which
    match random.randrange(4):
        case 0:
            del records[which]
        case 1:
            records.insert(random.randint(0, len(records)), records[which])
        case 2:
            random.shuffle(records)
        case _:
            records.insert(which, mutated(_copy(random.choice(parts)), parts, random))
    return records, None


def _rendered(sample: Sample, value: Any, random: Random) -> bytes:
    try:
        return rendered(sample.kind, value, ascii_only=random.random() < 0.5, indent=random.choice((None, None, 1)))
    except (ValueError, TypeError, RecursionError, OverflowError, NotImplementedError, sqlite3.Error):  # what this kind of file can't hold
        return rendered(sample.kind, sample.value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _about(connector: str, record: Any) -> Any:
    """The part of a record that says what it is."""
    if connector not in _TOP or not isinstance(record, dict):
        return record
    return {name: value for name, value in record.items() if not isinstance(value, dict | list)}


def tells(connector: str, data: bytes) -> bool:
    """Whether a file holds more than what its format passes over: nothing at all, an export without spans, a header without rows."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return True
    return re.search(_SAYS.get(connector, r"[^\s\ufeff]"), data.decode(errors="replace")) is not None


_SAYS = {
    "mini-swe-agent": r"[^\s\[\]{}]",
    "langsmith": r"[^\s\[\]{}:,]{12}",
    "otlp": r"[tT]race_?[iI]d|[sS]pan_?[iI]d",
    "bfcl": r'"(result|inference_log|valid)"',
}
"""What must be in a file of these connectors for it to hold a trace."""
_TOP = ("langfuse",)
"""A record of these says what it is at its top level; below may lie another record."""
_TELLING = {
    "braintrust": r'"type": "llm"',
    "logfire": r'"attributes": \{(?!"value": \{).*"(request_data|gen_ai.input.messages|all_messages)"',
    "managed-agents": r'"type": "(agent\.(message|thinking|\w*tool_use)|user\.\w+|session)"',
    "otlp": r"[sS]pan_?[iI]d|rollout_id",
    "openai-agents": r'"span_data": \{"type": "(generation|response)"',
    "phoenix": r'"(attributes\.)?openinference.span.kind": "LLM"',
    "langfuse": r'"GENERATION"',
    "langsmith": r'"run_type": "llm"',
    "codex": r'"type": "(response_item|session_meta|compacted)"',
}
"""Records of these connectors that don't match are structure or events: only together with others do they tell anything."""


def _kind(error: BaseException) -> str:
    """The error and where it was raised: the last place in the connectors' own files."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/connectors/" in frame.filename or "/core/" in frame.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
    if isinstance(error, RecursionError | Hang):
        where = ", ".join(dict.fromkeys(f"{Path(frame.filename).name}:{frame.name}" for frame in ours[:8]))
    return f"{type(error).__name__} {where} {str(error)[:90]!r}"


HEAD = f"{'connector':16} {'inputs':>8} {'refused':>8} {'traces':>8} {'rejected':>9} {'findings':>9} {'kinds':>6} {'ms/input':>9}"


def row(tally: Tally) -> str:
    """A line of the table."""
    figures = f"{tally.inputs:8} {tally.refused:8} {tally.traces:8} {tally.rejected:9} {sum(tally.kinds.values()):9} {len(tally.kinds):6}"
    return f"{tally.connector:16} {figures} {1000 * tally.seconds / max(1, tally.inputs):9.2f}"


def _report(tally: Tally, keep: Path | None) -> None:
    print(f"{tally.connector}: {tally.inputs} inputs, {sum(tally.kinds.values())} findings in {tally.seconds:.0f} s", flush=True)
    for number, (kind, count) in enumerate(tally.kinds.most_common()):
        finding = tally.findings[kind]
        print(f"\n{tally.connector}: {kind}, {count} times; input {finding.index} from {finding.sample}\n{finding.detail}")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{tally.connector}-{number}").write_bytes(finding.data)


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged input for every connector.")
    parser.add_argument("--inputs", type=int, default=1000, help="files a connector")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connector", action="append", help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--keep", type=Path, help="a folder for the smallest file of each kind of finding")
    options = parser.parse_args()
    wanted = [(name, found) for name, found in by_connector([*hand_made(), *real()]) if not options.connector or name in options.connector]
    run = partial(fuzz, inputs=options.inputs, seed=options.seed)
    tallies = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for tally in pool.map(run, *zip(*wanted, strict=True)):
            _report(tally, options.keep)
            tallies.append(tally)
    print("\n".join([HEAD, *map(row, tallies)]))
    print(f"peak memory of a process {_peak(resource.RUSAGE_CHILDREN) >> 10} MB")
    return 1 if any(tally.kinds for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
