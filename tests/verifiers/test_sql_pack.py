"""The SQL pack: partial rewards by hand, results compared sensibly, real files, and hostile queries contained."""

import json
import os
import runpy
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask_all
from counterplay.core.protocols import fingerprint_of
from counterplay.verifiers.packs import sql
from counterplay.verifiers.packs.base import ByPrefix
from counterplay.verifiers.packs.sql import Database, SqlRewards, Weights
from counterplay.verifiers.packs.sql_compare import difference, same
from counterplay.verifiers.sandbox import Limits, available, run_sync
from tests.verifiers.produced_code import block, called, hostile, said

pytest.importorskip("sqlglot", reason="the sql extra is not installed")
isolated = pytest.mark.skipif(not available(), reason="neither bubblewrap nor Landlock works on this machine")
SALES = """
create table city(id integer, name text, canton text);
create table sale(id integer, city_id integer, amount decimal(10, 2), day text);
insert into city values (1, 'Bern', 'BE'), (2, 'Basel', 'BS'), (3, 'Thun', 'BE');
insert into sale values (1, 1, 10.5, '2024-01-01'), (2, 2, 3, '2024-01-02'), (3, 1, null, '2024-01-02'), (4, 3, 10.5, '2024-01-03');
"""
ENGINES = ("duckdb", "sqlite")
ONLY_EXECUTION = Weights(execution=1, syntax=0, schema=0, ngrams=0)


def asked(query):
    return said(block(query, "sql"))


def rewards(engine="sqlite", **settings):
    return SqlRewards(database=Database(engine, script=SALES), **settings)


# --- partial rewards by hand ----------------------------------------------------------------------------------------------------------


async def test_schema_linking_and_ngrams_are_jaccard_indices():
    verifier = SqlRewards(reference="SELECT name FROM city WHERE canton = 'BE'")
    parts, notes = await verifier.parts("SELECT name, id FROM City WHERE canton = 'BS'", verifier.reference)
    # tables and columns: {city, name, canton} of {city, name, canton, id}
    assert parts["schema"] == 3 / 4
    # bigrams: 7 and 9; shared: select-name, from-city, city-where, where-canton, canton-=
    assert parts["ngrams"] == 5 / 11
    assert parts["syntax"] == 1.0
    assert "execution" not in parts
    assert notes == []
    assert (await verifier(asked(verifier.reference))).value == 1.0


async def test_names_that_a_query_gives_itself_are_no_schema():
    verifier = SqlRewards(reference="select name from city")
    text = "with c as (select name as n from city) select n from c order by n"
    assert (await verifier.parts(text, verifier.reference))[0]["schema"] == 1.0
    text = "select sum(amount) as amount from sale order by amount"
    assert (await verifier.parts(text, "select amount from sale"))[0]["schema"] == 1.0


async def test_what_can_t_be_read_has_no_partial_reward():
    verifier = SqlRewards(reference="select name from city")
    for text in ("selec name", "select name from", "", "drop table city", "select 1; select 2", "(" * 15_000, "x" * 30_000):
        parts, notes = await verifier.parts(text, verifier.reference)
        assert set(parts.values()) == {0.0}, text
        assert notes[0].startswith("it can't be read")


@isolated
async def test_the_weighted_mean_of_what_there_is():
    reference = "select name from city where canton = 'BE'"
    text = "select name from city where canton = 'BS'"
    weights = Weights(execution=3, syntax=1, schema=1, ngrams=1)
    score = await rewards(reference=reference, weights=weights)(asked(text))
    assert score.value == pytest.approx((0 + 1 + 1 + 6 / 8) / 6)
    assert score.reason.startswith("execution 0.00, syntax 1.00, schema 1.00, ngrams 0.75; 1 rows, wanted 2")
    score = await rewards(reference=reference, weights=ONLY_EXECUTION)(asked(text))
    assert score.value == 0.0
    score = await rewards()(asked(text))  # no reference: it runs, or it does not
    assert (score.value, score.reason) == (1.0, "syntax 1.00")
    assert (await rewards()(asked("select nothing from city"))).value == 0.0


# --- execution ------------------------------------------------------------------------------------------------------------------------


