"""Taking logs in twice, in any order, overlapping, or killed half-way and again: the store holds the same."""

import asyncio
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import permutations
from pathlib import Path

import pytest

from counterplay import loop
from counterplay.connectors.base import CONNECTORS, FolderConnector, get, ingest_items
from counterplay.core.nouns import Trace
from counterplay.core.store import Store

ROOT = Path(__file__).parents[2]
DATA = ROOT / ".." / "shared" / "data"
SAMPLES = runpy.run_path(str(ROOT / "bench" / "fuzzing" / "samples.py"))
HAND_MADE = SAMPLES["hand_made"]()
KEYED = {"langfuse", "langsmith", "otlp"}
"""Formats whose records name their trace, so that a file may be cut anywhere and its halves read together in any order."""


def written(folder, sample):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{sample.connector}-{sample.name}"
    file.write_bytes(SAMPLES["rendered"](sample.kind, sample.value))
    return file


def took(*batches, at=":memory:"):
    """What a store holds after some lists of files, each one `counterplay ingest`: its digest. It must be sound."""
    with Store.open(at) as store:
        for paths in batches:
            loop.ingest(paths, store, processes=0)
        assert store.verify() == []
        return store.content_digest()


def current(*batches):
    """What a reader of the store sees: its traces by id, without where they were read."""
    with Store.open(":memory:") as store:
        for paths in batches:
            loop.ingest(paths, store, processes=0)
        return {trace.id: (trace.trajectory.key, trace.outcome, len(trace.calls), len(trace.sub_trajectories)) for trace in store.load()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every hand-made sample as a file, by its connector and name."""
    folder = tmp_path_factory.mktemp("samples")
    return {f"{sample.connector}/{sample.name}": written(folder, sample) for sample in HAND_MADE}


NAMES = [f"{sample.connector}/{sample.name}" for sample in HAND_MADE]


def unequal(orders, names):
    """The names for which some way of taking in their files gives another store. All go into one store; one by one only to say which."""
    ways = orders(names)
    if len({took(*way) for way in ways}) == 1:
        return []
    return [name for name in names if len({took(*way) for way in orders([name])}) > 1]


def test_any_file_twice(files):
    with Store.open(":memory:") as store:
        for name in NAMES:
            loop.ingest([files[name]], store, processes=0)
        digest = store.content_digest()
        for name in NAMES:
            report = loop.ingest([files[name]], store, processes=0)
            assert (report.traces_added, report.traces_updated, report.rejected_added) == (0, 0, 0), name
        assert store.content_digest() == digest
        assert store.verify() == []


def test_all_files_in_any_order_together_or_one_by_one(files):
    """One file of each connector, so that nothing joins them."""
    several = [files[next(name for name in NAMES if name.startswith(f"{one}/"))] for one in sorted({name.split("/")[0] for name in NAMES})]
    assert len(several) > 20
    wanted = took(several)
    shuffled = list(several)
    for seed in range(2):
        random.Random(seed).shuffle(shuffled)
        assert took(shuffled) == wanted
        assert took(*([file] for file in shuffled)) == wanted
    assert took(shuffled[:12], shuffled[6:], shuffled[3:9]) == wanted


def test_a_folder_is_its_files(files):
    """Where nothing in it is joined, reading a folder is reading each file; where something is, it is joined in any order of names."""
    folder = next(iter(files.values())).parent
    alone = [file for name, file in files.items() if not isinstance(get(name.split("/")[0]), FolderConnector)]
    assert len(alone) > 5
    assert took(alone) == took(*([file] for file in alone))
    with Store.open(":memory:") as store:
        loop.ingest([folder], store, processes=0)
        digest = store.content_digest()
        loop.ingest([folder], store, processes=0)
        assert store.content_digest() == digest
        assert store.verify() == []


LINES = [sample for sample in HAND_MADE if sample.kind == "lines" and len(sample.value) > 1]


def lines_file(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SAMPLES["rendered"]("lines", rows))
    return path


def test_two_overlapping_files_in_any_order(tmp_path):
    """Two files share their middle; whichever is taken in first, and whether one of them again, what is held is the same."""
    pieces = {}
    for sample in LINES:
        rows, folder = sample.value, tmp_path / sample.connector / sample.name
        one = lines_file(folder / "one.jsonl", rows[: max(1, 2 * len(rows) // 3)])
        two = lines_file(folder / "two.jsonl", rows[len(rows) // 3 :])
        pieces[folder] = [[file] for file in (one, two) if readable_alone(file)]

    def orders(names):
        forth = [file for name in names for file in pieces[name]]
        return forth, [*forth[::-1], *forth]

    assert sum(len(each) == 2 for each in pieces.values()) > 20
    assert unequal(orders, list(pieces)) == []


def readable_alone(file):
    """A piece of a session may say too little to be told from other formats; given by name it would be an error."""
    sample = file.read_bytes()
    return any(CONNECTORS[name].detect(sample, file) > 0 for name in CONNECTORS)


def test_a_file_and_its_beginning_in_any_order(tmp_path):
    """An older snapshot of a growing log is another revision of what it holds, whenever it comes."""
    pieces = {}
    for sample in LINES:
        folder = tmp_path / sample.connector / sample.name
        whole = lines_file(folder / "whole.jsonl", sample.value)
        beginning = lines_file(folder / "beginning.jsonl", sample.value[:-1])
        if readable_alone(beginning):
            pieces[folder] = [[whole], [beginning]]

    def orders(names):
        forth = [file for name in names for file in pieces[name]]
        return forth, [*forth[::-1], *forth]

    assert len(pieces) > 20
    assert unequal(orders, list(pieces)) == []


@pytest.mark.parametrize("sample", [one for one in LINES if one.connector in KEYED], ids=lambda sample: f"{sample.connector}/{sample.name}")
def test_one_trace_split_over_files_read_together(tmp_path, sample):
    """In any order, in two or three pieces, overlapping or not: the same traces as in one file."""
    rows = sample.value
    wanted = current([lines_file(tmp_path / "0/a.jsonl", rows)])
    for seed in range(3):
        mixed = list(rows)
        random.Random(seed).shuffle(mixed)
        cut = sorted(random.Random(seed).choices(range(1, len(rows) + 1), k=2))
        pieces = [piece for piece in (mixed[: cut[1]], mixed[cut[0] :], mixed[:1]) if piece]
        for number, order in enumerate(permutations(range(len(pieces)))):
            folder = tmp_path / f"{seed}{number}"
            for place, piece in zip("abc", order, strict=False):
                lines_file(folder / f"{place}.jsonl", pieces[piece])
            items = asyncio.run(of_format(folder, sample.connector))
            got = {one.id: (one.trajectory.key, one.outcome, len(one.calls), len(one.sub_trajectories)) for one in items}
            assert got == wanted, (seed, order)


async def of_format(folder, name):
    """The traces of a folder whose files are all of one format, whatever the pieces alone look like."""
    return [item async for item in get(name).read_files(sorted(folder.iterdir())) if isinstance(item, Trace)]


def test_a_snapshot_of_a_growing_run_never_hides_the_newer_one(tmp_path):
    """A session whose last message was half written when the snapshot was made is no strict beginning."""
    rows = next(sample.value for sample in HAND_MADE if (sample.connector, sample.name) == ("claude-code", "session.jsonl"))
    snapshots = [lines_file(tmp_path / f"{count}/session.jsonl", rows[:count]) for count in range(1, len(rows) + 1)]
    snapshots = [file for file in snapshots if readable_alone(file) and any_trace(file)]
    assert len(snapshots) > 1
    wanted = current([snapshots[-1]])
    for seed in range(4):
        mixed = list(snapshots)
        random.Random(seed).shuffle(mixed)
        held = current(*([file] for file in mixed))
        assert {name: fields[0] for name, fields in held.items() if name in wanted} == {name: fields[0] for name, fields in wanted.items()}
    assert took(*([file] for file in snapshots)) == took(*([file] for file in reversed(snapshots)))


def any_trace(file):
    async def read():
        return [item async for item in ingest_items(file) if isinstance(item, Trace)]

    return bool(asyncio.run(read()))


def many(path, count=400):
    """A log that takes a while: calls of growing traces, some lines of it broken."""
    with path.open("w") as lines:
        for trace in range(count):
            messages = [{"role": "system", "content": "be kind " * 200}, {"role": "user", "content": f"task {trace}"}]
            for step in range(4):
                answer = {"role": "assistant", "content": f"step {step} of {trace} " * 30}
                response = {"id": f"r{trace}-{step}", "model": "m", "choices": [{"finish_reason": "stop", "message": answer}]}
                lines.write(json.dumps({"request": {"model": "m", "messages": messages}, "response": response}) + "\n")
                messages = [*messages, answer, {"role": "user", "content": f"go on {step}"}]
            if trace % 50 == 0:
                lines.write('{"request": cut\n')


def command(*arguments):
    return [sys.executable, "-m", "counterplay.cli", "ingest", *map(str, arguments), "--json"]


@pytest.mark.parametrize("processes", [0, 2])
def test_killed_half_way_and_repeated(tmp_path, processes):
    logs = tmp_path / "logs"
    logs.mkdir()
    for name in "abc":
        many(logs / f"{name}.jsonl", 100)
    for number, sample in enumerate(one for one in HAND_MADE if one.connector in ("otlp", "tau-bench", "inspect")):
        written(logs / f"d{number}", sample)
    began = time.monotonic()
    subprocess.run(command(logs, "--store", tmp_path / "whole.duckdb", "--processes", processes), check=True, capture_output=True)
    whole_s = time.monotonic() - began
    wanted = took(at=tmp_path / "whole.duckdb")
    rng, store = random.Random(processes), tmp_path / "killed.duckdb"
    killed, seen = 0, set()
    for _ in range(12):
        process = subprocess.Popen(
            command(logs, "--store", store, "--processes", processes),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(whole_s * (0.35 + 0.6 * rng.random()))
        running = process.poll() is None
        with_children(process.pid)
        process.wait()
        if running:
            killed += 1
            seen.add(held_by(store))
        else:  # a machine that was busy before is not now: from the start again, and sooner
            whole_s *= 0.7
            for left in store.parent.glob("killed.duckdb*"):
                left.unlink()
        if killed == 3:
            break
    assert killed, "it was never killed before it had finished"
    subprocess.run(command(logs, "--store", store, "--processes", processes), check=True, capture_output=True)
    assert took(at=store) == wanted
    assert all(0 <= count <= 300 + 30 for count in seen)


def with_children(pid):
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def held_by(path):
    """How many traces a store holds after a kill; opening it must not need any repair."""
    if not path.exists():
        return 0
    with Store.open(path) as store:
        assert store.verify() == []
        return len(store.traces())


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize("folder", ["multiformat/otelv2", "claude-code-sessions"])
def test_real_folders_twice_and_one_by_one(folder):
    """A file that is joined to others when the folder is read is, alone, another revision or a named row; order does not matter."""
    path = DATA / folder
    assert took([path]) == took([path], [path])
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.stat().st_size < 250_000]
    known = [file for file in files if any(CONNECTORS[name].detect(file.read_bytes()[:300_000], file) > 0 for name in CONNECTORS)][:6]
    assert took(*([file] for file in known)) == took(*([file] for file in reversed(known)))
