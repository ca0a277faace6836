"""Counterfactuals from logs alone: no model, no tools, no cost. Runs of one task are merged where they did the same.

python examples/log_only.py [LOGS ...]     (files or folders in any known format; without any, the example agent's)
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from counterplay import CounterplayError, SearchTree, Store, exporting, loop, searching
from counterplay.demo import EXAMPLE
from counterplay.parts import Asked
from counterplay.plan import Plan

logs: list[Path | str] = [*sys.argv[1:]] or [EXAMPLE / "logs.jsonl.gz"]
folder = Path(tempfile.mkdtemp())
with Store.open(folder / "s.duckdb") as store:
    taken = loop.ingest(logs, store)
    print(f"{taken.traces_added} traces; {taken.rejected_added} pieces of input could not be read")

    done = asyncio.run(searching.search(store, loop.select(store), Asked(), Plan("stitch")))
    trees = [SearchTree.from_record(store.search(name)) for name in done.searches]
    print(f"{sum(any(not node.logged for node in tree.nodes[1:]) for tree in trees)} runs have a step where another run did something else")

    for kind, export in (("SFT", exporting.export_sft), ("DPO", exporting.export_dpo)):
        try:
            dataset = export(store, folder / kind.lower(), tau=0.8)
            print(f"{dataset.rows['train']} {kind} rows in {dataset.folder}; left out: {dict(dataset.dropped) or 'nothing'}")
        except CounterplayError as error:
            print(f"no {kind} rows: {error}")