ALIKE = [
    ("select name from city order by id desc", "select name from city"),
    ("select name from city order by name", "select name from city order by name"),
    (
        "select id, amount from sale where amount > 0 order by amount, id desc",
        "select id, amount from sale where amount > 0 order by amount",
    ),
    ("select amount * 1.0000000001 from sale", "select amount from sale"),
    ("select count(*) as n from city", "select 3.0"),
    ("select name from city where 1 = 0", "select name from city where id > 9"),
    ("with recursive n(i) as (select 1 union all select i + 1 from n where i < 3) select i from n", "select id from city"),
]
UNLIKE = [
    ("select name from city order by name desc", "select name from city order by name"),
    ("select id, amount from sale order by amount, id", "select id, amount from sale order by amount, id desc"),
    ("select distinct amount from sale", "select amount from sale"),
    ("select coalesce(amount, 0) from sale", "select amount from sale"),
    ("select name, id from city", "select id, name from city"),
    ("select '3'", "select 3"),
    ("select name from city limit 1", "select name from city"),
]


@isolated
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("query", "reference", "equal"), [(*pair, pair in ALIKE) for pair in (*ALIKE, *UNLIKE)])
async def test_results_are_compared_as_a_person_would(engine, query, reference, equal):
    score = await rewards(engine, reference=reference, weights=ONLY_EXECUTION)(asked(query))
    assert score.value == float(equal), score.reason


def test_values():
    assert same(None, None)
    assert not same(None, 0)
    assert same(1, 1.0)
    assert same(1, {"number": "1.00"})
    assert same(0.1 + 0.2, 0.3)
    assert same(float("nan"), float("nan"))
    assert not same("1", 1)
    assert not same(2**60, 2**60 + 1)
    assert same({"time": "2024-01-01"}, {"time": "2024-01-01"})
    assert same([1, [2.0]], [1.0, [2]])
    assert not same([1], [1, 2])
    assert same({"number": "NaN"}, float("nan"))


def test_rows():
    assert difference([], []) is None
    assert difference([[1], [2]], [[2], [1]]) is None
    assert difference([[1], [2]], [[2], [1]], ordered=True) == "row 0: (1), wanted (2)"
    assert difference([[1], [1]], [[1], [2]]) == "a row that is not wanted: (1)"
    assert difference([["a", 1.0], ["a", 2.0]], [["a", 2.0000001], ["a", 0.9999999]]) is None
    near = [[1.0000001, 2], [1.0, 1]]  # sorted by the first number they come in another order than their partners
    assert difference(near, [[1.0, 2], [1.0000001, 1]]) is None
    assert difference([["x", 1], ["y", 1]], [["y", 1], ["x", 1]], ordered=True, order=[1]) is None
    assert difference([[1]], [[1, 2]]) == "1 columns, wanted 2"
    assert difference([[None]], [["NULL"]]) is not None


@isolated
async def test_kinds_of_duckdb():
    kinds = "date '2024-01-01', timestamp '2024-01-01 00:00:00', interval 1 day, [1, 2.5], {'a': 1}, 'x'::blob, 1::hugeint << 90, "
    kinds += "1.5::decimal(4, 2), true, time '01:02:03', uuid '6ccd780c-baba-1026-9564-5b8c656024db'"
    verifier = SqlRewards(database=Database("duckdb", script="select 1"), reference=f"select {kinds}", weights=ONLY_EXECUTION)
    assert (await verifier(asked(f"select {kinds}"))).value == 1.0
    assert (await verifier(asked(f"select {kinds.replace('2.5', '2.4')}"))).value == 0.0
    zoned = SqlRewards(
        database=verifier.database, reference="select timestamptz '2024-01-01 12:00:00+00' as at, 1;", weights=ONLY_EXECUTION
    )
    scores = await ask_all(zoned, [asked(f"select timestamptz '2024-01-01 {hour}:00:00+01', 1 -- x") for hour in (13, 14)])
    assert [score.value for score in scores] == [1.0, 0.0]


