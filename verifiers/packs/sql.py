"""The SQL pack: partial rewards for a produced query, after Reasoning-SQL: execution, syntax, schema linking and n-gram similarity.

Queries run in the sandbox (`verifiers.sandbox`) on DuckDB or SQLite; parsing needs sqlglot (`pip install 'counterplay[sql]'`).
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import Score
from counterplay.verifiers.packs import sql_compare
from counterplay.verifiers.packs.produced import Argument, FirstOf, LastBlock, OfProduced, Where
from counterplay.verifiers.sandbox import Isolation, Limits, Ran, run

if TYPE_CHECKING:
    from sqlglot import exp

_INSIDE = Path(__file__).with_name("sql_inside.py")
_LONGEST_QUERY = 20_000

QUERY = FirstOf((Argument("sql"), Argument("query"), LastBlock(("sql", "sqlite", "duckdb", ""))))


@dataclass(frozen=True)
class Database:
    """Where queries run: a data base file, which is only read, or an SQL `script` that builds one in memory for each question.

    `stamp` is the file's size and time of change, so that a verifier's fingerprint changes with the file. Raises UserError where
    neither or both are given, or there is no such file.
    """

    engine: Literal["duckdb", "sqlite"] = "duckdb"
    path: Path | None = None
    script: str = ""
    stamp: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (not self.script):
            raise UserError("got a data base with " + ("both a path and a script" if self.script else "neither a path nor a script"), "one")
        if self.path is not None:
            found = self.path.stat() if self.path.is_file() else None
            if found is None:
                raise UserError(f"got the data base {str(self.path)!r}, which is no file", "a data base file")
            object.__setattr__(self, "stamp", f"{found.st_size} bytes of {found.st_mtime_ns}")

    @cached_property
    def logs(self) -> tuple[Path, ...]:
        """Files beside the data base that hold what is not yet in it."""
        if self.path is None:
            return ()
        log = self.path.with_name(self.path.name + (".wal" if self.engine == "duckdb" else "-wal"))
        return (log,) if log.exists() and log.stat().st_size else ()


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each partial reward counts; 0 leaves it out."""

    execution: float = 3.0
    syntax: float = 1.0
    schema: float = 1.0
    ngrams: float = 1.0

    def __post_init__(self) -> None:
        values = (self.execution, self.syntax, self.schema, self.ngrams)
        if min(values) < 0 or not sum(values) > 0:
            raise UserError(f"got weights {values}", "none negative, one positive")


@dataclass(frozen=True, eq=False, kw_only=True)
class SqlRewards(OfProduced):
    """The weighted mean of the partial rewards of a produced query, each in [0, 1]; the reason names each and what differs.

    `reference` is the known right query. `execution` is 1 where both give the same rows on `database`, in the same order where the
    reference says one; `syntax` is 1 where the query can be read in `dialect`, and run where there is a data base; `schema` is the
    Jaccard index of the tables and columns named, `ngrams` that of runs of `n` tokens. What has no reference or data base to be
    compared with is left out. At most `rows` rows are compared. Raises VerifierError where the reference itself does not run or
    gives more, UserError where sqlglot, or duckdb for such a data base, is not installed.

    Pourreza et al. 2025, Reasoning-SQL: Reinforcement Learning with SQL Tailored Partial Rewards. The weights are ours.
    """

    name: ClassVar[str] = "sql"
    version: ClassVar[str] = "1"
    what: ClassVar[str] = "query"
    compares: ClassVar[bool] = False

    where: Where = QUERY
    database: Database | None = None
    dialect: str | None = None
    weights: Weights = Weights()
    n: int = 2
    rows: int = 10_000
    limits: Limits = field(default_factory=lambda: Limits(output_bytes=16 << 20))
    isolation: Isolation = "best"

    async def judge(self, text: str, reference: str, /) -> Score | None:
        parts, notes = await self.parts(text, reference)
        weights = {name: getattr(self.weights, name) for name in parts}
        counted = {name: weight for name, weight in weights.items() if weight > 0}
        if not counted:
            return None
        value = sum(weight * parts[name] for name, weight in counted.items()) / sum(counted.values())
        shown = ", ".join(f"{name} {parts[name]:.2f}" for name in counted)
        return self.score(value, "; ".join([shown, *notes]))

    async def parts(self, text: str, reference: str = "") -> tuple[dict[str, float], list[str]]:
        """The partial rewards there are, by name, and what there is to say of them."""
        dialect = self.dialect or (self.database.engine if self.database else None)
        gold = _parsed(reference, dialect) if reference.strip() else None
        if reference.strip() and isinstance(gold, str):
            raise VerifierError(f"the reference query can't be read: {gold}", f"one query in {dialect or 'standard SQL'}")
        query = _parsed(text, dialect)
        notes = [f"it can't be read: {query}"] if isinstance(query, str) else []
        parts: dict[str, float] = {}
        if self.database is not None and (self.weights.execution > 0 or self.weights.syntax > 0):
            error, different = await self._executed(text, reference, gold if not isinstance(gold, str) else None)
            if gold is not None:
                parts["execution"] = float(error is None and different is None)
            parts["syntax"] = float(error is None)
            notes += [note for note in (error, different) if note]
        else:
            parts["syntax"] = float(not isinstance(query, str))
        if gold is not None and not isinstance(gold, str):
            read = not isinstance(query, str)
            parts["schema"] = _jaccard(_schema(query), _schema(gold)) if not isinstance(query, str) else 0.0
            parts["ngrams"] = _jaccard(_ngrams(text, dialect, self.n), _ngrams(reference, dialect, self.n)) if read else 0.0
        return parts, notes

    async def _executed(self, text: str, reference: str, gold: exp.Expression | None) -> tuple[str | None, str | None]:
        """What went wrong with the query and how its rows differ from the reference's; None where nothing did, or none do."""
        queries = {"reference": reference} if gold is not None else {}
        results, ran = await self._run({**queries, "produced": text})
        wanted, got = results.get("reference"), results.get("produced")
        if gold is not None:
            if wanted is None or "error" in wanted:
                why = ran.ending if wanted is None else wanted["error"]
                raise VerifierError(f"the reference query does not run: {why}{_tail(ran)}", "a query that runs on the data base")
            if len(wanted["rows"]) > self.rows:
                raise VerifierError(f"the reference query gives more than {self.rows} rows", "fewer", "Set rows higher.")
        if got is None:
            return f"it was {ran.ending}" if ran.limit else f"it did not finish: {ran.ending}{_tail(ran)}", None
        if "error" in got:
            return str(got["error"]).splitlines()[0], None
        if gold is None or wanted is None:
            return None, None
        ordered, order = _order(gold)
        return None, sql_compare.difference(got["rows"], wanted["rows"], ordered=ordered, order=order)

    async def _run(self, queries: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], Ran]:
        database = self.database
        if database is None:  # pragma: no cover  asked with a data base alone
            raise UserError("got no data base", "one to run queries on")
        if database.engine == "duckdb" and find_spec("duckdb") is None:
            raise UserError("got a DuckDB data base, and duckdb is not installed", "duckdb", "pip install duckdb")
        secret = secrets.token_hex(16)
        copied = database.engine == "sqlite" and bool(database.logs)
        path = None if database.path is None else "copy.db" if copied else str(database.path.absolute())
        orders = {
            "secret": secret, "engine": database.engine, "path": path, "copied": copied, "script": database.script, "locked": True,
            "queries": dict(queries), "rows": self.rows, "memory_bytes": self.limits.memory_bytes,
        }  # fmt: skip
        files: dict[str, str | bytes | Path] = {"run.py": _INSIDE}
        read: list[Path] = []
        if database.path is not None and copied:
            files |= {"copy.db": database.path, "copy.db-wal": database.logs[0]}
        elif database.path is not None:
            read = [database.path, *database.logs]
        ran = await run(
            [sys.executable, "run.py"], files=files, stdin=json.dumps(orders), read=read, limits=self.limits, isolation=self.isolation
        )
        said = [json.loads(line.removeprefix(secret)) for line in ran.stdout.splitlines() if line.startswith(secret) and line.endswith("}")]
        return {line["query"]: line for line in said}, ran


