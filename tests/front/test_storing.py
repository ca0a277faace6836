"""The store from the command line: SQL, compaction, Parquet, and what stats shows."""

import csv
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from counterplay.core.nouns import Completeness, LoggedScore, Message, Outcome, Source, Step, Trace, Trajectory
from counterplay.core.records import Rejected
from counterplay.core.store import Store


def logged(name, **fields):
    steps = (Step(Message.assistant(f"done {name}"), terminated=True),)
    return Trace(name, Trajectory((), (Message.user("hi"),), steps), Source("otlp", "a.jsonl", dialect="openinference"), **fields)


ODD = logged(
    "odd \udc80\x1b[31m",
    completeness=Completeness("partial", tools=False, dropped_attributes=3, open_spans=1, notes=("cut at 4 kB",)),
    scores=(LoggedScore.of("helpful", 4, low=1, high=5, source="human"),),
    outcome=Outcome(0.0, success=False),
)


@pytest.fixture
def store(folder):
    with Store.open(folder / "s.duckdb") as opened:
        opened.ingest([ODD, *(logged(f"t{i}", task="a", outcome=Outcome(1.0, success=True)) for i in range(250))])
        opened.ingest([logged("t0", task="b"), *(Rejected("b.jsonl", f"not JSON: 'x{i}' at byte {i}", i) for i in range(1, 4))])
        opened.count_redactions({"openai-key": 3, "email": 12})
        opened.set_watermark("langfuse://here", "2025-01-01")
    return "s.duckdb"


def test_sql_as_table_json_and_csv(cli, store):
    query = "SELECT trace, task, reward, [1, NULL] AS list FROM traces WHERE task IS NULL"
    shown = cli("sql", query, "--store", store)
    assert shown.code == 0
    assert r"odd \udc80\x1b[31m" in shown.out
    assert "\x1b" not in shown.out, "a terminal must not obey what a log says"
    (row,) = cli("sql", query, "--store", store, "--format", "json").json
    assert row == {"trace": "odd \\udc80\x1b[31m", "task": None, "reward": 0.0, "list": [1, None]}
    names, values = csv.reader(cli("sql", query, "--store", store, "--format", "csv").out.splitlines())
    assert names == ["trace", "task", "reward", "list"]
    assert json.loads(values[3]) == [1, None]


def test_sql_shows_the_first_rows_and_writes_all(cli, store):
    shown = cli("sql", "SELECT trace FROM traces", "--store", store)
    assert "the first 200 rows" in shown.err
    assert len(cli("sql", "SELECT trace FROM traces", "--store", store, "--format", "json").json) == 251
    assert cli("sql", "SELECT trace FROM traces WHERE false", "--store", store, "--format", "json").json == []


def test_sql_from_standard_input(folder, store):
    command = [sys.executable, "-m", "counterplay.cli", "sql", "-", "--store", store, "--format", "csv"]
    done = subprocess.run(command, cwd=folder, input="SELECT count(*) AS n FROM traces;\n", capture_output=True, text=True, check=True)
    assert done.stdout == "n\n251\n"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["COPY traces TO 'out.csv'"], (2, "got a statement of kind COPY")),
        (["SELECT * FROM read_text('/etc/passwd')"], (2, "A query reads this store")),
        (["SELECT 1; SELECT 2"], (2, "got 2 statements; wanted exactly one")),
        (["SELECT * FROM tracez"], (2, "wanted one over traces, steps, calls, scores, branches, messages")),
        ([""], (2, "got an empty query")),
        (["SELECT 1", "--format", "xml"], (2, "one of table, json, csv")),
        (["SELECT 1", "--max-memory", "much"], (2, "a size, such as 500MB")),
        (["SELECT count(*) FROM range(100000000000)", "--max-seconds", "0.2"], (1, "took more than 0.2 s")),
        (["SELECT length(repeat('x', 3000000000))", "--max-memory", "50MB"], (1, "took more than 50MB of memory")),
    ],
)
def test_sql_refuses_in_one_line(cli, store, folder, arguments, answer):
    code, said = answer
    ran = cli("sql", *arguments, "--store", store)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not (folder / "out.csv").exists()


def test_compact_reports_bytes_and_keeps_everything(cli, store, folder):
    before = cli("stats", "--store", store, "--json").json
    report = cli("compact", "--store", store, "--json").json
    assert report["bytes_before"] == before["file_bytes"]
    assert report["bytes_after"] == (folder / store).stat().st_size
    assert report["revisions_dropped"] == 0
    after = cli("stats", "--store", store, "--verify", "--json").json
    assert after["verified"]
    assert {k: v for k, v in after.items() if k not in ("file_bytes", "verified", "problems")} == {
        k: v for k, v in before.items() if k != "file_bytes"
    }
    assert cli("compact", "--store", store, "--drop-old-revisions", "--json").json["revisions_dropped"] == 1
    assert cli("compact", "--store", "none.duckdb").code == 2


def test_compact_forgets_what_is_older_than_asked(cli, store):
    nothing = cli("compact", "--store", store, "--drop-before", "36500d", "--json").json
    assert nothing["traces_dropped"] == 0
    traces = len(cli("sql", "SELECT trace FROM traces", "--store", store, "--format", "json").json)
    report = cli("compact", "--store", store, "--drop-before", "2100-01-01", "--json").json
    assert report["traces_dropped"] + report["traces_undated"] == traces
    assert cli("stats", "--store", store, "--verify", "--json").json["verified"]
    refused = cli("compact", "--store", store, "--drop-before", "soon")
    assert refused.code == 2
    assert "--drop-before soon" in refused.err


def test_parquet_files(cli, store, folder):
    rows = cli("export", "parquet", "--out", "tables", "--store", store, "--json").json
    assert rows["traces.parquet"] == 251
    assert pq.read_table(folder / "tables/steps.parquet").num_rows == rows["steps.parquet"] == 251
    assert cli("export", "parquet", "--out", "tables", "--store", store).code == 0


def test_stats_says_what_sources_gave_and_what_was_replaced(cli, store):
    shown = " ".join(cli("stats", "--store", store, "--verify", env={"COLUMNS": "200"}).out.split())
    for text in (
        "traces 251, and 1 older revision",
        "outcomes 249 succeeded, 1 failed, 1 not known",
        "otlp/openinference 251 traces 250 full, 1 partial 251 full 1 without tools, 3 attributes dropped, 1 spans left open",
        "1 cut at 4 kB",
        "helpful human 1 0 0.75",
        "3 not JSON: … at byte N b.jsonl:1",
        "secrets and personal data replaced 12 email, 3 openai-key",
        "read up to langfuse://here: 2025-01-01",
        "verified yes",
    ):
        assert text in shown, shown
    found = cli("stats", "--store", store, "--json").json
    assert found["quarantine"] == {"not JSON: … at byte N": 3}
    assert found["completeness"][0]["inputs"] == {"full": 250, "stitched": 0, "partial": 1, "none": 0}
