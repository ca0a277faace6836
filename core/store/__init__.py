"""The store: everything counterplay keeps, in one DuckDB file. Only this package imports duckdb."""

from counterplay.core.store.asking import Answer, ask
from counterplay.core.store.compacting import Compacted, compact
from counterplay.core.store.ledger import By, Costs, Spent
from counterplay.core.store.rows import (
    SETTLED,
    UNIT_STATES,
    IngestReport,
    JobRow,
    LightRow,
    NewUnit,
    Problem,
    ScoreRow,
    SearchRow,
    Selection,
    Settled,
    Stats,
    TraceRow,
    TrajectoryRow,
    UnitRow,
    UnitState,
)
from counterplay.core.store.store import Store

__all__ = [
    "SETTLED",
    "UNIT_STATES",
    "Answer",
    "By",
    "Compacted",
    "Costs",
    "IngestReport",
    "JobRow",
    "LightRow",
    "NewUnit",
    "Problem",
    "ScoreRow",
    "SearchRow",
    "Selection",
    "Settled",
    "Spent",
    "Stats",
    "Store",
    "TraceRow",
    "TrajectoryRow",
    "UnitRow",
    "UnitState",
    "ask",
    "compact",
]
