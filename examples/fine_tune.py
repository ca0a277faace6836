"""Fine-tune on better branches and see whether the agent is better: an interval, a test, and a verdict in words.

python examples/fine_tune.py [FOLDER] [RUNS] [TASKS]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from counterplay import Store, console, evaluation, exporting, loop, searching, training
from counterplay.demo import EXAMPLE, WORLD
from counterplay.parts import Asked
from counterplay.plan import Plan

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
runs, tasks = (int(given) for given in (sys.argv[2:4] if len(sys.argv) > 3 else ("40", "60")))
before, after = EXAMPLE / "model", folder / "tuned"

with Store.open(folder / "s.duckdb") as store:
    loop.ingest([EXAMPLE / "logs.jsonl.gz"], store)
    failed = loop.select(store, which="failed", limit=runs)
    asked = Asked(f"transformers:{before}", WORLD, ("outcome", "ledger"), max_tokens=64, max_steps=40)
    done = asyncio.run(searching.search(store, failed, asked, Plan("repair", {"n": 8, "rollouts_per_alternative": 2})))
    print(f"{done.improved} of {done.traces} failed runs have a better branch")
    exporting.export_sft(store, folder / "better", tokenizer=str(before))

training.train("sft", before, folder / "better", after, batch_size=8, epochs=1, learning_rate=5e-4)

report = asyncio.run(
    evaluation.evaluate(
        {"before": f"transformers:{before}", "after": f"transformers:{after}"},
        WORLD,
        evaluation.tasks_from_spec(f"counterplay.examples.ledger:tasks:heldout:{tasks}"),
        temperature=0.0,
        max_tokens=64,
        max_steps=40,
    )
)
for table in evaluation.tables(report):
    console.out.print(table)
