"""A verifier of your own guides a search: nothing is posted for a document that nobody looked at.

python examples/my_verifier.py
"""

import asyncio

from counterplay import Score, Store, Trajectory, loop, searching
from counterplay.demo import EXAMPLE, WORLD
from counterplay.parts import Asked
from counterplay.plan import Plan
from counterplay.verifiers.functions import verifier


@verifier
def looked_at(trajectory: Trajectory) -> Score | float:
    """A process reward: it may be asked about any prefix of a run."""
    seen: set[str] = set()
    for number, step in enumerate(trajectory.steps):
        for call in step.action.tool_calls:
            document = str((call.args or {}).get("document_id"))
            if call.name == "post_entry" and document not in seen:
                return Score(0.0, f"step {number} posts {document}, which nobody looked at")
            seen.add(document)
    return 1.0


if __name__ == "__main__":
    with Store.open(":memory:") as store:
        loop.ingest([EXAMPLE / "logs.jsonl.gz"], store)
        logged = loop.select(store, limit=50)
        print(f"it is content with {sum(looked_at(trace.trajectory) == 1.0 for trace in logged)} of {len(logged)} logged runs")

        mine = "counterplay.examples.my_verifier:looked_at"  # or the name of an installed plugin, or my_module:looked_at
        asked = Asked(f"transformers:{EXAMPLE / 'model'}", WORLD, ("outcome", mine), max_tokens=64, max_steps=40)
        failed = loop.select(store, which="failed", limit=8)
        done = asyncio.run(searching.search(store, failed, asked, Plan("repair", trace_budget="model_calls=64")))
        print(f"{done.improved} of {done.traces} failed runs have a better branch")
