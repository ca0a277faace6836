"""A whole job over many logs: what it takes of time and memory as they grow, stage by stage.

    python bench/job_scale.py [--traces 1000 10000 100000] [--calls 60] [--processes 0] [--memory 512MB] [--kinds sft dpo]
        [--keep DIR] [--json]

Made logs: a line a run, 60 model calls with tool calls and their results, one system prompt and its tools; five runs a task, each of which
does as an earlier one did up to a step of its own, about half of them succeed. `counterplay run` takes them in, stitches the runs of every
task and exports SFT rows (logged and stitched) and preference pairs, in a process of its own; memory is that of this process and of
those that it starts together, sampled 20 times a second, and never less than the kernel's own high-water mark of the first.

Seconds are of the clock, CPU seconds of all processes: other work on the machine shows in the former. `growth` compares the CPU time
a trace with that of the size before: 1 is a cost that does not depend on how much there is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

RUNS, A_FILE, EVERY_S = 5, 500, 0.05
STAGES = ("ingest", "units", "exports")
ENDS = ("", "n", "rs", "lt", "ma", "no")
WORDS = [a + b + c for a in ("ka", "lo", "mi", "ne", "ru", "ta") for b in ("ba", "de", "fi", "go") for c in ENDS]
FIELDS = {"order": {"type": "string"}, "page": {"type": "integer"}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} of the books. " + "Give what is asked for and nothing else. " * 4,
            "parameters": {"type": "object", "properties": FIELDS, "required": ["order"]},
        },
    }
    for name in ("look_up", "refund", "post", "mail", "search", "read")
]
SYSTEM = "You keep the books of a shop. " * 30
JOB = """[job]
name = "scale"
store = "scale.duckdb"

[[source]]
path = "{logs}"
together = "file"

[search]
algorithm = "stitch"

[engine]
processes = {processes}
memory = "{memory}"
"""
EXPORTS = {
    "sft": '\n[[export]]\nkind = "sft"\nsource = "both"\nheld_out = 0.1\n',
    "dpo": '\n[[export]]\nkind = "dpo"\nsource = "searched"\ntau = 0.7\nheld_out = 0.1\n',
}


def prose(rng: random.Random, length: int) -> str:
    return " ".join(rng.choices(WORDS, k=length))


def turn(rng: random.Random, index: int, last: bool) -> list[dict[str, Any]]:
    """One step: what the model said and, where it called a tool, the tool's answer."""
    if last:
        return [{"role": "assistant", "content": prose(rng, 20)}]
    name, call = TOOLS[rng.randrange(len(TOOLS))]["function"]["name"], f"call_{rng.getrandbits(48):012x}"  # type: ignore[index]
    function = {"name": name, "arguments": json.dumps({"order": f"{rng.getrandbits(32):08x}", "page": index})}
    found = {"id": f"{rng.getrandbits(40):010x}", "memo": prose(rng, 8), "amount": rng.randint(1, 9999)}
    said = {"role": "assistant", "content": prose(rng, 8), "tool_calls": [{"id": call, "type": "function", "function": function}]}
    return [said, {"role": "tool", "tool_call_id": call, "content": json.dumps({"results": [found]})}]