@isolated
async def test_files_are_read_and_never_changed(tmp_path):
    tmp_path.chmod(0o755)
    lite, duck = tmp_path / "a b?.sqlite", tmp_path / "a.duckdb"
    with sqlite3.connect(lite) as connection:
        connection.executescript(SALES)
    connection.close()
    import duckdb

    with duckdb.connect(str(duck)) as connection:
        connection.execute(SALES)
    for engine, path in (("sqlite", lite), ("duckdb", duck)):
        before = path.read_bytes()
        verifier = SqlRewards(database=Database(engine, path), reference="select count(*) from sale", weights=ONLY_EXECUTION)
        scores = await ask_all(
            verifier, [asked("select 4"), asked("select count(*) from city"), asked("delete from sale returning 4"), asked("select 4")]
        )
        assert [score.value for score in scores] == [1.0, 0.0, 0.0, 1.0]
        assert path.read_bytes() == before
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted([lite.name, duck.name])
    first = fingerprint_of(verifier)
    os.utime(duck, (1, 1))
    assert fingerprint_of(replace(verifier, database=Database(engine, path))) != first


@isolated
async def test_a_sqlite_file_with_a_log_beside_it(tmp_path):
    path = tmp_path / "live.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    connection.executescript(SALES)
    assert path.with_name("live.sqlite-wal").stat().st_size > 0
    verifier = SqlRewards(database=Database("sqlite", path), reference="select count(*) from sale", weights=ONLY_EXECUTION)
    assert (await verifier(asked("select 4"))).value == 1.0
    connection.close()


@isolated
async def test_a_reference_that_does_not_run_is_an_error_not_a_score():
    with pytest.raises(VerifierError, match="does not run"):
        await rewards(reference="select missing from city")(asked("select 1"))
    with pytest.raises(VerifierError, match="can't be read"):
        await rewards(reference="selec")(asked("select 1"))
    with pytest.raises(VerifierError, match="more than 2 rows"):
        await rewards(reference="select * from city", rows=2)(asked("select 1"))


# --- hostile queries -------------------------------------------------------------------------------------------------------------------

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
REFUSED = {
    "duckdb": [
        "select * from read_csv('/etc/passwd')", "select * from read_text('/proc/1/environ')", "select * from '/etc/passwd'",
        "select * from glob('/etc/*')", "copy (select 1) to '/tmp/counterplay-sql-owned.csv'", "copy (select 1) to '/dev/stdout'",
        "attach '/tmp/counterplay-sql-owned.db' as o", "attach 'https://example.org/x.db' as o", "install httpfs", "load httpfs",
        "install sqlite; load sqlite", "export database '/tmp/counterplay-sql-owned'", "set enable_external_access = true; select 1",
        "pragma database_list", "select getenv('HOME')", "select * from orders", "select * from secret", "call pragma_version()",
        "select size from read_text('run.py')",
        "create table x as select 1", "select * from read_parquet('https://example.org/x')", "checkpoint", "import database '/etc'",
    ],
    "sqlite": [
        "attach '/tmp/counterplay-sql-owned.db' as o", "select load_extension('/tmp/x.so')", "select readfile('/etc/passwd')",
        "select writefile('/tmp/counterplay-sql-owned', 'x')", "pragma journal_mode = delete", "vacuum into '/tmp/counterplay-sql-owned'",
        "create table x(i)", "insert into city values (9, 'x', 'x') returning 1", "create virtual table x using fts5(a)", "begin",
        "select fts3_tokenizer('x', x'00')", "pragma database_list",
    ],
}  # fmt: skip


@isolated
@pytest.mark.parametrize("engine", ENGINES)
async def test_hostile_queries_are_refused_by_the_engine_s_own_locks(engine):
    results, ran = await rewards(engine)._run({query: query for query in REFUSED[engine]})
    assert list(results) == REFUSED[engine]
    for query, said_of_it in results.items():
        assert "error" in said_of_it or said_of_it["rows"] in ([], [[None]]), query
    assert "root:" not in ran.stdout
    assert owned() == []


def owned():
    return [*Path("/tmp").glob("counterplay-sql-owned*"), *Path("/dev/shm").glob("counterplay-sql-owned*")]


UNLOCKED = [
    "select * from read_csv('/etc/passwd')", "select * from read_text('/etc/passwd')", "select * from glob('/etc/*')",
    "copy (select 1) to '/tmp/counterplay-sql-owned.csv'", "copy (select 1) to '/dev/shm/counterplay-sql-owned.csv'",
    "attach '/tmp/counterplay-sql-owned.db' as o", "install httpfs", "install httpfs from 'http://127.0.0.1:9/x'",
    "select getenv('COUNTERPLAY_TEST_SECRET')", "export database '/tmp/counterplay-sql-owned'", "load '/tmp/counterplay-sql-owned.so'",
    "select * from read_text('/proc/1/environ')", "select * from read_text('/proc/self/environ')",
]  # fmt: skip