def _tail(ran: Ran) -> str:
    return f": {ran.stderr.strip().splitlines()[-1][:200]}" if ran.stderr.strip() else ""


def _parsed(text: str, dialect: str | None) -> exp.Expression | str:
    """The one query in `text`, or why it can't be read."""
    sqlglot = _sqlglot()
    if len(text) > _LONGEST_QUERY:
        return f"{len(text)} characters, wanted at most {_LONGEST_QUERY}"
    try:
        found = [tree for tree in sqlglot.parse(text, dialect=dialect) if tree is not None]
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    if len(found) != 1 or not isinstance(found[0], sqlglot.exp.Query):
        return f"{len(found)} statements, wanted one query" if len(found) != 1 else f"{found[0].key}, wanted a query"
    tree: exp.Expression = found[0]
    return tree


def _sqlglot() -> Any:
    try:
        import sqlglot
        import sqlglot.errors
    except ImportError as error:
        raise UserError("got no sqlglot, which reads SQL", "the sql extra", "pip install 'counterplay[sql]'") from error
    return sqlglot


def _schema(query: exp.Expression) -> set[tuple[str, str]]:
    """The tables and columns a query names, in lower case; names that the query itself gives to its parts are neither."""
    from sqlglot import exp

    own = {cte.alias_or_name.lower() for cte in query.find_all(exp.CTE)}
    given = {alias.alias.lower() for alias in query.find_all(exp.Alias)}
    tables = {("table", table.name.lower()) for table in query.find_all(exp.Table) if table.name.lower() not in own}
    columns = {
        ("column", column.name.lower())
        for column in query.find_all(exp.Column)
        if column.name.lower() not in given
        or column.find_ancestor(exp.Order, exp.Group, exp.Having, exp.Select, exp.Alias) is column.find_ancestor(exp.Alias)
    }
    return tables | columns | {("column", "*") for _ in query.find_all(exp.Star)}


def _ngrams(text: str, dialect: str | None, n: int) -> set[tuple[str, ...]]:
    tokens = [token.text.lower() for token in _sqlglot().tokenize(text, dialect=dialect) if token.text != ";"]
    return {tuple(tokens[at : at + n]) for at in range(max(1, len(tokens) - n + 1))}


def _jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def _order(query: exp.Expression) -> tuple[bool, list[int] | None]:
    """Whether a query says an order, and the result's columns that decide it; None where they are not all among the result's."""
    from sqlglot import exp

    order = query.args.get("order")
    if order is None:
        return False, None
    selected = query.selects if isinstance(query, exp.Query) else []
    if any(column.is_star for column in selected):
        return True, None
    names = [column.alias_or_name.lower() for column in selected]
    inner = [column.unalias() for column in selected]
    found: list[int] = []
    for term in order.expressions:
        key = term.this
        if isinstance(key, exp.Literal) and key.is_int and 1 <= int(key.name) <= len(names):
            found.append(int(key.name) - 1)
        elif isinstance(key, exp.Column) and key.name.lower() in names:
            found.append(names.index(key.name.lower()))
        elif key in inner:
            found.append(inner.index(key))
        else:
            return True, None
    return True, found
