"""How long the viewer's server takes for each question, on a store of 100,000 traces and a tree of 5,000 nodes.

Every question is asked on a small store and on a large one in one run: what grows with the store is seen as a ratio. The figures are
those of `counterplay.viewing.answers`, JSON included, without HTTP: processor time over all threads, which a busy machine hardly changes,
and wall time beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from counterplay import console
from counterplay.core.nouns import Call, Message, Outcome, Score, Source, Step, ToolCall, ToolSpec, Trace, Trajectory, Usage
from counterplay.core.store import Store
from counterplay.search.tree import SearchTree
from counterplay.viewing.answers import Answers
from counterplay.viewing.page import as_json

TOOLS = (ToolSpec.function("look_up", "Look up.", {"type": "object"}), ToolSpec.function("post", "Post.", {"type": "object"}))
WORDS = ["account", "invoice", "vendor", "credit", "debit", "period", "balance", "document"]
WORDS += ["currency", "rate", "tax", "reverse", "charge", "entry", "close"]
SYSTEM = Message.system("You keep books. " + " ".join(WORDS) * 20)


def traces(count: int, seed: int = 0) -> Iterator[Trace]:
    """Traces of 3 to 8 steps with tool calls, of which one in ten meets an error."""
    rng = random.Random(seed)
    for number in range(count):
        good = rng.random() < 0.6
        steps = [_step(rng, i, failing=not good and rng.random() < 0.3) for i in range(rng.randint(2, 7))]
        steps.append(Step(Message.assistant(_text(rng, 30)), terminated=True, reward=float(good)))
        calls = tuple(
            Call(i, model="small", usage=Usage(200 + 80 * i, 40, cost_usd=1e-4 * (i + 1)), latency_s=0.3) for i in range(len(steps))
        )
        yield Trace(
            f"{number:08x}{rng.getrandbits(96):024x}",
            Trajectory(TOOLS, (SYSTEM, Message.user(f"Document {number}: {_text(rng, 20)}")), tuple(steps)),
            Source("made", "bench", number + 1),
            task=f"task-{number % 5000}",
            agent=rng.choice(["clerk", "ledger", "auditor"]),
            outcome=Outcome(float(good), good, "harness"),
            calls=calls,
            tags=tuple(rng.sample(["night", "canary", "eu", "us"], 1)),
            started_at_us=1_700_000_000_000_000 + number * 1_000_000,
            ended_at_us=1_700_000_000_000_000 + number * 1_000_000 + rng.randint(1, 90) * 1_000_000,
        )


def _step(rng: random.Random, number: int, *, failing: bool) -> Step:
    call = ToolCall(f"c{number}", rng.choice(["look_up", "post"]), json.dumps({"account": rng.randint(1000, 9999), "note": _text(rng, 6)}))
    result = "Error: out of balance" if failing else json.dumps({"balance": rng.random(), "text": _text(rng, 40)})
    return Step(Message.assistant(None, [call]), (Message.tool(result, call.id),))


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def tree(trace: Trace, nodes: int, seed: int = 0) -> SearchTree:
    """A tree with so many nodes, grown at random places."""
    rng = random.Random(seed)
    made = SearchTree.start(trace.trajectory.prefix(1), "mcts", {"num_simulations": nodes})
    open_nodes = [made.root]
    while len(made.nodes) < nodes:
        parent = rng.choice(open_nodes[-200:])
        ends = parent.depth > 8 or rng.random() < 0.2
        step = _step(rng, len(made.nodes), failing=False)
        node = made.add(parent, Step(step.action, step.observations, terminated=ends))
        value = rng.random()
        node.score = Score(value, _text(rng, 8), "books", "1")
        node.backup(value)
        if not ends:
            open_nodes.append(node)
    made.stop("the budget is used")
    return made


def build(path: Path, count: int, nodes: int) -> None:
    with Store.open(path) as store:
        store.ingest(traces(count), batch=2048)
        first = next(traces(1))
        store.put_search(tree(first, nodes).to_record("big", trace=first.id, task=first.task, fork_step=1))


QUESTIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "the first window": ("traces", {}),
    "a window in the middle": ("traces", {"offset": "{middle}"}),
    "sorted by cost": ("traces", {"sort": "cost", "order": "desc"}),
    "failed traces of an agent": ("traces", {"agent": "clerk", "outcome": "failed", "failing": "yes"}),
    "by how an id begins": ("traces", {"id": "000000"}),
    "facets": ("facets", {"agent": "clerk"}),
    "a text, the first answer": ("traces", {"text": "reverse charge entry close"}),
    "one trace": ("traces/{trace}", {}),
    "a tree of {nodes} nodes": ("searches/big", {}),
    "ten of its nodes": ("searches/big/nodes", {"index": "1,2,3,4,5,6,7,8,9,10"}),
    "failures": ("failures", {}),
}


class Clock:
    """What questions take: processor and wall seconds by name."""

    def __init__(self) -> None:
        self.took: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.took.setdefault(name, []).append((time.process_time() - cpu, time.perf_counter() - wall))

    def medians(self) -> dict[str, tuple[float, float]]:
        """In milliseconds."""
        return {
            name: (1000 * statistics.median(c for c, _ in each), 1000 * statistics.median(w for _, w in each))
            for name, each in self.took.items()
        }


def measure(path: Path, count: int, nodes: int) -> dict[str, tuple[float, float]]:
    """Every question the first time it is asked after opening (what is kept afterwards is not counted), and opening itself."""
    clock = Clock()
    for _ in range(3):
        with Store.open(path, read_only=True) as store:
            with clock.timing("opening"):
                answers = Answers(store)
            trace = answers.answer("traces", {"limit": "1"})["rows"][0]["id"]
            for name, (question, given) in QUESTIONS.items():
                filled = {key: value.format(middle=count // 2) for key, value in given.items()}
                with clock.timing(name.format(nodes=nodes)):
                    as_json(answers.answer(question.format(trace=trace), filled))
            with clock.timing("a text in all messages"):
                while not answers.answer("traces", {"text": "entry close period"})["text_search"]["done"]:
                    time.sleep(0.005)
            answers.close()
    return clock.medians()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--keep", type=Path, help="A folder that keeps the stores, and has them already the second time.")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"small": (max(100, chosen.traces // 100), 50), "large": (chosen.traces, chosen.nodes)}
        found = {}
        for name, (count, nodes) in sizes.items():
            path = folder / f"{count}-{nodes}.duckdb"
            if not path.exists():
                build(path, count, nodes)
            found[name] = measure(path, count, nodes)
    rows = [
        (name, round(small, 1), round(large, 1), round(large / small, 1), round(wall, 1))
        for (name, (large, wall)), (small, _) in zip(found["large"].items(), found["small"].values(), strict=True)
    ]
    if chosen.json:
        print(json.dumps({"traces": chosen.traces, "nodes": chosen.nodes, "rows": rows}))
        return
    columns = ["question", f"CPU ms of {sizes['small'][0]:,} traces", f"CPU ms of {chosen.traces:,}", "ratio", "wall ms"]
    console.out.print(console.table("what the viewer's server takes", columns, rows))


if __name__ == "__main__":
    main()
