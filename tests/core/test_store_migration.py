"""Stores of every earlier schema open, keep everything, verify, and know the logs they hold.

`stores/version_N.json` holds the rows that the counterplay of schema N wrote; the tables are made from the frozen statements.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from counterplay.core.budget import Amounts
from counterplay.core.effects import Effect
from counterplay.core.errors import StoreError
from counterplay.core.nouns import (
    Call,
    Completeness,
    Grade,
    LoggedScore,
    Message,
    Outcome,
    Score,
    Source,
    Step,
    SubTrajectory,
    ToolCall,
    ToolSpec,
    Trace,
    Trajectory,
    Usage,
)
from counterplay.core.records import NodeRecord, Rejected, SearchRecord
from counterplay.core.store import ScoreRow, Store, schema

KEPT = {version: json.loads((Path(__file__).parent / f"stores/version_{version}.json").read_text()) for version in (1, 2, 3)}
NEWEST = len(schema.MIGRATIONS)

ORDER = {"type": "object", "properties": {"order": {"type": "integer"}}}
PAYMENT = {"type": "object", "properties": {"order": {"type": "integer"}, "amount": {"type": "number"}}}
LOOK = ToolSpec.function("look_up", "Look an order up", ORDER, Effect("read", "orders"))
PAY = ToolSpec.function("refund", "Pay back", PAYMENT)


def asked(name, call_id, **arguments):
    return Message.assistant(None, [ToolCall(call_id, name, json.dumps(arguments))])


def played(*tail, system="You handle refunds."):
    prompt = (Message.system(system), Message.user("Order 7 came broken. é \U0001f600"))
    found = Step(asked("look_up", "call_1", order=7), (Message.tool('{"total": 5}', "call_1"),), grades=(Grade.EXACT,))
    answers = (Message.tool("ok", "call_1"), Message.user("thanks \udc80"))
    paid = Step(asked("refund", "call_1", order=7, amount=5), answers, reward=0.5, grades=(Grade.EXACT, Grade.EXECUTED))
    return Trajectory((LOOK, PAY), prompt, (found, paid, *tail))


END = Step(Message.assistant("Done.", reasoning="nothing is left"), terminated=True, reward=1.0)
ADDER = Trajectory((), (Message.user("sum 2 and 3"),), (Step(Message.assistant("5"), sampled=False, truncated=True),))
WHOLE = Trace(
    "run/1",
    played(END),
    Source("otlp", "logs/é.jsonl", 3, "openinference"),
    (SubTrajectory(ADDER, "adder", 1, None),),
    "refund 7",
    "session-1",
    "shop",
    Outcome(1.0, True, "environment", {"why": "paid", "n": 1}),
    (
        Call(
            0,
            model="gpt-4o-2024-08-06",
            params={"temperature": 0.7, "top_p": 1},
            usage=Usage(1200, 30, 1000, 0, 0.0123),
            latency_s=1.25,
            started_at_us=1_750_000_000_000_000,
            finish_reason="tool_calls",
            response_id="chatcmpl-1",
        ),
        Call(1, model="gpt-4o-2024-08-06", usage=Usage(1300, 40), completeness=Completeness(inputs="stitched")),
        Call(2, completeness=Completeness(inputs="partial")),
        Call(0, 1, "small", completeness=Completeness(inputs="none")),
    ),
    (
        LoggedScore("helpful", 0.75, 0.75, comment="kind and quick"),
        LoggedScore("polite", 1.0, 1.0, comment="(verifier judge-model 2)"),
    ),
    ("prod", "json:odd"),
    {"tenant": {"id": 9}, "note": "json:"},
    Completeness("partial", False, True, 2, True, True, notes=("long prompts were cut",)),
    1_750_000_000_000_000,
    1_750_000_009_000_000,
)
BARE = Trace("run/2", played(), Source("chatlog"))
B_LINE = Source("chatlog", "b.jsonl", 1)
FIRST = Trace("run/3", played(), B_LINE, task="refund 7", outcome=Outcome(0.0, False, "judge"))
LATER = Trace(
    "run/3",
    played(END, system="You handle refunds well."),
    B_LINE,
    task="refund 7",
    outcome=Outcome(1.0, True, "judge"),
    calls=(Call(0), Call(1), Call(2)),
)
LESS = Step(asked("refund", "c9", order=7, amount=4), (Message.tool("ok", "c9"),), grades=(Grade.SIMULATED,))
SEARCH = SearchRecord(
    "run/1@1",
    "mcts",
    played(END).prefix(1),
    (
        NodeRecord(0, None, None, visits=3),
        NodeRecord(1, 0, LESS, 0.5, -1.5, 2, 1.0, 2, False, Score(0.25, "too little", "judge", "1")),
        NodeRecord(2, 1, Step(Message.assistant("Bye."), terminated=True, reward=0.0), visits=1, value_sum=0.25),
    ),
    "run/1",
    "refund 7",
    1,
    {"c_puct": 1.25},
    "budget",
    Amounts(simulations=3, model_calls=4, tokens=99, usd=0.5),
)
REJECTED = Rejected("c.jsonl", "not JSON: \udc80", 9, 120, "{")
OPINIONS = [
    ScoreRow(WHOLE.trajectory.key, "judge", "2", None, error="refused"),
    ScoreRow(WHOLE.trajectory.key, "outcome", "1", 1.0, "why"),
]


def make_old(path, version):
    """The file as the counterplay of that schema left it."""
    tables = {name: table for name, table in KEPT[version].items() if isinstance(table, dict)}
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE migration (version INTEGER NOT NULL, at_us BIGINT NOT NULL)")
        for migration in schema.MIGRATIONS[:version]:
            connection.execute(migration.statements)
        for name, table in tables.items():
            casts = ["TRY_CAST(TRY_CAST(? AS JSON) AS VARIANT)" if column == "attributes" else "?" for column in table["columns"]]
            for row in table["rows"]:
                connection.execute(f"INSERT INTO {name} VALUES ({', '.join(casts)})", row)


@pytest.fixture(params=range(1, NEWEST))
def old(request, tmp_path):
    path = tmp_path / f"version_{request.param}.duckdb"
    make_old(path, request.param)
    return path


def digests(path):
    with duckdb.connect(str(path), read_only=True) as connection:
        return dict(connection.execute("SELECT number, digest::VARCHAR FROM trace").fetchall())


def test_every_earlier_schema_has_a_kept_store():
    assert sorted(KEPT) == list(range(1, NEWEST))


def test_everything_is_kept(old):
    with Store.open(old) as store:
        assert list(store.load()) == [WHOLE, BARE, LATER]
        assert store.revisions("run/3") == [FIRST, LATER]
        assert store.search("run/1@1") == SEARCH
        assert store.rejected() == [REJECTED]
        assert store.scores() == sorted(OPINIONS, key=lambda score: (score.key, score.verifier))
        assert store.journal("a").get("k") == "answer"
        assert store.verify() == []
        assert store.stats().reused_call_ids == 3
        assert store._records("SELECT version FROM migration ORDER BY version") == [{"version": n} for n in range(1, NEWEST + 1)]
        assert len(store.salt) == 32
    with Store.open(old, read_only=True) as store:
        assert list(store.load()) == [WHOLE, BARE, LATER]


def test_it_is_as_if_written_today_and_the_same_logs_add_nothing(old):
    with Store.open(":memory:") as fresh, Store.open(old) as store:
        fresh.ingest([WHOLE, BARE, FIRST, REJECTED])
        fresh.ingest([LATER])
        fresh.put_search(SEARCH)
        fresh.put_scores(OPINIONS)
        assert store.content_digest() == fresh.content_digest()
        again = store.ingest([WHOLE, BARE, FIRST, LATER, REJECTED])
        assert (again.traces_known, again.traces_added, again.traces_updated, again.nodes_added, again.rejected_added) == (4, 0, 0, 0, 0)
        assert not store.put_search(SEARCH)
        assert store.content_digest() == fresh.content_digest()
        assert store.verify() == []


def test_a_digest_changes_only_where_its_trace_says_something_new(old):
    before = digests(old)
    Store.open(old).close()
    after = digests(old)
    changed = [number for number in before if before[number] != after[number]]
    assert changed == ([1] if "version_1" in old.name else []), "its scores have a new form in the second"


def test_traces_are_digested_anew_a_few_at_a_time(tmp_path, monkeypatch):
    old = tmp_path / "s.duckdb"
    make_old(old, 1)
    monkeypatch.setattr(schema, "_BATCH", 1)
    with duckdb.connect(str(old)) as connection:
        connection.execute("INSERT INTO trace_score SELECT * REPLACE (3 AS trace_number) FROM trace_score")
    with Store.open(old) as store:
        assert [problem for problem in store.verify() if problem.table == "trace"] == []
        assert [score.name for score in store.revisions("run/3")[0].scores] == ["helpful", "polite"]


def test_reading_an_old_store_says_what_to_do_and_changes_nothing(old):
    before = old.read_bytes()
    with pytest.raises(StoreError, match=rf"schema version \d; wanted {NEWEST} to read it.*counterplay compact --store {old}"):
        Store.open(old, read_only=True)
    assert old.read_bytes() == before


def test_a_migration_that_fails_leaves_the_old_store(old, monkeypatch):
    before = digests(old)
    failing = schema.Migration("CREATE TABLE extra (a INTEGER); SELECT error('no')")
    with monkeypatch.context() as changed:
        changed.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, failing))
        with pytest.raises(StoreError, match=rf"{old} can't be brought to schema version {NEWEST + 1}.*nothing was changed"):
            Store.open(old)
    assert digests(old) == before
    with duckdb.connect(str(old), read_only=True) as connection:
        assert connection.execute("SELECT max(version) FROM migration").fetchall()[0][0] < NEWEST
    with Store.open(old) as store:
        assert list(store.load()) == [WHOLE, BARE, LATER]


def test_a_migration_killed_half_way_is_done_again(old):
    kill = """
import os, signal, sys
from counterplay.core.store import Store, schema
schema.make_salt = lambda connection: os.kill(os.getpid(), signal.SIGKILL)
Store.open(sys.argv[1])
"""
    assert subprocess.run([sys.executable, "-c", kill, old], check=False, env=dict(os.environ)).returncode == -9
    with Store.open(old) as store:
        assert list(store.load()) == [WHOLE, BARE, LATER]
        assert store.verify() == []
    assert sorted(file.name for file in old.parent.iterdir()) == [old.name]
