"""What a job over many traces costs in the store, trace by trace, as the store grows: time of each stage, and memory.

    python bench/store_scale.py [--traces 2000] [--calls 60] [--memory 512MB] [--json]

Made traces of 60 model calls, four runs a task, in no order of their ids. They go in; each task is a unit, which is claimed, its runs
are loaded and stitched, the trees are put and the unit is settled, 32 units at a time; then all trees are read in order. The first and the
last fifth of the traces are compared: a growth of 1 is a cost that does not depend on how much is there. Times are of the processor, so
that other work on the machine counts less; making the traces is left out. One tree at a time is measured beside, on a few.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from storage import made_traces

from counterplay.core.nouns import Trace
from counterplay.core.records import SearchRecord
from counterplay.core.store import NewUnit, Settled, Store, UnitRow
from counterplay.search.stitch import stitch

AT_ONCE, FIFTHS, ALONE = 32, 5, 40


class Stages:
    """Milliseconds of processor time a trace, by stage and fifth of the traces; and the most memory at the end of each."""

    def __init__(self, traces: int) -> None:
        self.fifth = max(1, traces // FIFTHS)
        self.spent: dict[str, dict[int, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))

    @contextmanager
    def timed(self, stage: str, done: int, count: int) -> Iterator[None]:
        """`count` traces, before which `done` were through."""
        before = time.process_time()
        yield
        self.spent[stage][min(done // self.fifth, FIFTHS - 1)].append(((time.process_time() - before) * 1e3, count))

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for stage, fifths in self.spent.items():
            first, last = (sum(spent for spent, _ in fifths[n]) / sum(count for _, count in fifths[n]) for n in (0, FIFTHS - 1))
            found.append({"stage": stage, "first_ms": round(first, 2), "last_ms": round(last, 2), "growth": round(last / first, 2)})
        return found


def memory_mb(field: str) -> float:
    """VmHWM is the most so far, VmRSS what is held now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def ingest(store: Store, traces: int, calls: int, stages: Stages) -> None:
    """In lots that are made before the clock runs."""
    source, size = made_traces(traces, calls), min(256, stages.fifth)
    for done in range(0, traces, size):
        lot = list(islice(source, size))
        with stages.timed("ingest", done, len(lot)):
            store.ingest(lot)


def trees_of(units: Sequence[UnitRow], traces: dict[str, Trace]) -> Iterator[SearchRecord]:
    for unit in units:
        runs = [traces[name] for name in unit.traces]
        for run, tree in zip(runs, stitch([run.trajectory for run in runs]), strict=True):
            yield tree.to_record(f"{run.id}@stitch", trace=run.id, task=run.task)


def work(store: Store, stages: Stages) -> None:
    store.put_job("bench", "bench", "{}")
    store.add_units("bench", (NewUnit(f"task {task}", tuple(traces)) for task, traces in store.tasks_of()))
    done = 0
    while True:
        with stages.timed("claim", done, 4 * AT_ONCE):
            units = store.claim("bench", "me", AT_ONCE)
        if not units:
            return
        names = [name for unit in units for name in unit.traces]
        with stages.timed("load", done, len(names)):
            traces = {trace.id: trace for trace in store.load(names)}
        with stages.timed("stitch", done, len(names)):
            records = list(trees_of(units, traces))
        with stages.timed("put", done, len(names)):
            store.put_searches(records)
        with stages.timed("settle", done, len(names)):
            store.settle("bench", [Settled(unit.id, result={"nodes": 64}) for unit in units], "me")
        done += len(names)


def read(store: Store, stages: Stages) -> None:
    done, reader = 0, store.load_searches(row.id for row in store.every_search())
    while True:
        with stages.timed("read", done, 1):
            if next(reader, None) is None:
                return
        done += 1


def alone(store: Store) -> dict[str, float]:
    """How many times the processor time of many trees together one at a time takes."""
    ids = [row.id for row, _ in zip(store.every_search(), range(ALONE), strict=False)]

    def spent(what: Any) -> float:
        before = time.process_time()
        what()
        return time.process_time() - before

    records = list(store.load_searches(ids))
    with Store.open(":memory:") as one, Store.open(":memory:") as many:
        put = spent(lambda: [one.put_search(record) for record in records]) / spent(lambda: many.put_searches(records))
    reading = spent(lambda: [store.search(name) for name in ids]) / spent(lambda: list(store.load_searches(ids)))
    return {"put_alone": round(put, 1), "read_alone": round(reading, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--memory", default="512MB")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    stages = Stages(asked.traces)
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store.duckdb", memory=asked.memory) as store:
        held = {"opened": memory_mb("VmHWM")}
        for name, stage in (("ingest", lambda: ingest(store, asked.traces, asked.calls, stages)), ("work", lambda: work(store, stages))):
            stage()
            held[name] = memory_mb("VmHWM")
        read(store, stages)
        held["read"] = memory_mb("VmHWM")
        apart = alone(store)
    peaks = {name: round(peak) for name, peak in held.items()}
    found = {"traces": asked.traces, "stages": stages.rows(), "peak_mb": peaks, **apart}
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{'stage':8} {'first fifth':>12} {'last fifth':>12} {'growth':>7}   (processor ms a trace, {asked.traces} traces)")
    for row in found["stages"]:
        print(f"{row['stage']:8} {row['first_ms']:12.2f} {row['last_ms']:12.2f} {row['growth']:7.2f}")
    print("most memory so far, MB: " + ", ".join(f"{name} {peak}" for name, peak in peaks.items()))
    print(f"one tree at a time: {apart['put_alone']} times the work to put, {apart['read_alone']} times to read")


if __name__ == "__main__":
    main()