def runs_of(task: int, calls: int, count: int) -> Iterator[str]:
    """The runs of one task, a line each: the first, and others that do as an earlier one did for a while."""
    rng = random.Random(task)
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prose(rng, 40)}]
    made: list[list[list[dict[str, Any]]]] = []
    for number in range(count):
        shared = rng.choice(made)[: rng.randrange(calls // 4, calls - 1)] if made else []
        made.append([*shared, *(turn(rng, index, index == calls - 1) for index in range(len(shared), calls))])
        messages = [*prompt, *(message for each in made[-1] for message in each)]
        row = {"id": f"{rng.getrandbits(64):016x}", "task": f"task-{task:07d}", "agent": "clerk", "reward": float(rng.random() < 0.5)}
        yield json.dumps({**row, "run": number, "tools": TOOLS, "messages": messages})


def write_logs(folder: Path, traces: int, calls: int) -> None:
    """Files of some hundred runs each; the runs of a task follow one another."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for first in range(0, traces, A_FILE):
        with (draft / f"{first:08d}.jsonl").open("w", encoding="utf-8") as file:
            for task in range(first // RUNS, min(traces, first + A_FILE) // RUNS):
                file.writelines(f"{line}\n" for line in runs_of(task, calls, RUNS))
    draft.rename(folder)


def work(file: Path) -> None:
    """The job, in this process; one line of JSON for each stage that has ended, and one at the end."""
    from counterplay.jobs import running
    from counterplay.jobs.events import Event
    from counterplay.jobs.spec import Job

    began: dict[str, tuple[float, float]] = {}

    def hear(event: Event) -> None:
        if event.name not in ("stage.began", "stage.ended", "export.began", "export.ended"):
            return
        name = event.fields.get("stage") or f"export {event.fields['kind']}"
        if event.name.endswith("began"):
            began[name] = (time.monotonic(), cpu_s())
            return
        clock_s, used_s = began[name]
        told = {"stage": name, "seconds": time.monotonic() - clock_s, "cpu_s": cpu_s() - used_s, "high_mb": status_mb("self", "VmHWM")}
        print(json.dumps(told), flush=True)

    report = running.run(Job.load(file), listeners=[hear])
    datasets = {made["kind"]: sum(made["rows"].values()) for made in report.datasets}
    problems = [made["problem"] for made in report.datasets if made["problem"]]
    print(json.dumps({"states": dict(report.states), "rows": datasets, "problems": problems}), flush=True)


def cpu_s() -> float:
    """Seconds of processor time of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def status_mb(pid: int | str, field: str) -> float:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def tree_of(pid: int) -> Iterator[int]:
    """The process and all that it started, of any thread of it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:
            continue
        for child in found:
            yield from tree_of(int(child))


class Watch:
    """The most memory that a process and its children have together, since it was last asked."""

    def __init__(self, pid: int) -> None:
        self.pid, self._most, self._over = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self._most = max(self._most, sum(status_mb(pid, "VmRSS") for pid in tree_of(self.pid)))

    def most(self) -> float:
        most, self._most = self._most, 0.0
        return most

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def measured(folder: Path, traces: int, asked: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """One size: the logs, the job over them in a process of its own, and what it took."""
    logs = folder / f"logs-{traces}-{asked.calls}"
    if not logs.exists():
        tell(f"{traces:,} traces: writing logs")
        write_logs(logs, traces, asked.calls)
    place = folder / f"job-{traces}-{asked.calls}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    head = JOB.format(logs=logs.resolve(), processes=asked.processes, memory=asked.memory)
    (place / "job.toml").write_text(head + "".join(EXPORTS[kind] for kind in asked.kinds))
    began_s = time.monotonic()
    command = [sys.executable, __file__, "--work", str(place / "job.toml")]
    stages: dict[str, dict[str, float]] = {}
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = Watch(process.pid)
        assert process.stdout is not None
        told: dict[str, Any] = {}
        for line in process.stdout:
            told = json.loads(line)
            if "stage" in told:
                parts = [stages[name]["peak_mb"] for name in stages if told["stage"] == "exports" and name.startswith("export ")]
                most = max(watch.most(), *parts, 0.0)
                peak = max(peak, most, told["high_mb"])
                stages[told["stage"]] = {"seconds": told["seconds"], "cpu_s": told["cpu_s"], "peak_mb": most}
                tell(f"{traces:,} traces: {told['stage']} {told['seconds']:.1f} s, {told['cpu_s']:.1f} CPU s, {most:.0f} MB")
        watch.stop()
    if process.returncode:
        sys.exit(f"the job over {traces} traces ended with {process.returncode}")
    seconds = time.monotonic() - began_s
    found = {
        "traces": traces,
        "seconds": seconds,
        "cpu_s": sum(stages[name]["cpu_s"] for name in STAGES),
        "traces_a_second": traces / seconds,
        "stages": stages,
        "peak_mb": max(peak, watch.most()),
        "store_mb": (place / "scale.duckdb").stat().st_size / 1e6,
        "logs_mb": sum(file.stat().st_size for file in logs.iterdir()) / 1e6,
        **told,
    }
    if not asked.keep:
        shutil.rmtree(place)
        shutil.rmtree(logs)
    return found


def grown(sizes: list[dict[str, Any]]) -> None:
    """Beside each size what it takes, a trace, of what the one before takes; of memory as a whole."""
    for before, after in pairwise(sizes):
        more = after["traces"] / before["traces"]
        spent = {name: (before["stages"][name]["cpu_s"], after["stages"][name]["cpu_s"]) for name in STAGES}
        growth = {name: later / earlier / more for name, (earlier, later) in spent.items() if earlier}
        whole = {"cpu_s": after["cpu_s"] / before["cpu_s"] / more, "seconds": after["seconds"] / before["seconds"] / more}
        after["growth"] = {**growth, **whole, "peak_mb": after["peak_mb"] / before["peak_mb"]}


def shown(sizes: list[dict[str, Any]]) -> str:
    names = list(sizes[0]["stages"])
    lines = ["| traces | " + " | ".join(f"{name}, s (CPU)" for name in names) + " | traces/s | peak MB | store MB |"]
    lines.append("| --- |" + " --- |" * (len(names) + 3))
    for size in sizes:
        stages = " | ".join(f"{size['stages'][name]['seconds']:.1f} ({size['stages'][name]['cpu_s']:.1f})" for name in names)
        lines.append(f"| {size['traces']:,} | {stages} | {size['traces_a_second']:.0f} | {size['peak_mb']:.0f} | {size['store_mb']:.0f} |")
    for size in sizes[1:]:
        growth = ", ".join(f"{name} {ratio:.2f}" for name, ratio in size["growth"].items())
        lines.append(f"growth to {size['traces']:,}: {growth}")
    lines += [f"{size['traces']:,} traces: {problem}" for size in sizes for problem in size["problems"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--memory", default="512MB", help="what DuckDB may take")
    parser.add_argument("--kinds", nargs="*", default=list(EXPORTS), choices=list(EXPORTS), help="datasets; none: ingest and units alone")
    parser.add_argument("--keep", type=Path, help="where logs and jobs are made and stay; logs that are there are used again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        os.chdir(asked.work.parent)
        work(asked.work)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = [measured(folder, traces, asked, lambda line: print(line, file=sys.stderr, flush=True)) for traces in asked.traces]
    grown(sizes)
    print(json.dumps(sizes) if asked.json else shown(sizes))


if __name__ == "__main__":
    main()
