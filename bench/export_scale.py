"""How much memory and time an export takes as the store grows, beside making the same dataset from everything at once.

Made stores: runs of 60 calls, four to a task, which share the beginning of the first; each run is stitched with the others of its task,
without any model. Every export is a process of its own, whose peak of resident memory is read when it ends; `opened` is one that
only opens the store and imports the same, so that the difference is what the export holds. Ratios are inside one run.

    python bench/export_scale.py [--traces 250 1000] [--kinds sft kto dpo] [--memory 256MB] [--folder DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterplay import exporting, loop
from counterplay.core.canonical import content_key
from counterplay.core.nouns import Call, Grade, Message, Outcome, Source, Step, ToolCall, ToolSpec, Trace, Trajectory, Usage
from counterplay.core.store import Store
from counterplay.search.stitch import stitch

RUNS, CALLS = 4, 60
ENDS = ("", "n", "rs", "lt", "ma", "no", "pe")
WORDS = [a + b + c for a in ("ka", "lo", "mi", "ne", "ru", "ta") for b in ("ba", "de", "fi", "go") for c in ENDS]
PLACES = {"type": "object", "properties": {"order": {"type": "string", "description": "which one"}, "page": {"type": "integer"}}}
TOOLS = tuple(
    ToolSpec.function(name, f"{name} of the books. " + "Give what is asked for and nothing else. " * 6, PLACES)
    for name in ("look_up", "refund", "post", "mail", "search", "read")
)
SYSTEM = Message.system("You keep the books of a shop. " * 30)
OPTIONS: dict[str, dict[str, Any]] = {
    "sft": {"held_out": 0.1},
    "kto": {"rows": "trajectory", "source": "logged", "held_out": 0.1},
    "dpo": {"rows": "trajectory", "source": "logged", "held_out": 0.1},
}


def prose(rng: random.Random, length: int) -> str:
    return " ".join(rng.choices(WORDS, k=length))


def step(rng: random.Random, index: int) -> Step:
    if index == CALLS - 1:
        return Step(Message.assistant(prose(rng, 30)), terminated=True)
    call = ToolCall(
        f"call_{rng.getrandbits(64):016x}", rng.choice(TOOLS).name, json.dumps({"order": f"{rng.getrandbits(32):08x}", "page": index})
    )
    found = [{"id": f"{rng.getrandbits(40):010x}", "memo": prose(rng, 6), "amount": rng.randint(1, 9999)} for _ in range(3)]
    return Step(Message.assistant(prose(rng, 8), [call]), (Message.tool(json.dumps({"results": found}), call.id),), grades=(Grade.EXACT,))


def runs_of(task: int) -> Iterator[Trace]:
    """The runs of one task: the first, and others that do as it did for a while."""
    rng = random.Random(task)
    prompt = (SYSTEM, Message.user(prose(rng, 60)))
    first = [step(rng, index) for index in range(CALLS)]
    for run in range(RUNS):
        shared = CALLS if run == 0 else rng.randrange(CALLS // 3, CALLS - 1)
        steps = (*first[:shared], *(step(rng, index) for index in range(shared, CALLS)))
        calls = tuple(Call(index, model="made", usage=Usage(1000 + 300 * index, 60)) for index in range(CALLS))
        name, outcome = f"run-{rng.getrandbits(64):016x}", Outcome(float(rng.random() < 0.6), source="environment")
        source = Source("bench", "made.jsonl", task * RUNS + run)
        yield Trace(name, Trajectory(TOOLS, prompt, steps), source, task=f"task-{task:06d}", agent="bench", outcome=outcome, calls=calls)


def make_store(path: Path, traces: int) -> None:
    with Store.open(path) as store:
        store.ingest(trace for task in range(traces // RUNS) for trace in runs_of(task))

        def trees() -> Iterator[Any]:
            for task in range(traces // RUNS):
                runs = list(runs_of(task))
                for trace, tree in zip(runs, stitch([trace.trajectory for trace in runs]), strict=True):
                    yield tree.to_record(content_key("stitch", trace.id), trace=trace.id, task=trace.task)

        store.put_searches(trees())


def at_once(store: Store, folder: Path) -> Any:
    """What `export sft` writes, with every trace, tree and row in memory."""
    from counterplay.finetune.gates.near import near_ties
    from counterplay.finetune.trajectories import logged_rows, sft_rows
    from counterplay.finetune.write import write_dataset
    from counterplay.gating import gates_for

    traces = loop.select(store)
    rows = logged_rows(traces) + sft_rows(exporting.trees(store, traces))
    return write_dataset(rows, folder, gates=gates_for(), ties=near_ties, traces=traces)


def one(store: Path, kind: str, memory: str) -> dict[str, Any]:
    """One export in this process: seconds of CPU, megabytes of memory at the peak, rows."""
    with tempfile.TemporaryDirectory(dir=store.parent) as folder, Store.open(store, read_only=True, memory=memory) as opened:
        before, rows = time.process_time(), 0
        if kind == "opened":
            warm_up(Path(folder))
        elif kind == "at once":
            rows = sum(at_once(opened, Path(folder) / "d").rows.values())
        else:
            rows = sum(getattr(exporting, f"export_{kind}")(opened, Path(folder) / "d", **OPTIONS[kind]).rows.values())
        cpu_s = time.process_time() - before
    return {"cpu_s": cpu_s, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "rows": rows}


def warm_up(folder: Path) -> None:
    from counterplay.finetune.rows import SFTRow
    from counterplay.finetune.write import write_dataset
    from counterplay.gating import gates_for

    write_dataset([SFTRow((Message.user("a"), Message.assistant("b")), (False, True))], folder / "d", gates=gates_for())


def measured(store: Path, kind: str, memory: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(store), kind, "--memory", memory]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(sizes: list[int], kinds: list[str], folder: Path, memory: str) -> list[dict[str, Any]]:
    lines = []
    for traces in sizes:
        store = folder / f"{traces}.duckdb"
        if not store.exists():  # by a process of its own: the peak of a process begins with that of the one that starts it
            subprocess.run([sys.executable, __file__, "--make", str(store), str(traces)], check=True)
        base = measured(store, "opened", memory)["mb"]
        for kind in [*kinds, *(["at once"] if "sft" in kinds else [])]:
            found = measured(store, kind, memory)
            more = found["mb"] - base
            line = {"traces": traces, "export": kind, "rows": found["rows"], "mb": round(found["mb"]), "more_mb": round(more)}
            lines.append({**line, "kb_a_trace": round(1024 * more / traces, 1), "cpu_ms_a_trace": round(1000 * found["cpu_s"] / traces, 1)})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--kinds", nargs="+", default=["sft"], choices=list(OPTIONS))
    parser.add_argument("--memory", default="256MB", help="DuckDB's limit")
    parser.add_argument("--folder", type=Path, help="where stores are made, and found again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("STORE", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, metavar=("STORE", "TRACES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make_store(Path(given.make[0]), int(given.make[1]))
        return
    if given.one:
        print(json.dumps(one(Path(given.one[0]), given.one[1], given.memory)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = measure(given.traces, given.kinds, folder, given.memory)
    if given.json:
        print(json.dumps(lines, indent=1))
        return
    print(f"{'traces':>8} {'export':>8} {'rows':>8} {'MB':>6} {'more MB':>8} {'kB/trace':>9} {'CPU ms/trace':>13}")
    for line in lines:
        print("{traces:>8} {export:>8} {rows:>8} {mb:>6} {more_mb:>8} {kb_a_trace:>9} {cpu_ms_a_trace:>13}".format(**line))


if __name__ == "__main__":
    main()
