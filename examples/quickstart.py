"""Logged runs in, better branches found, a dataset out: twenty failed runs of the example agent, in some ten seconds.

python examples/quickstart.py [FOLDER]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from counterplay import SearchTree, Store, exporting, loop, searching
from counterplay.demo import EXAMPLE, WORLD
from counterplay.parts import Asked
from counterplay.plan import Plan

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
with Store.open(folder / "s.duckdb") as store:
    loop.ingest([EXAMPLE / "logs.jsonl.gz"], store)
    failed = loop.select(store, which="failed", limit=20)

    asked = Asked(
        policy=f"transformers:{EXAMPLE / 'model'}", environment=WORLD, verifiers=("outcome", "ledger"), max_tokens=64, max_steps=40
    )
    done = asyncio.run(searching.search(store, failed, asked, Plan("repair")))
    print(f"{done.improved} of {done.traces} failed runs have a better branch, for {done.live_calls} model calls")

    tree = SearchTree.from_record(store.search(done.searches[0]))
    best = tree.best()
    if best is not None and best.score is not None:
        print(f"the first one scores {best.score.value:g}: {best.score.reason}")

    dataset = exporting.export_sft(store, folder / "better", tokenizer=str(EXAMPLE / "model"))
    print(f"{dataset.rows['train']} rows to train on are in {dataset.folder}")