@isolated
def test_the_sandbox_holds_where_duckdb_s_own_locks_are_off(monkeypatch):
    monkeypatch.setenv("COUNTERPLAY_TEST_SECRET", "hunter2")
    orders = {"secret": "S", "engine": "duckdb", "path": None, "script": SALES, "locked": False, "rows": 100, "copied": False}
    orders |= {"memory_bytes": 1 << 29, "queries": {query: query for query in (*UNLOCKED, "copy (select 1) to 'inside.csv'")}}
    ran = run_sync([sys.executable, "run.py"], files={"run.py": sql._INSIDE}, stdin=json.dumps(orders), limits=Limits(wall_s=60))
    results = {line["query"]: line for line in (json.loads(text.removeprefix("S ")) for text in ran.stdout.splitlines())}
    assert results.pop("copy (select 1) to 'inside.csv'")["rows"] == [[1]]  # the locks are off
    assert list(results) == UNLOCKED
    for query, said_of_it in results.items():
        assert "error" in said_of_it or said_of_it["rows"] in ([], [[None]], [[""]]), query
    assert "hunter2" not in ran.stdout
    assert "root:" not in ran.stdout
    assert owned() == []


@isolated
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("query", [ENDLESS, "select replace(hex(zeroblob(300000000)), '00', 'xxxxxxxxxxxxxxxx')"])
async def test_queries_that_use_too_much_are_stopped(engine, query):
    limits = Limits(wall_s=60, cpu_s=2, memory_bytes=400 << 20, output_bytes=1 << 20, disk_bytes=16 << 20)
    query = query.replace("hex(zeroblob(300000000))", "repeat('00', 300000000)") if engine == "duckdb" else query
    score = await rewards(engine, reference="select 4711", weights=ONLY_EXECUTION, limits=limits)(asked(query))
    assert score.value == 0.0
    assert "it was stopped at its cpu limit" in score.reason or "emory" in score.reason or "too big" in score.reason, score


# --- in use -----------------------------------------------------------------------------------------------------------------------------


@isolated
async def test_every_hostile_trajectory_is_survived_and_prefixes_have_no_opinion():
    verifier = rewards(reference="select 1")
    answers = await ask_all(verifier, list(hostile()))
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert await verifier(said("thinking")) is None
    assert (await verifier(said("no idea", ended=True))).reason == "it ended and produced no query"
    assert (await verifier(called("run_sql", '{"query": "select 1"}'))).value == 1.0


@isolated
async def test_references_of_each_task():
    references = ByPrefix.of([(said("x", question="how many?"), "select count(*) from city")])
    verifier = rewards(reference=references, weights=ONLY_EXECUTION)
    scores = await ask_all(verifier, [said(block("select 3", "sql"), question=question) for question in ("how many?", "which?")])
    assert [score and score.value for score in scores] == [1.0, None]


@isolated
async def test_the_example():
    rewards = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "packs" / "text_to_sql.py"))["rewards"]
    unpaid = "select round(sum(i.amount), 2) from invoice i where i.paid is null"
    trajectories = [said(block(unpaid, "sql"), question=question) for question in ("How much is unpaid?", "Who is late?")]
    score, none = await ask_all(rewards, trajectories)
    assert score.reason.startswith("execution 1.00, syntax 1.00, schema 1.00, ngrams ")
    assert none is None


def test_settings_that_make_no_sense():
    with pytest.raises(UserError, match="neither"):
        Database("sqlite")
    with pytest.raises(UserError, match="both"):
        Database("sqlite", Path("x"), "select 1")
    with pytest.raises(UserError, match="no file"):
        Database("sqlite", Path("no-such.db"))
    with pytest.raises(UserError, match="weights"):
        Weights(0, 0, 0, 0)
    with pytest.raises(UserError, match="weights"):
        Weights(execution=-1)


async def test_without_sqlglot_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlglot", None)
    with pytest.raises(UserError, match="sql extra"):
        await SqlRewards()(asked("select 1"))
