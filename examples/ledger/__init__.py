"""An accounting agent: it books a ledger's documents with eleven tools and closes the period.

`Ledger` is its world, deterministic and with a ground truth; `demonstrations` is how it learned, flaws included;
`train_model` makes the small model in `model/`, and `record_logs` the logs of that model at work in `logs.jsonl.gz`.
"""

from counterplay.examples.ledger.tasks import tasks
from counterplay.examples.ledger.world import Ledger

__all__ = ["Ledger", "tasks"]
